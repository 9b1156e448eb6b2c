// SPDX-License-Identifier: Apache-2.0
// The view System: alarms, this machine, what each pipeline does and how long it takes, models, processes, configuration.

import { clock, element as el, Following, get, keyed, may, onStatus, post, set } from "./page.js";
import { Histogram } from "./histogram.js";
import { setState, stateOf } from "./states.js";

const MACHINE_EVERY_MS = 2000;
const TOO_FULL = 90; // percent of memory: then the system begins to kill processes

let ui = {};
let seen = false;
let newest = null;
let configRead = false;
const following = new Following("api/machine", MACHINE_EVERY_MS, showMachine, fault);

function fault(words) {
  set(ui.fault, words);
  ui.fault.hidden = !words;
}

function meter(name) {
  const fill = el("span", { class: "fill" });
  const row = el("li", {}, el("span", {}, name), el("span", { class: "meter" }, fill), el("strong"), el("small"));
  row.fill = fill;
  return row;
}

function showMeter(row, { name, part, words, note, bad }) {
  set(row.children[0], name);
  row.fill.style.width = `${100 * Math.min(1, Math.max(0, part))}%`;
  set(row.children[2], words, bad ? "is bad" : "");
  set(row.children[3], note);
}

function meters({ n_cpus, busy_percent, load, memory, disk, gpus }) {
  const used = 100 * (1 - memory.available_gb / memory.total_gb);
  const low = disk.free_gb < disk.reserve_gb;
  const all = [
    { name: "Processor", part: busy_percent / 100, words: busy_percent === null ? "–" : `${busy_percent.toFixed(0)} % busy`, note: `${n_cpus} cores, load ${load.join(" ")}` },
    { name: "Memory", part: used / 100, words: `${memory.available_gb} GB free`, note: `of ${memory.total_gb} GB`, bad: used > TOO_FULL },
    { name: "Disk", part: 1 - disk.free_gb / disk.total_gb, words: `${disk.free_gb} GB free`, note: `of ${disk.total_gb} GB; below ${disk.reserve_gb} GB nothing is taken in`, bad: low },
  ];
  for (const gpu of gpus) {
    const known = gpu.total_mib > 0;
    const note = known ? `${gpu.name}: ${gpu.used_mib} of ${gpu.total_mib} MiB, ${gpu.celsius} °C` : gpu.name;
    all.push({ name: "GPU", part: known ? gpu.busy_percent / 100 : 0, words: known ? `${gpu.busy_percent} % busy` : "?", note });
  }
  if (!gpus.length) all.push({ name: "GPU", part: 0, words: "none", note: "this box computes on the processor" });
  return all;
}

function showMachine(machine) {
  keyed(ui.machine, meters(machine).map((one, i) => ({ ...one, i })), (one) => one.i, (one) => meter(one.name), showMeter);
}

function stepsOf(status) {
  const of = (group, word) => Object.entries(group || {}).map(([name, own]) => ({ key: `${word} ${name}`, word, name, own }));
  return [...of(status.stages, "in"), ...of(status.sinks, "to")];
}

function troubles({ own }) {
  const counts = [["passed_through", "passed unprocessed"], ["deadline_misses", "too late"], ["lost", "lost"], ["errors", "errors"], ["dropped_displays", "displays dropped"]];
  return counts.filter(([key]) => own[key]).map(([key, word]) => `${own[key]} ${word}`).join(", ");
}

function makeStep() {
  const histogram = new Histogram();
  const row = el("tr", {}, el("td", {}, el("strong"), el("small")), el("td", { class: "number" }), el("td", { class: "number" }), el("td", { class: "number" }), el("td", {}, histogram.root), el("td", { class: "why" }));
  row.histogram = histogram;
  return row;
}

function updateStep(row, step) {
  const { own, word, name } = step;
  const [title, p50, p99, most, , why] = row.children;
  set(title.children[0], `${word} ${name}`);
  const runs = own.backend ? `${own.model} ${own.version || ""} on ${own.backend} ${own.precision || ""}, ${own.model_state}` : "";
  set(title.children[1], own.degraded ? `${runs}: ${own.degraded}` : runs);
  const ms = (value) => (value === undefined ? "–" : value.toFixed(1));
  const times = own.latency_ms || {};
  set(p50, ms(times.p50));
  set(p99, ms(times.p99));
  set(most, ms(times.max));
  row.histogram.show(own.latency_histogram || []);
  set(why, troubles(step));
}

function makePipeline(pipeline) {
  const heads = ["ms", "p50", "p99", "max", "how often, by duration in ms", ""].map((title, i) => el("th", { class: i > 0 && i < 4 ? "number" : "" }, title));
  const rows = el("tbody");
  const panel = el("section", { class: "panel pipeline" }, el("h2", {}, `Pipeline ${pipeline.name} `, stateOf("unknown")), el("p", { class: "quiet" }), el("table", { class: "rows" }, el("thead", {}, el("tr", {}, ...heads)), rows));
  panel.rows = rows;
  return panel;
}

function updatePipeline(panel, { status }) {
  setState(panel.children[0].children[0], status.state || "unknown", status.state || "not heard of yet");
  const source = status.source || {};
  const frames = status.frames || {};
  const parts = [`from ${source.name || "?"}: ${frames.in || 0} frames in, ${frames.waiting || 0} waiting`, status.device && `computing on the ${status.device}`, status.realtime === false && "without real-time priority"];
  set(panel.children[1], parts.filter(Boolean).join("; "));
  keyed(panel.rows, stepsOf(status), (step) => step.key, makeStep, updateStep);
}

