# SPDX-License-Identifier: Apache-2.0
"""nearscan send and nearscan echo against DCMTK's storescp."""

import json
import shutil

import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from appliance.__main__ import main
from appliance.dicom.part10 import split

pytestmark = pytest.mark.peer


@pytest.fixture
def storescp(tmp_path, free_port, start_dcmtk):
    (tmp_path / "stored").mkdir()
    start_dcmtk(free_port, "storescp", "+B", "+uf", "-aet", "STORE", "-od", tmp_path / "stored", free_port)
    return free_port, tmp_path / "stored"


@pytest.fixture
def nearscan(tmp_path, free_port):
    site = tmp_path / "site.yaml"
    site.write_text(
        "site: {name: box}\ndestinations:\n"
        f"  store: {{dicom: {{host: 127.0.0.1, port: {free_port}, ae_title: STORE, timeout_s: 5}}}}\n"
    )

    def run(*words, code=0):
        done = CliRunner().invoke(main, [*map(str, words), "--config", str(site)])
        assert done.exit_code == code, done.output
        return done.output

    return run


def test_send_files_and_folders_as_they_are(storescp, nearscan, tmp_path):
    folder = tmp_path / "in"
    folder.mkdir()
    names = ("CT_small.dcm", "MR_small_implicit.dcm", "MR_small_bigendian.dcm", "rtplan.dcm")
    for name in names:
        shutil.copy(get_testdata_file(name), folder)
    (folder / "notes.txt").write_text("no image")
    done = nearscan("send", folder, "--to", "store", code=1)
    assert f"{folder}/notes.txt: no DICOM file: part10: no DICM prefix" in done
    assert "4 of 5 files sent to store" in done
    stored = {bytes(split(path.read_bytes()).dataset) for path in storescp[1].iterdir()}
    originals = {bytes(split((folder / name).read_bytes()).dataset) for name in names}
    assert stored == originals
    (folder / "notes.txt").unlink()
    rows = json.loads(nearscan("send", folder, "--to", "store", "--json"))
    assert [row["problem"] for row in rows] == [""] * 4


def test_send_and_echo_to_whom_no_file_names(storescp, nearscan):
    port, _ = storescp
    assert "1 of 1 files sent" in nearscan("send", get_testdata_file("CT_small.dcm"), "--to", f"127.0.0.1:{port}:STORE")
    assert nearscan("echo", f"127.0.0.1:{port}:STORE").endswith("ms with the association\n")
    assert nearscan("echo", "store").startswith("store: answers, ")


def test_nobody_there(nearscan):
    assert "cannot connect: Connection refused; check host, port and network" in nearscan("echo", "store", code=1)
    done = nearscan("send", get_testdata_file("CT_small.dcm"), "--to", "store", code=1)
    assert "cannot connect" in done and "0 of 1 files sent" in done


def test_an_unknown_name(nearscan):
    assert "'stor' is no destination of" in nearscan("echo", "stor", code=1)
    assert "known: store; or give HOST:PORT:AETITLE" in nearscan("echo", "stor", code=1)
