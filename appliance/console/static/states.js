// SPDX-License-Identifier: Apache-2.0
// Words and signs for the states of scans, series and deliveries.

import { element as el } from "./page.js";

const KINDS = {
  receiving: "coming", processing: "working", delivering: "going", queued: "going", sending: "going", sent: "good",
  delivered: "good", verified: "good", committed: "done", kept: "", held: "held", quarantined: "bad", failed: "off",
  ready: "good", waiting: "off", unknown: "off", running: "good", starting: "working", draining: "working", silent: "off", unlike: "warn",
};
export const MEANS = {
  receiving: "images are still coming in",
  processing: "all here, and being worked on",
  delivering: "waiting to be sent, or being sent",
  delivered: "every destination has taken every image",
  committed: "every destination has promised to keep every image",
  kept: "nobody is owed these images",
  held: "a person or a conflict holds it back",
  quarantined: "a destination refuses it for good, or it cannot be built",
  failed: "the scan did not end well; what there is, is kept",
};

export function stateOf(state, words = state) {
  return el("span", { class: `is ${KINDS[state] === undefined ? "off" : KINDS[state]}`, title: MEANS[state] }, words);
}

export function setState(node, state, words = state) {
  const kind = `is ${KINDS[state] === undefined ? "off" : KINDS[state]}`;
  if (node.className !== kind) node.className = kind;
  if (node.textContent !== words) node.textContent = words;
  node.title = MEANS[state] || "";
}
