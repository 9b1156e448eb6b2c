# SPDX-License-Identifier: Apache-2.0
"""The nearscan command."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import click

from appliance import __version__
from appliance.commands.options import FILE as _FILE
from appliance.commands.options import SITE_FILE as _SITE_FILE
from appliance.commands.options import config_option
from appliance.errors import NearscanError

# Commands that live in a file of their own, which is imported only when it is called: most need few libraries.
_ELSEWHERE = {
    "buffer": "appliance.commands.buffer",
    "commission": "appliance.commands.commission",
    "echo": "appliance.commands.send",
    "models": "appliance.commands.models",
    "outbox": "appliance.commands.outbox",
    "recordings": "appliance.commands.recordings",
    "replay": "appliance.commands.recordings",
    "route": "appliance.commands.route",
    "send": "appliance.commands.send",
    "users": "appliance.commands.users",
}


class _Commands(click.Group):
    """Errors that nearscan raises on purpose are told in their own words, without a traceback."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return sorted([*super().list_commands(ctx), *_ELSEWHERE])

    def get_command(self, ctx: click.Context, name: str) -> click.Command | None:
        if name in _ELSEWHERE:
            found: click.Command = getattr(importlib.import_module(_ELSEWHERE[name]), name)
            return found
        return super().get_command(ctx, name)

    def invoke(self, ctx: click.Context) -> object:
        try:
            return super().invoke(ctx)
        except NearscanError as error:
            click.echo(str(error), err=True)
            ctx.exit(1)


