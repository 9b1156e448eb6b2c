# SPDX-License-Identifier: Apache-2.0
"""The YAML file -> Settings; every problem at once, as ``file:line:column: key.path: what is wrong; what to do``."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from appliance import operator_files
from appliance.dicom import routing
from appliance.errors import ConfigError
from appliance.explain_settings import explain, unknown
from appliance.operator_files import Kind
from appliance.settings import Operator, Settings
from appliance.yaml_file import Document, dotted, read_yaml
from appliance.yaml_file import Path as Keys

_LONGEST_BYTES = 1 << 20  # never read a disk image into memory; read_yaml is stricter
_TLS_FILES = ("certificate", "key", "ca")
_UNKNOWN = {"name": "", "settings": None}  # stands in for an operator whose problem is already noted

Found = dict[Keys, Operator]  # by the path of the entry in the file: ("pipelines", name, "stages", 0)
M = TypeVar("M", bound=BaseModel)


def load(path: Path) -> Settings:
    """Read and check one file.

    Raises
    ------
    ConfigError
        The file cannot be read or anything in it is wrong; one problem per line.
    """
    return parse(read(path), str(path))


def read(path: Path) -> bytes:
    """Read a file's bytes for `parse`. Raises ConfigError when it cannot be read."""
    try:
        with path.open("rb") as file:
            return file.read(_LONGEST_BYTES)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read: {error.strerror}; check the path and its permissions") from error


def parse(raw: bytes, name: str) -> Settings:
    """Check the bytes of a file; `name` is what problems call it. Raises ConfigError as `load` does."""
    document = read_yaml(raw)
    settings = None if document.data is None else _settings(document)
    if settings is None or document.problems:
        problems = sorted(set(document.problems))
        lines = (f"{name}:{p.line}:{p.column}: {p.keys + ': ' if p.keys else ''}{p.text}" for p in problems)
        raise ConfigError("\n".join(lines))
    return settings


def _settings(document: Document) -> Settings | None:
    """Return the settings, or note in `document` why there are none."""
    data = dict(document.data)
    found: Found = {}
    pipelines = data.get("pipelines")
    if isinstance(pipelines, dict):
        data["pipelines"] = {
            name: _pipeline(("pipelines", name), body, found, document) for name, body in pipelines.items()
        }
    _check_destinations(data, found, document)
    _check_keywords(found, document)
    settings = _validate(Settings, data, (), document)
    if settings is None:
        return None
    settings = _with_operators(settings, found)
    for path, text in (*_shared_ports(settings), *_impossible(settings)):
        document.add(path, text)
    return settings


def _validate(model: type[M], data: Any, path: Keys, document: Document) -> M | None:
    """Validate as strictly as JSON does: text is not a number, a number is not text."""
    try:
        return model.model_validate_json(json.dumps(data), strict=True)
    except ValidationError as error:
        known = {problem.keys for problem in document.problems}
        for inner, text, at_key in explain(model, data, error):
            if dotted((*path, *inner)) not in known:
                document.add((*path, *inner), text, at_key=at_key)
        return None


def _pipeline(path: Keys, body: Any, found: Found, document: Document) -> Any:
    """Take the operators out of one pipeline: they are validated by their own files."""
    if not isinstance(body, dict):
        return body
    taken = dict(body)
    if "source" in body:
        taken["source"] = _entry("source", (*path, "source"), body["source"], found, document)
    for key, kind in (("stages", "stage"), ("sinks", "sink")):
        if isinstance(body.get(key), list):
            taken[key] = [
                _entry(kind, (*path, key, i), item, found, document)  # type: ignore[arg-type]
                for i, item in enumerate(body[key])
            ]
    return taken


def _entry(kind: Kind, path: Keys, entry: Any, found: Found, document: Document) -> dict[str, Any]:
    """Read "a name, or a name with its settings" and keep the operator in `found`."""
    name: str
    given: Any = {}
    inner = path
    if isinstance(entry, str):
        name = entry
    elif isinstance(entry, dict) and len(entry) == 1:
        name, given = next(iter(entry.items()))
        inner = (*path, name)
    else:
        document.add(path, _not_an_entry(kind, entry))
        return _UNKNOWN
    if name not in operator_files.names(kind):
        document.add(inner, unknown(kind, name, operator_files.names(kind)), at_key=True)
        return _UNKNOWN
    try:
        model = operator_files.load(kind, name).Settings
    except ConfigError as error:
        document.add(inner, str(error), at_key=True)
        return _UNKNOWN
    settings = _validate(model, {} if given is None else given, inner, document)
    if settings is not None:
        found[path] = Operator(name=name, settings=settings)
    return _UNKNOWN


def _not_an_entry(kind: Kind, entry: Any) -> str:
    if isinstance(entry, dict) and entry:
        keys = ", ".join(repr(key) for key in entry)
        return f"one {kind} is expected, got {len(entry)} keys ({keys}); indent its settings below its name"
    return f"must be the name of a {kind}, or a name with its settings"


