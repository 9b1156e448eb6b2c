# SPDX-License-Identifier: Apache-2.0
"""The upper layer's state machine as the acceptor of an association sees it (PS3.8 9.2, tables 9-6 to 9-10).

Rule: no sockets, no bytes. States, events and actions have the standard's names; what an action does is the caller's.
"""

from __future__ import annotations

from appliance.errors import PeerError

# What arrives or is decided (table 9-10).
CONNECTED, RQ, AC, RJ, ACCEPT, REJECT = "Evt5", "Evt6", "Evt3", "Evt4", "Evt7", "Evt8"
SEND_DATA, DATA, RELEASE_RQ, RELEASE_RP, RELEASE = "Evt9", "Evt10", "Evt12", "Evt13", "Evt14"
ABORT, ABORTED, CLOSED, EXPIRED, INVALID = "Evt15", "Evt16", "Evt17", "Evt18", "Evt19"

IDLE, AWAIT_RQ, AWAIT_DECISION, OPEN, AWAIT_RELEASE, AWAIT_CLOSE = "Sta1", "Sta2", "Sta3", "Sta6", "Sta8", "Sta13"

EVENT_OF_PDU = {1: RQ, 2: AC, 3: RJ, 4: DATA, 5: RELEASE_RQ, 6: RELEASE_RP, 7: ABORTED}

_UNEXPECTED = dict.fromkeys((RQ, AC, RJ, DATA, RELEASE_RQ, RELEASE_RP, INVALID), "AA-8")
_ESTABLISHED = {**_UNEXPECTED, ABORT: "AA-1", ABORTED: "AA-3", CLOSED: "AA-4"}
_TABLE = {
    IDLE: {CONNECTED: "AE-5"},
    AWAIT_RQ: {
        **dict.fromkeys(_UNEXPECTED, "AA-1"),
        RQ: "AE-6",
        ABORTED: "AA-2",
        CLOSED: "AA-5",
        EXPIRED: "AA-2",
    },
    AWAIT_DECISION: {**_ESTABLISHED, ACCEPT: "AE-7", REJECT: "AE-8"},
    OPEN: {**_ESTABLISHED, SEND_DATA: "DT-1", DATA: "DT-2", RELEASE_RQ: "AR-2"},
    AWAIT_RELEASE: {**_ESTABLISHED, SEND_DATA: "AR-7", RELEASE: "AR-4"},
    AWAIT_CLOSE: {
        **dict.fromkeys(_UNEXPECTED, "AA-6"),
        RQ: "AA-7",
        INVALID: "AA-7",
        ABORTED: "AA-2",
        CLOSED: "AR-5",
        EXPIRED: "AA-2",
    },
}
_NEXT = {
    "AE-5": AWAIT_RQ,
    "AE-6": AWAIT_DECISION,
    "AE-7": OPEN,
    "AE-8": AWAIT_CLOSE,
    "DT-1": OPEN,
    "DT-2": OPEN,
    "AR-2": AWAIT_RELEASE,
    "AR-4": AWAIT_CLOSE,
    "AR-5": IDLE,
    "AR-7": AWAIT_RELEASE,
    "AA-1": AWAIT_CLOSE,
    "AA-2": IDLE,
    "AA-3": IDLE,
    "AA-4": IDLE,
    "AA-5": IDLE,
    "AA-6": AWAIT_CLOSE,
    "AA-7": AWAIT_CLOSE,
    "AA-8": AWAIT_CLOSE,
}


class UpperLayer:
    """Where one association is."""

    def __init__(self) -> None:
        self.state = IDLE

    def take(self, event: str) -> str:
        """Go on with `event`; gives the action to do. Raises PeerError where the standard knows none."""
        action = _TABLE[self.state].get(event)
        if action is None:
            raise PeerError(f"{event} cannot happen in {self.state}")
        self.state = _NEXT[action]
        return action
