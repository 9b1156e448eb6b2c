# SPDX-License-Identifier: Apache-2.0
"""Rules: what they match, what is owed then, and the command that tells before a site goes live."""

import json
import threading
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydicom.data import get_testdata_file

from appliance import config
from appliance.__main__ import main
from appliance.buffer import NewInstance
from appliance.dicom.admit import admit, admit_next
from appliance.dicom.follow_series import FollowSeries
from appliance.dicom.part10 import header
from appliance.dicom.routing import matches, route
from appliance.errors import ConfigError
from appliance.settings import Route

CT = {
    "Modality": "CT",
    "StudyDescription": "CT Trauma head",
    "SliceThickness": "2.50",
    "ImageType": "ORIGINAL\\PRIMARY",
}


@pytest.mark.parametrize(
    ("condition", "value", "expected"),
    [
        ("CT", "CT", True),
        ("ct", "CT", True),
        ("CT", "CTX", False),
        ("*trauma*", "CT Trauma head", True),
        ("CT ?rauma*", "CT Trauma head", True),
        ("a[b]*", "A[B]c", True),
        ("a[b]*", "ab", False),
        (("MR", "CT"), "CT", True),
        (("MR", "US"), "CT", False),
        (">=2.5", "2.50", True),
        (">2.5", "2.50", False),
        ("<3", "2.50", True),
        ("1..5", "2.50", True),
        ("1..2", "2.50", False),
        (2.5, "2.50", True),
        ("20240101..20241231", "20240704", True),
        (">=3", "thick", False),
        ("PRIMARY", "ORIGINAL\\PRIMARY", True),
        ("*", "", True),
        ("?*", "", False),
        ("CT", "", False),
    ],
)
def test_conditions(condition, value, expected):
    assert matches(condition, value) == expected


def test_every_rule_that_matches_counts_and_the_highest_priority_holds():
    rules = {
        "all": Route(to=("pacs",)),
        "trauma": Route(when={"Modality": "CT", "StudyDescription": "*trauma*"}, to=("ai", "pacs"), priority=9),
        "us": Route(when={"Modality": "US"}, to=("us",), priority=9),
        "by": Route(when={"CallingAETitle": "MR*"}, to=("mr",)),
    }
    routed = route(rules, CT, "CT1")
    assert (routed.rules, routed.destinations, routed.priority) == (("all", "trauma"), ("pacs", "ai"), 9)
    assert route(rules, {}, "MR7").destinations == ("pacs", "mr")
    assert route({}, CT, "CT1").destinations == ()


def received(name, uid="1.2.3"):
    data = Path(get_testdata_file(name)).read_bytes()
    uids = ("1.2.840.10008.5.1.4.1.1.2", uid, "1.2.840.10008.1.2.1")
    return NewInstance(data, *uids, origin="received", peer="CT1")


def no_alarm(key, text):
    assert not text, (key, text)


def test_received_instances_are_owed_by_the_rules_once(buffer):
    rules = {"ct": Route(when={"Modality": "CT", "Rows": "100..200"}, to=("pacs",), priority=7)}
    buffer.put_instance(received("CT_small.dcm"), 1)
    buffer.put_instance(received("MR_small.dcm", "1.2.4"), 2)
    assert admit_next(buffer, rules, no_alarm, 3) == 2
    assert admit_next(buffer, rules, no_alarm, 4) == 0
    assert buffer.counts()["queued"] == 1
    (delivery,) = buffer.outbox.claim("pacs", 5)
    assert (delivery.sop_instance_uid, delivery.priority) == ("1.2.3", 7)
    rows = buffer.database.query("SELECT study_instance_uid, attributes FROM descriptions ORDER BY instance_id")
    assert rows[0][0] and json.loads(rows[0][1])["Modality"] == "CT"


def test_an_unreadable_instance_is_told_and_goes_where_everything_goes(buffer):
    alarms = {}
    uids = ("1.2", "1.2.3", "1.2.840.10008.1.2.1")
    one = NewInstance(header(*uids) + b"\x08\0\x60\0\xff\xff" + bytes(20), *uids, origin="received")
    buffer.put_instance(one, 1)
    rules = {"all": Route(to=("pacs",)), "ct": Route(when={"Modality": "CT"}, to=("ct",))}
    assert admit_next(buffer, rules, alarms.__setitem__, 2) == 1
    assert "cannot be read" in alarms["unreadable"]
    assert list(buffer.counts()["destinations"]) == ["pacs"]


def test_the_second_of_a_conflict_is_held(buffer):
    buffer.put_instance(received("CT_small.dcm"), 1)
    buffer.put_instance(received("MR_small.dcm"), 2)
    admit_next(buffer, {"all": Route(to=("pacs",))}, no_alarm, 3)
    assert (buffer.counts()["queued"], buffer.counts()["held"]) == (1, 1)


def test_the_thread_works_until_it_is_stopped(buffer):
    buffer.put_instance(received("CT_small.dcm"), 1)
    stop = threading.Event()
    rules = {"all": Route(to=("pacs",))}
    thread = threading.Thread(target=admit, args=(buffer, rules, FollowSeries(buffer, 60.0), stop, no_alarm))
    thread.start()
    while not buffer.counts()["queued"]:
        stop.wait(0.01)
    stop.set()
    thread.join(10)


SITE = """
site: {name: box}
destinations:
  pacs: {dicom: {host: 127.0.0.1, port: 4242, ae_title: P}}
routes:
  ct: {when: {Modality: CT, Rows: ">=100"}, to: [pacs], priority: 9}
"""


def test_the_command_says_where_files_would_go(tmp_path):
    site = tmp_path / "site.yaml"
    site.write_text(SITE)
    ct, mr = get_testdata_file("CT_small.dcm"), get_testdata_file("MR_small.dcm")
    done = CliRunner().invoke(main, ["route", ct, mr, "--config", str(site)])
    assert done.output == f"{ct}: to pacs at priority 9; rules: ct\n{mr}: nowhere; rules: none\n"
    done = CliRunner().invoke(main, ["route", ct, "--json", "--config", str(site)])
    assert json.loads(done.output)[0]["to"] == ["pacs"]
    done = CliRunner().invoke(main, ["route", str(site), "--config", str(site)])
    assert done.exit_code == 1
    assert "no DICOM file that can be read" in done.output


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("Modality", "Modalty", "routes.ct.when.Modalty: unknown keyword 'Modalty'; did you mean 'Modality'"),
        ("to: [pacs]", "to: [pax]", "routes.ct.to[0]: unknown destination 'pax'; known: pacs"),
        ("priority: 9", "priority: 10", "routes.ct.priority: must be 0..9, got 10"),
        ("{host: 127.0.0.1, port: 4242, ae_title: P}}", "{host: h, port: 1, ae_title: P}, dicomweb: {url: 'http://h'}}",
         "destinations.pacs: must have one of 'dicom' and 'dicomweb'"),
    ],
)  # fmt: skip
def test_mistakes_are_told(old, new, words):
    with pytest.raises(ConfigError) as caught:
        config.parse(SITE.replace(old, new).encode(), "site.yaml")
    assert words in str(caught.value)
