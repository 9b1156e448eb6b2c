# SPDX-License-Identifier: Apache-2.0
"""nearscan outbox: what is owed to whom, and what people do about it."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click

from appliance import config
from appliance.buffer import Buffer
from appliance.buffer.outbox import STATES
from appliance.buffer.outbox_desk import Selection, change, deliveries
from appliance.buffer.segments import Place
from appliance.commands.options import acting_person, config_option, json_option
from appliance.errors import ConfigError
from appliance.tables import age, size, table

_selecting = (
    click.argument("ids", type=int, nargs=-1),
    click.option("--destination", default="", help="Only what is owed to it."),
    click.option("--state", type=click.Choice(STATES), help="Only what is in this state."),
)


def _selection(command: Callable[..., None]) -> Callable[..., None]:
    for decorate in reversed(_selecting):
        command = decorate(command)
    return command


@contextmanager
def open_buffer(file: Path) -> Iterator[Buffer]:
    """Open the buffer of a site. None is made where none is: it would belong to whoever looked. Raises ConfigError."""
    data_dir = config.load(file).site.data_dir
    if not (data_dir / "nearscan.sqlite").exists():
        raise ConfigError(f"{data_dir}: there is no buffer yet; start nearscan first, or give the right --config")
    buffer = Buffer(data_dir)
    try:
        yield buffer
    finally:
        buffer.close()


@click.group()
def outbox() -> None:
    """What is owed to destinations: list, show, retry, hold, release, export."""


@outbox.command("list")
@_selection
@click.option("--limit", type=click.IntRange(1, 100_000), default=50, show_default=True)
@config_option
@json_option
def list_(ids: tuple[int, ...], destination: str, state: str, limit: int, file: Path, as_json: bool) -> None:
    """List deliveries, what is sent next first."""
    with open_buffer(file) as buffer:
        rows = deliveries(buffer.database, Selection(ids, destination, state or ""), limit)
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    now = time.time()
    click.echo(
        table(
            ("id", "destination", "state", "prio", "tries", "size", "age", "SOP Instance UID", "last error"),
            [
                (
                    *(row["id"], row["destination"], row["state"], row["priority"], row["attempts"]),
                    *(size(row["n_bytes"]), age(now - row["created_s"]), row["sop_instance_uid"], row["last_error"]),
                )
                for row in rows
            ],
        )
    )


@outbox.command()
@click.argument("ids", type=int, nargs=-1, required=True)
@config_option
def show(ids: tuple[int, ...], file: Path) -> None:
    """Show everything that is known of deliveries, as JSON; no patient data."""
    with open_buffer(file) as buffer:
        rows = deliveries(buffer.database, Selection(ids), len(ids))
    click.echo(json.dumps(rows, indent=2))
    _all_there(ids, rows)


def _all_there(ids: tuple[int, ...], rows: list[dict[str, Any]]) -> None:
    missing = sorted(set(ids) - {row["id"] for row in rows})
    if missing:
        raise click.ClickException(f"outbox: no delivery {', '.join(map(str, missing))}; see 'nearscan outbox list'")


def _changing(action: str, help_text: str) -> None:
    @outbox.command(action, help=help_text)
    @_selection
    @click.option("--all", "everything", is_flag=True, help="All there are.")
    @config_option
    def command(ids: tuple[int, ...], destination: str, state: str, everything: bool, file: Path) -> None:
        selection = Selection(ids, destination, state or "")
        if selection == Selection() and not everything:
            raise click.UsageError(f"say what to {action}: ids, --destination, --state, or --all")
        with open_buffer(file) as buffer:
            n_changed, n_left = change(buffer.database, action, selection, acting_person(), time.time())
        told = f"; {n_left} left alone: being sent, or in a state that this does not apply to" if n_left else ""
        click.echo(f"{action}: {n_changed} deliveries{told}")
        if ids and not n_changed:
            raise click.exceptions.Exit(1)


_changing("retry", "Try again now, what is quarantined too.")
_changing("hold", "Hold back; nothing is sent until 'release'.")
_changing("release", "Send what is held.")


@outbox.command()
@click.argument("ids", type=int, nargs=-1, required=True)
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where to write.")
@config_option
def export(ids: tuple[int, ...], folder: Path, file: Path) -> None:
    """Write instances as DICOM files, named by delivery; a file that is there is never overwritten."""
    with open_buffer(file) as buffer:
        rows = deliveries(buffer.database, Selection(ids), len(ids))
        folder.mkdir(parents=True, exist_ok=True)
        for row in rows:
            path = folder / f"{row['id']}.dcm"
            data = buffer.segments.read(Place(row["segment"], row["position"]), row["digest"])
            try:
                with path.open("xb") as target:
                    target.write(data)
            except OSError as error:
                raise click.ClickException(f"{path}: not written: {error.strerror}; choose another folder") from error
            click.echo(path)
    _all_there(ids, rows)
