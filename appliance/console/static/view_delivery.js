// SPDX-License-Identifier: Apache-2.0
// The view Delivery: destinations, what is owed to them, what is stuck and why, and what people do about it.

import { confirmed, duration, element as el, fill, Following, keyed, may, personName, post, set, size } from "./page.js";
import { setState, stateOf } from "./states.js";

const EVERY_MS = 2000;
const STATES = ["quarantined", "held", "sending", "queued"];
const ACTIONS = { // by state: action, word on a button for one, for all, what happens then
  queued: [
    ["hold", "Hold", "Hold all", "Nothing of it is sent until somebody releases it."],
    ["retry", "Try now", "Try all now", "It is tried at once instead of after its wait."],
  ],
  held: [["release", "Release", "Release all", "It is sent as soon as its destination takes it."]],
  quarantined: [
    ["retry", "Try again", "Try all again", "The destination refused it before; it is asked once more."],
    ["hold", "Hold", "Hold all", "It is kept and not tried until somebody releases it."],
  ],
  sending: [],
};

let ui = {};
const following = new Following("api/delivery", EVERY_MS, show, fault);

function fault(words) {
  set(ui.fault, words);
  ui.fault.hidden = !words;
}

async function change(action, which, title, then, word) {
  if (!(await confirmed(title, `${then} This is written into the audit with your name.`, word))) return;
  try {
    const { changed, left } = await post(`api/delivery/${action}`, which);
    const rest = left ? `; ${left} left alone: being sent, or changed meanwhile` : "";
    set(ui.done, `${word}: ${changed} done${rest}`);
  } catch (error) {
    fault(error.message);
  }
  following.now();
}

const images = (n) => `${n} image${n === 1 ? "" : "s"}`;

function makeDestination(destination) {
  const lines = STATES.map((state) => {
    const buttons = (may("technologist") ? ACTIONS[state] : []).map(([action, word, all, then]) =>
      el("button", { type: "button", onclick: () => {
        const n = card.destination.waiting[state].count;
        change(action, { destination: card.destination.name, state }, `${word}: all ${images(n)} ${state} for ${card.destination.name}?`, then, `${word} ${n}`);
      } }, all));
    return el("li", { hidden: true }, stateOf(state), el("strong"), el("small"), el("span", { class: "buttons" }, ...buttons));
  });
  const card = el("section", { class: "panel destination" },
    el("h2", {}, destination.name), el("p", { class: "circuit" }, stateOf("unknown")), el("p", { class: "quiet" }), el("p", { class: "why" }),
    el("ul", { class: "waiting" }, ...lines), el("p", { class: "quiet done" }));
  return card;
}

function circuit(destination, now) {
  if (destination.state === "ready") return ["ready", "takes images"];
  if (destination.state === "unknown") return ["unknown", "not known: the deliverer does not answer"];
  const wait = Math.max(0, (destination.next_try_s || now) - now);
  return ["waiting", `cannot be reached; ${destination.failures} tries, next in ${duration(wait)}`];
}

function updateDestination(card, destination, now) {
  card.destination = destination;
  const [, state, address, why, waiting, done] = card.children;
  const [kind, words] = circuit(destination, now);
  setState(state.children[0], kind, words);
  card.classList.toggle("off", kind !== "ready");
  set(address, destination.address);
  set(why, kind === "waiting" ? destination.last_error : "");
  STATES.forEach((name, i) => {
    const own = destination.waiting[name];
    const line = waiting.children[i];
    line.hidden = !own;
    if (!own) return;
    set(line.children[1], String(own.count));
    set(line.children[2], `${size(own.bytes)}, oldest ${duration(own.oldest_s)}`);
  });
  const { sent, verified, committed } = destination.done;
  const nothing = Object.keys(destination.waiting).length ? "" : "Nothing waits. ";
  set(done, `${nothing}Delivered: ${sent + verified + committed}, of these committed: ${committed}`);
}

function makeRow(row) {
  const line = el("tr", {}, ...Array.from({ length: 7 }, () => el("td")));
  line.children[0].append(stateOf(row.state));
  line.children[2].append(el("strong"), el("small"));
  line.children[3].className = line.children[4].className = "number";
  return line;
}

function updateRow(line, row, now) {
  const [state, destination, what, priority, age, why, buttons] = line.children;
  setState(state.children[0], row.state);
  set(destination, row.destination);
  set(what.children[0], personName(row.who.PatientName) || "no name");
  set(what.children[1], [row.who.PatientID, row.who.modality, row.who.what, size(row.n_bytes)].filter(Boolean).join(", "));
  set(priority, String(row.priority));
  set(age, duration(now - row.created_s));
  const again = row.state === "queued" && row.attempts ? ` (${row.attempts} tries, next in ${duration(Math.max(0, row.next_try_s - now))})` : "";
  set(why, `${row.last_error || (row.state === "queued" ? "waits for its turn" : "")}${again}`);
  if (line.state === row.state) return; // the buttons stay under the finger
  line.state = row.state;
  const actions = may("technologist") ? ACTIONS[row.state] : [];
  fill(buttons, actions.map(([action, word, , then]) =>
    el("button", { type: "button", onclick: () => change(action, { ids: [row.id] }, `${word}: one image of ${personName(row.who.PatientName) || "no name"} for ${row.destination}?`, then, word) }, word)));
}

function show({ destinations, deliveries, not_built, time_s, most }) {
  keyed(ui.destinations, destinations, (one) => one.name, makeDestination, (card, one) => updateDestination(card, one, time_s));
  const first = Object.fromEntries(STATES.map((state, i) => [state, i]));
  deliveries.sort((a, b) => first[a.state] - first[b.state] || b.priority - a.priority || a.created_s - b.created_s);
  keyed(ui.rows, deliveries, (row) => row.id, makeRow, (line, row) => updateRow(line, row, time_s));
  ui.table.hidden = !deliveries.length;
  const full = destinations.some((one) => Object.values(one.waiting).some(({ count }) => count > most));
  set(ui.note, deliveries.length ? (full ? `Of each destination and state the first ${most} are listed.` : "") : "Nothing waits: every image is where it is owed.");
  ui.builds.hidden = !not_built.length;
  keyed(ui.built, not_built, (job) => job.id, () => el("li", { class: "is bad" }), (item, job) =>
    set(item, `scan ${job.scan_id}, job ${job.id}: could not be built in ${job.attempts} tries: ${job.last_error}`));
}

export function mount(root) {
  ui = {
    fault: el("p", { class: "fault", role: "alert", hidden: true }),
    done: el("p", { class: "quiet", role: "status" }),
    destinations: el("div", { class: "destinations", id: "destinations" }),
    rows: el("tbody", { id: "delivery-rows" }),
    note: el("p", { class: "empty" }),
    built: el("ul"),
  };
  const heads = ["state", "to", "what", "priority", "age", "why", ""].map((title) => el("th", {}, title));
  ui.table = el("table", { class: "rows" }, el("thead", {}, el("tr", {}, ...heads)), ui.rows);
  ui.builds = el("section", { class: "panel", hidden: true }, el("h2", {}, "Kept, but no DICOM image could be made of it"), ui.built);
  root.append(ui.fault, ui.destinations, ui.builds, el("section", { class: "panel" }, el("h2", {}, "Owed, what needs a person first, then by priority and age"), ui.done, ui.table, ui.note));
  return { show: () => following.start(), hide: () => following.stop() };
}
