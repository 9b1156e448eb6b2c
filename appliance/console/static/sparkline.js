// SPDX-License-Identifier: Apache-2.0
// A small curve of the last two minutes, one value a second, with its newest value in figures.

import { element as el, set } from "./page.js";

const N = 120;
const [WIDTH, HEIGHT] = [240, 40];

export class Sparkline {
  // `least` is the smallest range of values that fills the height, so that noise does not look like a change.
  constructor(title, unit, note, least, fromZero) {
    this.unit = unit;
    this.least = least;
    this.fromZero = fromZero;
    this.values = new Float32Array(N).fill(NaN); // a ring
    this.n = 0;
    this.value = el("strong", {}, "–");
    this.range = el("small", {});
    this.canvas = el("canvas", { width: WIDTH, height: HEIGHT, role: "img", "aria-label": `${title}, last two minutes` });
    this.root = el("div", { class: "sparkline" }, el("span", {}, title, el("small", {}, note)), this.canvas, el("span", {}, this.value, this.range));
  }

  // One value for this second; null where there was none.
  add(value) {
    this.values[this.n++ % N] = value === null ? NaN : value;
    set(this.value, value === null ? "–" : `${value.toFixed(1)} ${this.unit}`);
    this.draw();
  }

  clear() {
    this.values.fill(NaN);
    set(this.value, "–");
    set(this.range, "");
  }

  draw() {
    const context = this.canvas.getContext("2d");
    context.clearRect(0, 0, WIDTH, HEIGHT);
    let [low, high] = [this.fromZero ? 0 : Infinity, -Infinity];
    for (const value of this.values) {
      if (value < low) low = value;
      if (value > high) high = value;
    }
    if (high === -Infinity) return set(this.range, "");
    set(this.range, `${this.fromZero ? "most" : `${low.toFixed(1)} to`} ${high.toFixed(1)}`);
    if (high - low < this.least) [low, high] = this.fromZero ? [low, low + this.least] : [(low + high - this.least) / 2, (low + high + this.least) / 2];
    context.strokeStyle = "#56b4e9";
    context.lineWidth = 2;
    context.beginPath();
    let down = false;
    for (let i = 0; i < N; i++) {
      const value = this.values[(this.n + i) % N];
      const [x, y] = [(i * (WIDTH - 4)) / (N - 1) + 2, HEIGHT - 4 - ((value - low) / (high - low)) * (HEIGHT - 8)];
      if (Number.isNaN(value)) down = false;
      else if (down) context.lineTo(x, y);
      else {
        context.moveTo(x, y);
        context.lineTo(x + 1, y);
        down = true;
      }
    }
    context.stroke();
  }
}
