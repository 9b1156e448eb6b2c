# SPDX-License-Identifier: Apache-2.0
"""nearscan users: who may sign in at the console, and with which role.

Rule: a password comes from the terminal or from stdin, never from the command line, which everybody on the machine
can read.
"""

from __future__ import annotations

import json
import os
import sys
from collections.abc import Callable
from pathlib import Path

import click

from appliance import config
from appliance.commands.options import acting_person, config_option, json_option
from appliance.console.accounts import LEAST_CHARACTERS, Accounts, accounts_file, password_fault
from appliance.console.audit import Store, write
from appliance.console.roles import ROLES, Role
from appliance.errors import ConfigError
from appliance.tables import table

_role_option = click.option(
    "--role", type=click.Choice(ROLES), required=True, help="Each may all that the ones before it may."
)


@click.group()
def users() -> None:
    """Accounts of the console: add, list, remove, password, role."""


@users.command()
@click.argument("name")
@_role_option
@config_option
def add(name: str, role: Role, file: Path) -> None:
    """Make an account. The password is asked for, or is the first line of stdin."""
    _change(file, lambda accounts: accounts.add(name, role, _new_password(name)), name, f"account added as {role}")


@users.command()
@click.argument("name")
@config_option
def remove(name: str, file: Path) -> None:
    """Take an account away; who is signed in with it is signed out within seconds."""
    _change(file, lambda accounts: accounts.remove(name), name, "account removed")


@users.command()
@click.argument("name")
@config_option
def password(name: str, file: Path) -> None:
    """Give an account another password, asked for or the first line of stdin; its sessions end."""
    _change(file, lambda accounts: accounts.set_password(name, _new_password(name)), name, "account's password changed")


@users.command()
@click.argument("name")
@click.argument("role", type=click.Choice(ROLES))
@config_option
def role(name: str, role: Role, file: Path) -> None:
    """Give an account another role; its sessions end."""
    _change(file, lambda accounts: accounts.set_role(name, role), name, f"account's role changed to {role}")


@users.command("list")
@config_option
@json_option
def list_(file: Path, as_json: bool) -> None:
    """List names and roles."""
    accounts = Accounts(accounts_file(config.load(file))).read()
    if as_json:
        click.echo(json.dumps({name: account.role for name, account in accounts.items()}, indent=2))
    elif accounts:
        click.echo(table(("name", "role"), [(name, account.role) for name, account in accounts.items()]))
    else:
        click.echo("no accounts yet; make the first: nearscan users add NAME --role engineer", err=True)


def _change(file: Path, change: Callable[[Accounts], None], name: str, done: str) -> None:
    """Do it as the owner of the data folder, and have it in the audit."""
    settings = config.load(file)
    accounts, who = Accounts(accounts_file(settings)), acting_person()
    _become_owner(settings.site.data_dir)
    change(accounts)
    store = Store(settings.site.data_dir)
    try:
        write(store, name, done, f"by {who}")
    finally:
        store.close()
    click.echo(f"{name}: {done}")


def _become_owner(data_dir: Path) -> None:
    """What root writes there, the service could not read. Raises ConfigError."""
    try:
        folder = data_dir.stat()
    except OSError as error:
        text = f"{data_dir}: {error.strerror}; './install.sh appliance' makes it, or give the right --config"
        raise ConfigError(text) from error
    if os.geteuid() == 0 and folder.st_uid != 0:
        os.setegid(folder.st_gid)
        os.seteuid(folder.st_uid)


def _new_password(name: str) -> str:
    if sys.stdin.isatty():
        password = str(click.prompt(f"Password for {name}", hide_input=True, confirmation_prompt=True, err=True))
    else:
        password = sys.stdin.readline().rstrip("\r\n")
        if not password:
            raise ConfigError(f"no password on stdin; give one line with {LEAST_CHARACTERS} characters or more")
    if fault := password_fault(name, password):
        raise ConfigError(fault)
    return password
