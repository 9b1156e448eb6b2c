# SPDX-License-Identifier: Apache-2.0
"""nearscan outbox and nearscan buffer, on a real buffer."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from appliance.__main__ import main
from appliance.buffer import Buffer, NewInstance, NewJob

CT, EXPLICIT = "1.2.840.10008.5.1.4.1.1.2", "1.2.840.10008.1.2.1"


@pytest.fixture
def site(tmp_path):
    path = tmp_path / "site.yaml"
    path.write_text(f"site: {{name: box, data_dir: {tmp_path}/data}}\nbuffer: {{reserve_gb: 0}}\n")
    return path


@pytest.fixture
def buffer(site, tmp_path):
    opened = Buffer(tmp_path / "data")
    for n, destination in enumerate(("pacs", "pacs", "archive")):
        opened.put_instance(NewInstance(b"data %d" % n, CT, f"1.2.{n}", EXPLICIT, destinations=(destination,)), 1)
    yield opened
    opened.close()


@pytest.fixture
def nearscan(site):
    def run(*words, code=0):
        done = CliRunner().invoke(main, [*map(str, words), "--config", str(site)])
        assert done.exit_code == code, done.output
        return done.output

    return run


def states(buffer):
    return [row[0] for row in buffer.database.query("SELECT state FROM deliveries ORDER BY id")]


def test_list_and_show(buffer, nearscan):
    lines = nearscan("outbox", "list").splitlines()
    assert lines[0].split()[:4] == ["id", "destination", "state", "prio"]
    assert [line.split()[1] for line in lines[1:]] == ["pacs", "pacs", "archive"]
    assert "6 B" in lines[1] and "1.2.0" in lines[1]
    rows = json.loads(nearscan("outbox", "list", "--destination", "archive", "--json"))
    assert [(row["id"], row["state"]) for row in rows] == [(3, "queued")]
    assert len(nearscan("outbox", "list", "--limit", 1).splitlines()) == 2
    assert json.loads(nearscan("outbox", "show", 2))[0]["sop_instance_uid"] == "1.2.1"
    assert "outbox: no delivery 77; see 'nearscan outbox list'" in nearscan("outbox", "show", 77, code=1)


def test_hold_release_retry(buffer, nearscan, monkeypatch):
    monkeypatch.setenv("SUDO_USER", "tester")
    assert nearscan("outbox", "hold", 1) == "hold: 1 deliveries\n"
    assert [one.delivery_id for one in buffer.outbox.claim("pacs", 2)] == [2]
    assert nearscan("outbox", "hold", "--destination", "pacs") == (
        "hold: 0 deliveries; 2 left alone: being sent, or in a state that this does not apply to\n"
    )
    assert states(buffer) == ["held", "sending", "queued"]
    nearscan("outbox", "release", "--all")
    assert states(buffer) == ["queued", "sending", "queued"]
    (archived,) = buffer.outbox.claim("archive", 2)
    buffer.outbox.quarantine(archived, "0xC000", 2)
    assert nearscan("outbox", "retry", "--state", "quarantined") == "retry: 1 deliveries\n"
    assert states(buffer) == ["queued", "sending", "queued"]
    nearscan("outbox", "retry", 2, code=1)
    assert "say what to hold: ids, --destination, --state, or --all" in nearscan("outbox", "hold", code=2)
    events = buffer.database.query("SELECT event, detail FROM audit WHERE event IN ('hold', 'release', 'retry')")
    assert events == [
        ("hold", "pacs: queued -> held by tester"),
        ("release", "pacs: held -> queued by tester"),
        ("retry", "archive: quarantined -> queued by tester"),
    ]
    assert buffer.first_broken_audit_row() is None


def test_export_writes_what_was_kept_and_overwrites_nothing(buffer, nearscan, tmp_path):
    nearscan("outbox", "export", 1, 3, "--folder", tmp_path / "out")
    assert {path.name: path.read_bytes() for path in (tmp_path / "out").iterdir()} == {
        "1.dcm": b"data 0",
        "3.dcm": b"data 2",
    }
    told = nearscan("outbox", "export", 1, "--folder", tmp_path / "out", code=1)
    assert "1.dcm: not written: File exists; choose another folder" in told


def test_stats(buffer, nearscan):
    found = json.loads(nearscan("buffer", "stats", "--json"))
    assert (found["instances"], found["bytes"], found["segments"]) == (3, 18, 1)
    assert [(row["destination"], row["count"], row["bytes"]) for row in found["deliveries"]] == [
        ("archive", 1, 6),
        ("pacs", 2, 12),
    ]
    text = nearscan("buffer", "stats")
    assert text.startswith("3 instances, 18 B, 1 segments; ")
    assert "archive" in text


def test_verify_finds_what_is_wrong(buffer, nearscan, tmp_path):
    buffer.put_jobs([NewJob("build", {}, b"raw job")], 1)
    assert nearscan("buffer", "verify") == "everything is as it was kept\n"
    (segment,) = (tmp_path / "data" / "segments").iterdir()
    segment.write_bytes(segment.read_bytes().replace(b"data 1", b"dat\xe0 1").replace(b"raw job", b"raw jab"))
    done = nearscan("buffer", "verify", code=1)
    assert "instances: 2: buffer: object" in done and "was altered on the disk" in done
    assert "jobs: 1: buffer: object" in done
    assert "2 findings" in done


def test_looking_makes_no_buffer(nearscan, tmp_path):
    assert "there is no buffer yet; start nearscan first" in nearscan("outbox", "list", code=1)
    assert "there is no buffer yet" in nearscan("buffer", "stats", code=1)
    assert not (tmp_path / "data").exists()


def test_verify_says_what_is_not_indexed(site, nearscan, tmp_path):
    first = Buffer(tmp_path / "data")
    with first.writer() as writer:
        writer.write(b"acknowledged")
        writer.commit(NewInstance(b"", CT, "1.2", EXPLICIT, origin="received"), 1)
    first.close()
    assert "holds what the database does not know; a start of nearscan takes it in" in nearscan(
        "buffer", "verify", code=1
    )


def test_rebuild_is_refused_while_the_appliance_runs_and_works_after(buffer, nearscan, tmp_path):
    hold = (
        "import sys; from pathlib import Path; from appliance.daemon import only_one\n"
        "with only_one(Path(sys.argv[1])): print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold, str(tmp_path / "data")], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout.readline() == b"held\n"
    assert "is in use by another nearscan" in nearscan("buffer", "rebuild", code=1)
    holder.communicate()
    buffer.close()
    Path(tmp_path / "data" / "nearscan.sqlite").write_bytes(b"damaged")
    assert nearscan("buffer", "rebuild").startswith("3 instances are in the new index")
    again = Buffer(tmp_path / "data")
    assert again.counts()["queued"] == 3
    again.close()
