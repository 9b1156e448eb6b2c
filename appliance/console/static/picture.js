// SPDX-License-Identifier: Apache-2.0
// One grey image on a canvas: before and after on the two sides of a divider, or what was removed, with markers on it.

import { element as el, set } from "./page.js";

const SVG = "http://www.w3.org/2000/svg";
const REMOVED = "REMOVED: before less after, 8 times as strong. Grey: nothing was changed";
const BEFORE = "BEFORE: unprocessed image";
const STEP = 0.05; // of the width, for one press of an arrow key

export class Picture {
  constructor(root) {
    this.root = root;
    this.image = null; // {header, pixels}
    this.split = 0; // part of the width, from the left, that shows the image before processing
    this.removed = false; // show what processing took away instead
    this.onChange = () => {};
    this.canvas = el("canvas", { id: "image", width: 1, height: 1, role: "img", "aria-label": "Live image" });
    this.marks = document.createElementNS(SVG, "svg");
    this.marks.setAttribute("preserveAspectRatio", "none");
    this.divider = el("div", {
      id: "divider", class: "divider", role: "slider", tabindex: "0", "aria-label": "Divider: before on its left, after on its right",
      "aria-valuemin": "0", "aria-valuemax": "100",
    });
    this.left = el("p", { class: "which before" }, "BEFORE");
    this.right = el("p", { class: "which after" }, "AFTER");
    this.which = el("p", { id: "which", class: "which before" });
    this.sheet = el("div", { class: "sheet" }, this.canvas, this.marks, this.divider, this.left, this.right);
    root.append(this.sheet, this.which);
    this.listen();
  }

  listen() {
    const move = (event) => {
      const box = this.canvas.getBoundingClientRect();
      this.setSplit((event.clientX - box.left) / box.width);
    };
    this.divider.addEventListener("pointerdown", (event) => {
      event.preventDefault();
      this.divider.focus();
      this.divider.setPointerCapture(event.pointerId);
      this.divider.onpointermove = move;
    });
    for (const end of ["pointerup", "pointercancel"]) this.divider.addEventListener(end, () => (this.divider.onpointermove = null));
    this.divider.addEventListener("keydown", (event) => {
      const step = { ArrowLeft: -STEP, ArrowRight: STEP }[event.key];
      if (step) this.setSplit(this.split + step);
    });
    new ResizeObserver(() => this.fit()).observe(this.root); // the window changes, or an alarm takes some of the room
  }

  get hasBefore() {
    return Boolean(this.image && this.image.header.original);
  }

  setSplit(part) {
    this.split = Math.min(1, Math.max(0, part));
    this.removed = false;
    this.draw();
    this.onChange();
  }

  setRemoved(on) {
    this.removed = on;
    this.draw();
    this.onChange();
  }

  show(header, pixels) {
    this.image = { header, pixels };
    this.draw();
  }

  clear() {
    this.image = null;
    this.canvas.width = this.canvas.height = 1;
    this.mark([]);
    this.label();
  }

  draw() {
    if (!this.image) return;
    const { header, pixels } = this.image;
    const { width, height } = header;
    const n = width * height;
    if (this.canvas.width !== width || this.canvas.height !== height) {
      this.canvas.width = width;
      this.canvas.height = height;
      this.words = new ImageData(width, height);
      this.marks.setAttribute("viewBox", `0 0 ${width} ${height}`);
      this.fit();
    }
    const words = new Uint32Array(this.words.data.buffer);
    const right = this.hasBefore && this.removed ? 2 * n : 0; // the planes come in this order: after, before, removed
    const edge = this.hasBefore && !this.removed ? Math.round(this.split * width) : 0;
    for (let y = 0, i = 0; y < height; y++) {
      for (let x = 0; x < width; x++, i++) words[i] = 0xff000000 | (pixels[(x < edge ? n : right) + i] * 0x010101);
    }
    this.canvas.getContext("2d").putImageData(this.words, 0, 0);
    this.label();
  }

