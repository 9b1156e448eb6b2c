# SPDX-License-Identifier: Apache-2.0
"""What pydantic found wrong with settings, in words for a field engineer."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from appliance.yaml_file import Path as Keys

_KINDS = {
    "int": "a whole number",
    "float": "a number",
    "string": "text",
    "bool": "true or false",
    "model": "a group of keys",
    "dict": "a group of keys",
    "tuple": "a list",
    "list": "a list",
    "path": "a path",
}
_PATTERNS = {
    r"^[A-Za-z0-9][A-Za-z0-9_-]*$": "must be letters, digits, '-' and '_' only, beginning with a letter or digit",
    r"^[\x20-\x5b\x5d-\x7e]+$": "must be printable ASCII without backslash",
    r"^[ -~]*$": "must be printable ASCII",
}


def explain(model: type[BaseModel], data: Any, error: ValidationError) -> Iterator[tuple[Keys, str, bool]]:
    """Yield (path, text, whether the key rather than its value is to blame) for each thing wrong with `data`."""
    schema = model.model_json_schema()
    for item in error.errors(include_url=False):
        path, at_key = _path(item, data)
        yield path, _text(item, schema, path), at_key


def _path(item: ErrorDetails, data: Any) -> tuple[Keys, bool]:
    """Return the location in the file: pydantic's without its own marks (union members, "[key]")."""
    path: list[str | int] = []
    at_key = item["type"] == "extra_forbidden" or "[key]" in item["loc"]
    for part in item["loc"]:
        if isinstance(data, dict) and part in data:
            data = data[str(part)]
        elif isinstance(data, list) and isinstance(part, int) and part < len(data):
            data = data[part]
        elif item["type"] != "missing" or part != item["loc"][-1]:
            continue
        path.append(part)
    return tuple(path), at_key


def _text(item: ErrorDetails, schema: dict[str, Any], path: Keys) -> str:
    kind = item["type"]
    if kind == "extra_forbidden":
        return unknown("key", str(path[-1]), _at(schema, path[:-1]).get("properties", {}))
    here = _at(schema, path)
    if kind == "missing":
        return f"missing; add it: {here.get('description', 'it has no default')}"
    if kind == "value_error":
        return str(item.get("ctx", {}).get("error", item["msg"]))
    return f"{_rule(item, here)}, got {_shown(item['input'])}"


def _rule(item: ErrorDetails, here: dict[str, Any]) -> str:
    kind, limits = item["type"], item.get("ctx", {})
    if kind.startswith(("greater_than", "less_than")):
        return f"must be {bounds(here)}"
    if kind == "literal_error":
        return f"must be {limits['expected']}"
    if kind == "string_pattern_mismatch":
        return _PATTERNS.get(limits["pattern"], f"must match {limits['pattern']}")
    if kind == "too_short":
        return f"must have at least {limits['min_length']}"
    if kind == "too_long":
        return f"must have at most {limits['max_length']}"
    if kind == "string_too_short":
        return "must not be empty"
    if kind == "string_too_long":
        return f"must have at most {limits['max_length']} characters"
    if kind == "int_from_float":
        return "must be a whole number"
    name, _, what = kind.rpartition("_")
    if what == "type" and name in _KINDS:
        return f"must be {_KINDS[name]}"
    return item["msg"][:1].lower() + item["msg"][1:]


def _shown(value: Any) -> str:
    if isinstance(value, dict | list):
        return "a list" if isinstance(value, list) else "a group of keys"
    if value is None:
        return "nothing"
    if isinstance(value, bool):
        return str(value).lower()
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."


def bounds(schema: dict[str, Any]) -> str:
    """Write a JSON schema's limits: "1..65535", "above 0 and at most 600", "at least 0", or an empty text."""
    low, high = schema.get("minimum"), schema.get("maximum")
    above, below = schema.get("exclusiveMinimum"), schema.get("exclusiveMaximum")
    if low is not None and high is not None:
        return f"{low:.15g}..{high:.15g}"
    parts = [
        f"{word} {limit:.15g}"
        for word, limit in (("at least", low), ("above", above), ("at most", high), ("below", below))
        if limit is not None
    ]
    return " and ".join(parts)


def unknown(what: str, name: str, known: Iterable[str]) -> str:
    """Say that `name` is none of `known`, and which it may have been."""
    known = sorted(known)
    close = difflib.get_close_matches(name.lower().replace("-", "_"), known, n=1) or difflib.get_close_matches(
        name, known, n=1
    )
    if close:
        return f"unknown {what} {name!r}; did you mean {close[0]!r}?"
    return f"unknown {what} {name!r}; " + (f"known: {', '.join(known)}" if known else "none is known here")


def _at(root: dict[str, Any], path: Keys) -> dict[str, Any]:
    """Return the part of a JSON schema that describes `path`; an empty one where the schema says nothing."""
    here = resolve(root, root)
    for part in path:
        inner = here.get("items") if isinstance(part, int) else here.get("properties", {}).get(part)
        if inner is None:
            patterns = list(here.get("patternProperties", {}).values())
            inner = here.get("additionalProperties") or (patterns[0] if patterns else None)
        here = resolve(inner, root) if isinstance(inner, dict) else {}
    return here


def resolve(schema: dict[str, Any], root: dict[str, Any]) -> dict[str, Any]:
    """Follow `$ref` and the one member of `anyOf` that is not null; the outer description wins."""
    members = [member for member in schema.get("anyOf", ()) if member.get("type") != "null"]
    inner = members[0] if members else schema
    target = root["$defs"][inner["$ref"].rpartition("/")[2]] if "$ref" in inner else inner
    outer = {key: schema[key] for key in ("description", "default", "examples") if key in schema}
    return {**target, **outer}
