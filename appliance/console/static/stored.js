// SPDX-License-Identifier: Apache-2.0
// Kept images of one scan or series: one large, with a slider through all, and a strip of small ones.

import { element as el, get, keyed, set } from "./page.js";

const N_SMALL = 10;

export class Stored {
  constructor() {
    this.frames = []; // {id, frame, kind, purged}
    this.n_images = 0;
    this.wanted = this.asked = ""; // addresses: of what is to be shown, and of what the box works on
    this.at = 0;
    this.image = el("img", { alt: "", draggable: "false" });
    this.words = el("p", { class: "words" });
    this.tag = el("p", { class: "tag" }, "STORED, not live");
    this.slider = el("input", { type: "range", min: "0", max: "0", value: "0", "aria-label": "Which image" });
    this.strip = el("div", { class: "strip" });
    this.root = el("div", { class: "stored" }, el("div", { class: "frame" }, this.image, this.words, this.tag), this.slider, this.strip);
    this.slider.addEventListener("input", () => this.go(Number(this.slider.value)));
    this.image.addEventListener("load", () => this.loaded());
    this.image.addEventListener("error", () => this.failed());
  }

  clear() {
    this.frames = [];
    this.at = 0;
    this.wanted = "";
    this.image.hidden = true;
    set(this.words, "");
    this.tag.hidden = true;
    this.strip.textContent = "";
    this.slider.hidden = true;
  }

  show(entry) {
    const before = this.frames.length;
    const seen = this.frames[this.at];
    this.n_images = entry.n_images;
    // one kind after the other: stepping through must not flicker between before and after
    const images = [...entry.images].sort((a, b) => (a.kind || "").localeCompare(b.kind || "") || a.id - b.id);
    this.frames = images.flatMap(({ id, n_frames, kind, purged }) =>
      Array.from({ length: Math.min(n_frames, 1000) }, (_, frame) => ({ id, frame, kind, purged })),
    );
    const n = this.frames.length;
    if (seen) this.at = Math.max(0, this.frames.findIndex((one) => one.id === seen.id && one.frame === seen.frame));
    this.slider.max = String(Math.max(0, n - 1));
    this.slider.value = String(this.at);
    this.slider.hidden = n < 2;
    const here = this.frames.map((one, i) => ({ ...one, i })).filter((one) => !one.purged);
    const small = here.filter((_, k) => here.length <= N_SMALL || k % Math.ceil(here.length / N_SMALL) === 0);
    keyed(this.strip, small, (one) => `${one.id}/${one.frame}`, (one) => this.makeSmall(one), (button, one) => (button.at = one.i));
    if (n && (before === 0 || !this.wanted)) this.go(Math.floor(n / 2));
    else if (!n) set(this.words, "no images yet");
    else if (before !== n && !this.asked && !this.image.hidden) this.tell(this.frames[this.at]);
  }

  makeSmall(one) {
    const image = el("img", { src: `api/images/${one.id}?frame=${one.frame}&size=96`, alt: "", loading: "lazy" });
    const button = el("button", { type: "button", onclick: () => this.go(button.at) }, image);
    return button;
  }

  // The words below change when the picture has: it is never called what it is not.
  go(at) {
    this.at = at;
    this.slider.value = String(at);
    const one = this.frames[at];
    this.wanted = `api/images/${one.id}?frame=${one.frame}&size=768`;
    if (one.purged) {
      this.say("its bytes are no longer on this box: it was delivered long ago");
      return;
    }
    this.image.classList.add("late");
    this.ask();
  }

  // One question at a time, for the box decodes one after the other: what is wanted by then is asked for next.
  ask() {
    if (this.asked) return;
    this.asked = this.wanted;
    this.image.src = this.asked;
  }

  loaded() {
    const isWanted = this.answered();
    const one = this.frames[this.at];
    if (!isWanted || !one || one.purged) return;
    this.tell(one);
  }

  answered() {
    const isWanted = this.asked === this.wanted;
    this.asked = "";
    if (!isWanted && this.wanted && !this.frames[this.at].purged) this.ask();
    return isWanted;
  }

  tell(one) {
    this.image.hidden = this.tag.hidden = false;
    this.image.classList.remove("late");
    const rest = this.frames.length < this.n_images ? ` (of the first; there are ${this.n_images})` : "";
    set(this.words, `image ${this.at + 1} of ${this.frames.length}${rest}${one.kind ? `, ${one.kind}` : ""}. Grey levels chosen for a look: not for diagnosis.`);
  }

  say(words) {
    this.image.hidden = this.tag.hidden = true;
    set(this.words, `image ${this.at + 1} of ${this.frames.length}: ${words}`);
  }

  async failed() {
    const wanted = this.wanted;
    if (!this.answered() || !wanted) return;
    try {
      await get(wanted);
    } catch (error) {
      if (wanted === this.wanted) this.say(error.message);
    }
  }
}
