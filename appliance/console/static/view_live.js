// SPDX-License-Identifier: Apache-2.0
// The view Live: the newest image, what was done to it and found in it, and how the pipeline is doing.

import { live } from "./live.js";
import { element as el, fill, onStatus, set } from "./page.js";
import { panels, showFindings, showShown, showStatus } from "./panels.js";
import { Picture, placeOf, shapesOf } from "./picture.js";
import { Sparkline } from "./sparkline.js";

const MOST_REMARKS = 3;
const FINDING_STAYS_NS = 4e9; // of the scanner's time: a finding may be of one image among thirty a second

let ui = {};
let picture = null;
let newest = null; // {header, pixels}
let seen = false;
let ended = "";
let remarked = "";
let ofSecond = { worstMs: null, shown: 0, first: null, last: null }; // of the images since the last status

function markWords(mark) {
  return mark.stage === "tracking" ? `NO POSITION: ${mark.reason}` : `UNPROCESSED by ${mark.stage}: ${mark.reason}`;
}

// What the list beside the image holds, as far as it was found in the last seconds: the banner never says more than
// the list. Of one fault only the newest.
function newFindings(header) {
  const found = new Map();
  for (const one of header.recent_findings || []) {
    const key = `${one.kind} ${one.where.coil}`;
    if (header.acquired_ns - one.last_ns < FINDING_STAYS_NS && !found.has(key)) found.set(key, one);
  }
  return [...found.values()];
}

function showRemarks(header) {
  const found = newFindings(header);
  found.sort((a, b) => (b.severity === "alarm") - (a.severity === "alarm"));
  const remarks = header.marks.map((mark) => [markWords(mark), "warning", ""]);
  for (const one of found) {
    const here = one.sequence === header.sequence ? "in this image" : "seconds ago";
    remarks.push([one.message, one.severity, here, placeOf(one)]);
  }
  if (remarks.length > MOST_REMARKS) {
    const more = remarks.splice(MOST_REMARKS - 1);
    const worst = more.some(([, severity]) => severity === "alarm") ? "alarm" : "warning";
    remarks.push([`${more.length} more: see the list`, worst, ""]);
  }
  if (!remarks.length) remarks.push(["No remarks on this image", "none", ""]);
  const text = JSON.stringify(remarks);
  if (text !== remarked) {
    const where = (place) => (place ? el("span", { class: "where" }, place) : "");
    fill(ui.marks, remarks.map(([words, kind, when, place]) => el("li", { class: kind }, where(place), words, when && el("small", {}, when))));
  }
  remarked = text;
  picture.mark(found.flatMap((one) => shapesOf(one, header)));
  set(ui.applied, header.provenance.length ? `Applied: ${header.provenance.join(" → ")}` : "Nothing applied");
}

function take(preview) {
  const { header } = preview;
  newest = preview;
  ofSecond.worstMs = Math.max(ofSecond.worstMs || 0, header.age_ms);
  ofSecond.shown += 1;
  if (ofSecond.first === null || header.sequence < ofSecond.first) ofSecond.first = header.sequence;
  ofSecond.last = header.sequence;
  if (seen) show();
}

function show() {
  if (!newest) return;
  const { header, pixels } = newest;
  picture.show(header, pixels);
  showRemarks(header);
  const unseen = header.marks.find((mark) => mark.stage.startsWith("detect_anomalies"));
  showFindings(header.recent_findings, unseen ? `This image was not looked at: ${unseen.reason}` : "");
  showButtons();
}

function showSecond(status) {
  const own = status.processes[`pipeline-${live.pipeline}`] || {};
  showStatus(own);
  const snr = Object.values(own.stages || {}).map((stage) => stage.snr_db).find((value) => typeof value === "number");
  const isLive = live.verdict()[0] === "live";
  ui.snr.add(isLive && snr !== undefined ? snr : null);
  ui.latency.add(ofSecond.worstMs);
  const came = ofSecond.shown ? Math.max(ofSecond.shown, ofSecond.last - ofSecond.first + 1) : 0;
  showShown(ofSecond.shown, came);
  ofSecond = { worstMs: null, shown: 0, first: null, last: null };
}

