# SPDX-License-Identifier: Apache-2.0
"""nearscan recordings and nearscan replay: what live sources sent, listed and played again."""

from __future__ import annotations

import json
import time
from pathlib import Path

import click

from appliance import config
from appliance.commands.options import FILE, config_option, json_option
from appliance.errors import ConfigError, RecordingError
from appliance.live.recorder import FOLDER, SUFFIX
from appliance.recording import Header, Recording
from appliance.simulate.replay import Replayed, replay_mrd
from appliance.simulate.replay_openigtlink import replay_openigtlink
from appliance.tables import size, table


@click.command()
@config_option
@json_option
def recordings(file: Path, as_json: bool) -> None:
    """List what sources with `record` have recorded, oldest first. They hold patient data."""
    found, problems = [], []
    for path in _files(config.load(file).site.data_dir / FOLDER):
        try:
            with Recording(path) as recording:
                found.append((path, recording.header, path.stat().st_size))
        except (RecordingError, OSError) as error:
            problems.append(str(error))
    if as_json:
        rows = [{"file": str(path), "bytes": n_bytes, **header.model_dump()} for path, header, n_bytes in found]
        click.echo(json.dumps(rows, indent=2))
    else:
        lines = [
            (_utc(header), header.pipeline, header.protocol, size(n_bytes), path) for path, header, n_bytes in found
        ]
        click.echo(table(("began (UTC)", "pipeline", "protocol", "size", "file"), lines))
    for problem in problems:
        click.echo(problem, err=True)


def _files(folder: Path) -> list[Path]:
    try:
        pipelines = list(folder.iterdir())
        return sorted(
            (path for each in pipelines for path in each.iterdir() if path.suffix == SUFFIX), key=lambda p: p.name
        )
    except FileNotFoundError:
        return []
    except OSError as error:
        raise ConfigError(f"{folder}: cannot be read: {error.strerror}; run it as the user of nearscan") from error


@click.command()
@click.argument("recording", type=FILE)
@click.option(
    "--to",
    "address",
    metavar="HOST:PORT",
    default="127.0.0.1:9002",
    show_default=True,
    help="MRD: where the appliance listens.",
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=18944,
    show_default=True,
    help="OpenIGTLink: where to listen for the appliance; 0: any free one.",
)
@click.option("--bind", default="127.0.0.1", show_default=True, help="OpenIGTLink: address to listen on.")
@click.option(
    "--speed",
    type=click.FloatRange(0, 1000),
    default=1.0,
    show_default=True,
    help="Times the true speed; 0: as fast as it goes.",
)
@click.option("--keep-times", is_flag=True, help="OpenIGTLink: leave the time stamps as recorded.")
def replay(recording: Path, address: str, port: int, bind: str, speed: float, keep_times: bool) -> None:
    """Play a RECORDING into the appliance: be the scanner, or the OpenIGTLink server, that was recorded.

    To the appliance it is a scan as any other: what a pipeline does with its images, it does with these.
    """
    with Recording(recording) as opened:
        header = opened.header
        click.echo(f"{header.protocol} of pipeline {header.pipeline}, recorded {_utc(header)} UTC", err=True)
        if header.protocol == "mrd":
            result = _be_scanner(opened, address, speed)
            click.echo(f"{_sent(result)}, {result.n_images} images came back")
        else:
            result = _be_server(opened, bind, port, speed, keep_times)
            click.echo(f"{_sent(result)}, {result.n_messages} messages")
    for text in (*result.texts, result.error, result.cut):
        if text:
            click.echo(text, err=True)
    raise click.exceptions.Exit(0 if result.closed and not (result.error or result.cut) else 1)


def _be_scanner(recording: Recording, address: str, speed: float) -> Replayed:
    host, _, port = address.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise click.ClickException(f"replay: --to {address!r} is not HOST:PORT")
    try:
        return replay_mrd(recording, host.strip("[]"), int(port), speed)
    except OSError as error:
        text = f"replay: to {address}: {error.strerror or error}; is 'nearscan run' up?"
        raise click.ClickException(text) from error


def _be_server(recording: Recording, bind: str, port: int, speed: float, keep_times: bool) -> Replayed:
    def say(port: int) -> None:
        click.echo(f"waiting on {bind}:{port} for the appliance to connect", err=True)

    try:
        return replay_openigtlink(recording, bind, port, speed, keep_times, say)
    except OSError as error:
        text = f"replay: cannot listen on {bind}:{port}: {error.strerror or error}; choose another port or bind"
        raise click.ClickException(text) from error


def _sent(result: Replayed) -> str:
    late = f", at most {result.late_s:.1f} s late" if result.late_s > 0.1 else ""
    return f"{size(result.n_bytes)} in {result.n_pieces} pieces sent{late}"


def _utc(header: Header) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S", time.gmtime(header.started_ns // 10**9))
