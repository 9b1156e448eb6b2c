// SPDX-License-Identifier: Apache-2.0
// Hands on a picture of a volume: mouse, touch, wheel and keys become turns, shifts, zoom, and a place in the slices.

const TURN = 0.008; // radians a pixel
const KEY_TURN = Math.PI / 18;
const WHEEL_RESTS_MS = 250;

export class VolumeHands {
  // `of`: panes() of the picture shown and its size() in pixels, isSeen(), place(LPS mm) to go to, released() when a
  // hand lets go, look() when something changed.
  constructor(stage, camera, of) {
    Object.assign(this, { stage, camera, of, dragging: false, fingers: new Map(), pane: null, resting: 0 });
    stage.addEventListener("pointerdown", (event) => this.down(event));
    stage.addEventListener("pointermove", (event) => this.move(event));
    for (const end of ["pointerup", "pointercancel", "lostpointercapture"]) stage.addEventListener(end, (event) => this.up(event));
    stage.addEventListener("wheel", (event) => this.wheel(event), { passive: false });
    stage.addEventListener("contextmenu", (event) => event.preventDefault());
    document.addEventListener("keydown", (event) => this.key(event));
  }

  // Pixels of the picture, which fits into the stage, for one of the page.
  ratio() {
    const [width, height] = this.of.size();
    return 1 / Math.min(this.stage.clientWidth / width, this.stage.clientHeight / height);
  }

  paneAt(event) {
    const box = this.stage.getBoundingClientRect();
    const ratio = this.ratio();
    const [width, height] = this.of.size();
    const x = (event.clientX - box.left - this.stage.clientLeft - this.stage.clientWidth / 2) * ratio + width / 2 - 0.5;
    const y = (event.clientY - box.top - this.stage.clientTop - this.stage.clientHeight / 2) * ratio + height / 2 - 0.5;
    const pane = this.of.panes().find(({ box: [left, top, w, h] }) => x >= left && y >= top && x < left + w && y < top + h);
    return { pane, x, y };
  }

  down(event) {
    if (event.button > 2) return;
    this.stage.setPointerCapture(event.pointerId);
    this.fingers.set(event.pointerId, event);
    if (this.fingers.size === 1) {
      this.pane = this.paneAt(event).pane || null;
      this.shifting = event.shiftKey || event.button > 0;
      this.goTo(event);
    }
    this.begin();
    this.of.look();
  }

  begin() {
    clearTimeout(this.resting);
    this.dragging = true;
  }

  move(event) {
    const before = this.fingers.get(event.pointerId);
    if (!before) return;
    const [dx, dy] = [event.clientX - before.clientX, event.clientY - before.clientY];
    if (this.fingers.size === 2) this.pinch(event, before, dx, dy);
    else if (this.fingers.size === 1 && this.shifting) this.shift(dx, dy);
    else if (this.fingers.size === 1 && !this.goTo(event)) this.camera.turn(dx * TURN, dy * TURN);
    this.fingers.set(event.pointerId, event);
    this.of.look();
  }

  // In one of several slices a hand points at a place; everywhere else it turns what is seen.
  goTo(event) {
    const { pane } = this;
    if (!pane || pane.kind !== "slice" || this.of.panes().length < 2 || this.shifting) return false;
    const { x, y } = this.paneAt(event);
    this.of.place(pane.origin_mm.map((mm, i) => mm + pane.right_mm[i] * (x - pane.box[0]) + pane.down_mm[i] * (y - pane.box[1])));
    return true;
  }

  pinch(event, before, dx, dy) {
    const other = [...this.fingers.values()].find((finger) => finger.pointerId !== event.pointerId);
    const apart = (finger) => Math.hypot(finger.clientX - other.clientX, finger.clientY - other.clientY) + 1;
    this.camera.zoomBy(apart(event) / apart(before));
    this.shift(dx / 2, dy / 2);
  }

  shift(dx, dy) {
    const pane = this.pane || this.of.panes()[0];
    if (!pane) return;
    const mm = Math.hypot(...pane.right_mm) * this.ratio();
    this.camera.shift(dx * mm, dy * mm);
  }

  up(event) {
    if (!this.fingers.delete(event.pointerId) || this.fingers.size) return;
    this.release();
  }

  release() {
    this.dragging = false;
    this.of.released();
    this.of.look();
  }

  wheel(event) {
    event.preventDefault();
    const lines = event.deltaMode === 1 ? 33 : 1;
    this.camera.zoomBy(Math.exp(-event.deltaY * lines * 0.0015));
    this.rest();
  }

  // A wheel and keys do not say when they are let go.
  rest() {
    this.begin();
    this.of.look();
    this.resting = setTimeout(() => this.fingers.size || this.release(), WHEEL_RESTS_MS);
  }

  key(event) {
    const tag = event.target.tagName;
    if (!this.of.isSeen() || event.ctrlKey || event.altKey || event.metaKey || tag === "SELECT" || tag === "INPUT" || tag === "A") return;
    const step = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (step && event.shiftKey) this.shift(step[0] * 20, step[1] * 20);
    else if (step) this.camera.turn(step[0] * KEY_TURN, step[1] * KEY_TURN);
    else if (event.key === "+" || event.key === "=") this.camera.zoomBy(1.2);
    else if (event.key === "-") this.camera.zoomBy(1 / 1.2);
    else if (event.key === "0") this.camera.reset();
    else return;
    event.preventDefault();
    this.rest();
  }
}
