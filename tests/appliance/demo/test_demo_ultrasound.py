# SPDX-License-Identifier: Apache-2.0
"""The ultrasound demo says where each picture was shown, and when one is shown at a wrong place."""

import copy
import json
import subprocess
import sys

import numpy as np
import pytest

from appliance.demo.ultrasound import RATE_HZ, Sent, Shown, account, is_good, is_in_sight, truth
from appliance.igtl import Image, Message, Status

SECOND_NS = 10**9


def test_pictures_are_shown_where_they_were_or_as_without_a_place(tmp_path):
    out = tmp_path / "out.json"
    command = [sys.executable, "-m", "appliance", "demo", "ultrasound", "--seconds", "11", "--json", str(out)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stdout + done.stderr
    result = json.loads(out.read_text())
    pictures = result["pictures"]
    assert pictures["sent"] == pictures["in"] == 165
    assert pictures["placed"] > 100
    assert pictures["without_place"] > 10
    assert result["volume"]["filled"] > 0.2
    assert "every picture is where it was, or says that it has no place" in done.stdout
    for part, name, wrong in (("pictures", "misplaced", 1), (None, "place_error_mm", 0.01), (None, "states", ["LIVE"])):
        worse = copy.deepcopy(result)
        (worse[part] if part else worse)[name] = wrong
        assert not is_good(worse)


@pytest.fixture
def sent():
    sent = Sent()
    sent.stamps_ns = [SECOND_NS + int(n * SECOND_NS / RATE_HZ) for n in range(160)]
    sent.left_ns = list(range(160))
    return sent


def shown_at(sent, number, affine, name="nearscan"):
    shown = Shown()
    image = Image(np.zeros((1, 256, 300), np.uint8), affine)
    shown.take(Message(image, name, sent.stamps_ns[number] + 2_000_000), 400)
    return account(sent, shown, {})


def test_a_picture_at_its_place_has_no_error(sent):
    result = shown_at(sent, 30, truth(30))
    assert (result["pictures"]["misplaced"], result["place_error_mm"]) == (0, 0)


def test_the_pose_of_the_picture_before_is_an_error_of_millimetres(sent):
    assert shown_at(sent, 30, truth(29))["place_error_mm"] > 1


def test_a_place_while_the_tools_are_out_of_sight_is_wrong(sent):
    assert not is_in_sight(130)
    assert shown_at(sent, 130, truth(130))["pictures"]["misplaced"] == 1
    assert shown_at(sent, 130, truth(130), "nearscan_untracked")["pictures"] == {
        "sent": 160, "in": 0, "placed": 0, "without_place": 1, "misplaced": 0,
    }  # fmt: skip


def test_the_display_is_told_after_the_last_picture_and_not_before(sent):
    shown = Shown()
    for name, at_ns in (("STALE", 50), ("LIVE", 60), ("STALE", 159 + 451_000_000)):
        shown.take(Message(Status(1, name)), at_ns)
    assert account(sent, shown, {})["told_stale_ms"] == 451
