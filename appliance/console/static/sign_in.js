// SPDX-License-Identifier: Apache-2.0
// The sign-in page.

const byId = (id) => document.getElementById(id);
const page = "./"; // of the console; this page is its /sign-in
let waiting = 0; // seconds

function say(text) {
  byId("problem").textContent = text;
  byId("problem").hidden = !text;
}

// Too many wrong passwords, from here or for this account: count down, then the button works again.
function wait(seconds, text) {
  waiting = seconds;
  byId("enter").disabled = seconds > 0;
  say(seconds > 0 ? text.replace(/in \d+ s/, `in ${seconds} s`) : "");
  if (seconds > 0) setTimeout(() => wait(seconds - 1, text), 1000);
}

async function signIn() {
  const body = JSON.stringify({ name: byId("name").value, password: byId("password").value });
  const answer = await fetch("api/sign-in", { method: "POST", headers: { "Content-Type": "application/json" }, body });
  if (answer.ok) {
    location.replace(page);
    return;
  }
  const said = await answer.json();
  if (said.wait_s) {
    wait(said.wait_s, said.error);
    return;
  }
  say(said.error);
  byId("password").value = "";
  byId("password").focus();
}

byId("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  byId("enter").disabled = true;
  say("");
  try {
    await signIn();
  } catch (error) {
    say("The console does not answer; try again.");
  }
  if (!waiting) byId("enter").disabled = false;
});

// A link from another site comes without the session (SameSite=Strict): who is signed in goes on from here.
async function goOn() {
  const answer = await fetch("api/me");
  if ((await answer.json()).name) location.replace(page);
}

goOn();
