# SPDX-License-Identifier: Apache-2.0
"""nearscan models: what is here, whether it is what its card says, and which version is in use."""

from __future__ import annotations

import hashlib
import json
import os
import pwd
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import click
import yaml

from appliance import config
from appliance.commands.options import SITE_FILE, json_option
from appliance.device import count_gpus
from appliance.errors import ConfigError, ModelError
from appliance.inference import installed
from appliance.inference.backend import ENGINE_FAILURES, one_line
from appliance.inference.card import Model, read_model
from appliance.inference.gpu import find_gpu
from appliance.inference.installed import Place
from appliance.inference.ladder import Candidate
from appliance.inference.open_model import candidates
from appliance.inference.parity import check_parity
from appliance.inference.tensorrt import TensorRT
from appliance.tables import size, table

_THREADS = 2  # what the denoise stage takes where a site says nothing

_site_option = click.option(
    "--config",
    "file",
    type=click.Path(dir_okay=False, exists=True, path_type=Path),
    help=f"The site's YAML file.  [default: {SITE_FILE}, if there is one; else the models that came with nearscan]",
)
_source_option = click.option(
    "--from",
    "source",
    type=click.Path(file_okay=False, exists=True, path_type=Path),
    help="Folder with the card, the model and its golden file; default: what is installed.",
)
_names = click.argument("names", nargs=-1)


@dataclass(frozen=True)
class _Site:
    place: Place
    engines: Path
    data_dir: Path | None

    def chosen(self, names: tuple[str, ...]) -> tuple[str, ...]:
        return names or tuple(self.place.names())

    def active(self, name: str) -> Model:
        return read_model(name, self.place.folders(name)[0])


@contextmanager
def _site(file: Path | None) -> Iterator[_Site]:
    """Give the models of a site, or without one those that came with nearscan.

    Engines go to the site's folder only if it is this user's: the service trusts nobody else's.
    """
    if file is None and SITE_FILE.exists():
        file = SITE_FILE
    with TemporaryDirectory(prefix="nearscan-models-") as folder:
        if file is None:
            yield _Site(installed.place(None, Path(folder)), Path(folder) / "engines", None)
            return
        settings = config.load(file)
        data_dir = settings.site.data_dir
        ours = data_dir.is_dir() and data_dir.stat().st_uid == os.geteuid()
        engines = (data_dir if ours else Path(folder)) / "engines"
        yield _Site(installed.place(settings.models.dir, data_dir), engines, data_dir)


def _writable(site: _Site) -> None:
    """The service does not trust, or cannot read, what another user wrote into its folder. Raises ConfigError."""
    if site.data_dir is None:
        raise ConfigError(f"models: {SITE_FILE} is not there, so there is no site to change; give its file by --config")
    if not site.data_dir.is_dir():
        raise ConfigError(f"{site.data_dir}: not there yet; start nearscan first, or give the right --config")
    owner = site.data_dir.stat().st_uid
    if owner != os.geteuid():
        try:
            user = pwd.getpwuid(owner).pw_name
        except KeyError:
            user = str(owner)
        raise ConfigError(f"{site.data_dir}: belongs to {user}; run this as that user: runuser -u {user} -- nearscan …")


@click.group()
def models() -> None:
    """Models: list, show, check, build, activate, rollback."""