def _with_operators(settings: Settings, found: Found) -> Settings:
    pipelines = {}
    for name, pipeline in settings.pipelines.items():
        path = ("pipelines", name)
        changed = {
            "source": found.get((*path, "source"), pipeline.source),
            "stages": tuple(found.get((*path, "stages", i), o) for i, o in enumerate(pipeline.stages)),
            "sinks": tuple(found.get((*path, "sinks", i), o) for i, o in enumerate(pipeline.sinks)),
        }
        pipelines[name] = pipeline.model_copy(update=changed)
    return settings.model_copy(update={"pipelines": pipelines})


def _check_destinations(data: dict[str, Any], found: Found, document: Document) -> None:
    """A sink's `to` names destinations of this file."""
    known = data.get("destinations")
    names = list(known) if isinstance(known, dict) else []
    for path, operator in found.items():
        for i, name in enumerate(getattr(operator.settings, "to", ())):
            if name not in names:
                document.add((*path, operator.name, "to", i), unknown("destination", name, names))


def _check_keywords(found: Found, document: Document) -> None:
    """A source's `select` has the conditions of routes."""
    for path, operator in found.items():
        for keyword in getattr(operator.settings, "select", ()):
            if keyword not in routing.KNOWN:
                problem = unknown("keyword", keyword, routing.KNOWN)
                document.add((*path, operator.name, "select", keyword), problem, at_key=True)


def _shared_ports(settings: Settings) -> Iterator[tuple[Keys, str]]:
    taken: dict[int, list[tuple[str, Keys]]] = {}
    for path, bind, port in listeners(settings):
        for other_bind, other in taken.get(port, ()):
            if bind == other_bind or {bind, other_bind} & {"0.0.0.0", "::", ""}:
                yield path, f"port {port} is already taken by {dotted(other)}; choose another"
                break
        taken.setdefault(port, []).append((bind, path))


def listeners(settings: Settings) -> Iterator[tuple[Keys, str, int]]:
    """Yield (key path, address, port) of each port this box opens.

    An operator listens on its setting `port`, unless it also has a `host`: that is somebody else's port.
    """
    if settings.listen.dicom:
        yield ("listen", "dicom", "port"), settings.listen.dicom.bind, settings.listen.dicom.port
    if settings.listen.dicom_tls:
        yield ("listen", "dicom_tls", "port"), settings.listen.dicom_tls.bind, settings.listen.dicom_tls.port
    if settings.listen.dicomweb:
        yield ("listen", "dicomweb", "port"), settings.listen.dicomweb.bind, settings.listen.dicomweb.port
    for name, pipeline in settings.pipelines.items():
        path = ("pipelines", name)
        entries: list[tuple[Keys, Operator]] = [((*path, "source"), pipeline.source)]
        entries += [((*path, "sinks", i), sink) for i, sink in enumerate(pipeline.sinks)]
        for entry, operator in entries:
            port = getattr(operator.settings, "port", None)
            if isinstance(port, int) and port and not hasattr(operator.settings, "host"):
                yield (*entry, operator.name, "port"), getattr(operator.settings, "bind", ""), port
    if settings.console:
        yield ("console", "port"), settings.console.bind, settings.console.port


def _impossible(settings: Settings) -> Iterator[tuple[Keys, str]]:
    """Values that are each possible, but not together or not on any machine."""
    for keys, folder in (
        (("site", "data_dir"), settings.site.data_dir),
        (("site", "run_dir"), settings.site.run_dir),
        (("models", "dir"), settings.models.dir),
        *((("listen", "dicom_tls", key), getattr(settings.listen.dicom_tls, key, None)) for key in _TLS_FILES),
        *((("console", "tls", key), getattr(getattr(settings.console, "tls", None), key, None)) for key in _TLS_FILES),
        (("console", "accounts"), getattr(settings.console, "accounts", None)),
    ):
        if folder is not None and not folder.is_absolute():
            yield keys, f"must be an absolute path, got {str(folder)!r}; begin it with '/'"
    if settings.listen.dicomweb and not settings.listen.dicom:
        yield ("listen", "dicomweb"), "needs listen.dicom, which runs the receiver; add it"
    if settings.listen.dicom_tls and not settings.listen.dicom:
        yield (
            ("listen", "dicom_tls"),
            "needs listen.dicom, whose AE title it has; add that, bound to 127.0.0.1 to close it",
        )
    for name, destination in settings.destinations.items():
        if (destination.dicom is None) == (destination.dicomweb is None):
            yield (
                ("destinations", name),
                "must have one of 'dicom' and 'dicomweb'; give the one that it speaks",
            )
    yield from _impossible_routes(settings)
    buffer = settings.buffer
    if buffer.retry_max_s < buffer.retry_min_s:
        yield (
            ("buffer", "retry_max_s"),
            f"must be at least retry_min_s ({buffer.retry_min_s:g}), got {buffer.retry_max_s:g}; raise it",
        )


def _impossible_routes(settings: Settings) -> Iterator[tuple[Keys, str]]:
    for rule_name, rule in settings.routes.items():
        for i, name in enumerate(rule.to):
            if name not in settings.destinations:
                yield ("routes", rule_name, "to", i), unknown("destination", name, list(settings.destinations))
        for keyword in rule.when:
            if keyword not in routing.KNOWN:
                yield ("routes", rule_name, "when", keyword), unknown("keyword", keyword, routing.KNOWN)
