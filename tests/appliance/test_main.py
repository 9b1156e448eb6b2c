# SPDX-License-Identifier: Apache-2.0
"""The command line: exit codes and words, never a traceback for bad input."""

import json
import socket

import pytest
from click.testing import CliRunner

from appliance import __version__
from appliance.__main__ import main


@pytest.fixture
def nearscan():
    return lambda *arguments: CliRunner().invoke(main, [str(one) for one in arguments])


@pytest.fixture
def good(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(f"site: {{name: t, data_dir: {tmp_path / 'data'}, run_dir: {tmp_path / 'run'}}}\n")
    return path


def test_version(nearscan):
    assert nearscan("--version").output == f"nearscan, version {__version__}\n"


def test_check_of_a_good_file(nearscan, good):
    done = nearscan("check", good)
    assert (done.exit_code, done.output) == (0, f"{good}: OK\nthis machine: OK\n")


def test_check_of_a_wrong_file_lists_every_problem(nearscan, tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text("site: {}\nconsole: {port: 0}\n")
    done = nearscan("check", path)
    assert done.exit_code == 1
    assert done.output.splitlines() == [
        f"{path}:1:1: site.name: missing; add it: Name of this box; appears in logs, metrics and results.",
        f"{path}:2:17: console.port: must be 1..65535, got 0",
    ]


def test_check_of_a_machine_that_cannot(nearscan, good):
    good.write_text(good.read_text() + "buffer: {reserve_gb: 10000}\n")
    done = nearscan("check", good)
    assert done.exit_code == 1
    assert "so nothing is taken in; free some space" in done.output
    assert "this machine: OK" not in done.output


@pytest.mark.parametrize("command", ["run", "status"])
def test_a_file_that_is_not_there(nearscan, command, tmp_path):
    done = nearscan(command, "--config", tmp_path / "no.yaml")
    assert done.exit_code == 1
    expected = (
        f"{tmp_path / 'no.yaml'}: cannot be read: No such file or directory; check the path and its permissions\n"
    )
    assert done.output == expected


def test_status_when_nothing_runs(nearscan, good):
    (good.parent / "run").mkdir()
    done = nearscan("status", "--config", good)
    assert done.exit_code == 1
    assert done.output == ("nearscan is not running for this file (no process answers); start it with 'nearscan run'\n")


def test_schema_is_json(nearscan):
    assert json.loads(nearscan("schema").output)["title"] == "nearscan site"


def test_simulating_a_scanner_without_an_appliance(nearscan):
    done = nearscan("simulate", "mri", "--port", 1, "--frames", 1)
    assert done.exit_code == 1
    text = "Error: simulate mri: phantom to 127.0.0.1:1: Connection refused; is 'nearscan run' up?\n"
    assert done.output == text


def test_simulating_a_pacs_on_a_taken_port(nearscan, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        done = nearscan("simulate", "pacs", "--folder", tmp_path, "--port", port)
    assert done.exit_code == 1
    assert done.output == f"Error: simulate pacs: port {port}: Address already in use; choose another\n"
