# SPDX-License-Identifier: Apache-2.0
"""Today and the images behind it: what a buffer holds, over HTTP."""

import json
import subprocess
import zlib

import numpy as np
import pytest
from day import HOSTILE, TOOK_MS, busy_day
from pydicom import dcmread
from pydicom.data import get_testdata_file

from appliance.dicom import image_decoder


@pytest.fixture
def day(bench):
    day = busy_day(bench.settings.site.data_dir)
    yield day
    day.close()


@pytest.fixture
def signed(bench):
    return bench.sign_in("viewer")


def get(bench, signed, path, status=200):
    answer, body = bench.ask("GET", path, **signed.headers)
    assert answer.status == status, body
    return json.loads(body)


def test_a_day_is_listed_newest_first_with_the_state_of_each(bench, signed, day):
    entries = get(bench, signed, "/api/today")["entries"]
    assert [(one["who"]["PatientName"], one["state"]) for one in entries] == [
        ("Brandt^Otto", "receiving"),
        ("Haddad^Leila", "receiving"),
        ("Novak^Petra", "delivering"),
        (HOSTILE, "quarantined"),
        ("Sato^Kenji", "failed"),
        ("Meier^Ulla", "delivered"),
        ("Okafor^Chidi", "committed"),
        ("Lindqvist^Maja", "committed"),
    ]
    committed, failed = entries[-1], entries[4]
    assert committed["committed_s"] - committed["last_s"] == pytest.approx(17, abs=0.01)
    assert committed["delivered_s"] - committed["last_s"] == pytest.approx(15, abs=0.01)
    assert committed["destinations"]["pacs"]["committed"] == 6
    assert failed["problem"] == "aborted: the scanner hung up"
    assert failed["destinations"]["pacs"]["sent"] == 8  # reconstructed and denoised


def test_a_scan_that_ended_is_processed_until_all_of_it_is_built_and_held_where_somebody_holds_it(bench, signed, day):
    day.scan("scan-d", "Last^One", "t2", 2, 1, build=False)
    assert get(bench, signed, "/api/today")["entries"][0]["state"] == "processing"
    technologist = bench.sign_in("technologist")
    body = json.dumps({"destination": "pacs", "state": "queued"})
    answer, said = bench.ask("POST", "/api/delivery/hold", body, **technologist.headers)
    assert (answer.status, json.loads(said)) == (200, {"changed": 8, "left": 0})
    states = {one["who"]["PatientName"]: one["state"] for one in day_of(bench, signed, day)}
    assert states["Novak^Petra"] == "held"


def day_of(bench, signed, day):
    """The list is a second old at most: look for what is there now by a search for nothing special."""
    answer, body = bench.ask("POST", "/api/today/search", json.dumps({"text": ""}), **signed.headers)
    assert answer.status == 200, body
    return json.loads(body)["entries"]


SEARCHES = {
    "maja": ["Lindqvist^Maja"],
    "Thorax 220114": ["Lindqvist^Maja"],
    "trufi": ["Sato^Kenji", "Okafor^Chidi"],
    "100%": [],
    "_": ["Haddad^Leila", "Sato^Kenji", "Okafor^Chidi"],
    "maja sato": [],
}


def test_a_search_finds_every_word_wherever_it_is(bench, signed, day):
    for text, found in SEARCHES.items():
        answer, body = bench.ask("POST", "/api/today/search", json.dumps({"text": text}), **signed.headers)
        assert answer.status == 200
        assert [one["who"]["PatientName"] for one in json.loads(body)["entries"]] == found, text


def test_a_name_that_is_not_ascii_is_found_in_any_case(bench, signed, day):
    day.receive("ÖZTÜRK^Ümit", "Abdomen", 1, 2)
    for text in ("öztürk", "Öztürk", "ümit"):
        _, body = bench.ask("POST", "/api/today/search", json.dumps({"text": text}), **signed.headers)
        assert [one["who"]["PatientName"] for one in json.loads(body)["entries"]] == ["ÖZTÜRK^Ümit"]


def test_what_was_done_to_a_scan_and_how_long_it_took(bench, signed, day):
    (entry,) = [one for one in get(bench, signed, "/api/today")["entries"] if one["uid"] == "scan-a"]
    said = get(bench, signed, f"/api/today/scan/{entry['id']}")
    denoised = next(group for group in said["steps"] if group["kind"] == "denoised")
    assert [step["operator"] for step in denoised["steps"]] == ["reconstruct", "denoise", "detect_anomalies"]
    assert (denoised["steps"][1]["model"], denoised["n_images"]) == ("mr-denoise 3", 6)
    assert {name: times["mean"] for name, times in denoised["took_ms"].items()} == TOOK_MS
    assert [one["kind"] for one in said["images"][:2]] == ["reconstructed", "denoised"]
    assert len(said["images"]) == 12


