# SPDX-License-Identifier: Apache-2.0
"""What may stand in the YAML file: a JSON Schema, an example with every key, and the tables of docs/configure.md."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from appliance import operator_files
from appliance.explain_settings import bounds, resolve
from appliance.operator_files import KINDS, Kind
from appliance.settings import Settings

Schema = dict[str, Any]

_INTRODUCTION = """\
# Every key with its help, its bounds and its default. Printed by `nearscan example`; not a site to copy:
# one of each operator stands here, by name and not in a sensible order. Start from mri.yaml, ct.yaml or
# ultrasound-or.yaml instead, and leave out what has a default that suits.
"""


def schema() -> Schema:
    """Return the JSON Schema of the file; each operator's settings come from its own file."""
    root = Settings.model_json_schema()
    del root["$defs"]["Operator"]
    for kind in KINDS:
        root["$defs"][kind] = _operator_schema(kind, root["$defs"])
    properties = root["$defs"]["Pipeline"]["properties"]
    properties["source"] = {"$ref": "#/$defs/source", "description": properties["source"]["description"]}
    properties["stages"]["items"] = {"$ref": "#/$defs/stage"}
    properties["sinks"]["items"] = {"$ref": "#/$defs/sink"}
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **root, "title": "nearscan site"}


def _operator_schema(kind: Kind, definitions: Schema) -> Schema:
    """One alternative for each operator file: its name alone where it needs no settings, or name and settings."""
    alternatives: list[Schema] = []
    for name in operator_files.names(kind):
        model: type[BaseModel] = operator_files.load(kind, name).Settings
        prefix = f"{kind}.{name}."
        body = model.model_json_schema(ref_template=f"#/$defs/{prefix}{{model}}")
        definitions.update({prefix + inner: value for inner, value in body.pop("$defs", {}).items()})
        definitions[f"{kind}.{name}"] = body
        if not body.get("required"):
            alternatives.append({"const": name})
        reference = {"$ref": f"#/$defs/{kind}.{name}"}
        alternatives.append(
            {"type": "object", "properties": {name: reference}, "required": [name], "additionalProperties": False}
        )
    return {"anyOf": alternatives}


def example() -> str:
    """Return a YAML file with every key of every model and operator."""
    root = schema()
    lines = [_INTRODUCTION.rstrip()]
    for key, value in root["properties"].items():
        lines.append("")
        lines += _pipelines(root) if key == "pipelines" else _entry(key, value, root, "", key in root["required"])
    return "\n".join(lines) + "\n"


def _pipelines(root: Schema) -> list[str]:
    """One pipeline for each source; the first has one of each stage and sink."""
    lines = [f"# {root['properties']['pipelines']['description']}", "pipelines:"]
    for number, name in enumerate(operator_files.names("source")):
        lines += [f"  example-{name.replace('_', '-')}:"]
        lines += _operators("source", [name], root, "    source:", "      ")
        lines += _operators(
            "stage", operator_files.names("stage") if number == 0 else [], root, "    stages:", "      - "
        )
        sinks = operator_files.names("sink")
        lines += _operators("sink", sinks if number == 0 else sinks[-1:], root, "    sinks:", "      - ")
        for key, value in root["$defs"]["Pipeline"]["properties"].items():
            if key not in ("source", "stages", "sinks"):
                lines += _entry(key, value, root, "    ", required=False)
    return lines


def _operators(kind: Kind, names: list[str], root: Schema, head: str, dash: str) -> list[str]:
    if not names:
        return [f"{head} []"]
    lines = [head]
    for name in names:
        body = root["$defs"][f"{kind}.{name}"]
        inner = [
            line
            for key, value in body.get("properties", {}).items()
            for line in _entry(key, value, root, " " * (len(dash) + 2), key in body.get("required", ()))
        ]
        lines += [f"{dash}{name}:", *inner] if inner else [f"{dash}{name}: {{}}"]
    return lines


def _entry(key: str, given: Schema, root: Schema, indent: str, required: bool) -> list[str]:
    """Lines of one key: help as a comment, then the key with its default, or an example where it has none."""
    value = resolve(given, root)
    lines = [f"{indent}# {_help(given, root, required)}"]
    if "properties" in value:
        lines.append(f"{indent}{key}:")
        for name, inner in value["properties"].items():
            lines += _entry(name, inner, root, indent + "  ", name in value.get("required", ()))
        return lines
    if "patternProperties" in value:
        lines.append(f"{indent}{key}:")
        for name, body in _named(value, root):
            lines += _entry(
                name, {"description": "A name of your choice.", **body}, root, indent + "  ", required=False
            )
        return lines
    return [*lines, f"{indent}{key}: {json.dumps(_sample(key, given, value))}"]


