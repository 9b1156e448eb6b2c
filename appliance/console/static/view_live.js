// SPDX-License-Identifier: Apache-2.0
// The view Live: the newest image, what was done to it and found in it, and how the pipeline is doing.

import { live } from "./live.js";
import { element as el, fill, onStatus, set } from "./page.js";
import { panels, showStatus } from "./panels.js";

const TICK_MS = 50;
const FINDING_STAYS_MS = 4000;
const PLANES = { after: "", before: "BEFORE: unprocessed image", removed: "REMOVED: before less after, 8 times as strong" };

let ui = {};
let newest = null; // {header, pixels}
let shown = "after"; // one of PLANES, in the order in which the server sends them
let ended = "";
let seen = false;
const findings = new Map(); // kind and coil -> {message, severity, until}
let remarked = "";

function draw() {
  if (!newest || !seen) return;
  const { header, pixels } = newest;
  const n = header.width * header.height;
  const plane = header.original ? shown : "after";
  const start = n * Object.keys(PLANES).indexOf(plane);
  const grey = pixels.subarray(start, start + n);
  if (ui.canvas.width !== header.width || ui.canvas.height !== header.height) {
    ui.canvas.width = header.width;
    ui.canvas.height = header.height;
  }
  const context = ui.canvas.getContext("2d");
  const image = context.createImageData(header.width, header.height);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < n; i++) words[i] = 0xff000000 | (grey[i] * 0x010101);
  context.putImageData(image, 0, 0);
  fit(header);
  ui.which.hidden = plane === "after";
  set(ui.which, PLANES[plane], "which before");
  ui.before.disabled = ui.removed.disabled = !header.original;
}

function fit(header) {
  const [dx, dy] = header.pixel_mm;
  const width = header.width * dx;
  const height = header.height * dy;
  const scale = Math.min(ui.picture.clientWidth / width, ui.picture.clientHeight / height);
  ui.canvas.style.width = `${width * scale}px`;
  ui.canvas.style.height = `${height * scale}px`;
}

// Marks belong to the image that is seen. Findings may be of one image among thirty a second: they stay a while.
function showRemarks(header) {
  const now = performance.now();
  for (const found of header.findings) {
    const { message, severity } = found;
    findings.set(`${found.kind} ${found.where.coil}`, { message, severity, until: now + FINDING_STAYS_MS });
  }
  for (const [key, found] of findings) if (found.until < now) findings.delete(key);
  const marks = header.marks.map((mark) => [`UNPROCESSED by ${mark.stage}: ${mark.reason}`, "warning"]);
  const remarks = [...marks, ...[...findings.values()].map((found) => [found.message, found.severity])];
  const text = remarks.join();
  if (text !== remarked) fill(ui.marks, remarks.map(([words, kind]) => el("li", { class: kind }, words)));
  remarked = text;
  set(ui.applied, header.provenance.length ? `Applied: ${header.provenance.join(" → ")}` : "Nothing applied");
}

function tick() {
  const [kind, word, sentence] = live.verdict();
  set(ui.bannerTitle, word);
  set(ui.bannerText, live.state === "ended" && ended ? `${sentence}: ${ended}` : sentence);
  set(ui.picture, undefined, `picture ${kind}`);
}

function forget() {
  newest = null;
  ui.canvas.width = ui.canvas.height = 1;
  findings.clear();
  ui.marks.textContent = "";
  remarked = "";
}

function toggle(button, change) {
  button.addEventListener("click", () => {
    const pressed = button.getAttribute("aria-pressed") !== "true";
    button.setAttribute("aria-pressed", String(pressed));
    change(pressed);
  });
}

function listen() {
  live.addEventListener("preview", ({ detail }) => {
    newest = detail;
    draw();
    showRemarks(detail.header);
  });
  live.addEventListener("state", ({ detail }) => {
    ended = detail.reason || "";
  });
  live.addEventListener("pipeline", forget);
  for (const plane of ["before", "removed"]) {
    toggle(ui[plane], (pressed) => {
      shown = pressed ? plane : "after";
      ui[plane === "before" ? "removed" : "before"].setAttribute("aria-pressed", "false");
      draw();
    });
  }
  toggle(ui.smooth, (pressed) => ui.canvas.classList.toggle("nearest", !pressed));
  document.addEventListener("keydown", (event) => {
    if (!seen || event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
    const button = { b: ui.before, r: ui.removed, s: ui.smooth }[event.key.toLowerCase()];
    if (button) button.click();
  });
  addEventListener("resize", () => newest && fit(newest.header));
  setInterval(tick, TICK_MS);
  onStatus((status) => showStatus(status, live.pipeline));
}

function button(id, pressed, ...words) {
  return el("button", { id, type: "button", "aria-pressed": String(pressed) }, ...words);
}

export function mount(root) {
  ui = {
    canvas: el("canvas", { id: "image", width: 1, height: 1, role: "img", "aria-label": "Live image" }),
    bannerTitle: el("strong", { id: "banner-title" }, "NO LIVE DATA"),
    bannerText: el("span", { id: "banner-text" }, "connecting"),
    which: el("p", { id: "which", class: "which" }),
    marks: el("ul", { id: "marks", class: "marks", "aria-label": "Remarks on this image" }),
    before: button("before", false, "Show ", el("b", {}, "b"), "efore"),
    removed: button("removed", false, "Show ", el("b", {}, "r"), "emoved"),
    smooth: button("smooth", true, el("b", {}, "S"), "mooth"),
    applied: el("p", { id: "applied", class: "applied" }),
  };
  const banner = el("div", { id: "banner", class: "banner" }, ui.bannerTitle, ui.bannerText);
  ui.picture = el("section", { id: "picture", class: "picture waiting" }, ui.canvas, banner, ui.which);
  const controls = el("div", { class: "controls" }, ui.before, ui.removed, ui.smooth, ui.applied);
  root.append(ui.picture, ui.marks, controls, panels());
  listen();
  tick();
  return {
    show() {
      seen = true;
      draw();
    },
    hide() {
      seen = false;
    },
  };
}
