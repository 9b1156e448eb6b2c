// SPDX-License-Identifier: Apache-2.0
// How long a step took, as bars: half an octave each, from appliance/latency.py.

const SVG = "http://www.w3.org/2000/svg";
const [FIRST_MS, N_BINS] = [0.125, 24];
const [WIDTH, HEIGHT] = [N_BINS + 2, 20];
const TICKS_MS = [1, 10, 100];

const make = (tag, attributes) => {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) made.setAttribute(name, value);
  return made;
};

export class Histogram {
  constructor() {
    this.root = document.createElement("div");
    this.root.className = "histogram";
    const svg = make("svg", { viewBox: `0 0 ${WIDTH} ${HEIGHT}`, preserveAspectRatio: "none" });
    this.bars = Array.from({ length: WIDTH }, (_, i) => make("rect", { x: i + 0.05, width: 0.9, y: HEIGHT, height: 0 }));
    svg.append(...this.bars);
    this.root.append(svg);
    for (const ms of TICKS_MS) {
      const tick = document.createElement("small");
      tick.textContent = `${ms}`;
      tick.style.left = `${(100 * (2 * Math.log2(ms / FIRST_MS) + 1)) / WIDTH}%`;
      this.root.append(tick);
    }
  }

  show(counts) {
    const most = Math.max(1, ...counts);
    this.bars.forEach((bar, i) => {
      // the root: one late frame among thousands is seen
      const high = HEIGHT * Math.sqrt((counts[i] || 0) / most);
      bar.setAttribute("y", HEIGHT - high);
      bar.setAttribute("height", high);
    });
  }
}
