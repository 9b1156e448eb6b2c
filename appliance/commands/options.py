# SPDX-License-Identifier: Apache-2.0
"""Arguments and options that commands share, and who calls them."""

from __future__ import annotations

import os
import pwd
from pathlib import Path

import click

SITE_FILE = Path("/etc/nearscan/site.yaml")
FILE = click.Path(dir_okay=False, path_type=Path)
FILES = click.Path(exists=True, path_type=Path)

json_option = click.option("--json", "as_json", is_flag=True, help="Print as JSON.")
config_option = click.option(
    "--config", "file", type=FILE, default=SITE_FILE, show_default=True, help="The site's YAML file."
)


def acting_person() -> str:
    """Who does it, for the audit."""
    return os.environ.get("SUDO_USER") or pwd.getpwuid(os.getuid()).pw_name
