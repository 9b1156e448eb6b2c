# SPDX-License-Identifier: Apache-2.0
"""Which destinations a received instance is owed to: the site's rules, all that match.

Rule: pure. A condition is a text (case does not matter; `*` and `?` stand for any), a number, a list of which one must
match, or a range: `>=3`, `<40`, `1..5`. An attribute of several values matches with any of them.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase

from appliance.dicom.describe import KEYWORDS
from appliance.settings import Condition, Route

CALLING_AE_TITLE = "CallingAETitle"
KNOWN = sorted({*KEYWORDS.values(), CALLING_AE_TITLE})

_COMPARE = re.compile(r"(<=|>=|<|>)\s*(-?\d+(?:\.\d+)?)")
_RANGE = re.compile(r"(-?\d+(?:\.\d+)?)\.\.(-?\d+(?:\.\d+)?)")


@dataclass(frozen=True)
class Routed:
    """What the rules say of one instance."""

    rules: tuple[str, ...]
    destinations: tuple[str, ...]
    priority: int


def route(rules: Mapping[str, Route], attributes: Mapping[str, str], calling_ae_title: str) -> Routed:
    """Apply every rule; of those that match, the destinations together and the highest priority."""
    matching = {name: rule for name, rule in rules.items() if fulfils(rule.when, attributes, calling_ae_title)}
    destinations = dict.fromkeys(name for rule in matching.values() for name in rule.to)
    priority = max((rule.priority for rule in matching.values()), default=0)
    return Routed(tuple(matching), tuple(destinations), priority)


def fulfils(conditions: Mapping[str, Condition], attributes: Mapping[str, str], calling_ae_title: str) -> bool:
    """Whether all conditions hold, by keyword."""
    said = {**attributes, CALLING_AE_TITLE: calling_ae_title}
    return all(matches(condition, said.get(keyword, "")) for keyword, condition in conditions.items())


def matches(condition: Condition, value: str) -> bool:
    """Whether an attribute's value (several: separated by a backslash) fulfils the condition."""
    if isinstance(condition, list | tuple):
        return any(matches(one, value) for one in condition)
    return any(_matches_one(str(condition), one.strip()) for one in value.split("\\"))


def _matches_one(condition: str, value: str) -> bool:
    if found := _COMPARE.fullmatch(condition):
        return _is_number(value) and _compare(found[1], float(value), float(found[2]))
    if found := _RANGE.fullmatch(condition):
        return _is_number(value) and float(found[1]) <= float(value) <= float(found[2])
    if _is_number(condition) and _is_number(value):
        return float(condition) == float(value)
    return fnmatchcase(value.casefold(), condition.casefold().replace("[", "[[]"))


def _compare(sign: str, value: float, limit: float) -> bool:
    return {"<": value < limit, "<=": value <= limit, ">": value > limit, ">=": value >= limit}[sign]


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?", text) is not None
