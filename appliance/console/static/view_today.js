// SPDX-License-Identifier: Apache-2.0
// The view Today: scans and series of the last 24 hours; the one that is chosen with its images, steps and times.

import { clock, duration, element as el, fill, Following, keyed, onStatus, personName, post, set } from "./page.js";
import { MEANS, setState, stateOf } from "./states.js";
import { Stored } from "./stored.js";

const EVERY_MS = 2000;
const PERSON_NEEDED = ["quarantined", "failed", "held"];
const UNDER_WAY = ["receiving", "processing", "delivering"];

let ui = {};
let chosen = ""; // kind/id
let shownDetail = "";
let searched = "";
let deliverer = {}; // what it says of itself
let seen = false;
let waiting = 0; // for the next look of a search

const following = new Following("api/today", EVERY_MS, showList, fault);
const detail = new Following("", EVERY_MS, showDetail, fault);

function fault(words) {
  set(ui.fault, words);
  ui.fault.hidden = !words;
}

function turnaround(entry, now) {
  if (entry.committed_s) return `committed ${duration(entry.committed_s - entry.last_s)} after its end`;
  if (entry.delivered_s) return `delivered ${duration(entry.delivered_s - entry.last_s)} after its end`;
  if (entry.receiving) return `for ${duration(now - entry.first_s)} now`;
  return entry.state === "delivering" || PERSON_NEEDED.includes(entry.state) ? `ended ${duration(now - entry.last_s)} ago` : "";
}

// Which of those that this entry waits for cannot be reached.
function away(entry) {
  const states = deliverer.destinations || {};
  const waits = (counts) => counts.queued + counts.sending > 0;
  const names = Object.entries(entry.destinations).filter(([name, counts]) => waits(counts) && (states[name] || {}).state === "waiting");
  return names.length ? `waits: ${names.map(([name]) => name).join(", ")} cannot be reached` : "";
}

function owedWords(entry) {
  return Object.entries(entry.destinations).map(([name, counts]) => {
    const has = counts.sent + counts.verified + counts.committed;
    const all = Object.values(counts).reduce((sum, n) => sum + n, 0);
    const stuck = [["quarantined", counts.quarantined], ["held", counts.held]].filter(([, n]) => n).map(([word, n]) => `, ${n} ${word}`);
    return `${name}: ${has} of ${all}${stuck.join("")}`;
  });
}

function makeRow(entry) {
  const row = el("tr", { tabindex: "0" }, ...Array.from({ length: 7 }, () => el("td")));
  row.children[1].append(stateOf(entry.state), el("small", { class: "why" }));
  row.children[2].append(el("strong"), el("small"));
  row.children[3].append(el("span"), el("small"));
  const choose = () => look(`${entry.kind}/${entry.id}`);
  row.addEventListener("click", choose);
  row.addEventListener("keydown", (event) => event.key === "Enter" && choose());
  return row;
}

function updateRow(row, entry, now) {
  const [time, state, who, what, images, owed, turn] = row.children;
  set(time, clock(entry.last_s));
  setState(state.children[0], entry.state);
  set(state.children[1], entry.problem || (entry.n_not_built ? `${entry.n_not_built} cannot be built` : away(entry)));
  set(who.children[0], personName(entry.who.PatientName) || "no name");
  set(who.children[1], entry.who.PatientID);
  set(what.children[0], `${entry.modality} ${entry.what}`);
  set(what.children[1], `${entry.kind === "scan" ? "live scan of" : "received from"} ${entry.source}`);
  if (entry.kind === "scan" && entry.receiving) set(images, "–");
  else set(images, entry.n_expected ? `${entry.n_images} of ${entry.n_expected}` : String(entry.n_images));
  set(owed, owedWords(entry).join("; ") || "–");
  set(turn, turnaround(entry, now));
  row.className = chosen === `${entry.kind}/${entry.id}` ? "chosen" : "";
}

function showList({ entries, time_s, most }) {
  keyed(ui.rows, entries, (entry) => `${entry.kind}/${entry.id}`, makeRow, (row, entry) => updateRow(row, entry, time_s));
  const n = (states) => entries.filter((entry) => states.includes(entry.state)).length;
  const [attention, way] = [n(PERSON_NEEDED), n(UNDER_WAY)];
  set(ui.attention, attention ? `${attention} need${attention === 1 ? "s" : ""} a person` : "none needs a person", attention ? "is bad" : "is good");
  set(ui.way, `${way} under way`, way ? "is working" : "is");
  set(ui.rest, `${entries.length - attention - way} done`, "is done");
  const limit = entries.length >= most ? `Only the newest ${most} are shown: search for others.` : "";
  set(ui.note, entries.length ? limit : searched ? "Nothing of the last 24 hours matches." : "Nothing came in during the last 24 hours.");
}

// Looks again and again, as the whole list does.
async function search() {
  clearTimeout(waiting);
  searched = ui.search.value.trim();
  if (!searched) return following.start();
  following.stop();
  const text = searched;
  try {
    const found = await post("api/today/search", { text });
    fault("");
    if (text === searched) showList(found);
  } catch (error) {
    fault(error.message);
  }
  if (seen && text === searched) waiting = setTimeout(search, EVERY_MS);
}

