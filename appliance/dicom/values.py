# SPDX-License-Identifier: Apache-2.0
"""What others wrote, made fit for a DICOM value representation (PS3.5 6.2); what cannot be is left empty."""

from __future__ import annotations

import re
from datetime import datetime

from pydicom.valuerep import format_number_as_ds

_TIME = re.compile(r"([01]\d|2[0-3])[0-5]\d[0-5]\d(\.\d{1,6})?")
_NOT_PRINTED = re.compile(r"[\x00-\x1f\x7f-\x9f\\\ud800-\udfff]")
_POSITIONS = {"HFP", "HFS", "HFDR", "HFDL", "FFDR", "FFDL", "FFP", "FFS"}  # PS3.3 C.7.3.1.1.2


def text(value: str, longest: int = 64) -> str:
    """Give `value` in one line, at most `longest` characters, without the backslash that separates values."""
    return _NOT_PRINTED.sub(" ", value).strip()[:longest].strip()


def paragraphs(lines: list[str], longest: int) -> str:
    """Give `lines` as one LT or ST."""
    return "\r\n".join(text(line, longest) for line in lines if line)[:longest].strip()


def person_name(value: str) -> str:
    """Give a PN: three groups of five components, 64 characters a group."""
    groups = text(value, 1000).split("=")[:3]
    return "=".join("^".join(group.split("^")[:5])[:64].strip() for group in groups).strip("=")


def date(value: str) -> str:
    """Give a DA, also from YYYY-MM-DD; empty when it is none."""
    digits = value.replace("-", "").strip()
    try:
        return (
            digits if digits.isascii() and len(digits) == 8 and datetime.strptime(digits, "%Y%m%d").year >= 1900 else ""
        )
    except ValueError:
        return ""


def time(value: str) -> str:
    """Give a TM, also from HH:MM:SS; empty when it is none."""
    digits = value.replace(":", "").strip()
    return digits if digits.isascii() and _TIME.fullmatch(digits) else ""


def sex(value: str) -> str:
    """Give M, F, O or empty."""
    return value if value in ("M", "F", "O") else ""


def patient_position(value: str) -> str:
    """Give a defined patient position or empty."""
    return value if value in _POSITIONS else ""


def decimal(value: float | None) -> str:
    """Give a DS; empty for None. Raises ValueError when it is not finite."""
    return "" if value is None else format_number_as_ds(float(value))
