// SPDX-License-Identifier: Apache-2.0
// The page's shell: which view is shown, and what stands above every view: is the image live, how old, which alarms.

import { live, seconds } from "./live.js";
import { clock, element, fill, followStatus, get, keyed, learnWhoIAm, may, me, onStatus, post, set } from "./page.js";
import { showPerson } from "./session.js";

// A view's module exports mount(root), which gives {show(), hide()}. It is loaded when it is first looked at, so that
// nothing that is wrong in one view touches another. `named`: not for a display that nobody has signed in at.
const ALL_VIEWS = [
  { name: "live", title: "Live", key: "1" },
  { name: "volume", title: "3D", key: "2" },
  { name: "today", title: "Today", key: "3", named: true },
  { name: "delivery", title: "Delivery", key: "4", named: true },
  { name: "system", title: "System", key: "5", named: true },
];
let views = []; // of these, those that this person may look at
const byId = (id) => document.getElementById(id);
const mounted = new Map(); // name -> the view's {show, hide}
let current = "";

function viewOfAddress() {
  const wanted = location.hash.slice(1).split("/")[0];
  return views.some((view) => view.name === wanted) ? wanted : "live";
}

async function showView() {
  const name = viewOfAddress();
  if (name === current) return;
  if (mounted.has(current)) mounted.get(current).hide();
  current = name;
  for (const view of views) {
    byId(`view-${view.name}`).hidden = view.name !== name;
    const link = byId(`to-${view.name}`);
    if (view.name === name) link.setAttribute("aria-current", "page");
    else link.removeAttribute("aria-current");
  }
  if (!mounted.has(name)) await mountView(name);
  if (name === current) mounted.get(name).show();
}

async function mountView(name) {
  const root = byId(`view-${name}`);
  try {
    const { mount } = await import(`./view_${name}.js`);
    if (!mounted.has(name)) mounted.set(name, mount(root));
  } catch (error) {
    console.error(error);
    fill(root, [element("p", { class: "problem", role: "alert" }, `This view cannot be shown: ${error.message}`)]);
    mounted.set(name, { show() {}, hide() {} });
  }
}

function buildNavigation() {
  views = ALL_VIEWS.filter((view) => me.name || !view.named);
  for (const { name, title, key } of views) {
    byId("nav").append(element("a", { id: `to-${name}`, href: `#${name}` }, element("b", {}, key), ` ${title}`));
    byId("views").append(element("main", { id: `view-${name}`, class: "view", hidden: true, "aria-label": title }));
  }
  addEventListener("hashchange", showView);
  document.addEventListener("keydown", onKey);
}

function onKey(event) {
  if (event.ctrlKey || event.altKey || event.metaKey || /^(INPUT|SELECT|TEXTAREA)$/.test(event.target.tagName)) return;
  const view = views.find((one) => one.key === event.key);
  if (view && !document.querySelector("dialog[open]")) location.hash = view.name;
  const step = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
  if (step && byId("nav").contains(event.target)) {
    const links = [...byId("nav").children];
    links[(links.indexOf(event.target) + step + links.length) % links.length].focus();
  }
}

function showVerdict([kind, word, sentence]) {
  const age = live.age();
  set(byId("state"), word, `state ${kind}`);
  byId("state").title = sentence;
  byId("age-value").textContent = age === null ? "–" : age < 1000 ? `${Math.round(age)} ms` : seconds(age);
  const title = `${word} – nearscan`;
  if (document.title !== title) document.title = title;
}

function showHeader(status) {
  set(byId("site"), status.site);
  choose(status.pipelines);
  const loud = status.alarms.filter((alarm) => !alarm.acknowledged);
  const n = status.alarms.length - loud.length;
  byId("alarm-box").hidden = !status.alarms.length;
  byId("alarm-box").className = loud.length ? "alarms" : "alarms quiet";
  keyed(byId("alarms"), loud, (alarm) => `${alarm.process} ${alarm.key}`, makeAlarm, showAlarm);
  set(byId("alarms-seen"), n ? `${n} acknowledged alarm${n > 1 ? "s" : ""} still ${n > 1 ? "stand" : "stands"}` : "");
}

function makeAlarm() {
  const button = element("button", { type: "button" }, "Acknowledge");
  const item = element("li", {}, element("span"), element("small"), may("technologist") ? button : "");
  button.addEventListener("click", async () => {
    button.disabled = true;
    try {
      const { process, key, text } = item.alarm;
      await post("api/alarms/acknowledge", { process, key, text });
    } catch (error) {
      set(item.children[0], error.message);
    }
    button.disabled = false;
  });
  return item;
}

function showAlarm(item, alarm) {
  item.alarm = alarm;
  set(item.children[0], `${alarm.process}, ${alarm.key}: ${alarm.text}`);
  set(item.children[1], ` since ${clock(alarm.since_s)}`);
}

function choose(pipelines) {
  const select = byId("pipeline");
  const names = [...select.options].map((option) => option.value);
  if (names.join("\n") === pipelines.join("\n")) return;
  fill(select, pipelines.map((name) => element("option", {}, name)));
  byId("pipelines").hidden = pipelines.length < 2;
  if (pipelines.includes(live.pipeline)) select.value = live.pipeline;
  else if (pipelines.length) live.watch(pipelines[0]);
}

async function start() {
  byId("pipeline").addEventListener("change", (event) => live.watch(event.target.value));
  live.addEventListener("verdict", ({ detail }) => showVerdict(detail));
  onStatus(showHeader);
  try {
    await learnWhoIAm(); // before any view: it says which controls there are
  } catch (error) {
    console.warn(error.message);
  }
  buildNavigation();
  showPerson(byId("who"), me, get, post);
  followStatus();
  showView();
}

start();
