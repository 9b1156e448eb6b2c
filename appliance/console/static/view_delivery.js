// SPDX-License-Identifier: Apache-2.0
// The view Delivery: destinations, what is owed to them, what is stuck and why, and what people do about it.

import { confirmed, duration, element as el, Following, keyed, may, personName, post, set, size } from "./page.js";
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
  const wait = (destination.next_try_s || now) - now;
  return ["waiting", `cannot be reached; ${destination.failures} tries, next ${wait > 0 ? `in ${duration(wait)}` : "now"}`];
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

// Images of one scan or series that share everything but their own number are one line.
function groupsOf(deliveries) {
  const groups = new Map();
  for (const one of deliveries) {
    const key = JSON.stringify([one.state, one.destination, one.priority, one.who, one.last_error]);
    const group = groups.get(key) || { ...one, key, ids: [], n_bytes: 0, attempts: 0 };
    group.ids.push(one.id);
    group.n_bytes += one.n_bytes;
    group.created_s = Math.min(group.created_s, one.created_s);
    group.attempts = Math.max(group.attempts, one.attempts);
    groups.set(key, group);
  }
  return [...groups.values()];
}

function makeRow(group) {
  const actions = may("technologist") ? ACTIONS[group.state] : [];
  const ask = (action, word, then) => {
    const { ids, who, destination } = line.group;
    const whose = personName(who.PatientName) || "no name";
    change(action, { ids }, `${word}: ${images(ids.length)} of ${whose} for ${destination}?`, then, `${word} ${ids.length}`);
  };
  const buttons = actions.map(([action, word, , then]) => el("button", { type: "button", onclick: () => ask(action, word, then) }, word));
  const cell = () => el("td");
  const line = el("tr", {}, el("td", {}, stateOf(group.state)), cell(), el("td", {}, el("strong"), el("small")), el("td", {}, el("span"), el("small")), cell(), cell(), cell(), el("td", {}, ...buttons));
  return line;
}

function updateRow(line, group, now) {
  line.group = group;
  const [, destination, what, count, priority, age, why] = line.children;
  set(destination, group.destination);
  set(what.children[0], personName(group.who.PatientName) || "no name");
  set(what.children[1], [group.who.PatientID, group.who.modality, group.who.what].filter(Boolean).join(", "));
  set(count.children[0], String(group.ids.length));
  set(count.children[1], size(group.n_bytes));
  set(priority, String(group.priority));
  set(age, duration(now - group.created_s));
  const again = group.state === "queued" && group.attempts ? ` (${group.attempts} tries, next in ${duration(group.next_try_s - now)})` : "";
  set(why, `${group.last_error || (group.state === "queued" ? "waits for its turn" : "")}${again}`);
}

function show({ destinations, deliveries, not_built, time_s, most }) {
  keyed(ui.destinations, destinations, (one) => one.name, makeDestination, (card, one) => updateDestination(card, one, time_s));
  const first = Object.fromEntries(STATES.map((state, i) => [state, i]));
  deliveries.sort((a, b) => first[a.state] - first[b.state] || b.priority - a.priority || a.created_s - b.created_s);
  keyed(ui.rows, groupsOf(deliveries), (group) => group.key, makeRow, (line, group) => updateRow(line, group, time_s));
  ui.table.hidden = !deliveries.length;
  const full = destinations.some((one) => Object.values(one.waiting).some(({ count }) => count > most));
  set(ui.note, deliveries.length ? (full ? `Of each destination and state the first ${most} images are listed.` : "") : "Nothing waits: every image is where it is owed.");
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
  const heads = ["state", "to", "what", "images", "priority", "age", "why", ""].map((title) => el("th", {}, title));
  ui.table = el("table", { class: "rows" }, el("thead", {}, el("tr", {}, ...heads)), ui.rows);
  ui.builds = el("section", { class: "panel", hidden: true }, el("h2", {}, "Kept, but no DICOM image could be made of it"), ui.built);
  root.append(ui.fault, ui.destinations, ui.builds, el("section", { class: "panel" }, el("h2", {}, "Owed, what needs a person first, then by priority and age"), ui.done, ui.table, ui.note));
  return { show: () => following.start(), hide: () => following.stop() };
}
