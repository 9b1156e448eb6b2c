// SPDX-License-Identifier: Apache-2.0
// The view 3D: pictures of the volume that a scan fills, drawn by the server. The page sends where it looks from.

import { Camera, SIDES } from "./camera.js";
import { live, seconds } from "./live.js";
import { duration, element as el, fill, set } from "./page.js";
import { VolumeHands } from "./volume_hands.js";
import { VolumePictures } from "./volume_pictures.js";

const OLD_MS = 2000; // a volume comes several times a second while a scan runs
const TICK_MS = 100;
const LARGEST = 1536; // pixels of a side that the server draws
const UNIT = 8;
const MODES = { volume: "Volume", mip: "Maximum", slices: "Slices", oblique: "Oblique" };

const camera = new Camera();
let ui = {};
let pictures = null;
let hands = null;
let shown = null; // {header, bitmap, arrived}
let words = "connecting";
let seen = false;
let mode = "volume";
let preset = "";
let at = null; // LPS mm, through which slices go
let kpi = { first: null, sharp: null, drawn: [], released: 0 };

function look() {
  const { clientWidth: width, clientHeight: height } = ui.stage;
  const ratio = Math.min(window.devicePixelRatio || 1, LARGEST / Math.max(width, height, 1)); // of both sides the same
  const side = (css) => Math.max(UNIT * 8, Math.floor((css * ratio) / UNIT) * UNIT);
  pictures.look({
    mode, preset, rotation: camera.rotation, zoom: camera.zoom, pan_mm: camera.pan, at_mm: at,
    width: side(width), height: side(height), dragging: hands.dragging,
  });
  paint();
}

function take(header, bitmap, arrived) {
  const another = !shown || shown.header.scan_id !== header.scan_id;
  if (another && shown) {
    at = null; // a place in another scan
    camera.fit();
  }
  if (shown) shown.bitmap.close();
  shown = { header, bitmap, arrived };
  words = "";
  measure(header);
  paint();
  showButtons(header);
  showFacts(header);
  if (another) look();
}

function measure(header) {
  const now = performance.now();
  if (kpi.first === null) kpi.first = now - pictures.opened;
  kpi.drawn = hands.dragging ? [...kpi.drawn.filter((then) => now - then < 1000), now] : [];
  if (kpi.drawn.length > 2) kpi.rate = (1000 * (kpi.drawn.length - 1)) / (now - kpi.drawn[0]);
  if (kpi.released && header.quality !== "draft") {
    kpi.sharp = now - kpi.released;
    kpi.released = 0;
  }
}

function paint() {
  if (!shown) return;
  const { header, bitmap } = shown;
  const { canvas } = ui;
  if (canvas.width !== header.width || canvas.height !== header.height) {
    canvas.width = header.width;
    canvas.height = header.height;
  }
  const context = canvas.getContext("2d");
  context.drawImage(bitmap, 0, 0, header.width, header.height);
  for (const pane of header.panes) paintPane(context, pane, header.panes.length > 1);
}

function paintPane(context, pane, many) {
  const [left, top, width, height] = pane.box;
  const size = Math.max(14, Math.round(Math.min(width, height) / 26));
  context.font = `600 ${size}px system-ui, sans-serif`;
  context.textAlign = "center";
  context.textBaseline = "middle";
  context.lineWidth = 3;
  context.strokeStyle = "#000";
  context.fillStyle = "#f2f5f7";
  const places = [[left + size, top + height / 2], [left + width - size, top + height / 2], [left + width / 2, top + size], [left + width / 2, top + height - size]];
  pane.sides.forEach((side, i) => {
    context.strokeText(side, ...places[i]);
    context.fillText(side, ...places[i]);
  });
  if (!many) return;
  context.strokeStyle = "#323b45";
  context.lineWidth = 2;
  context.strokeRect(left, top, width, height);
  if (pane.kind === "slice" && at) paintCross(context, pane);
}

// Where a place in LPS is seen in a pane, in pixels of the picture.
function pixelOf(pane, [x, y, z]) {
  const from = [x - pane.origin_mm[0], y - pane.origin_mm[1], z - pane.origin_mm[2]];
  const along = (axis) => from.reduce((sum, part, i) => sum + part * axis[i], 0) / axis.reduce((sum, part) => sum + part * part, 0);
  return [pane.box[0] + along(pane.right_mm), pane.box[1] + along(pane.down_mm)];
}

function paintCross(context, pane) {
  const [x, y] = pixelOf(pane, at);
  const [left, top, width, height] = pane.box;
  context.save();
  context.beginPath();
  context.rect(left, top, width, height);
  context.clip();
  context.strokeStyle = "#56b4e9";
  context.lineWidth = 1;
  context.beginPath();
  context.moveTo(left, y + 0.5);
  context.lineTo(left + width, y + 0.5);
  context.moveTo(x + 0.5, top);
  context.lineTo(x + 0.5, top + height);
  context.stroke();
  context.restore();
}

// What a person must know now: [class, word, sentence].
function verdict() {
  if (!pictures.connected) return ["stale", "NO VOLUME", words || "the console does not answer"];
  if (!shown) return ["waiting", "NO VOLUME", words || "the first picture is being drawn"];
  const { header, arrived } = shown;
  const age = live.ageOf(header, arrived);
  if (words) return ["stale", "OLD VOLUME", `${words}; its newest image is ${duration(age / 1000)} old`];
  if (header.complete) return ["ended", "SCAN ENDED", `the last image came ${duration(age / 1000)} ago`];
  if (age > OLD_MS) return ["stale", "OLD VOLUME", `its newest image is ${duration(age / 1000)} old`];
  return ["live", "LIVE", `newest image ${seconds(age)} old`];
}

