// SPDX-License-Identifier: Apache-2.0
// The person at this page: who it is, when somebody last touched the page, and the way in and out.

const LOOK_EVERY_MS = 5000;
const SOON_S = 900;
let touchedMs = performance.now();

for (const kind of ["pointerdown", "pointermove", "keydown", "wheel"]) {
  addEventListener(kind, () => (touchedMs = performance.now()), { capture: true, passive: true });
}

// Goes with every request: a page that nobody touches for long may show the live image and 3D, and nothing else.
export function idleHeaders() {
  return { "X-Idle-Ms": String(Math.round(performance.now() - touchedMs)) };
}

export function goToSignIn() {
  location.assign("sign-in");
}

// Show in `place` who is signed in, and the way out, or in. When that is somebody else than the page was made for, the
// page is made anew: nothing of what the other one saw stays in it.
export function showPerson(place, me, get, post) {
  const text = document.createElement("span");
  const button = document.createElement("button");
  button.type = "button";
  button.id = me.name ? "sign-out" : "to-sign-in";
  button.textContent = me.name ? "Sign out" : "Sign in";
  button.addEventListener("click", async () => {
    if (me.name) await post("api/sign-out", {}).catch((error) => console.warn(error.message));
    goToSignIn();
  });
  place.append(text, button);
  say(text, me);
  setInterval(async () => {
    const now = await get("api/me").catch(() => me); // the state above already says that the console does not answer
    if (now.name !== me.name || now.csrf !== me.csrf) location.reload();
    say(text, now);
  }, LOOK_EVERY_MS);
}

function say(text, me) {
  const soon = me.name && me.ends_in_s < SOON_S ? `; sign in again within ${Math.ceil(me.ends_in_s / 60)} min` : "";
  text.textContent = me.name ? `${me.name}, ${me.role}${soon} ` : "not signed in ";
}