@click.group(cls=_Commands, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(__version__, prog_name="nearscan")
def main() -> None:
    """The box next to the scanner."""


@main.command()
@config_option
def run(file: Path) -> None:
    """Run the appliance until SIGTERM; SIGHUP reads the file again."""
    from appliance import daemon

    sys.exit(daemon.run(file))


@main.command()
@click.argument("file", type=_FILE, default=_SITE_FILE)
def check(file: Path) -> None:
    """Check FILE and this machine; list every problem."""
    from appliance import config, environment

    settings = config.load(file)
    click.echo(f"{file}: OK")
    problems = environment.problems(settings)
    for line in problems:
        click.echo(line, err=True)
    if problems:
        sys.exit(1)
    click.echo("this machine: OK")


@main.command()
def schema() -> None:
    """Print the JSON Schema of the YAML file, for editors."""
    import json

    from appliance import describe_settings

    click.echo(json.dumps(describe_settings.schema(), indent=2))


@main.command()
def example() -> None:
    """Print an example file with every key, its help and its bounds."""
    from appliance import describe_settings

    click.echo(describe_settings.example(), nl=False)


@main.command()
@config_option
@click.option("--json", "as_json", is_flag=True, help="Print everything as JSON.")
def status(file: Path, as_json: bool) -> None:
    """Show what the running appliance is doing."""
    import json

    from appliance import config, status_table

    statuses = status_table.collect(config.load(file))
    click.echo(json.dumps(statuses, indent=2) if as_json else status_table.table(statuses))
    if not statuses:
        sys.exit(1)


@main.command()
@click.argument("scene", type=click.Choice(["mri", "ultrasound"]), default="mri")
@click.option("--seconds", type=click.FloatRange(min=5, max=86_400), default=30.0, show_default=True)
@click.option("--json", "json_file", type=_FILE, help="Write the result here as well.")
@click.option("--keep", is_flag=True, help="Stay up after the end, until Ctrl-C.")
def demo(scene: str, seconds: float, json_file: Path | None, keep: bool) -> None:
    """Simulate a scanner and a PACS around a running appliance, and account for every image.

    SCENE ultrasound: a tracked ultrasound machine and a navigation display instead; each picture is where it was.
    """
    import signal

    from appliance.demo import mri, ultrasound

    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: what it started has to end with it
    run = mri.run_demo if scene == "mri" else ultrasound.run_demo
    sys.exit(run(seconds, json_file, keep))


@main.group()
def simulate() -> None:
    """Machines around the appliance, to try it without them."""


@simulate.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--host", default="127.0.0.1", show_default=True, help="Where the appliance listens.")
@click.option("--port", type=click.IntRange(1, 65535), default=9002, show_default=True)
@click.option("--frames", type=click.IntRange(min=1), default=150, show_default=True, help="Without FILE.")
@click.option("--rate", type=click.FloatRange(0.1, 1000), default=15.0, show_default=True, help="Frames per second.")
def mri(file: Path | None, host: str, port: int, frames: int, rate: float) -> None:
    """Be a scanner: stream FILE (ISMRMRD HDF5), or an 8-coil cine of a moving phantom."""
    from appliance.mri.phantom import cine_kspace
    from appliance.simulate.mri import stream_cine, stream_file

    try:
        if file:
            result = stream_file(file, host, port)
        else:
            cine = (cine_kspace(n, (192, 192), 8) for n in range(frames))
            result = stream_cine(host, port, cine, frame_rate_hz=rate, n_frames=frames)
    except OSError as error:
        text = f"simulate mri: {file or 'phantom'} to {host}:{port}: {error.strerror or error}; is 'nearscan run' up?"
        raise click.ClickException(text) from error
    for text in (*result.texts, *([result.error] if result.error else [])):
        click.echo(text, err=True)
    click.echo(f"{len(result.images)} images came back, session {'closed' if result.closed else 'not closed'}")
    sys.exit(0 if result.images and result.closed and not result.error else 1)


@simulate.command()
@click.option("--folder", type=click.Path(file_okay=False, path_type=Path), required=True, help="Where to store.")
@click.option("--port", type=click.IntRange(1, 65535), default=4242, show_default=True)
@click.option("--ae-title", default="ORTHANC", show_default=True)
def pacs(folder: Path, port: int, ae_title: str) -> None:
    """Be a PACS: store what comes into a folder, until SIGTERM."""
    import signal
    import threading

    from appliance.simulate.pacs import run_pacs

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        run_pacs(folder, port, ae_title, stop)
    except OSError as error:
        raise click.ClickException(f"simulate pacs: port {port}: {error.strerror}; choose another") from error


@simulate.command()
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path), required=False)
@click.option("--port", type=click.IntRange(1, 65535), default=18944, show_default=True)
@click.option("--bind", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option("--rate", type=click.FloatRange(0.1, 200), default=20.0, show_default=True, help="Frames per second.")
@click.option("--frames", type=click.IntRange(min=1), help="Stop after so many; without it, go on until SIGTERM.")
@click.option("--skew-ms", type=float, default=0.0, help="Fault: the poses' time stamps are wrong by so much.")
@click.option(
    "--missing-s",
    type=click.FloatRange(0, 10),
    default=0.0,
    help="Fault: no tool is seen in the last seconds of each ten.",
)
def ultrasound(
    file: Path | None, port: int, bind: str, rate: float, frames: int | None, skew_ms: float, missing_s: float
) -> None:
    """Be a tracked ultrasound machine (PLUS): serve FILE (.igs.mha) to and fro, or a sweep over a phantom."""
    import signal
    import threading

    from appliance.simulate.ultrasound import UltrasoundServer, file_pictures, phantom_pictures, stream

    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    try:
        pictures = file_pictures(file) if file else phantom_pictures(rate)
        server = UltrasoundServer(port, bind)
    except ValueError as error:
        raise click.ClickException(f"simulate ultrasound: {error}") from error
    except OSError as error:
        text = f"simulate ultrasound: {bind}:{port}: {error.strerror}; choose another port or address"
        raise click.ClickException(text) from error
    click.echo(f"listening on {bind}:{server.port}")
    sent = stream(server, pictures, rate_hz=rate, stop=stop, n_frames=frames, skew_ms=skew_ms, missing_s=missing_s)
    server.close()
    click.echo(f"{sent} frames sent")


@main.command("_child", hidden=True)
@click.argument("kind", type=click.Choice(["pipeline", "receiver", "deliverer", "console"]))
@click.argument("name", required=False)
@click.option("--config", "file", type=_FILE, required=True)
@click.option("--parent", type=int, help="Process id of the daemon; die with it.")
def _child(kind: str, name: str | None, file: Path, parent: int | None) -> None:
    """Be one child process of the daemon."""
    from appliance.run_child import run_child

    sys.exit(run_child(kind, name, file, parent))


if __name__ == "__main__":
    main()
