# SPDX-License-Identifier: Apache-2.0
"""YAML text -> plain values, each with its line and column.

Rule: only plain data. No tags, anchors or aliases, no numbers that look like something else (010, 1:30), and
``yes``, ``no``, ``on``, ``off`` are text, as in YAML 1.2.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

import yaml

Path = tuple[str | int, ...]  # ("pipelines", "mri-live", "stages", 0, "denoise", "model")

_LONGEST_BYTES = 256 * 1024
_DEEPEST = 30
_TAG = "tag:yaml.org,2002:"
_INTEGER = re.compile(r"[-+]?(0|[1-9][0-9]{0,17})")
_DECIMAL = re.compile(r"[-+]?((0|[1-9][0-9]*)(\.[0-9]*)?|\.[0-9]+)([eE][-+]?[0-9]{1,2})?")


@dataclass(frozen=True, order=True)
class Problem:
    """One thing that is wrong, with its place; lines and columns count from 1."""

    line: int
    column: int
    keys: str
    text: str


@dataclass
class Document:
    """What a file says. `places` gives (line, column) of each key (or list item) and of its value."""

    data: Any = None
    keys: dict[Path, tuple[int, int]] = field(default_factory=dict)
    values: dict[Path, tuple[int, int]] = field(default_factory=dict)
    problems: list[Problem] = field(default_factory=list)

    def add(self, path: Path, text: str, *, at_key: bool = False) -> None:
        """Note a problem at `path`, or at the nearest parent that is in the file."""
        places = self.keys if at_key and path in self.keys else self.values
        known = path
        while known and known not in places:
            known, places = known[:-1], self.keys
        line, column = places.get(known, (1, 1))
        self.problems.append(Problem(line, column, dotted(path), text))


def dotted(path: Path) -> str:
    """Write a path as people do: pipelines.mri-live.stages[0].denoise."""
    return "".join(f"[{key}]" if isinstance(key, int) else f".{key}" for key in path).removeprefix(".")


def read_yaml(raw: bytes) -> Document:
    """Read one YAML document; never raises, the problems are in what it returns."""
    document = Document()
    text = _decode(raw, document)
    root = None if document.problems else _compose(text, document)
    if document.problems:
        return document
    if root is None:
        document.add((), "the file is empty; start from config/example.yaml")
    elif not isinstance(root, yaml.MappingNode):
        document.add((), "the file must hold keys such as 'site:'; start from config/example.yaml")
    else:
        document.data = _plain(root, (), document)
    return document


def _decode(raw: bytes, document: Document) -> str:
    if len(raw) > _LONGEST_BYTES:
        document.add((), f"the file has {len(raw)} bytes, at most {_LONGEST_BYTES} are read; is it the right file?")
        return ""
    try:
        return raw.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        before = raw[: error.start]
        line, column = before.count(b"\n") + 1, error.start - before.rfind(b"\n")
        text = f"byte 0x{raw[error.start]:02x} is not UTF-8; save the file as UTF-8"
        document.problems.append(Problem(line, column, "", text))
        return ""


class _RefusedError(Exception):
    def __init__(self, mark: yaml.Mark, text: str) -> None:
        super().__init__(text)
        self.mark = mark


class _Composer(yaml.SafeLoader):
    """Composes nodes without aliases and without depth beyond reason."""

    depth = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        event = self.peek_event()  # type: ignore[no-untyped-call]
        if getattr(event, "anchor", None):  # aliases have one too
            raise _RefusedError(event.start_mark, "anchors (&) and aliases (*) are not read; write the value out")
        if self.depth == _DEEPEST:
            raise _RefusedError(event.start_mark, f"nested deeper than {_DEEPEST} levels; a bracket may be missing")
        self.depth += 1
        node: yaml.Node | None = super().compose_node(parent, index)
        self.depth -= 1
        return node


def _compose(text: str, document: Document) -> yaml.Node | None:
    line, column, what = 1, 1, ""
    try:
        return _Composer(text).get_single_node()
    except yaml.reader.ReaderError as error:
        line = text.count("\n", 0, error.position) + 1
        column = error.position - text.rfind("\n", 0, error.position)
        what = f"character {error.character!r} may not stand in YAML; remove it"
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line, column = (mark.line + 1, mark.column + 1) if mark else (1, 1)
        what = f"not YAML: {error.problem or error.context}; {_hint(error)}"
    except _RefusedError as error:
        line, column, what = error.mark.line + 1, error.mark.column + 1, str(error)
    except (ValueError, OverflowError) as error:  # PyYAML's scanner on an escape such as "\UFFFFFFFF"
        what = f"not YAML: {error}; look for an escape in quotes"
    document.problems.append(Problem(line, column, "", what))
    return None


def _hint(error: yaml.MarkedYAMLError) -> str:
    if "'\\t'" in (error.problem or ""):
        return "indent with spaces, not tabs"
    if "single document" in (error.context or ""):
        return "remove the second '---'"
    return "check quotes, brackets and indentation here and on the line before"


def _plain(node: yaml.Node, path: Path, document: Document) -> Any:
    document.values[path] = _place(node)
    if isinstance(node, yaml.MappingNode) and node.tag == _TAG + "map":
        return _mapping(node, path, document)
    if isinstance(node, yaml.SequenceNode) and node.tag == _TAG + "seq":
        return [_plain(item, (*path, i), document) for i, item in enumerate(node.value)]
    if isinstance(node, yaml.ScalarNode):
        return _scalar(node, path, document)
    document.add(path, f"tag {node.tag!r} is not read; remove it")
    return None


def _place(node: yaml.Node) -> tuple[int, int]:
    return node.start_mark.line + 1, node.start_mark.column + 1


def _mapping(node: yaml.MappingNode, path: Path, document: Document) -> dict[str, Any]:
    data: dict[str, Any] = {}
    for key, value in node.value:
        if not isinstance(key, yaml.ScalarNode):
            document.values[(*path, "?")] = _place(key)
            document.add((*path, "?"), "a key must be a word; check brackets and colons")
            continue
        inner = (*path, key.value)
        if key.value in data:
            first = document.keys[inner][0]
            document.keys[inner] = _place(key)
            document.add(inner, f"duplicate key, first on line {first}; remove one", at_key=True)
            continue
        document.keys[inner] = _place(key)
        data[key.value] = _plain(value, inner, document)
    return data


def _scalar(node: yaml.ScalarNode, path: Path, document: Document) -> Any:
    text = str(node.value)
    kind = node.tag.removeprefix(_TAG)
    if kind == "null":
        if not text:
            document.add(path, "has no value; write one, or {} for all defaults, or remove the line", at_key=True)
        return None
    if kind == "bool" and text.lower() in ("true", "false"):
        return text.lower() == "true"
    if kind == "int" and _INTEGER.fullmatch(text):
        return int(text)
    if (kind == "float" or (kind == "str" and node.style is None)) and _DECIMAL.fullmatch(text):
        return float(text)  # PyYAML takes 1e3 for text
    if kind in ("int", "float"):
        document.add(path, f"number {text[:40]!r} is not plain decimal; write it so, or in quotes if it is text")
        return None
    if kind not in ("str", "bool", "timestamp", "value", "merge"):
        document.add(path, f"tag {node.tag!r} is not read; remove it")
    elif any("\ud800" <= char <= "\udfff" for char in text):
        document.add(path, "holds half a character (a surrogate escape); write the character itself")
    return text
