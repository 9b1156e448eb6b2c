# SPDX-License-Identifier: Apache-2.0
"""A network's second opinion on what the rules found, and what it finds itself where rules miss."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Finding
from appliance.mri.fault_features import fault_features
from appliance.mri.rules import NETWORK_CLASSES, NETWORK_FINDS, Floats, Kspace

Network = Callable[[NDArray[np.float32]], NDArray[np.float32]]  # (1, channel, y, x) -> log odds (1, class)

_WORDS = {
    "ghosting": "ghosts along the phase direction; check for motion of the patient and, in EPI, the phase correction",
    "motion": "motion of the patient during this frame; repeat the scan if it is to be used",
    "wrap": "a body that folds over along the phase direction; enlarge the field of view",
}
_SAME = {"odd_even": "ghosting"}  # what a rule finds more of than the network's class says


def log_odds(network: Network, image: Floats, kspace: Kspace) -> dict[str, float]:
    """Return the network's log odds of each of its classes, as the rules "network_…" are named."""
    given = network(fault_features(image, kspace))[0]
    return {f"network_{name}": float(odds) for name, odds in zip(NETWORK_CLASSES, given, strict=True)}


def with_opinion(finding: Finding, odds: Mapping[str, float]) -> Finding:
    """Say what the network thinks of what a rule found, where it knows such faults."""
    of = odds.get(f"network_{_SAME.get(finding.kind, finding.kind)}")
    if of is None:
        return finding
    opinion = f"; second opinion of the network: {100 * probability(of):.0f} % sure of it"
    return dataclasses.replace(finding, message=finding.message + opinion)


def find_by_network(odds: Mapping[str, float], thresholds: Mapping[str, float], found: list[Finding]) -> list[Finding]:
    """Return what the network finds of NETWORK_FINDS that no rule has found."""
    known = {_SAME.get(finding.kind, finding.kind) for finding in found}
    new = []
    for kind in NETWORK_FINDS:
        rule = f"network_{kind}"
        if kind not in known and odds[rule] > thresholds[rule]:
            message = f"the network is {100 * probability(odds[rule]):.0f} % sure of {_WORDS[kind]}"
            new.append(Finding(kind, message, "warning", odds[rule], thresholds[rule]))
    return new


def probability(log_odds: float) -> float:
    """Turn log odds into a probability; it means what it says on data like the network's training data only."""
    return float(1 / (1 + np.exp(-np.clip(log_odds, -30, 30))))
