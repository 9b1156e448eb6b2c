// SPDX-License-Identifier: Apache-2.0
// The panels beside the image, from /api/status.

import { element as el, fill } from "./page.js";

const byId = (id) => document.getElementById(id);
const element = (tag, text, className = "") => el(tag, { class: className }, text);
const STATES = ["queued", "sending", "sent", "verified", "committed", "held", "quarantined"];

function table(id, titles) {
  const head = el("thead", {}, el("tr", {}, ...titles.map((title) => el("th", {}, title))));
  return el("table", {}, head, el("tbody", { id }));
}

function panel(title, note, ...content) {
  return el("section", {}, el("h2", {}, `${title} `, note), ...content);
}

const small = (id, text = "") => el("small", { id }, text);

// The panels; `curves` are sparklines.
export function panels(curves) {
  const latency = small("", "to: since the last byte came in; in: within the stage");
  const models = panel("Models", small("", "their data of the last 24 h beside the card's: a trend, not an alarm"));
  models.id = "models-box";
  models.hidden = true;
  models.append(el("ul", { id: "models", class: "processes" }));
  return el(
    "aside",
    {},
    panel("Found in this scanner's data", small("commissioned"), el("ul", { id: "findings", class: "findings" })),
    panel("Last two minutes", "", ...curves),
    panel("Latency in ms", latency, table("latency", ["", "p50", "p95", "p99", "max"])),
    panel("Frames", small("shown"), el("dl", { id: "frames" })),
    panel("Results", small("produced"), table("outbox", ["to", ...STATES.slice(0, 6), "quarant."])),
    models,
    panel("Processes", "", el("ul", { id: "processes", class: "processes" })),
  );
}

function clock(ns) {
  return new Date(ns / 1e6).toLocaleTimeString([], { hour12: false });
}

function rows(id, lines) {
  fill(byId(id), lines.map((cells) => el("tr", {}, ...cells)));
}

let listed = "";
let watched = "–"; // what an empty list means: nothing is found, or nobody looks

// What the newest message about images says was found; null: nothing is known yet.
export function showFindings(found) {
  const text = JSON.stringify(found);
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
  fill(byId("findings"), list.length ? list : [element("li", found ? watched : "–", "none")]);
}

function showLatency(status) {
  const ms = (value) => element("td", value === undefined ? "–" : value.toFixed(1));
  const line = ([name, own]) => {
    const times = own.latency_ms || {};
    return [element("td", name), ms(times.p50), ms(times.p95), ms(times.p99), ms(times.max)];
  };
  const stages = Object.entries(status.stages || {}).map(([name, own]) => [`in ${name}`, own]);
  const sinks = Object.entries(status.sinks || {}).map(([name, own]) => [`to ${name}`, own]);
  rows("latency", [...sinks, ...stages].filter(([, own]) => own.latency_ms && "p50" in own.latency_ms).map(line));
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

function showOutbox(buffer) {
  const counts = (buffer && buffer.destinations) || {};
  byId("produced").textContent = buffer ? buffer.error || `${buffer.produced} produced` : "";
  rows(
    "outbox",
    Object.entries(counts).map(([name, own]) => [
      element("td", name),
      ...STATES.map((state) => element("td", String(own[state] || 0), state === "quarantined" && own[state] ? "attention" : "")),
    ]),
  );
}

function showProcesses(processes) {
  const kinds = { running: "", starting: "waiting", draining: "waiting" };
  const lines = Object.entries(processes).map(([name, own]) => {
    const kind = own.state in kinds ? kinds[own.state] : "bad";
    return element("li", own.state === "running" ? name : `${name}: ${own.state}`, kind);
  });
  fill(byId("processes"), lines);
}

function showModels(status) {
  const models = Object.values(status.stages || {}).filter((own) => own.drift);
  const kind = (drift) => (drift.unlike_card.length ? "bad" : Object.keys(drift.distance).length ? "" : "waiting");
  byId("models-box").hidden = !models.length;
  fill(byId("models"), models.map((own) => element("li", `${own.model}: ${own.drift.trend}`, kind(own.drift))));
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

export function showStatus(status, own) {
  showCommissioned(own);
  showLatency(own);
  showFrames(own);
  showOutbox(status.buffer);
  showModels(own);
  showProcesses(status.processes);
}
