# SPDX-License-Identifier: Apache-2.0
"""nearscan route: where files would go, before a site goes live."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from appliance import config
from appliance.commands.options import FILES, config_option, json_option
from appliance.dicom.describe import describe
from appliance.dicom.part10 import split
from appliance.dicom.routing import route as apply_rules
from appliance.errors import StorageError
from appliance.settings import Settings


@click.command()
@click.argument("files", type=FILES, nargs=-1, required=True)
@config_option
@click.option("--from", "calling", default="", help="Calling AE title to assume.")
@json_option
def route(files: tuple[Path, ...], file: Path, calling: str, as_json: bool) -> None:
    """Show which rules match each of FILES, and where it would go."""
    settings = config.load(file)
    rows = [_row(path, settings, calling) for path in files]
    if as_json:
        click.echo(json.dumps(rows, indent=2))
        return
    for row in rows:
        goes = f"to {', '.join(row['to'])} at priority {row['priority']}" if row["to"] else "nowhere"
        click.echo(f"{row['file']}: {goes}; rules: {', '.join(row['rules']) or 'none'}{row['problem']}")


def _row(path: Path, settings: Settings, calling: str) -> dict[str, Any]:
    try:
        parts = split(path.read_bytes())
        attributes, problem = describe(parts.dataset, parts.transfer_syntax_uid)
    except (StorageError, OSError) as error:
        raise click.ClickException(f"{path}: no DICOM file that can be read: {error}") from error
    routed = apply_rules(settings.routes, attributes, calling)
    return {
        "file": str(path),
        "rules": list(routed.rules),
        "to": list(routed.destinations),
        "priority": routed.priority,
        "problem": f"; unreadable from somewhere on: {problem}" if problem else "",
    }