@models.command("list")
@_site_option
@json_option
def list_(file: Path | None, as_json: bool) -> None:
    """List every model and its versions, and which one is in use."""
    with _site(file) as site:
        rows = [row for name in site.place.names() for row in _versions(site.place, name)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    head = ("model", "version", "state", "sha256", "what it is")
    click.echo(
        table(head, [(*(r[k] for k in ("model", "version", "state")), r["sha256"][:12], r["what"]) for r in rows])
    )


def _versions(place: Place, name: str) -> Iterator[dict[str, Any]]:
    """Give the version in use, those before it, then what else is installed."""
    folders = place.folders(name)
    kept = (place.installed / name / version for version in place.versions(name))
    for number, folder in enumerate([*folders, *(folder for folder in kept if folder not in folders)]):
        state = "active" if number == 0 else "before" if number < len(folders) else "installed"
        row = {"model": name, "version": folder.name, "state": state, "folder": str(folder), "sha256": "", "what": ""}
        try:
            card = read_model(name, folder).card
            yield row | {"version": card.version, "sha256": card.sha256, "what": card.what}
        except ModelError as error:
            yield row | {"state": f"{state}, unusable", "what": str(error)}


@models.command()
@click.argument("name")
@_site_option
@json_option
def show(name: str, file: Path | None, as_json: bool) -> None:
    """Show the card of the version in use: what it is, was trained and measured on, and where it fails."""
    with _site(file) as site:
        card = site.active(name).card.model_dump(mode="json")
    text = (
        json.dumps(card, indent=2) if as_json else yaml.safe_dump(card, sort_keys=False, allow_unicode=True, width=100)
    )
    click.echo(text.rstrip())


@models.command()
@_names
@_source_option
@_site_option
@json_option
def check(names: tuple[str, ...], source: Path | None, file: Path | None, as_json: bool) -> None:
    """Check card, digests, golden answers and deadline on every backend of this machine.

    The exit code is 1 when a card is wrong, a backend that is here fails, or none is here.
    """
    with _site(file) as site:
        if source:
            names = names or tuple(sorted(path.stem for path in source.glob("*.yaml")))
        found = {name: _check(site, name, source) for name in site.chosen(names)}
    if as_json:
        click.echo(json.dumps(found, indent=2))
    else:
        click.echo("\n\n".join(_told(name, rows) for name, rows in found.items()) or "no models")
    if not found or not all(_is_good(rows) for rows in found.values()):
        raise click.exceptions.Exit(1)


def _check(site: _Site, name: str, source: Path | None) -> list[dict[str, Any]]:
    try:
        model = read_model(name, source) if source else site.active(name)
    except ModelError as error:
        return [{"backend": "card", "result": "failed", "why": str(error)}]
    card = {"backend": "card", "result": "ok", "why": f"version {model.card.version}, {len(model.golden)} golden cases"}
    return [card, *(_try(model, one) for one in candidates("gpu", "auto", _THREADS, site.engines))]


def _try(model: Model, candidate: Candidate) -> dict[str, Any]:
    """Put one backend through the gate."""
    backend, precision = candidate
    row: dict[str, Any] = {"backend": f"{backend.name} {precision}"}
    if reason := backend.available(precision):
        return row | {"result": "not available", "why": reason}
    try:
        session = backend.load(model.onnx, model.card.signature, precision)
        parity = check_parity(session, model, precision)
    except ENGINE_FAILURES as error:
        return row | {"result": "failed", "why": one_line(error) or type(error).__name__}
    measured = {"max_error": parity.max_error, "tolerance": parity.tolerance, "p95_ms": round(parity.p95_ms, 2)}
    return row | {"result": "ok", "why": backend.fingerprint(), **measured, "deadline_ms": model.card.deadline_ms}


def _is_good(rows: list[dict[str, Any]]) -> bool:
    results = [row["result"] for row in rows]
    return "failed" not in results and "ok" in results[1:]


def _told(name: str, rows: list[dict[str, Any]]) -> str:
    lines = [
        (
            row["backend"],
            row["result"],
            f"{row['max_error']:.1e} of {row['tolerance']:.1e}" if "max_error" in row else "",
            f"{row['p95_ms']:.1f} of {row['deadline_ms']:g}" if "p95_ms" in row else "",
            row["why"],
        )
        for row in rows
    ]
    return f"{name}\n" + table(("backend", "result", "error", "p95 ms", ""), lines)


@models.command()
@_names
@click.option("--for", "targets", multiple=True, metavar="SM", help="For a GPU that is not here, such as sm_86.")
@_site_option
@json_option
def build(names: tuple[str, ...], targets: tuple[str, ...], file: Path | None, as_json: bool) -> None:
    """Build engines for the GPU that is here, or with --for for others, so that no start has to wait for one.

    An engine is used only after it has passed its golden test on its GPU.
    """
    with _site(file) as site:
        _writable(site)
        rows = [row for name in site.chosen(names) for row in _build(site, name, targets)]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
    else:
        lines = [(r["model"], r["backend"], r["gpu"], size(r["bytes"]), r["sha256"][:12], r["file"]) for r in rows]
        click.echo(table(("model", "backend", "GPU", "size", "sha256", "file"), lines))


def _build(site: _Site, name: str, targets: tuple[str, ...]) -> Iterator[dict[str, Any]]:
    model = site.active(name)
    for backend, sm in _builders(site.engines, targets):
        path, engine = backend.build(model.onnx, model.card.signature, sm)
        digest = hashlib.sha256(engine).hexdigest()
        yield {
            "model": name,
            "version": model.card.version,
            "backend": backend.name,
            "gpu": sm,
            "bytes": len(engine),
            "sha256": digest,
            "file": str(path),
        }


def _builders(engines: Path, targets: tuple[str, ...]) -> list[tuple[TensorRT, str]]:
    """Give the backends to build with, and the GPU to build for. Raises ModelError."""
    rtx = TensorRT("tensorrt_rtx", engines)
    if targets:
        return [(rtx, sm) for sm in targets]
    gpu = find_gpu()
    if isinstance(gpu, str):
        raise ModelError(f"models: {gpu}; say for which GPU to build, such as --for sm_86")
    here = [backend for backend in (TensorRT("tensorrt", engines), rtx) if backend.available("f32") is None]
    if not here:
        raise ModelError("models: neither tensorrt nor tensorrt_rtx works here; see 'nearscan models check'")
    return [(backend, gpu.sm) for backend in here]


def _prover(site: _Site) -> Callable[[Model], None]:
    """Give what a model must pass before it is activated: one backend of those the site would take."""

    def prove(model: Model) -> None:
        device = "gpu" if count_gpus() else "cpu"
        rows = [_try(model, one) for one in candidates(device, "auto", _THREADS, site.engines)]
        click.echo(table(("backend", "result", ""), [(row["backend"], row["result"], row["why"]) for row in rows]))
        if not any(row["result"] == "ok" for row in rows):
            name, version = model.card.name, model.card.version
            raise ModelError(f"models: {name} version {version} passes on no backend here; nothing was changed")

    return prove


@models.command()
@click.argument("name")
@click.argument("version")
@_source_option
@_site_option
def activate(name: str, version: str, source: Path | None, file: Path | None) -> None:
    """Use VERSION of a model from the next scan on, after it passed the gate here."""
    with _site(file) as site:
        _writable(site)
        folder = installed.activate(site.place, name, version, source, _prover(site))
    click.echo(f"{name}: version {version} is active from the next scan on; it is kept in {folder}")


@models.command()
@click.argument("name")
@_site_option
def rollback(name: str, file: Path | None) -> None:
    """Use the version before the active one, from the next scan on."""
    with _site(file) as site:
        _writable(site)
        folder = installed.rollback(site.place, name, _prover(site))
    click.echo(f"{name}: {folder} is active from the next scan on")
