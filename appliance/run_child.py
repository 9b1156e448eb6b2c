# SPDX-License-Identifier: Apache-2.0
"""Be one child process of the daemon: which kind does what."""

from __future__ import annotations

import logging
import os
from pathlib import Path

from appliance import config
from appliance.child import Child, die_with, log_to_stderr, process_name
from appliance.errors import ConfigError
from appliance.settings import Settings

log = logging.getLogger(__name__)


def run_child(kind: str, name: str | None, config_file: Path, parent_pid: int | None) -> int:
    """Be one child process until told to stop; return its exit code."""
    if parent_pid is not None:
        die_with(parent_pid)
    log_to_stderr()
    try:
        settings = config.load(config_file)
        child = Child(settings.site.sockets, process_name(kind, name))
    except ConfigError as error:
        log.error("%s", error)
        return 1
    child.stop_on_signals()
    keep_compiled(settings.site.data_dir)
    try:
        return _do(kind, name, settings, child)
    except ConfigError as error:
        log.error("%s: %s", child.process, error)
        return 1
    except Exception:  # the process's main: the daemon restarts it
        log.exception("%s failed", child.process)
        return 1
    finally:
        child.close()


def keep_compiled(data_dir: Path) -> None:
    """Have numba keep what it compiles in `data_dir`, where it may not write beside the source: an installed
    appliance. It does not start without such a place."""
    if not os.access(Path(__file__).parent, os.W_OK):
        os.environ.setdefault("NUMBA_CACHE_DIR", str(data_dir / "compiled"))


def _do(kind: str, name: str | None, settings: Settings, child: Child) -> int:
    """Import and run what this process is for; nothing else is imported."""
    if kind == "pipeline":
        from appliance.graph import run_pipeline

        run_pipeline(settings, name or "", child)  # leaves by os._exit: Holoscan's threads may not end
    elif kind == "receiver":
        from appliance.dicom.receive import Receiver

        receiver = Receiver(settings, child.alarm)
        child.serve(receiver.status)
        receiver.run(child.stopping)
    elif kind == "deliverer":
        from appliance.dicom.deliver import Deliverer

        deliverer = Deliverer(settings, child.alarm)
        child.serve(deliverer.status)
        deliverer.run(child.stopping)
    else:
        from appliance.console.serve import run as run_console

        run_console(settings, child)
    return 0
