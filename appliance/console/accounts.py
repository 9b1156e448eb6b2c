# SPDX-License-Identifier: Apache-2.0
"""Who may sign in at the console: a file of names, roles and Argon2id hashes.

Rule: no default account; a password is never logged, never an argument of a command, never in an error text. The
running console reads the file again within a second of a change.
"""

from __future__ import annotations

import fcntl
import os
import re
import secrets
import unicodedata
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from argon2 import PasswordHasher
from argon2.exceptions import InvalidHashError, VerificationError, VerifyMismatchError
from pydantic import Field, TypeAdapter, ValidationError

from appliance.console.roles import Role
from appliance.errors import ConfigError
from appliance.replace_file import replace_file
from appliance.settings import Model, Settings

# RFC 9106 section 4, the second recommended set (64 MiB, three passes), but one lane: the other cores are the live
# path's. More passes would not be felt by who guesses, and would be by who signs in.
_HASHER = PasswordHasher(time_cost=3, memory_cost=64 << 10, parallelism=1, hash_len=32, salt_len=16)
LEAST_CHARACTERS, MOST_CHARACTERS = 12, 128
_LEAST_DIFFERENT = 5
_NAME = re.compile(r"[a-z][a-z0-9._-]{0,31}")
_MOST_BYTES = 1 << 20


class Account(Model):
    """What is kept of one person. `password` is the Argon2id hash in PHC format."""

    role: Role
    password: str = Field(pattern=r"^\$argon2id\$", repr=False)


_FILE = TypeAdapter(dict[str, Account])


class Accounts:
    """The file. Every method reads or writes it, so keep them off an event loop. All raise ConfigError."""

    def __init__(self, file: Path) -> None:
        self.file = file

    def read(self) -> dict[str, Account]:
        """Return all accounts by name; none where there is no file yet."""
        try:
            with self.file.open("rb") as file:
                if os.fstat(file.fileno()).st_mode & 0o077:
                    raise ConfigError(f"accounts: {self.file} is open to other users; run chmod 600 {self.file}")
                return _FILE.validate_json(file.read(_MOST_BYTES))
        except FileNotFoundError:
            return {}
        except OSError as error:
            raise ConfigError(f"accounts: {self.file} cannot be read: {error.strerror}; check its owner") from error
        except ValidationError:  # its text would show hashes
            text = f"accounts: {self.file} is not what 'nearscan users' writes; restore it, or remove it and begin anew"
            raise ConfigError(text) from None

    def add(self, name: str, role: Role, password: str) -> None:
        """Make an account. The name must be new."""
        if not _NAME.fullmatch(name):
            raise ConfigError(
                f"accounts: {name!r} cannot be a name; use 1 to 32 of a-z, 0-9, '.', '_', '-', a letter first"
            )
        made = Account(role=role, password=_hash(name, password))
        with self._changing() as accounts:
            if name in accounts:
                raise ConfigError(f"accounts: {name!r} is there already; choose another name, or change its password")
            accounts[name] = made

    def remove(self, name: str) -> None:
        """Take an account away; its sessions end."""
        with self._changing() as accounts:
            del accounts[_known(name, accounts)]

    def set_password(self, name: str, password: str) -> None:
        """Give an account another password; its sessions end."""
        made = _hash(name, password)
        with self._changing() as accounts:
            accounts[name] = accounts[_known(name, accounts)].model_copy(update={"password": made})

    def set_role(self, name: str, role: Role) -> None:
        """Give an account another role; its sessions end."""
        with self._changing() as accounts:
            accounts[name] = accounts[_known(name, accounts)].model_copy(update={"role": role})

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Account]]:
        """Read, have changed, and replace the file; one process at a time."""
        try:
            lock = os.open(
                self.file.with_name(f".{self.file.name}.lock"), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600
            )
            try:
                fcntl.flock(lock, fcntl.LOCK_EX)
                accounts = self.read()
                yield accounts
                replace_file(self.file, _FILE.dump_json(dict(sorted(accounts.items())), indent=1) + b"\n", 0o600)
            finally:
                os.close(lock)
        except OSError as error:
            text = f"accounts: {self.file} cannot be written: {error.strerror}; check its folder and run as its owner"
            raise ConfigError(text) from error


def accounts_file(settings: Settings) -> Path:
    """Return where a site keeps its accounts."""
    return (settings.console and settings.console.accounts) or settings.site.data_dir / "accounts.json"


def _known(name: str, accounts: Mapping[str, Account]) -> str:
    if name not in accounts:
        raise ConfigError(f"accounts: there is no {name!r}; see 'nearscan users list'")
    return name


def verify(account: Account | None, password: str) -> bool:
    """Whether the password is the account's. Takes as long where there is no account (64 MiB and some tenths of a
    second of one core). Raises ConfigError where that cannot be told."""
    try:
        _HASHER.verify(account.password if account else nobodys_hash(), _normal(password))
    except VerifyMismatchError:
        return False
    except (VerificationError, InvalidHashError) as error:  # no memory, or a hash that is none
        text = f"accounts: a password cannot be looked at: {error}; free memory, or give the account a new password"
        raise ConfigError(text) from error
    return account is not None


@cache
def nobodys_hash() -> str:
    """A hash that no password has, to be as slow for names that are not there. The first call makes it."""
    return _HASHER.hash(secrets.token_bytes(32))


def password_fault(name: str, password: str) -> str:
    """Say what is wrong with a new password, or nothing. Length is what counts (NIST SP 800-63B section 5.1.1.2);
    the name in it does not."""
    guessable = password.casefold().replace(name, "")
    if len(guessable) < LEAST_CHARACTERS:
        return f"a password has at least {LEAST_CHARACTERS} characters, not counting the name; take a longer one"
    if len(password) > MOST_CHARACTERS:
        return f"a password has at most {MOST_CHARACTERS} characters; take a shorter one"
    if len(set(guessable)) < _LEAST_DIFFERENT:
        return f"a password has at least {_LEAST_DIFFERENT} different characters; take another one"
    return ""


def _hash(name: str, password: str) -> str:
    if fault := password_fault(name, password):
        raise ConfigError(f"accounts: {fault}")
    return _HASHER.hash(_normal(password))


def _normal(password: str) -> bytes:
    """The same letters are the same bytes, whatever keyboard they come from (RFC 8265 section 4.2)."""
    return unicodedata.normalize("NFC", password).encode(errors="surrogatepass")
