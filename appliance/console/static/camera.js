// SPDX-License-Identifier: Apache-2.0
// Where somebody looks from: a rotation (unit quaternion x, y, z, w of the camera in LPS), zoom and a shift.

const H = Math.sqrt(0.5);
const MOST_ZOOM = 50;
export const SIDES = {
  front: [0, 0, 0, 1], back: [0, 0, 1, 0], left: [0, 0, H, H], right: [0, 0, -H, H], head: [-H, 0, 0, H], feet: [H, 0, 0, H],
};

function times([a, b, c, d], [x, y, z, w]) {
  return [d * x + a * w + b * z - c * y, d * y - a * z + b * w + c * x, d * z + a * y - b * x + c * w, d * w - a * x - b * y - c * z];
}

export class Camera {
  constructor() {
    this.reset();
  }

  reset() {
    this.rotation = SIDES.front;
    this.fit();
  }

  fit() {
    this.zoom = 1;
    this.pan = [0, 0];
  }

  // Turn what is seen by so many radians to the right and down: the camera goes the other way.
  turn(right, down) {
    const about = times([0, 0, Math.sin(-right / 2), Math.cos(right / 2)], [Math.sin(-down / 2), 0, 0, Math.cos(down / 2)]);
    const turned = times(this.rotation, about);
    const length = Math.hypot(...turned);
    this.rotation = turned.map((part) => part / length);
  }

  roll(angle) {
    this.rotation = times(this.rotation, [0, Math.sin(-angle / 2), 0, Math.cos(angle / 2)]);
  }

  zoomBy(factor) {
    this.zoom = Math.min(MOST_ZOOM, Math.max(1 / MOST_ZOOM, this.zoom * factor));
  }

  // Shift what is seen by so many mm to the right and down.
  shift(right, down) {
    const most = 1e5;
    this.pan = [this.pan[0] - right, this.pan[1] - down].map((mm) => Math.min(most, Math.max(-most, mm)));
  }
}
