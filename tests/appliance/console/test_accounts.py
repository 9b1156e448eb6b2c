# SPDX-License-Identifier: Apache-2.0
"""The accounts' file: what is kept of a password, and that changes neither get lost nor leave half a file."""

import json
import stat
import threading
import unicodedata

import argon2
import pytest

from appliance.console import accounts
from appliance.console.accounts import Account, Accounts, password_fault, verify
from appliance.errors import ConfigError

PASSWORD = "a long enough Wort"


@pytest.fixture
def kept(tmp_path):
    return Accounts(tmp_path / "accounts.json")


def test_an_account_is_made_verified_and_changed(kept):
    assert kept.read() == {}
    kept.add("anna", "viewer", PASSWORD)
    made = kept.read()["anna"]
    assert (made.role, verify(made, PASSWORD), verify(made, PASSWORD + " ")) == ("viewer", True, False)
    kept.set_role("anna", "engineer")
    assert kept.read()["anna"] == made.model_copy(update={"role": "engineer"})
    kept.set_password("anna", "another long enough")
    changed = kept.read()["anna"]
    assert (verify(changed, PASSWORD), verify(changed, "another long enough")) == (False, True)
    kept.remove("anna")
    assert kept.read() == {}


def test_what_is_kept_is_argon2id_with_the_stated_cost_and_for_the_service_alone(kept):
    kept.add("anna", "viewer", PASSWORD)
    text = kept.file.read_text()
    assert PASSWORD not in text
    assert PASSWORD not in repr(kept.read())
    assert "argon2" not in repr(kept.read()), "a hash is not shown either"
    hashed = json.loads(text)["anna"]["password"]
    said = argon2.extract_parameters(hashed)
    assert (said.type, said.memory_cost, said.time_cost, said.parallelism) == (argon2.Type.ID, 65536, 3, 1)
    assert (said.salt_len, said.hash_len) == (16, 32)
    assert argon2.PasswordHasher().verify(hashed, PASSWORD), "another reader agrees"
    assert stat.S_IMODE(kept.file.stat().st_mode) == 0o600
    assert {path.name for path in kept.file.parent.iterdir()} == {"accounts.json", ".accounts.json.lock"}
    kept.add("bert", "viewer", PASSWORD)
    assert json.loads(kept.file.read_text())["bert"]["password"] != hashed, "each has a salt of its own"


def test_the_same_letters_are_the_same_password(kept):
    composed, apart = (unicodedata.normalize(form, "Prüfstück für Ärzte") for form in ("NFC", "NFD"))
    assert composed != apart
    kept.add("anna", "viewer", composed)
    assert verify(kept.read()["anna"], apart)


@pytest.mark.parametrize(
    ("password", "fault"),
    [
        ("short", "at least 12 characters, not counting the name; take a longer one"),
        ("anna", "at least 12 characters"),
        ("annaANNAAnnaAnna", "at least 12 characters"),
        ("anna-and-bert", "at least 12 characters"),
        ("abababababababab", "at least 5 different characters"),
        ("x" * 50 + "abcdefgh" * 10, "at most 128 characters"),
    ],
)
def test_passwords_that_are_refused(kept, password, fault):
    assert fault in password_fault("anna", password)
    with pytest.raises(ConfigError, match=fault) as refused:
        kept.add("anna", "viewer", password)
    assert password not in str(refused.value) or password == "anna"
    assert kept.read() == {}


def test_passwords_that_are_taken():
    assert password_fault("anna", PASSWORD) == password_fault("anna", "😀🐎🔋📎x" * 3) == ""


@pytest.mark.parametrize("name", ["", "Anna", "a b", "../x", "a" * 33, "-a", "a\n", "é"])
def test_names_that_are_refused(kept, name):
    with pytest.raises(ConfigError, match="cannot be a name; use 1 to 32 of a-z"):
        kept.add(name, "viewer", PASSWORD)


