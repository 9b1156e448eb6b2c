// SPDX-License-Identifier: Apache-2.0
// The live image: what the server sends, how old it is, and whether that is still "live".

const TICK_MS = 50;
const STALE_MS = 440; // looked at every TICK_MS, so "no live data" is on the screen within 500 ms
const PING_EVERY_MS = 1000;
const PING_VALID_MS = 30000;

// Events: "preview" with {header, pixels} for every image, "state" with the header for idle and ended, "pipeline" when
// another pipeline is looked at, "verdict" every 50 ms with what a person must know now.
class Live extends EventTarget {
  constructor() {
    super();
    this.pipeline = "";
    this.connected = false;
    this.header = null; // of the newest image
    this.state = null; // of the newest message: live, idle or ended
    this.arrived = 0;
    this.pings = [];
    setInterval(() => this.ping(), PING_EVERY_MS);
    setInterval(() => this.tell("verdict", this.verdict()), TICK_MS);
  }

  watch(pipeline) {
    this.pipeline = pipeline;
    this.header = this.state = null;
    if (this.socket) this.socket.close();
    this.connect();
    this.tell("pipeline", pipeline);
  }

  tell(what, detail) {
    this.dispatchEvent(new CustomEvent(what, { detail }));
  }

  connect() {
    const scheme = location.protocol === "https:" ? "wss:" : "ws:";
    const socket = new WebSocket(`${scheme}//${location.host}/ws/live?pipeline=${encodeURIComponent(this.pipeline)}`);
    socket.binaryType = "arraybuffer";
    socket.onopen = () => {
      this.connected = true;
      this.pings = [];
      this.ping();
    };
    socket.onmessage = (event) => {
      if (socket === this.socket) this.receive(event.data);
    };
    socket.onclose = () => {
      if (socket !== this.socket) return;
      this.connected = false;
      setTimeout(() => socket === this.socket && this.connect(), 1000);
    };
    this.socket = socket;
  }

  ping() {
    if (this.connected) this.send({ ping: performance.now() });
  }

  send(said) {
    if (this.socket.readyState === WebSocket.OPEN) this.socket.send(JSON.stringify(said));
  }

  receive(data) {
    const now = performance.now();
    if (typeof data === "string") {
      const { pong, now_ns } = JSON.parse(data);
      this.pings = this.pings.filter((p) => now - p.sent < PING_VALID_MS);
      this.pings.push({ sent: pong, trip: now - pong, serverMs: now_ns / 1e6 });
      return;
    }
    const length = new DataView(data).getUint32(0, true);
    const header = JSON.parse(new TextDecoder().decode(new Uint8Array(data, 4, length)));
    this.state = header.state;
    if (header.state === "live") {
      this.header = header;
      this.arrived = now;
      this.tell("preview", { header, pixels: new Uint8Array(data, 4 + length) });
    } else {
      this.tell("state", header);
    }
    this.send({ seen: true });
  }

  // Age of the newest image in ms, from its last byte at the box to now, network and waiting included. The clock
  // of the box is taken from the quickest ping, and the whole of its round trip is counted: never too young.
  age() {
    return this.header && this.ageOf(this.header, this.arrived);
  }

  // The same of anything that came from the box, here at `arrived`.
  ageOf({ received_ns, sent_ns }, arrived) {
    const now = performance.now();
    const best = this.pings.reduce((a, b) => (a && a.trip <= b.trip ? a : b), null);
    if (best) return best.serverMs + (now - best.sent) - received_ns / 1e6;
    return (sent_ns - received_ns) / 1e6 + (now - arrived);
  }

  // What a person must know now: [class, word, sentence].
  verdict() {
    const age = this.age();
    if (!this.connected) return ["stale", "NO LIVE DATA", "the console does not answer"];
    if (this.state === "idle") return ["waiting", "NO LIVE DATA", "no scan is running"];
    if (this.state === "ended") return ["waiting", "NO LIVE DATA", "the scan has ended"];
    if (age === null) return ["waiting", "NO LIVE DATA", "no image yet"];
    if (age > STALE_MS) return ["stale", "NO LIVE DATA", `the newest image is ${seconds(age)} old`];
    return ["live", "LIVE", ""];
  }
}

export function seconds(ms) {
  return ms < 10000 ? `${(ms / 1000).toFixed(1)} s` : `${Math.round(ms / 1000)} s`;
}

export const live = new Live(); // the one that the header speaks of; every view may look at it
