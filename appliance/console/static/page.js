// SPDX-License-Identifier: Apache-2.0
// What every view shares: who is signed in, asking the server, the newest status, and building the page.
// Rule: text from outside goes in as text (textContent, append of strings), never as markup.

import { goToSignIn, idleHeaders } from "./session.js";

const STATUS_EVERY_MS = 1000;
const ROLES = ["viewer", "technologist", "engineer"];

export const me = { name: "", role: "viewer", csrf: "", ends_in_s: null }; // until the server has said

export function may(role) {
  return ROLES.indexOf(me.role) >= ROLES.indexOf(role);
}

async function answered(answer) {
  const said = await answer.json().catch(() => ({}));
  if (answer.ok) return said;
  if (answer.status === 401) goToSignIn();
  throw new Error(said.error || `console: the server answers ${answer.status}; look at its log`);
}

// Ask the server; gives its JSON, throws what it says is wrong.
export async function get(path) {
  return answered(await fetch(path, { cache: "no-store", headers: idleHeaders() }));
}

export async function post(path, body) {
  const headers = { "Content-Type": "application/json", "X-CSRF-Token": me.csrf, ...idleHeaders() };
  return answered(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

export async function learnWhoIAm() {
  Object.assign(me, await get("api/me"));
}

const listeners = new Set();
let newest = null;

// Have listener(status) called with each answer of /api/status, and at once with the newest there is.
export function onStatus(listener) {
  listeners.add(listener);
  if (newest) listener(newest);
}

export async function followStatus() {
  try {
    newest = await get("api/status");
    for (const listener of listeners) listener(newest);
  } catch (error) {
    console.warn(error.message); // the state in the header already says that the console does not answer
  }
  setTimeout(followStatus, STATUS_EVERY_MS);
}

// element("p", { id: "x", class: "y", onclick: f, hidden: true }, "text", child, …)
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (typeof value === "function") made.addEventListener(name.slice(2), value);
    else if (value === true) made.setAttribute(name, "");
    else if (value !== false && value !== undefined && value !== "") made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

export function fill(node, children) {
  node.textContent = "";
  node.append(...children);
}

// Write text and class only where they change: a live region is read aloud when it is written.
export function set(node, text, className) {
  if (text !== undefined && node.textContent !== text) node.textContent = text;
  if (className !== undefined && node.className !== className) node.className = className;
}

// Show `items` as children of `parent`, one each: the child of the same key is kept, so that a finger on its button
// still finds it. make(item) gives the child, update(child, item) writes what changed.
export function keyed(parent, items, key, make, update) {
  const old = new Map([...parent.children].map((child) => [child.dataset.key, child]));
  const wanted = items.map((item) => {
    const name = String(key(item));
    const child = old.get(name) || make(item);
    child.dataset.key = name;
    update(child, item);
    return child;
  });
  for (const child of [...parent.children]) if (!wanted.includes(child)) child.remove();
  wanted.forEach((child, i) => {
    if (parent.children[i] !== child) parent.insertBefore(child, parent.children[i] || null);
  });
}

// Ask before something is done; gives whether the person said yes.
export function confirmed(title, text, yes) {
  return new Promise((resolve) => {
    const close = (answer) => {
      dialog.close();
      dialog.remove();
      resolve(answer);
    };
    const dialog = element(
      "dialog", { "aria-label": title },
      element("h2", {}, title), element("p", {}, text),
      element("p", { class: "buttons" },
        element("button", { type: "button", onclick: () => close(false) }, "Cancel"),
        element("button", { type: "button", class: "yes", onclick: () => close(true) }, yes)),
    );
    dialog.addEventListener("cancel", () => close(false));
    document.body.append(dialog);
    dialog.showModal();
  });
}

// Ask again and again while a view is seen: one question at a time. show(answer), or problem(words).
export class Following {
  constructor(path, everyMs, show, problem) {
    Object.assign(this, { path, everyMs, show, problem, seen: false, turn: 0 });
  }

  start() {
    this.seen = true;
    this.now();
  }

  stop() {
    this.seen = false;
    this.turn += 1;
  }

  async now() {
    const turn = ++this.turn;
    try {
      const said = await get(this.path);
      if (turn !== this.turn) return;
      this.problem("");
      this.show(said);
    } catch (error) {
      if (turn === this.turn) this.problem(error.message);
    }
    if (turn === this.turn) setTimeout(() => this.seen && turn === this.turn && this.now(), this.everyMs);
  }
}

// The time of day; with the date where that is not today.
export function clock(seconds) {
  const at = new Date(seconds * 1000);
  const time = at.toLocaleTimeString([], { hour12: false });
  if (at.toDateString() === new Date().toDateString()) return time;
  return `${at.toLocaleDateString([], { day: "numeric", month: "short" })}, ${time}`;
}

export function duration(seconds) {
  const s = Math.max(0, seconds);
  if (s < 9.95) return `${s.toFixed(1)} s`;
  if (s < 99.5) return `${Math.round(s)} s`;
  if (s < 5970) return `${Math.round(s / 60)} min`;
  return s < 172800 ? `${(s / 3600).toFixed(1)} h` : `${Math.round(s / 86400)} days`;
}

export function size(bytes) {
  const units = ["B", "kB", "MB", "GB", "TB"];
  let i = 0;
  for (; bytes >= 1000 && i < units.length - 1; i++) bytes /= 1000;
  return `${i && bytes < 10 ? bytes.toFixed(1) : Math.round(bytes)} ${units[i]}`;
}

// "Family^Given" as people read it; of several scripts the first.
export function personName(name) {
  const [family, ...others] = (name || "").split("=")[0].split("^");
  return [family, others.filter(Boolean).join(" ")].filter(Boolean).join(", ");
}