def test_who_is_not_there_or_there_already_is_told(kept):
    kept.add("anna", "viewer", PASSWORD)
    with pytest.raises(ConfigError, match="accounts: 'anna' is there already; choose another name, or change its"):
        kept.add("anna", "engineer", PASSWORD)
    for change in (kept.remove, lambda n: kept.set_role(n, "viewer"), lambda n: kept.set_password(n, PASSWORD)):
        with pytest.raises(ConfigError, match="accounts: there is no 'bert'; see 'nearscan users list'"):
            change("bert")
    assert kept.read()["anna"].role == "viewer"


@pytest.mark.parametrize(
    "content",
    [b"", b"{", b"[]", b'{"a": {}}', b'{"a": {"role": "god", "password": "$argon2id$x"}}', b'{"a": {"role": "viewer", '
     b'"password": "plain secret"}}', b"\xff"],
)  # fmt: skip
def test_a_damaged_file_lets_nobody_in_and_does_not_show_what_is_in_it(kept, content):
    kept.file.touch(0o600)
    kept.file.write_bytes(content)
    with pytest.raises(ConfigError, match="is not what 'nearscan users' writes; restore it") as refused:
        kept.read()
    assert "secret" not in str(refused.value)
    with pytest.raises(ConfigError):
        kept.add("anna", "viewer", PASSWORD)
    assert kept.file.read_bytes() == content, "and it is not written over"


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o660, 0o620])
def test_a_file_that_others_may_open_is_not_believed(kept, mode):
    kept.add("anna", "viewer", PASSWORD)
    kept.file.chmod(mode)
    with pytest.raises(ConfigError, match=f"is open to other users; run chmod 600 {kept.file}"):
        kept.read()


def test_a_folder_that_is_not_there_is_told(tmp_path):
    with pytest.raises(ConfigError, match="cannot be written: No such file or directory; check its folder and run as"):
        Accounts(tmp_path / "none" / "accounts.json").add("anna", "viewer", PASSWORD)


def test_changes_at_one_time_all_stay(kept, monkeypatch):
    monkeypatch.setattr(accounts, "_hash", lambda *_: "$argon2id$")
    names = [f"name{n}" for n in range(24)]
    adding = [threading.Thread(target=kept.add, args=(name, "viewer", "")) for name in names]
    for thread in adding:
        thread.start()
    while any(thread.is_alive() for thread in adding):
        kept.read()  # never half a file
    assert sorted(kept.read()) == sorted(names)


def test_nobody_takes_as_long_as_somebody(kept, monkeypatch):
    """By the work that is done, not by a clock: one hash of the same cost either way."""
    kept.add("anna", "viewer", PASSWORD)
    looked_at = []

    class Spy(argon2.PasswordHasher):
        def verify(self, hashed, password):
            looked_at.append(argon2.extract_parameters(hashed))
            return super().verify(hashed, password)

    monkeypatch.setattr(accounts, "_HASHER", Spy(3, 65536, 1, 32, 16))
    accounts.nobodys_hash()
    answers = [verify(kept.read().get(name), "wrong password") for name in ("anna", "nobody")]
    assert answers == [False, False]
    assert looked_at[0] == looked_at[1]
    assert len(looked_at) == 2
    assert verify(None, PASSWORD) is False


@pytest.mark.parametrize(
    "hashed", ["$argon2id$", "$argon2id$v=19$m=65536,t=3,p=1$c2FsdHNhbHQ$!!", "$argon2id$v=19$m=9"]
)
def test_a_hash_that_is_none_is_told_and_is_no_wrong_password(hashed):
    with pytest.raises(ConfigError, match=r"accounts: a password cannot be looked at: .*; free memory, or give"):
        verify(Account(role="viewer", password=hashed), PASSWORD)


def test_a_file_that_cannot_be_read_is_told(kept):
    kept.file.mkdir(0o700)
    with pytest.raises(ConfigError, match="cannot be read: Is a directory; check its owner"):
        kept.read()
