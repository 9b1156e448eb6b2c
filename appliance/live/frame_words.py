# SPDX-License-Identifier: Apache-2.0
"""What a navigation display is told of a frame, in words: how old it is, what was done to it, what is wrong."""

from __future__ import annotations

import time

from appliance.frames import Frame, Mark


def metadata(frame: Frame) -> dict[str, str]:
    """Return what travels beside the image, for displays that read it."""
    return {
        "age_ms": f"{(time.monotonic_ns() - frame.received_ns) / 1e6:.1f}",
        "acquired_ns": str(frame.acquired_ns),
        "sequence": str(frame.sequence),
        "scan_id": frame.scan_id,
        "models": "; ".join(f"{a.model} {a.model_digest[:12]}" for a in frame.provenance if a.model),
        "unprocessed": "; ".join(f"{mark.stage}: {mark.reason}" for mark in frame.marks),
        "findings": "; ".join(finding.message for finding in frame.findings),
    }


def remarks(frame: Frame) -> str:
    """Return marks and findings, one on a line, for displays that show text only."""
    lines = [_words_of(mark) for mark in frame.marks]
    return "\n".join(lines + [f"{f.severity.upper()}: {f.message}" for f in frame.findings]) or "no remarks"


def _words_of(mark: Mark) -> str:
    if mark.stage == "tracking":  # the image is as it should be, its place in the room is not known
        return f"TRACKING INVALID: {mark.reason}"
    return f"UNPROCESSED by {mark.stage}: {mark.reason}"
