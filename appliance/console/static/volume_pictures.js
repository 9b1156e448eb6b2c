// SPDX-License-Identifier: Apache-2.0
// Pictures of volumes from the server: it gets the newest view, and hears of every picture that was drawn.

const AGAIN_MS = 1000;

// onPicture(header, bitmap, arrived) draws; onWords(text) says why there is none. A page that is not looked at is closed:
// it takes nobody's place.
export class VolumePictures {
  constructor(onPicture, onWords) {
    this.onPicture = onPicture;
    this.onWords = onWords;
    this.connected = false;
    this.socket = null;
    this.wanted = null; // the newest view
    this.told = null; // what the server knows
    this.opened = 0;
    this.newest = 0; // number of the newest picture that is being decoded or was drawn
  }

  open(pipeline) {
    this.close();
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws/volume?pipeline=${encodeURIComponent(pipeline)}`);
    socket.binaryType = "arraybuffer";
    this.socket = socket;
    this.told = null;
    this.opened = performance.now();
    this.newest = 0;
    socket.onopen = () => {
      if (socket !== this.socket) return;
      this.connected = true;
      this.tell();
    };
    socket.onmessage = (event) => socket === this.socket && this.receive(socket, event.data);
    socket.onclose = (event) => {
      if (socket !== this.socket) return;
      this.connected = false;
      this.onWords(event.reason || "");
      setTimeout(() => socket === this.socket && this.open(pipeline), AGAIN_MS);
    };
  }

  close() {
    const socket = this.socket;
    this.socket = null;
    this.connected = false;
    if (socket) socket.close();
  }

  look(view) {
    this.wanted = JSON.stringify({ view });
    if (this.asking) return;
    this.asking = requestAnimationFrame(() => {
      this.asking = 0;
      this.tell();
    });
  }

  tell() {
    if (!this.wanted || this.wanted === this.told || !this.connected) return;
    this.told = this.wanted;
    this.socket.send(this.wanted);
  }

  async receive(socket, data) {
    const arrived = performance.now();
    const length = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    if (header.state !== "picture") {
      this.onWords(header.text);
      return;
    }
    this.newest = header.number;
    let bitmap = null;
    try {
      bitmap = await createImageBitmap(new Blob([new Uint8Array(data, 4 + length)], { type: header.format }));
    } catch (error) {
      this.onWords(`this picture cannot be decoded: ${error.message}`);
    }
    if (socket !== this.socket) return;
    if (bitmap && header.number === this.newest) this.onPicture(header, bitmap, arrived); // decoders may overtake
    if (socket.readyState === WebSocket.OPEN) socket.send(JSON.stringify({ seen: header.number }));
  }
}
