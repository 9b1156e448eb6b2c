# SPDX-License-Identifier: Apache-2.0
"""What is wrong with a machine, in the words people see."""

import fcntl
import os
import resource
import socket
from types import SimpleNamespace

import pytest

from appliance import config, device, environment


def site(folder, more="", data_dir=None):
    text = f"site: {{name: t, data_dir: {data_dir or folder / 'data'}, run_dir: {folder / 'run'}}}\n{more}"
    return config.parse(text.encode(), "site.yaml")


@pytest.fixture
def port():
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_a_good_machine_has_no_problem(tmp_path):
    assert environment.problems(site(tmp_path)) == []
    assert not (tmp_path / "data").exists(), "a check changes nothing"


def test_a_taken_port(tmp_path, port):
    more = f"console: {{port: {port}}}\n"
    text = f"console.port: port {port} is in use by another program; stop it or choose another port"
    assert environment.passing(site(tmp_path, more)) == [text]
    assert environment.fatal(site(tmp_path, more)) == [], "the rest of the site may run"


def test_ports_are_not_tried_while_the_appliance_itself_holds_them(tmp_path, port):
    (tmp_path / "data").mkdir()
    with (tmp_path / "data" / "nearscan.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert environment.problems(site(tmp_path, f"console: {{port: {port}}}\n")) == []


def test_an_address_that_is_not_ours(tmp_path):
    found = environment.problems(site(tmp_path, "console: {port: 8080, bind: 192.0.2.1}\n"))
    assert found == [
        "console.port: '192.0.2.1' port 8080 cannot be opened: Cannot assign requested address; check the address",
        "console.bind: '192.0.2.1' serves a network without TLS, where passwords and images can be read; give "
        "console.tls, or set console.plain_http: true",
    ]


@pytest.mark.parametrize(
    ("bind", "more", "is_wrong"),
    [
        ("127.0.0.1", "", False),
        ("'::1'", "", False),
        ("localhost", "", False),
        ("0.0.0.0", "", True),
        ("'::'", "", True),
        ("''", "", True),
        ("0.0.0.0", ", plain_http: true", False),
        ("0.0.0.0", ", tls: {certificate: /x.crt, key: /x.key}", False),
    ],
)
def test_a_console_on_a_network_has_tls_or_says_that_it_has_none(tmp_path, bind, more, is_wrong):
    found = environment.problems(site(tmp_path, f"console: {{port: 8080, bind: {bind}{more}}}\n"))
    assert any(line.startswith("console.bind:") for line in found) is is_wrong
    assert any(line.startswith("console.tls: files cannot be used (No such file") for line in found) is ("tls" in more)


def test_a_port_that_needs_root(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_bind", lambda *_: PermissionError(13, "Permission denied"))
    (line,) = environment.problems(site(tmp_path, "listen: {dicom: {port: 104}}\n"))
    assert line == "listen.dicom.port: this user may not open port 104; choose one from 1024 on"


def test_a_data_folder_that_is_a_file(tmp_path):
    (tmp_path / "data").write_text("")
    (line,) = environment.problems(site(tmp_path))
    folder = str(tmp_path / "data")
    assert line == f"site.data_dir: {folder!r} is not a folder that this user may write; create {folder!r} for it"


def test_a_folder_that_may_not_be_written(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)
    assert [line.split(":")[0] for line in environment.fatal(site(tmp_path))] == ["site.data_dir", "site.run_dir"]


def test_a_network_disk(tmp_path, monkeypatch):
    monkeypatch.setattr(environment, "_filesystem", lambda _: "nfs4")
    assert environment.fatal(site(tmp_path)) == [
        f"site.data_dir: {str(tmp_path / 'data')!r} is on nfs4; use a local disk"
    ]


def test_the_file_system_of_a_folder_is_known():
    assert environment._filesystem(environment.Path("/proc")) == "proc"


def test_too_little_space(tmp_path):
    (line,) = environment.passing(site(tmp_path, "buffer: {reserve_gb: 10000}\n"))
    assert line.startswith("site.data_dir: ")
    assert line.endswith(" GB are free, buffer.reserve_gb is 10000, so nothing is taken in; free some space")


def test_a_run_folder_with_too_long_a_name(tmp_path):
    text = f"site: {{name: t, data_dir: {tmp_path}, run_dir: /tmp/{'x' * 100}}}\n"
    (line,) = environment.fatal(config.parse(text.encode(), "f"))
    assert line.startswith("site.run_dir: socket path has 123 bytes, at most 107 work: '/tmp/xxx")
    assert line.endswith("; set site.run_dir to a shorter folder")


def test_a_gpu_that_is_not_there(tmp_path, monkeypatch):
    monkeypatch.setattr(device, "count_gpus", lambda: 0)
    settings = site(tmp_path)
    settings = settings.model_copy(update={"site": settings.site.model_copy(update={"device": "gpu"})})
    (line,) = environment.fatal(settings)
    assert line.startswith("site.device: 'gpu' is asked for and no CUDA driver or device answers")


def test_a_models_folder_that_is_not_there(tmp_path):
    (line,) = environment.fatal(site(tmp_path, f"models: {{dir: {tmp_path / 'none'}}}\n"))
    assert line == f"models.dir: {str(tmp_path / 'none')!r} is not a folder; create it or remove the line"


def test_versions(tmp_path, monkeypatch):
    monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("glibc", "2.31"))
    monkeypatch.setattr(environment, "sys", SimpleNamespace(version_info=(3, 14, 0)))
    assert environment.fatal(site(tmp_path)) == [
        "python: 3.11 to 3.13 is needed, this is 3.14; install one of these",
        "libc: glibc 2.35 or newer is needed, this is 2.31; use Debian 12, Ubuntu 22.04 or newer",
    ]
    monkeypatch.setattr(environment.platform, "libc_ver", lambda: ("", ""))
    assert "libc: glibc 2.35 or newer is needed, this is another libc; use a glibc-based Linux" in environment.fatal(
        site(tmp_path)
    )


def test_a_small_stack(tmp_path, monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (8 << 20, 8 << 20))
    assert environment.fatal(site(tmp_path)) == [
        "stack: the hard limit is 8 MiB, 32 are needed; set LimitSTACK=32M or 'ulimit -H -s 32768'"
    ]


def test_a_model_that_is_not_there(tmp_path):
    more = "pipelines: {p: {source: mrd, stages: [denoise: {model: none-such}], sinks: [preview]}}\n"
    (line,) = environment.passing(site(tmp_path, more))
    assert line.startswith("pipelines.p.stages[0].denoise.model: ")
    assert "none-such.yaml: no such model card; models in this folder: " in line


def test_an_activated_model_is_the_one_that_is_checked(tmp_path):
    more = "pipelines: {p: {source: mrd, stages: [denoise: {model: mr-denoise}], sinks: [preview]}}\n"
    settings = site(tmp_path, more)
    assert environment.passing(settings) == []
    folder = settings.site.data_dir / "models" / "mr-denoise"
    folder.mkdir(parents=True)
    (folder / "active").write_text("2\n")
    (line,) = environment.passing(settings)
    assert f"{folder}/2/mr-denoise.yaml: no such model card" in line