function showVerdict([kind, word, sentence]) {
  set(ui.bannerTitle, word);
  set(ui.bannerText, live.state === "ended" && ended ? `${sentence}: ${ended}` : sentence);
  const isAfter = !picture.hasBefore || (picture.split === 0 && !picture.removed);
  set(ui.picture, undefined, `picture ${kind}${isAfter ? "" : " not-after"}`);
}

function forget() {
  newest = null;
  picture.clear();
  ui.marks.textContent = "";
  remarked = ended = "";
  ui.snr.clear();
  ui.latency.clear();
  showFindings(null);
}

function showButtons() {
  const { split, removed, hasBefore } = picture;
  const pressed = { before: !removed && split === 1, compare: !removed && split > 0 && split < 1, removed };
  for (const [name, on] of Object.entries(pressed)) {
    ui[name].setAttribute("aria-pressed", String(hasBefore && on));
    ui[name].disabled = !hasBefore;
  }
}

function listen() {
  live.addEventListener("preview", ({ detail }) => take(detail));
  live.addEventListener("state", ({ detail }) => {
    ended = detail.reason || "";
    showFindings(detail.recent_findings);
  });
  live.addEventListener("pipeline", forget);
  picture.onChange = showButtons;
  const splitTo = (part) => picture.setSplit(!picture.removed && picture.split === part ? 0 : part);
  ui.before.addEventListener("click", () => splitTo(1));
  ui.compare.addEventListener("click", () => splitTo(0.5));
  ui.removed.addEventListener("click", () => picture.setRemoved(!picture.removed));
  ui.smooth.addEventListener("click", () => {
    const smooth = ui.smooth.getAttribute("aria-pressed") !== "true";
    ui.smooth.setAttribute("aria-pressed", String(smooth));
    picture.canvas.classList.toggle("nearest", !smooth);
  });
  document.addEventListener("keydown", (event) => {
    if (!seen || event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
    const button = { b: ui.before, c: ui.compare, r: ui.removed, s: ui.smooth }[event.key.toLowerCase()];
    if (button) button.click();
  });
  live.addEventListener("verdict", ({ detail }) => showVerdict(detail));
  onStatus(showSecond);
}

function button(id, pressed, ...words) {
  return el("button", { id, type: "button", "aria-pressed": String(pressed) }, ...words);
}

export function mount(root) {
  ui = {
    picture: el("section", { id: "picture", class: "picture waiting" }),
    bannerTitle: el("strong", { id: "banner-title" }, "NO LIVE DATA"),
    bannerText: el("span", { id: "banner-text" }, "connecting"),
    marks: el("ul", { id: "marks", class: "marks", "aria-label": "Remarks on this image" }),
    before: button("before", false, el("b", {}, "B"), "efore"),
    compare: button("compare", false, el("b", {}, "C"), "ompare"),
    removed: button("removed", false, el("b", {}, "R"), "emoved"),
    smooth: button("smooth", true, el("b", {}, "S"), "mooth"),
    applied: el("p", { id: "applied", class: "applied" }),
    snr: new Sparkline("Signal to noise", "dB", "raw data, median coil", 3, false),
    latency: new Sparkline("Latency", "ms", "last byte to here, worst of each second", 20, true),
  };
  picture = new Picture(ui.picture);
  ui.picture.append(el("div", { id: "banner", class: "banner" }, ui.bannerTitle, ui.bannerText));
  const controls = el("div", { class: "controls" }, ui.before, ui.compare, ui.removed, ui.smooth, ui.applied);
  root.append(ui.picture, ui.marks, controls, panels([ui.snr.root, ui.latency.root]));
  listen();
  return {
    show() {
      seen = true;
      show();
      picture.fit();
    },
    hide() {
      seen = false;
    },
  };
}