function tick() {
  if (!seen) return;
  const [kind, word, sentence] = verdict();
  set(ui.stage, undefined, `stage ${kind}`);
  set(ui.state, undefined, `volume-state ${kind}`);
  set(ui.word, word);
  set(ui.sentence, sentence);
}

function showFacts(header) {
  const kinds = { tracking: "NO POSITION", volume: "NOT ALL OF IT" };
  const marks = header.marks.map(({ stage, reason }) => `${kinds[stage] || `UNPROCESSED by ${stage}`}: ${reason}`);
  if (header.filled < 0.999 && !header.complete) marks.push(`Still filling: ${Math.floor(header.filled * 100)} % of the volume is measured`);
  else if (header.filled < 0.999) marks.push(`INCOMPLETE: ${Math.floor(header.filled * 100)} % of the volume is measured`);
  const text = marks.join("\n");
  if (ui.marks.dataset.text !== text) fill(ui.marks, marks.map((mark) => el("li", {}, mark)));
  ui.marks.dataset.text = text;
  const [nz, ny, nx] = header.shape;
  const facts = {
    "Volume": `${header.modality}, version ${header.version}, ${nx} × ${ny} × ${nz}`,
    "First image after": ms(kpi.first),
    "While dragging": kpi.rate ? `${kpi.rate.toFixed(0)} images/s` : "–",
    "Sharp after release": ms(kpi.sharp),
    "Drawn in": `${ms(header.render_ms)}, ${header.quality}`,
  };
  fill(ui.facts, Object.entries(facts).map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", {}, value))));
}

function ms(value) {
  return value === null ? "–" : `${Math.round(value)} ms`;
}

function showButtons(header) {
  const names = header.presets.join("\n");
  if (ui.presets.dataset.names !== names) {
    ui.presets.dataset.names = names;
    fill(ui.presets, header.presets.map((name) => button(name, `preset-${name.replace(/ /g, "-")}`, () => {
      preset = name;
      look();
    })));
  }
  for (const one of ui.presets.children) one.setAttribute("aria-pressed", String(one.textContent === header.preset));
  for (const one of ui.modes.children) one.setAttribute("aria-pressed", String(one.id === `mode-${mode}`));
}

function button(text, id, onclick) {
  return el("button", { type: "button", id, "aria-pressed": "false", onclick }, text);
}

function restart() {
  if (shown) shown.bitmap.close();
  shown = null;
  at = null;
  words = "";
  kpi = { first: null, sharp: null, drawn: [], released: 0 };
  camera.reset();
  fill(ui.marks, []);
  ui.marks.dataset.text = "";
  ui.canvas.width = ui.canvas.height = 1;
  if (seen && live.pipeline) pictures.open(live.pipeline);
  look();
}

function build(root) {
  ui = {
    stage: el("section", { id: "stage", class: "stage waiting", tabindex: "0", "aria-label": "Picture of the volume: drag to turn, wheel to zoom, shift and drag to move" }),
    canvas: el("canvas", { id: "volume-canvas", width: "1", height: "1" }),
    word: el("strong", { id: "volume-word" }, "NO VOLUME"),
    sentence: el("span", { id: "volume-sentence" }, words),
    marks: el("ul", { id: "volume-marks", class: "volume-marks", "aria-label": "Remarks on this volume" }),
    modes: el("p", { class: "buttons", role: "group", "aria-label": "What is drawn" }),
    presets: el("p", { class: "buttons", role: "group", "aria-label": "Colours" }),
    sides: el("p", { class: "buttons", role: "group", "aria-label": "Seen from" }),
    facts: el("dl", { id: "volume-facts", class: "facts" }),
  };
  ui.stage.append(ui.canvas);
  ui.state = el("p", { id: "volume-state", class: "volume-state waiting", role: "status" }, ui.word, " ", ui.sentence);
  ui.modes.append(...Object.entries(MODES).map(([name, title]) => button(title, `mode-${name}`, () => {
    mode = name;
    look();
  })));
  ui.sides.append(...Object.entries(SIDES).map(([name, rotation]) => button(name, `side-${name}`, () => {
    camera.rotation = rotation;
    look();
  })));
  ui.sides.append(button("Reset", "volume-reset", () => {
    camera.reset();
    at = null;
    look();
  }));
  root.append(ui.state, ui.marks, ui.stage, el("div", { class: "volume-controls" }, ui.modes, ui.presets, ui.sides, ui.facts));
}

export function mount(root) {
  build(root);
  const onWords = (text) => {
    words = text;
    tick();
  };
  pictures = new VolumePictures(take, onWords);
  hands = new VolumeHands(ui.stage, camera, {
    panes: () => (shown ? shown.header.panes : []),
    size: () => [ui.canvas.width, ui.canvas.height],
    isSeen: () => seen,
    place: (place) => (at = place),
    released: () => (kpi.released = performance.now()),
    look,
  });
  new ResizeObserver(() => seen && look()).observe(ui.stage);
  live.addEventListener("pipeline", restart);
  setInterval(tick, TICK_MS);
  return {
    show() {
      seen = true;
      if (live.pipeline) pictures.open(live.pipeline);
      kpi.first = null;
      look();
      tick();
    },
    hide() {
      seen = false;
      pictures.close();
    },
  };
}
