# SPDX-License-Identifier: Apache-2.0
"""What must be true of this machine for the appliance to run on it; every problem at once."""

from __future__ import annotations

import errno
import fcntl
import os
import platform
import resource
import shutil
import socket
import sys
from collections.abc import Iterator
from pathlib import Path

from appliance.bus import check_run_dir
from appliance.config import listeners
from appliance.device import choose_device
from appliance.errors import ConfigError, ModelError
from appliance.inference.card import read_model
from appliance.inference.installed import place
from appliance.settings import Settings
from appliance.tls import server_context
from appliance.yaml_file import dotted

LOCK_FILE = "nearscan.lock"
STACK_BYTES = 32 << 20  # what Holoscan's threads need; a process gets it at exec, so the daemon sets it

_PYTHON = ((3, 11), (3, 13))
_GLIBC = (2, 35)  # Holoscan's wheels are built for manylinux_2_35
_NOT_LOCAL = {"9p", "afs", "beegfs", "ceph", "cifs", "fuse.glusterfs", "fuse.sshfs", "lustre", "nfs", "nfs4", "smb3"}


def problems(settings: Settings) -> list[str]:
    """Return everything that is wrong here, one ``key: what is wrong; what to do`` each."""
    return fatal(settings) + passing(settings)


def fatal(settings: Settings) -> list[str]:
    """Return what can never work on this machine as it is: the daemon does not start."""
    return [*_versions(), *_folders(settings), *_device(settings), *_stack()]


def passing(settings: Settings) -> list[str]:
    """Return what may pass by itself or stops only a part (a taken port, a full disk, a missing model): the
    daemon starts and says so."""
    return [*_space(settings), *_ports(settings), *_models(settings), *_console(settings)]


def _versions() -> Iterator[str]:
    here = sys.version_info[:2]
    if not _PYTHON[0] <= here <= _PYTHON[1]:
        yield f"python: 3.11 to 3.13 is needed, this is {here[0]}.{here[1]}; install one of these"
    name, version = platform.libc_ver()
    if name != "glibc":
        yield "libc: glibc 2.35 or newer is needed, this is another libc; use a glibc-based Linux"
    elif tuple(int(part) for part in version.split(".")[:2]) < _GLIBC:
        yield f"libc: glibc 2.35 or newer is needed, this is {version}; use Debian 12, Ubuntu 22.04 or newer"


def _folders(settings: Settings) -> Iterator[str]:
    for key, folder in (("site.data_dir", settings.site.data_dir), ("site.run_dir", settings.site.sockets)):
        parent = _existing(folder)
        if not parent.is_dir() or not os.access(parent, os.W_OK | os.X_OK):
            yield f"{key}: {str(parent)!r} is not a folder that this user may write; create {str(folder)!r} for it"
    kind = _filesystem(_existing(settings.site.data_dir))
    if kind in _NOT_LOCAL:
        yield f"site.data_dir: {str(settings.site.data_dir)!r} is on {kind}; use a local disk"
    if settings.models.dir is not None and not settings.models.dir.is_dir():
        yield f"models.dir: {str(settings.models.dir)!r} is not a folder; create it or remove the line"
    names = ["deliverer", *(f"pipeline-{name}" for name in settings.pipelines)]
    try:
        check_run_dir(settings.site.sockets, names)
    except ConfigError as error:
        yield f"site.run_dir: {str(error).removeprefix('bus: ')}"


def _existing(folder: Path) -> Path:
    """Return the nearest parent that is there."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def _filesystem(folder: Path) -> str:
    """Return the type of the file system a folder is on, or an empty text where Linux does not say."""
    device = os.stat(folder).st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in Path("/proc/self/mountinfo").read_text().splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0]
    return ""


def _device(settings: Settings) -> Iterator[str]:
    try:
        choose_device(settings.site.device)
    except ConfigError as error:
        yield str(error)


def _stack() -> Iterator[str]:
    _, hard = resource.getrlimit(resource.RLIMIT_STACK)
    if hard != resource.RLIM_INFINITY and hard < STACK_BYTES:
        yield f"stack: the hard limit is {hard >> 20} MiB, 32 are needed; set LimitSTACK=32M or 'ulimit -H -s 32768'"


def _space(settings: Settings) -> Iterator[str]:
    free_gb = shutil.disk_usage(_existing(settings.site.data_dir)).free / 1e9
    reserve_gb = settings.buffer.reserve_gb
    if free_gb < reserve_gb:
        yield (
            f"site.data_dir: {free_gb:.1f} GB are free, buffer.reserve_gb is {reserve_gb:g}, so nothing is taken in; "
            "free some space"
        )


def _ports(settings: Settings) -> Iterator[str]:
    if _is_running(settings.site.data_dir):
        return  # the ports are taken by the appliance itself
    for keys, bind, port in listeners(settings):
        error = _bind(bind, port)
        if error is None:
            continue
        if error.errno == errno.EADDRINUSE:
            yield f"{dotted(keys)}: port {port} is in use by another program; stop it or choose another port"
        elif error.errno == errno.EACCES:
            yield f"{dotted(keys)}: this user may not open port {port}; choose one from 1024 on"
        else:
            yield f"{dotted(keys)}: {bind!r} port {port} cannot be opened: {error.strerror}; check the address"


def _models(settings: Settings) -> Iterator[str]:
    """A stage's setting `model` names a card; without it, images pass through marked."""
    where = place(settings.models.dir, settings.site.data_dir)
    for name, pipeline in settings.pipelines.items():
        for number, stage in enumerate(pipeline.stages):
            model = getattr(stage.settings, "model", None)
            if not isinstance(model, str):
                continue
            try:
                read_model(model, where.folders(model)[0])
            except ModelError as error:
                yield f"{dotted(('pipelines', name, 'stages', number, stage.name, 'model'))}: {error}"


def _console(settings: Settings) -> Iterator[str]:
    if settings.console is None:
        return
    if settings.console.exposure:
        yield settings.console.exposure
    if settings.console.tls:
        try:
            server_context(settings.console.tls, "console.tls")
        except ConfigError as error:
            yield str(error)


def _bind(bind: str, port: int) -> OSError | None:
    try:
        family, _, _, _, address = socket.getaddrinfo(
            bind or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        with socket.socket(family, socket.SOCK_STREAM) as trial:
            trial.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            trial.bind(address)
    except OSError as error:
        return error
    return None


def _is_running(data_dir: Path) -> bool:
    try:
        with (data_dir / LOCK_FILE).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