def decoded(png):
    """The grey levels of a PNG without filters, by the standard and not by our code."""
    assert png[:8] == b"\x89PNG\r\n\x1a\n"
    chunks, at = {}, 8
    while at < len(png):
        n = int.from_bytes(png[at : at + 4], "big")
        name, data = png[at + 4 : at + 8], png[at + 8 : at + 8 + n]
        assert zlib.crc32(name + data) == int.from_bytes(png[at + 8 + n : at + 12 + n], "big")
        chunks[name] = chunks.get(name, b"") + data
        at += 12 + n
    width, height = (int.from_bytes(chunks[b"IHDR"][i : i + 4], "big") for i in (0, 4))
    rows = np.frombuffer(zlib.decompress(chunks[b"IDAT"]), np.uint8).reshape(height, width + 1)
    assert not rows[:, 0].any()
    return rows[:, 1:]


def test_a_kept_image_is_shown_as_it_is(bench, signed, day):
    entries = {one["who"]["PatientName"]: one for one in get(bench, signed, "/api/today")["entries"]}
    entry = entries["Lindqvist^Maja"]
    first = get(bench, signed, f"/api/today/series/{entry['id']}")["images"][0]
    answer, body = bench.ask("GET", f"/api/images/{first['id']}", **signed.headers)
    assert (answer.status, answer.getheader("content-type")) == (200, "image/png")
    assert answer.getheader("cache-control") == "no-store"
    grey = decoded(body).astype(float)
    ds = dcmread(get_testdata_file("CT_small.dcm"))
    hounsfield = ds.pixel_array * float(ds.RescaleSlope) + float(ds.RescaleIntercept)
    low, high = map(float, answer.getheader("x-window").split())
    assert np.abs(grey - np.clip((hounsfield - low) / (high - low) * 255, 0, 255)).max() <= 1
    answer, body = bench.ask("GET", f"/api/images/{first['id']}?size=64", **signed.headers)
    assert np.array_equal(decoded(body), grey[::2, ::2])


NOT_THERE = (
    ("/api/images/999999", 404, "not on this box"),
    ("/api/images/1?frame=7", 404, "image 1 has no frame 7"),
    ("/api/images/1?size=9", 400, "size: a whole number from 16 to 2048 is expected"),
    ("/api/images/1?frame=x", 400, "frame: a whole number from 0"),
    ("/api/today/series/999", 404, "no such scan or series"),
    ("/api/today/nothing/1", 404, "no such scan or series"),
)


def test_what_is_not_there_is_said(bench, signed, day):
    for path, status, words in NOT_THERE:
        assert words in get(bench, signed, path, status)["error"], path


def test_one_child_decodes_a_whole_series(bench, signed, day, monkeypatch):
    started, popen = [], subprocess.Popen
    monkeypatch.setattr(image_decoder.subprocess, "Popen", lambda *a, **k: started.append(1) or popen(*a, **k))
    for image in range(1, 6):
        assert bench.ask("GET", f"/api/images/{image}?size=32", **signed.headers)[0].status == 200
    assert started == [1]


def test_bytes_that_are_no_image_are_said_to_be_none(bench, signed, owed):
    assert "image 1 cannot be shown: decode: " in get(bench, signed, "/api/images/1", 422)["error"]


def test_without_a_buffer_the_day_is_empty_and_none_is_made(bench, signed):
    for _ in range(2):
        assert get(bench, signed, "/api/today")["entries"] == []
    assert get(bench, signed, "/api/delivery")["deliveries"] == []


@pytest.mark.parametrize(
    "body", [b"", b"[]", b'{"text": 5}', b'{"text": "x", "more": 1}', b'{"text": "%s"}' % (b"x" * 101)]
)
def test_nonsense_is_refused_without_repeating_it(bench, signed, body):
    answer, said = bench.ask("POST", "/api/today/search", body, **signed.headers)
    assert answer.status == 400
    assert b"xxx" not in said


def test_who_has_not_signed_in_gets_no_names_and_no_images(bench, day):
    for path in ("/api/today", "/api/today/series/1", "/api/images/1", "/api/delivery", "/api/machine", "/api/config"):
        assert bench.ask("GET", path)[0].status == 403
