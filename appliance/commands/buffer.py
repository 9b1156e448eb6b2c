# SPDX-License-Identifier: Apache-2.0
"""nearscan buffer: how full it is, whether it is whole, and its index made anew."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from appliance import config
from appliance.buffer import outbox_desk
from appliance.buffer.rebuild import rebuild as rebuild_index
from appliance.buffer.verify import findings
from appliance.commands.options import config_option, json_option
from appliance.commands.outbox import open_buffer
from appliance.daemon import only_one
from appliance.tables import age, size, table


@click.group()
def buffer() -> None:
    """The durable buffer: stats, verify, rebuild."""


@buffer.command()
@config_option
@json_option
def stats(file: Path, as_json: bool) -> None:
    """Show what the buffer holds, for whom, how old, and the space that is left."""
    reserve_gb = config.load(file).buffer.reserve_gb
    with open_buffer(file) as opened:
        found = {
            **outbox_desk.statistics(opened.database, time.time()),
            "segments": len(opened.segments.names()),
            "free_gb": round(opened.free_bytes() / 1e9, 1),
            "reserve_gb": reserve_gb,
        }
    if as_json:
        click.echo(json.dumps(found, indent=2))
        return
    click.echo(
        f"{found['instances']} instances, {size(found['bytes'])}, {found['segments']} segments; "
        f"{found['free_gb']} GB are free, {reserve_gb:g} GB are reserved"
    )
    rows = [(*(row[key] for key in ("destination", "state", "count")), row) for row in found["deliveries"]]
    if rows:
        lines = [(*row[:3], size(row[3]["bytes"]), age(row[3]["oldest_s"])) for row in rows]
        click.echo(table(("destination", "state", "count", "size", "oldest"), lines))


@buffer.command()
@config_option
def verify(file: Path) -> None:
    """Read everything and compare it with its checksum; works while the appliance runs."""
    with open_buffer(file) as opened:
        n_found = 0
        for line in findings(opened):
            click.echo(line, err=True)
            n_found += 1
    click.echo(f"{n_found} findings" if n_found else "everything is as it was kept")
    if n_found:
        raise click.exceptions.Exit(1)


@buffer.command()
@config_option
def rebuild(file: Path) -> None:
    """Make the database anew from the bytes. What was delivered already is delivered again."""
    data_dir = config.load(file).site.data_dir
    with only_one(data_dir):
        n_instances = rebuild_index(data_dir, time.time())
    click.echo(f"{n_instances} instances are in the new index; the old one lies beside it as before-rebuild-…")
