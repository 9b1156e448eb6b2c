// SPDX-License-Identifier: Apache-2.0
// The console page: puts the live image, its age and the panels together.

import { Live, seconds } from "./live.js";
import { element, showStatus } from "./panels.js";

const STATUS_EVERY_MS = 1000;
const FINDING_STAYS_MS = 4000;
const byId = (id) => document.getElementById(id);
const canvas = byId("image");
const picture = byId("picture");
let newest = null; // {header, pixels}
const PLANES = { after: "", before: "BEFORE: unprocessed image", removed: "REMOVED: before less after, 8 times as strong" };
let shown = "after"; // one of PLANES, in the order in which the server sends them
let ended = "";
const findings = new Map(); // kind and coil -> {message, severity, until}
let remarked = "";

function draw() {
  if (!newest) return;
  const { header, pixels } = newest;
  const n = header.width * header.height;
  const plane = header.original ? shown : "after";
  const start = n * Object.keys(PLANES).indexOf(plane);
  const grey = pixels.subarray(start, start + n);
  if (canvas.width !== header.width || canvas.height !== header.height) {
    canvas.width = header.width;
    canvas.height = header.height;
  }
  const context = canvas.getContext("2d");
  const image = context.createImageData(header.width, header.height);
  const words = new Uint32Array(image.data.buffer);
  for (let i = 0; i < n; i++) words[i] = 0xff000000 | (grey[i] * 0x010101);
  context.putImageData(image, 0, 0);
  fit(header);
  byId("which").textContent = PLANES[plane];
  byId("which").hidden = plane === "after";
  byId("which").className = "which before";
  byId("before").disabled = byId("removed").disabled = !header.original;
}

function fit(header) {
  const [dx, dy] = header.pixel_mm;
  const width = header.width * dx;
  const height = header.height * dy;
  const scale = Math.min(picture.clientWidth / width, picture.clientHeight / height);
  canvas.style.width = `${width * scale}px`;
  canvas.style.height = `${height * scale}px`;
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
  if (text !== remarked) byId("marks").replaceChildren(...remarks.map(([words, kind]) => element("li", words, kind)));
  remarked = text;
  byId("applied").textContent = header.provenance.length ? `Applied: ${header.provenance.join(" → ")}` : "Nothing applied";
}

const live = new Live(
  (header, pixels) => {
    newest = { header, pixels };
    draw();
    showRemarks(header);
  },
  (header) => {
    ended = header.reason || "";
  },
);

function tick() {
  const [kind, word, sentence] = live.verdict();
  const age = live.age();
  const text = live.state === "ended" && ended ? `${sentence}: ${ended}` : sentence;
  set(byId("state"), word, `state ${kind}`);
  set(byId("banner-title"), word, "");
  set(byId("banner-text"), text, "");
  picture.className = `picture ${kind}`;
  byId("age-value").textContent = age === null ? "–" : age < 1000 ? `${Math.round(age)} ms` : seconds(age);
  const title = `${word} – nearscan`;
  if (document.title !== title) document.title = title;
}

function set(place, text, className) {
  if (place.textContent !== text) place.textContent = text; // a live region is read aloud when it is written
  if (place.className !== className) place.className = className;
}

function toggle(id, change) {
  byId(id).addEventListener("click", () => {
    const pressed = byId(id).getAttribute("aria-pressed") !== "true";
    byId(id).setAttribute("aria-pressed", String(pressed));
    change(pressed);
  });
}

for (const plane of ["before", "removed"]) {
  toggle(plane, (pressed) => {
    shown = pressed ? plane : "after";
    byId(plane === "before" ? "removed" : "before").setAttribute("aria-pressed", "false");
    draw();
  });
}
toggle("smooth", (pressed) => canvas.classList.toggle("nearest", !pressed));
document.addEventListener("keydown", (event) => {
  if (event.ctrlKey || event.altKey || event.metaKey || event.target.tagName === "SELECT") return;
  const button = { b: "before", r: "removed", s: "smooth" }[event.key.toLowerCase()];
  if (button) byId(button).click();
});
addEventListener("resize", () => newest && fit(newest.header));

async function refresh() {
  try {
    const answer = await fetch("api/status", { cache: "no-store" });
    const status = await answer.json();
    choose(status.pipelines);
    showStatus(status, live.pipeline);
  } catch (error) {
    // the state line already says that the console does not answer
  }
  setTimeout(refresh, STATUS_EVERY_MS);
}

function choose(pipelines) {
  const select = byId("pipeline");
  if (select.options.length === pipelines.length) return;
  select.replaceChildren(...pipelines.map((name) => element("option", name)));
  byId("pipelines").hidden = pipelines.length < 2;
  if (!pipelines.includes(live.pipeline) && pipelines.length) watch(pipelines[0]);
}

function watch(pipeline) {
  newest = null;
  canvas.width = canvas.height = 1;
  findings.clear();
  byId("marks").replaceChildren();
  remarked = "";
  live.watch(pipeline);
}

byId("pipeline").addEventListener("change", (event) => watch(event.target.value));
setInterval(tick, 50);
refresh();
