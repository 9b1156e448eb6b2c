# SPDX-License-Identifier: Apache-2.0
"""nearscan users: accounts from the command line, as a person at a terminal and as a script."""

import json
import os
import pty
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.__main__ import main
from appliance.buffer import Buffer
from appliance.buffer.audit import first_broken_row
from appliance.console.accounts import Accounts, verify

PASSWORD = "a long enough Wort"


@pytest.fixture
def data(tmp_path):
    folder = tmp_path / "data"
    folder.mkdir()
    return folder


@pytest.fixture
def nearscan(tmp_path, data):
    file = tmp_path / "site.yaml"
    file.write_text(f"site: {{name: box, data_dir: {data}}}\nconsole: {{port: 8080}}\n")

    def run(*words, stdin="", code=0):
        done = CliRunner().invoke(main, ["users", *words, "--config", str(file)], input=stdin)
        assert done.exit_code == code, done.output
        return done.output

    run.file = file
    return run


def test_accounts_are_made_listed_changed_and_removed_and_all_of_it_is_audited(nearscan, data, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "tester")
    assert nearscan("list") == "no accounts yet; make the first: nearscan users add NAME --role engineer\n"
    assert json.loads(nearscan("list", "--json")) == {}
    assert nearscan("add", "anna", "--role", "engineer", stdin=PASSWORD + "\n") == "anna: account added as engineer\n"
    nearscan("add", "bert", "--role", "viewer", stdin=PASSWORD)
    assert [line.split() for line in nearscan("list").splitlines()] == [
        ["name", "role"],
        ["anna", "engineer"],
        ["bert", "viewer"],
    ]
    nearscan("role", "bert", "technologist")
    nearscan("password", "bert", stdin="another long enough\r\n")
    kept = Accounts(data / "accounts.json").read()
    assert (kept["bert"].role, verify(kept["bert"], "another long enough")) == ("technologist", True)
    nearscan("remove", "bert")
    assert json.loads(nearscan("list", "--json")) == {"anna": "engineer"}
    buffer = Buffer(data)
    assert first_broken_row(buffer.database) is None
    assert buffer.database.query("SELECT subject, event, detail FROM audit ORDER BY id") == [
        ("anna", "account added as engineer", "by tester"),
        ("bert", "account added as viewer", "by tester"),
        ("bert", "account's role changed to technologist", "by tester"),
        ("bert", "account's password changed", "by tester"),
        ("bert", "account removed", "by tester"),
    ]
    buffer.close()


def test_what_is_wrong_is_told_and_changes_nothing(nearscan, data):
    said = "a password has at least 12 characters, not counting the name; take a longer one\n"
    assert nearscan("add", "anna", "--role", "viewer", stdin="short\n", code=1) == said
    said = "no password on stdin; give one line with 12 characters or more\n"
    assert nearscan("add", "anna", "--role", "viewer", code=1) == said
    assert "accounts: there is no 'anna'; see 'nearscan users list'" in nearscan("remove", "anna", code=1)
    assert "Invalid value for '--role': 'god' is not one of" in nearscan("add", "anna", "--role", "god", code=2)
    nearscan("add", "anna", "--role", "viewer", PASSWORD, code=2)  # no argument is a password
    assert not (data / "accounts.json").exists()


def test_a_data_folder_that_is_not_there_is_told(nearscan, data):
    data.rmdir()
    said = f"{data}: No such file or directory; './install.sh appliance' makes it, or give the right --config\n"
    assert nearscan("add", "anna", "--role", "viewer", stdin=PASSWORD, code=1) == said


def test_at_a_terminal_the_password_is_asked_for_twice_and_not_shown(nearscan, data):
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "appliance", "users", "add", "anna", "--role", "viewer"]
    asking = subprocess.Popen([*command, "--config", str(nearscan.file)], stdin=theirs, stdout=theirs, stderr=theirs)
    os.close(theirs)
    shown = b""
    for prompt in (b"Password for anna: ", b"Repeat for confirmation: "):
        while prompt not in shown:
            shown += os.read(ours, 1000)
        os.write(ours, PASSWORD.encode() + b"\n")
    while b"account added" not in shown:
        shown += os.read(ours, 1000)
    assert asking.wait(20) == 0
    os.close(ours)
    assert PASSWORD.encode() not in shown
    assert verify(Accounts(data / "accounts.json").read()["anna"], PASSWORD)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root becomes somebody else")
def test_what_root_makes_belongs_to_the_service():
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        data = Path(folder) / "data"
        data.mkdir(0o750)
        os.chown(data, 65534, 65534)
        file = Path(folder) / "site.yaml"
        file.write_text(f"site: {{name: box, data_dir: {data}}}\n")
        file.chmod(0o600)
        command = [sys.executable, "-m", "appliance", "users", "add", "anna", "--role", "viewer", "--config", str(file)]
        subprocess.run(command, input=PASSWORD, text=True, check=True, capture_output=True)
        owners = {path.name: (path.stat().st_uid, path.stat().st_gid) for path in data.rglob("*")}
        assert {"accounts.json", "nearscan.sqlite"} <= set(owners)
        assert set(owners.values()) == {(65534, 65534)}