  // What stands over the image must never be wrong: it says which side is which whenever any of it is not "after".
  label() {
    const split = this.hasBefore && !this.removed ? this.split : 0;
    set(this.which, this.hasBefore && this.removed ? REMOVED : split === 1 ? BEFORE : "");
    this.which.hidden = !this.which.textContent;
    this.left.hidden = this.right.hidden = split === 0 || split === 1;
    this.divider.hidden = !this.hasBefore || this.removed;
    this.divider.setAttribute("aria-valuenow", Math.round(100 * split));
    for (const part of [this.divider, this.left, this.right]) part.style.left = `${100 * split}%`;
  }

  fit() {
    if (!this.image) return;
    const { width, height, pixel_mm } = this.image.header;
    const wide = width * pixel_mm[0];
    const high = height * pixel_mm[1];
    const scale = Math.min(this.root.clientWidth / wide, this.root.clientHeight / high);
    this.sheet.style.width = `${wide * scale}px`;
    this.sheet.style.height = `${high * scale}px`;
  }

  // shapes: [tag, {attributes in pixels of the image}, class]
  mark(shapes) {
    const text = JSON.stringify(shapes);
    if (text === this.marked) return;
    this.marked = text;
    this.marks.textContent = "";
    for (const [tag, attributes, kind] of shapes) {
      const shape = document.createElementNS(SVG, tag);
      for (const [name, value] of Object.entries(attributes)) shape.setAttribute(name, value);
      shape.setAttribute("class", kind);
      this.marks.append(shape);
    }
  }
}

// Where on the image a finding is, as shapes; none where it is not at a place of the image.
export function shapesOf({ kind, where, severity }, { width, height }) {
  const column = (x) => ["path", { d: `M${x} 0V${height}` }, severity];
  const middle = [width / 2, height / 2];
  if (kind === "zipper" && where.of_width >= 0 && where.of_width <= 1) return [column(where.of_width * width)];
  if (kind === "dropped_lines") return [column(where.column + 0.5)];
  if (kind === "rings") return [["circle", { cx: middle[0], cy: middle[1], r: where.radius_px }, severity]];
  if (kind === "probe_decoupling") {
    const [x, end] = [where.first_percent, where.last_percent].map((percent) => (percent / 100) * width);
    return [["rect", { x, y: 0, width: end - x, height }, severity]];
  }
  if (where.angle_degrees !== undefined) {
    const along = ((where.angle_degrees + 90) * Math.PI) / 180; // the angle is that of the rays' normal
    const [dx, dy] = [width * Math.cos(along), width * Math.sin(along)];
    return [["path", { d: `M${middle[0] - dx} ${middle[1] - dy}L${middle[0] + dx} ${middle[1] + dy}` }, severity]];
  }
  return [];
}

// What is no place on the image, in words.
export function placeOf({ kind, where }) {
  const words = [];
  if (where.slice !== undefined) words.push(`slice ${where.slice}`);
  if (where.coil !== undefined) words.push(`coil ${where.coil}`);
  if (where.line !== undefined) words.push(where.last_line > where.line ? `k-space lines ${where.line} to ${where.last_line}` : `k-space line ${where.line}`);
  if (kind === "zipper") words.push(`column ${where.column}${where.of_width < 0 || where.of_width > 1 ? ", beyond the edge" : ""}`);
  else if (kind === "dropped_lines") words.push(`column ${where.column}`);
  else if (where.column !== undefined) words.push(`sample ${where.column}`);
  if (where.radius_px !== undefined) words.push(`${Math.round(where.radius_px)} pixels from the centre`);
  if (where.first_percent !== undefined) words.push(`${Math.round(where.first_percent)} to ${Math.round(where.last_percent)} % of the width`);
  if (where.angle_degrees !== undefined) words.push(`${Math.round((where.angle_degrees + 90) % 180)} degrees`);
  return words.join(", ");
}
