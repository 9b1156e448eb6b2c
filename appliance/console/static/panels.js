// SPDX-License-Identifier: Apache-2.0
// The panels beside the live image: what was found, the last two minutes, frames.

import { element as el, fill } from "./page.js";

const byId = (id) => document.getElementById(id);
const element = (tag, text, className = "") => el(tag, { class: className }, text);

function panel(title, note, ...content) {
  return el("section", {}, el("h2", {}, `${title} `, note), ...content);
}

const small = (id, text = "") => el("small", { id }, text);

// The panels; `curves` are sparklines.
export function panels(curves) {
  return el(
    "aside",
    {},
    panel("Found in this scanner's data", small("commissioned"), el("ul", { id: "findings", class: "findings" })),
    panel("Last two minutes", "", ...curves),
    panel("Frames since the pipeline began", small("shown"), el("dl", { id: "frames" })),
  );
}

function clock(ns) {
  return new Date(ns / 1e6).toLocaleTimeString([], { hour12: false });
}

let listed = "";
let watched = "–"; // what an empty list means: nothing is found, or nobody looks

// What the newest message about images says was found; null: nothing is known yet. `unseen`: why nobody looked.
export function showFindings(found, unseen = "") {
  const text = JSON.stringify([found, unseen]);
  if (text === listed) return;
  listed = text;
  const list = (found || []).map((entry) => {
    const item = element("li", "", entry.severity);
    const words = element("span", `${entry.message} `);
    const often = entry.count > 1 ? `${clock(entry.first_ns)} – ${clock(entry.last_ns)}, in ${entry.count} images` : clock(entry.last_ns);
    words.append(element("small", often));
    item.append(words);
    return item;
  });
  if (unseen) list.unshift(element("li", unseen, "warning"));
  fill(byId("findings"), list.length ? list : [element("li", found ? watched : "–", "none")]);
}

function showFrames(status) {
  const sum = (key) => Object.values(status.stages || {}).reduce((n, own) => n + (own[key] || 0), 0);
  const display = (status.sinks || {}).openigtlink || {};
  const left = (display.displays || []).reduce((n, one) => n + one.dropped, display.overwritten || 0);
  const facts = {
    "from the scanner": (status.frames || {}).in || 0,
    "displays": (display.displays || []).length,
    "passed unprocessed": sum("passed_through"),
    "left out on displays": left,
    "past their deadline": sum("deadline_misses"),
    "displays dropped": display.dropped_displays || 0,
  };
  fill(byId("frames"), Object.entries(facts).flatMap(([name, n]) => [element("dt", name), element("dd", String(n))]));
}

function showCommissioned(status) {
  const words = "detect_anomalies" in (status.stages || {}) ? "Nothing found." : "Nobody looks: detect_anomalies is not in this pipeline.";
  if (words !== watched) listed = "";
  watched = words;
  const said = Object.values(status.stages || {}).map((own) => own.commissioned).filter(Boolean);
  const say = (of) => (of.startsWith("not commissioned") ? of : `thresholds ${of}`);
  byId("commissioned").textContent = said.map(say).join("; ");
}

// How many of the images that came in the last second this page has shown.
export function showShown(n, came) {
  byId("shown").textContent = came ? `this page: ${n} of ${came} images in the last second` : "";
}

// From /api/status, once a second.
export function showStatus(own) {
  showCommissioned(own);
  showFrames(own);
}