function modelsOf(status) {
  return Object.entries(status.processes).flatMap(([process, own]) =>
    Object.entries(own.stages || {}).filter(([, stage]) => stage.drift).map(([name, stage]) => ({ key: `${process} ${name}`, stage })),
  );
}

function updateModel(item, { stage }) {
  const { drift, model, version } = stage;
  const known = Object.keys(drift.distance).length;
  setState(item.children[0], drift.unlike_card.length ? "unlike" : known ? "ready" : "kept", `${model} ${version || ""}`);
  set(item.children[1], drift.trend);
}

function makeAlarm() {
  const button = el("button", { type: "button" }, "Acknowledge");
  const item = el("li", {}, el("span", { class: "is bad" }), el("small"), may("technologist") ? button : "");
  button.addEventListener("click", async () => {
    const { process, key, text } = item.alarm;
    try {
      await post("api/alarms/acknowledge", { process, key, text });
    } catch (error) {
      fault(error.message);
    }
  });
  item.button = button;
  return item;
}

function updateAlarm(item, alarm) {
  item.alarm = alarm;
  const by = alarm.acknowledged;
  set(item.children[0], `${alarm.process}, ${alarm.key}: ${alarm.text}`, by ? "is" : "is bad");
  set(item.children[1], `since ${clock(alarm.since_s)}${by ? `, acknowledged by ${by.person} at ${clock(by.at_s)}` : ""}`);
  item.button.hidden = Boolean(by);
}

function show() {
  const status = newest;
  if (!seen || !status) return;
  keyed(ui.alarms, status.alarms, (alarm) => `${alarm.process} ${alarm.key}`, makeAlarm, updateAlarm);
  ui.noAlarm.hidden = status.alarms.length > 0;
  const pipelines = status.pipelines.map((name) => ({ name, status: status.processes[`pipeline-${name}`] || {} }));
  keyed(ui.pipelines, pipelines, (one) => one.name, makePipeline, updatePipeline);
  const models = modelsOf(status);
  keyed(ui.models, models, (one) => one.key, () => el("li", {}, stateOf("kept"), el("small")), updateModel);
  ui.modelsBox.hidden = !models.length;
  keyed(ui.processes, Object.entries(status.processes), ([name]) => name, () => stateOf("unknown"), (node, [name, own]) =>
    setState(node, own.state, own.state === "running" ? name : `${name}: ${own.state}`));
}

async function readConfig() {
  if (!may("engineer") || configRead) return;
  try {
    ui.text.value = (await get("api/config")).text;
    configRead = true;
  } catch (error) {
    set(ui.verdict, error.message, "is bad");
  }
}

async function check() {
  ui.check.disabled = true;
  set(ui.verdict, "checking …", "is working");
  ui.problems.textContent = "";
  try {
    const { ok, problems, machine } = await post("api/config/check", { text: ui.text.value });
    const n = problems.length + machine.length;
    set(ui.verdict, ok ? "right: this copy could be used; it is not in use" : `${n} problem${n > 1 ? "s" : ""}; nothing was changed`, ok ? "is good" : "is bad");
    ui.problems.append(...[...problems, ...machine].map((line) => el("li", {}, line)));
  } catch (error) {
    set(ui.verdict, error.message, "is bad");
  }
  ui.check.disabled = false;
}

function configuration() {
  ui.text = el("textarea", { id: "config", spellcheck: "false", rows: "18", "aria-label": "The configuration, as it is" });
  ui.check = el("button", { id: "check", type: "button", onclick: check }, "Check this text");
  ui.verdict = el("span", { role: "status" });
  ui.problems = el("ul", { id: "config-problems", class: "problems" });
  const note = "What is in force. Edit and check it here as with nearscan check; to use it, write it to the site's file and reload. Nothing that is typed here changes anything.";
  return el("section", { class: "panel" }, el("h2", {}, "Configuration"), el("p", { class: "quiet" }, note), ui.text, el("p", {}, ui.check, " ", ui.verdict), ui.problems);
}

export function mount(root) {
  ui = {
    fault: el("p", { class: "fault", role: "alert", hidden: true }),
    alarms: el("ul", { class: "list" }), noAlarm: el("p", {}, stateOf("ready", "no alarm")), machine: el("ul", { class: "meters" }),
    models: el("ul", { class: "list" }), processes: el("p", { class: "processes-line" }), pipelines: el("div"),
  };
  ui.modelsBox = el("section", { class: "panel", hidden: true }, el("h2", {}, "Models: their data of the last 24 h beside the card's; a trend, not an alarm"), ui.models);
  const left = el("div", {}, el("section", { class: "panel" }, el("h2", {}, "Alarms"), ui.noAlarm, ui.alarms), ui.pipelines, ui.modelsBox);
  const right = el("div", {}, el("section", { class: "panel" }, el("h2", {}, "This machine"), ui.machine), el("section", { class: "panel" }, el("h2", {}, "Processes"), ui.processes));
  if (may("engineer")) right.append(configuration());
  root.append(ui.fault, el("div", { class: "columns" }, left, right));
  onStatus((status) => {
    newest = status;
    show();
  });
  return {
    show() {
      seen = true;
      show();
      following.start();
      readConfig();
    },
    hide() {
      seen = false;
      following.stop();
    },
  };
}