function look(name) {
  chosen = name;
  shownDetail = "";
  for (const row of ui.rows.children) row.className = row.dataset.key === name ? "chosen" : "";
  ui.stored.clear();
  detail.path = `api/today/${name}`;
  detail.start();
}

function times(entry) {
  const line = (name, seconds, note = "") => [el("dt", {}, name), el("dd", {}, seconds ? clock(seconds) : "–", el("small", {}, ` ${note}`))];
  const after = (seconds) => (seconds ? `${duration(seconds - entry.last_s)} after its end` : "");
  return [
    ...line(entry.kind === "scan" ? "scan began" : "first image", entry.first_s),
    ...line(entry.kind === "scan" ? "scan ended" : "last image", entry.receiving ? null : entry.last_s, entry.receiving ? "still running" : entry.reason),
    ...line("delivered", entry.delivered_s, after(entry.delivered_s)),
    ...line("committed", entry.committed_s, after(entry.committed_s)),
  ];
}

function stepRows(group) {
  return group.steps.map((step) => {
    const took = group.took_ms[step.operator.split(":")[0]];
    const model = step.model ? `${step.model} (${step.model_digest.slice(0, 12)})` : "–";
    return el("tr", {},
      el("td", {}, step.operator, el("small", {}, step.altered ? "" : " looked only")), el("td", {}, model), el("td", {}, step.version),
      el("td", { class: "number" }, took ? `${took.mean.toFixed(1)} / ${took.max.toFixed(1)} ms` : "–"));
  });
}

function provenance(entry) {
  const of = (group) => `${group.n_images} ${group.kind} images`;
  const heads = ["step", "model", "version", "mean / longest"].map((title) => el("th", {}, title));
  const tables = entry.steps.map((group) => {
    const rows = group.steps.length ? stepRows(group) : [el("tr", {}, el("td", {}, "as the scanner reconstructed it"))];
    return el("table", { class: "rows" }, el("caption", {}, of(group)), el("thead", {}, el("tr", {}, ...heads.map((head) => head.cloneNode(true)))), el("tbody", {}, ...rows));
  });
  const worked = Object.entries(entry.pipelines).map(([name, state]) => el("p", {}, `pipeline ${name}: `, stateOf(state === "done" ? "delivered" : "processing", state)));
  if (tables.length || worked.length) return [...tables, ...worked];
  return [el("p", {}, entry.kind === "series" ? "As received: nothing was done to these images." : "No image is built yet.")];
}

function showDetail(entry) {
  ui.detail.hidden = false;
  ui.stored.show(entry);
  if (shownDetail === "" && matchMedia("(max-width: 1000px)").matches) ui.detail.scrollIntoView(); // it is below the list
  const text = JSON.stringify({ ...entry, images: 0 });
  if (text === shownDetail) return;
  shownDetail = text;
  fill(ui.title, [personName(entry.who.PatientName) || "no name", el("small", {}, ` ${entry.who.PatientID}`)]);
  fill(ui.subtitle, [stateOf(entry.state), ` ${entry.modality} ${entry.what}`, el("small", {}, ` ${MEANS[entry.state]}`)]);
  fill(ui.times, times(entry));
  fill(ui.provenance, provenance(entry));
  const owed = owedWords(entry).map((words) => el("li", {}, words));
  fill(ui.owed, owed.length ? owed : [el("li", {}, "nobody is owed these images")]);
}

function close() {
  chosen = "";
  detail.stop();
  ui.detail.hidden = true;
  for (const row of ui.rows.children) row.className = "";
}

export function mount(root) {
  ui = {
    search: el("input", { id: "search", type: "search", placeholder: "Search name, id, description, modality", maxlength: "100", autocomplete: "off", spellcheck: "false" }),
    attention: el("span"), way: el("span"), rest: el("span"),
    fault: el("p", { class: "fault", role: "alert", hidden: true }),
    note: el("p", { class: "empty" }),
    rows: el("tbody", { id: "today-rows" }),
    title: el("h2"), subtitle: el("p", { class: "subtitle" }), times: el("dl", { class: "times" }), provenance: el("div"), owed: el("ul"),
    stored: new Stored(),
  };
  ui.search.addEventListener("input", () => {
    clearTimeout(waiting);
    waiting = setTimeout(search, 300);
  });
  const heads = ["time", "state", "patient", "what", "images", "delivered to", "turnaround"].map((title) => el("th", {}, title));
  const list = el("section", { class: "list" },
    el("div", { class: "bar" }, ui.search, ui.attention, ui.way, ui.rest),
    ui.fault, el("table", { class: "rows" }, el("thead", {}, el("tr", {}, ...heads)), ui.rows), ui.note);
  const facts = el("div", { class: "facts" }, el("h3", {}, "When"), ui.times, el("h3", {}, "What was done"), ui.provenance, el("h3", {}, "Delivered to"), ui.owed);
  const shut = el("button", { type: "button", class: "shut", onclick: close }, "Close");
  ui.detail = el("section", { class: "detail", id: "today-detail", hidden: true }, shut, ui.title, ui.subtitle, ui.stored.root, facts);
  root.append(list, ui.detail);
  onStatus((status) => (deliverer = status.processes.deliverer || {}));
  return {
    show() {
      seen = true;
      search();
      if (chosen) detail.start();
    },
    hide() {
      seen = false;
      clearTimeout(waiting);
      following.stop();
      detail.stop();
    },
  };
}
