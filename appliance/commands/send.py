# SPDX-License-Identifier: Apache-2.0
"""nearscan send and nearscan echo: try a destination by hand."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import click

from appliance import config
from appliance.commands.options import FILES, config_option, json_option
from appliance.dicom.deliver import connect
from appliance.dicom.identity import uids_of
from appliance.dicom.part10 import Parts, split
from appliance.errors import ConfigError, DeliveryError, StorageError
from appliance.settings import DicomDestination, DicomwebDestination

_BATCH = 32  # files of one association; it takes 128 presentation contexts


def peer_named(text: str, file: Path) -> DicomDestination | DicomwebDestination:
    """Give the destination of this name, or HOST:PORT:AETITLE itself. Raises ConfigError."""
    host, _, rest = text.partition(":")
    port, _, title = rest.partition(":")
    if title and port.isdigit():
        return DicomDestination(host=host, port=int(port), ae_title=title)
    destinations = config.load(file).destinations
    if text not in destinations:
        known = ", ".join(destinations) or "none"
        raise ConfigError(f"{text!r} is no destination of {file}; known: {known}; or give HOST:PORT:AETITLE")
    return destinations[text].peer


@click.command()
@click.argument("destination")
@config_option
def echo(destination: str, file: Path) -> None:
    """Ask DESTINATION whether it is there: C-ECHO, or OPTIONS where it speaks DICOMweb."""
    peer = peer_named(destination, file)
    started = time.monotonic()
    with connect(destination, peer, None) as link:
        link.echo()
    click.echo(f"{destination}: answers, {(time.monotonic() - started) * 1000:.0f} ms with the association")


@dataclass
class Sent:
    """What became of one file."""

    path: Path
    problem: str = ""


@click.command()
@click.argument("files", type=FILES, nargs=-1, required=True)
@click.option("--to", "destination", required=True, help="Name of a destination, or HOST:PORT:AETITLE.")
@config_option
@json_option
def send(files: tuple[Path, ...], destination: str, file: Path, as_json: bool) -> None:
    """Send FILES (and the files in folders) to a destination now, past the outbox; their data sets as they are."""
    peer = peer_named(destination, file)
    done: list[Sent] = []
    started = time.monotonic()
    paths = _paths(files)
    while batch := list(islice(paths, _BATCH)):
        done += _send_batch(destination, peer, batch)
    failed = [one for one in done if one.problem]
    if as_json:
        rows: list[dict[str, Any]] = [{"file": str(one.path), "problem": one.problem} for one in done]
        click.echo(json.dumps(rows, indent=2))
    else:
        for one in failed:
            click.echo(f"{one.path}: {one.problem}", err=True)
        n_sent, seconds = len(done) - len(failed), time.monotonic() - started
        click.echo(f"{n_sent} of {len(done)} files sent to {destination} in {seconds:.1f} s")
    if failed or not done:
        raise click.exceptions.Exit(1)


def _paths(files: Sequence[Path]) -> Iterator[Path]:
    for path in files:
        if path.is_dir():
            yield from sorted(inner for inner in path.rglob("*") if inner.is_file())
        else:
            yield path


def _as_it_says(parts: Parts) -> Parts:
    """The UIDs of the data set, which is what a peer keeps; the file's own header may have others."""
    uids = uids_of(parts.dataset, parts.transfer_syntax_uid)
    return replace(parts, sop_class_uid=uids[0], sop_instance_uid=uids[1]) if uids else parts


def _send_batch(name: str, peer: DicomDestination | DicomwebDestination, paths: list[Path]) -> list[Sent]:
    done: list[Sent] = []
    parts: list[tuple[Path, Parts]] = []
    for path in paths:
        try:
            parts.append((path, _as_it_says(split(path.read_bytes()))))
        except (StorageError, OSError) as error:
            done.append(Sent(path, f"no DICOM file: {getattr(error, 'strerror', None) or error}"))
    if not parts:
        return done
    contexts = sorted({(one.sop_class_uid, one.transfer_syntax_uid) for _, one in parts})
    try:
        with connect(name, peer, contexts) as link:
            for path, one in parts:
                done.append(Sent(path))
                try:
                    link.store(one.sop_class_uid, one.sop_instance_uid, one.transfer_syntax_uid, one.dataset)
                except DeliveryError as error:
                    done[-1].problem = str(error)
                    if error.status is None and not error.permanent:
                        raise
    except DeliveryError as error:
        known = {one.path for one in done}
        done += [Sent(path, str(error)) for path, _ in parts if path not in known]
    return done