def _named(value: Schema, root: Schema) -> Iterator[tuple[str, Schema]]:
    """Give an example for each way of filling one entry of a mapping with names of the site's choice."""
    name, body = value["examples"][0], resolve(next(iter(value["patternProperties"].values())), root)
    ways = [way["required"][0] for way in body.get("oneOf", ())]
    for number, way in enumerate(ways or [""]):
        others = {other for other in ways if other != way}
        inner = {key: part for key, part in body["properties"].items() if key not in others}
        yield f"{name}-{number + 1}" if number else name, {**body, "properties": inner}


def _sample(key: str, given: Schema, value: Schema) -> Any:
    if "default" in given:
        return given["default"]
    examples = given.get("examples") or value.get("examples") or ([["pacs"]] if key == "to" else [])
    if not examples:
        raise ValueError(f"example: {key!r} has neither a default nor examples; give its Field examples=")
    return examples[0]


def _help(given: Schema, root: Schema, required: bool) -> str:
    value = resolve(given, root)
    parts = [str(value.get("description", "")).replace("\n", " "), _allowed(value, root)]
    if required:
        parts.append("Required.")
    elif "default" in given and given["default"] is None and "properties" in value:
        parts.append("Leave it out for none.")
    return " ".join(part for part in parts if part)


def _allowed(value: Schema, root: Schema) -> str:
    """What a value may be, as a sentence."""
    if "items" in value and value.get("type") == "array":
        inner = _allowed(resolve(value["items"], root), root)
        return f"A list. Each: {inner}" if inner else "A list."
    if "enum" in value:
        return f"One of: {', '.join(str(item) for item in value['enum'])}."
    if "const" in value:
        return f"Only: {value['const']}."
    limits = bounds(value)
    if limits:
        return f"{limits[0].upper()}{limits[1:]}."
    if "maxLength" in value:
        return f"At most {value['maxLength']} characters."
    return "true or false." if value.get("type") == "boolean" else ""


def reference() -> str:
    """Return the settings reference of docs/configure.md, in Markdown."""
    root = schema()
    sections: list[str] = []
    for key, value in root["properties"].items():
        if key != "pipelines":
            sections.append(_table(f"`{key}`", dict(_rows(key, value, root, key in root["required"]))))
    pipeline = root["$defs"]["Pipeline"]
    rows = [
        row
        for key, value in pipeline["properties"].items()
        for row in _rows(key, value, root, key in pipeline["required"])
    ]
    sections.append(_table("`pipelines.NAME`", dict(rows)))
    for kind in KINDS:
        for name in operator_files.names(kind):
            sections.append(_operator_section(kind, name, root))
    return "\n\n".join(sections) + "\n"


def _operator_section(kind: Kind, name: str, root: Schema) -> str:
    body = root["$defs"][f"{kind}.{name}"]
    rows = [
        row
        for key, value in body.get("properties", {}).items()
        for row in _rows(key, value, root, key in body.get("required", ()))
    ]
    head = (operator_files.load(kind, name).__doc__ or "").strip().splitlines()[0]
    return _table(f"{kind} `{name}`", dict(rows), head)


def _rows(key: str, given: Schema, root: Schema, required: bool) -> Iterator[tuple[str, tuple[str, str]]]:
    """Yield (dotted key, (default, help)) of one key and all below it."""
    value = resolve(given, root)
    default = "required" if required else "" if "properties" in value else f"`{json.dumps(given.get('default'))}`"
    yield key, ("" if "patternProperties" in value else default, _help(given, root, required=False))
    if "patternProperties" in value:
        yield from list(_rows(f"{key}.NAME", next(iter(value["patternProperties"].values())), root, required=False))[1:]
    for name, inner in value.get("properties", {}).items():
        yield from _rows(f"{key}.{name}", inner, root, name in value.get("required", ()))


def _table(title: str, rows: dict[str, tuple[str, str]], head: str = "") -> str:
    lines = [f"### {title}", "", *([head, ""] if head else [])]
    if not rows:
        return "\n".join([*lines, "No settings."])
    lines += ["| Key | Default | Meaning |", "|---|---|---|"]
    return "\n".join(lines + [f"| `{key}` | {default} | {_cell(text)} |" for key, (default, text) in rows.items()])


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")
