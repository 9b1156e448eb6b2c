# SPDX-License-Identifier: Apache-2.0
"""What a C-STORE status means for us (PS3.4 B.2.3, PS3.7 annex C): stored, try again, or never."""

from __future__ import annotations

from appliance.errors import DeliveryError

SUCCESS = 0x0000
OUT_OF_RESOURCES = 0xA700
CANNOT_UNDERSTAND = 0xC000
DATASET_MISMATCH = 0xA900
INVALID_INSTANCE = 0x0117
SOP_CLASS_NOT_SUPPORTED = 0x0122
UNRECOGNIZED = 0x0211
PROCESSING_FAILURE = 0x0110
NO_SUCH_INSTANCE = 0x0112
DUPLICATE_INSTANCE = 0x0111
INVALID_VALUE = 0x0106
INVALID_ARGUMENT = 0x0115
NO_SUCH_ACTION = 0x0123
RESOURCE_LIMITATION = 0x0213

_STORED = {0x0000, 0x0001, 0x0107, 0x0116}  # the warnings of PS3.7 too: the instance is stored
_PERMANENT = {
    0x0111: "it holds this UID already",
    0x0112: "no such object instance",
    0x0117: "invalid object instance",
    0x0118: "no such object class",
    0x0119: "class and instance do not agree",
    0x0122: "it does not take this SOP class",
    0x0211: "it does not know C-STORE",
    0x0212: "mistyped argument",
}
_PERMANENT_RANGES = {0xA8: "it does not take this SOP class", 0xA9: "data set does not match its SOP class"}
_TRANSIENT = {0x0110: "processing failure", 0x0124: "it does not authorise us", 0x0213: "resource limitation"}


def is_stored(status: int) -> bool:
    """Whether the peer stored the instance, if with a warning (0xBxxx)."""
    return status in _STORED or status >> 12 == 0xB


def is_pending(status: int) -> bool:
    """Whether a C-FIND goes on (PS3.4 C.4.1.1.4)."""
    return status in (0xFF00, 0xFF01)


def is_out_of_resources(status: int | None) -> bool:
    """Whether the peer would refuse the next instance too."""
    return status is not None and (status >> 8 == 0xA7 or status == 0x0213)


def error_for(status: int, peer: str) -> DeliveryError:
    """Give the error of a status that is not `is_stored`. Unknown ones are tried again: nothing is given up."""
    permanent, meaning = _meaning(status)
    action = "look at the instance and at the peer's log" if permanent else "will try again"
    text = f"{peer}: C-STORE was answered 0x{status:04X} ({meaning}); {action}"
    return DeliveryError(text, permanent=permanent, status=status)


def _meaning(status: int) -> tuple[bool, str]:
    if status in _PERMANENT:
        return True, _PERMANENT[status]
    if status >> 8 in _PERMANENT_RANGES:
        return True, _PERMANENT_RANGES[status >> 8]
    if status >> 12 == 0xC:
        return True, "it cannot understand the data set"
    if status >> 8 == 0xA7:
        return False, "out of resources"
    return False, _TRANSIENT.get(status, "unknown status")
