# SPDX-License-Identifier: Apache-2.0
"""Volumes on the bus become pictures on a WebSocket: newest only, in turn, and never on the event loop."""

import contextlib
import io
import json
import struct
import time

import numpy as np
import pytest
from PIL import Image
from websockets.exceptions import ConnectionClosed
from websockets.sync.client import connect

from appliance.bus import Publisher
from appliance.console import renderer
from appliance.console.renderer import MOST_VIEWERS
from appliance.frames import Mark
from appliance.imaging.volume_message import Volume, pack

PATIENCE_S = 60  # the first picture of a machine waits for the compiler
VIEW = {"mode": "volume", "preset": "bone", "width": 320, "height": 240}


def ball(n=48, at=None, value=900):
    z, y, x = np.mgrid[:n, :n, :n]
    cx, cy, cz = at or (n / 2,) * 3
    return np.where((x - cx) ** 2 + (y - cy) ** 2 + (z - cz) ** 2 < (n / 6) ** 2, value, -1000).astype(np.int16)


class Sender:
    """What the sink of a pipeline does."""

    def __init__(self, settings):
        self._publisher = Publisher(settings.site.sockets, "pipeline-mri-live", "volume")
        self._version = 0

    def send(self, array=None, **changed):
        self._version += 1
        volume = Volume(
            **{
                "pipeline": "mri-live", "scan_id": "s1", "modality": "CT", "array": ball() if array is None else array,
                "affine": np.eye(4), "value_range": (-1000, 1000), "acquired_ns": time.time_ns(),
                "received_ns": time.monotonic_ns(), "version": self._version, "filled": 0.63, **changed,
            }
        )  # fmt: skip
        self._publisher.publish(*pack(volume))
        return self._version

    def send_raw(self, header, payload=b""):
        self._publisher.publish(header, payload)

    def close(self):
        self._publisher.close()


@pytest.fixture
def sender(bench):
    sender = Sender(bench.settings)
    yield sender
    sender.close()


class Page:
    """What view_volume.js does, without a screen."""

    def __init__(self, bench, headers=None, **view):
        address = f"ws://{bench.address}/ws/volume?pipeline=mri-live"
        self._stack = contextlib.ExitStack()
        self.socket = self._stack.enter_context(
            connect(address, max_size=64 << 20, proxy=None, additional_headers=headers)
        )
        if view:
            self.look(**view)

    def look(self, **view):
        self.socket.send(json.dumps({"view": {**VIEW, **view}}))

    def receive(self, timeout_s=PATIENCE_S, acknowledge=True):
        """The next message: (header, pixels or None)."""
        data = self.socket.recv(timeout_s)
        (length,) = struct.unpack("<I", data[:4])
        header, encoded = json.loads(data[4 : 4 + length]), data[4 + length :]
        if header["state"] != "picture":
            return header, None
        if acknowledge:
            self.socket.send(json.dumps({"seen": header["number"]}))
        return header, np.asarray(Image.open(io.BytesIO(encoded)))

    def until(self, right):
        """The first message for which right(header) is true."""
        end = time.monotonic() + PATIENCE_S
        while time.monotonic() < end:
            header, pixels = self.receive()
            if right(header):
                return header, pixels
        raise AssertionError("never came")

    def ping(self, n):
        """The answer to a ping."""
        self.socket.send(json.dumps({"ping": n}))
        while isinstance(said := self.socket.recv(PATIENCE_S), bytes):
            pass
        return json.loads(said)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()


def is_finest(header):
    return header.get("quality") == "finest"


def keep_sending(sender, page, **changed):
    """Send until a picture comes: a subscriber that has just connected misses what was sent before."""
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        sender.send(**changed)
        try:
            header, pixels = page.receive(0.3)
        except TimeoutError:
            continue
        if header["state"] == "picture":
            return header, pixels
    raise AssertionError("no picture")


def test_a_picture_gets_finer_and_says_what_it_is_of(bench, sender):
    marks = (Mark("tracking", "pose not valid"),)
    with Page(bench, **VIEW) as page:
        words, _ = page.receive()
        assert words["state"] == "waiting"
        first, _ = keep_sending(sender, page, marks=marks)
        assert first["quality"] == "draft"
        header, pixels = page.until(is_finest)
    assert pixels.shape == (240, 320, 3) and header["format"] == "image/png"
    assert pixels[120, 160].min() > 100 and pixels[10, 10].max() == 0
    assert header["marks"] == [{"stage": "tracking", "reason": "pose not valid"}]
    assert (header["filled"], header["complete"], header["modality"]) == (0.63, False, "CT")
    assert (header["preset"], header["mode"]) == ("bone", "volume")
    assert header["panes"][0]["sides"] == ["R", "L", "H", "F"]
    assert 0 < header["sent_ns"] - header["received_ns"] < PATIENCE_S * 1e9
    assert header["render_ms"] > 0


def test_while_dragging_drafts_and_after_it_the_finest(bench, sender):
    with Page(bench, **VIEW) as page:
        keep_sending(sender, page)
        page.until(is_finest)
        for n in range(5):
            page.look(dragging=True, rotation=[0, 0, 0.1 * (n + 1), 1])
            header, _ = page.until(lambda header, n=n: header["view"] == n + 2)
            assert header["quality"] == "draft"
        page.look(rotation=[0, 0, 0.5, 1])
        qualities = [page.until(lambda header: header["view"] == 7)[0]["quality"] for _ in range(2)]
        assert qualities == ["sharp", "finest"]
    kpis = bench.process.status()["rendering"]["kpis"]["viewer"]
    assert {"first_image_ms", "age_ms", "drag_lag_ms", "drag_interval_ms", "sharp_ms"} <= kpis.keys()
    _, body = bench.ask("GET", "/metrics", **bench.sign_in("viewer").headers)
    assert b'nearscan_viewing_seconds{quantile="0.95",quantity="sharp",role="viewer"}' in body


def test_kpis_are_kept_by_role(bench, sender):
    with Page(bench, bench.sign_in("engineer").headers, **VIEW) as page:
        keep_sending(sender, page)
    assert "engineer" in bench.process.status()["rendering"]["kpis"]


def test_a_page_that_never_answers_gets_two_pictures_and_hinders_nobody(bench, sender):
    with Page(bench, **VIEW) as silent, Page(bench, **VIEW) as page:
        keep_sending(sender, page)
        for n in range(6):
            version = sender.send(ball(at=(20 + n, 24, 24)))
            page.until(lambda header, version=version: header["version"] == version)
        pictures = []
        while len(pictures) < 2:
            header, pixels = silent.receive(acknowledge=False)
            if pixels is not None:
                pictures.append(header)
        with pytest.raises(TimeoutError):
            silent.receive(0.3, acknowledge=False)
        silent.socket.send(json.dumps({"seen": pictures[-1]["number"]}))
        header, _ = silent.until(lambda header: header["state"] == "picture")
        assert header["version"] == version  # what lies between is not sent late


def test_another_scan_of_another_shape_in_the_middle_of_a_drag(bench, sender):
    with Page(bench, **VIEW) as page:
        keep_sending(sender, page)
        for n in range(8):
            page.look(dragging=True, rotation=[0.1 * n, 0, 0, 1])
            shape = (48, 40 - 3 * n, 7 + 9 * n)
            version = sender.send(
                np.full(shape, 100 + n, np.uint8 if n % 2 else np.int16),
                scan_id=f"s{n}",
                complete=n == 7,
                modality="MR",
            )
            header, pixels = page.until(lambda header, version=version: header["version"] == version)
            assert header["shape"] == list(shape)
        assert header["complete"] and pixels.max() > 0


@pytest.mark.parametrize(
    "said",
    [
        "no JSON", "[]", "7", '{"view": 3}', '{"view": {"mode": "film"}}', '{"view": {"rotation": [0, 0, NaN, 1]}}',
        '{"view": {"zoom": 1e999}}', '{"seen": "x"}', '{"seen": null}', '{"ping": {}}', "[" * 4000, '{"view": null}',
        '{"seen": 1e999}',
        '{"view": {"pan_mm": [1e308, 1e308]}}', '{"view": {"width": {"a": 1}}}',
    ],
)  # fmt: skip
def test_garbage_ends_that_connection_alone(bench, said):
    with Page(bench) as page:
        page.socket.send(said)
        with pytest.raises(ConnectionClosed) as closed:
            while True:
                page.socket.recv(PATIENCE_S)
        assert closed.value.rcvd.code == 1007
    with Page(bench) as other:
        assert other.ping(5)["pong"] == 5


def test_huge_sizes_are_brought_within_bounds(bench, sender):
    with Page(bench, width=1e6, height=3) as page:
        keep_sending(sender, page)
        header, _ = page.until(lambda header: header["state"] == "picture")
    assert (header["width"], header["height"]) == (1536, 64)


def test_volumes_that_are_none_are_said_and_the_last_good_one_stays(bench, sender):
    good = {
        "pipeline": "mri-live", "scan_id": "s", "modality": "CT", "version": 1, "complete": False, "dtype": "int16",
        "shape": [2, 2, 2], "affine": np.eye(4).ravel().tolist(), "value_range": [0, 1], "slope": 1.0, "intercept": 0.0,
        "acquired_ns": 1, "received_ns": 1, "filled": 1.0, "marks": [],
    }  # fmt: skip
    wrong = [
        ({"shape": [2, 2, 3]}, "volume message: int16 [2, 2, 3] with 16 bytes; mend the sender"),
        ({"slope": 0.0}, "volume: slope 0.0"),
        ({"slope": float("nan")}, "volume: slope nan"),
        ({"marks": 5}, ""),
        ({"value_range": ["a", 1]}, ""),
    ]
    for change, words in wrong:
        end = time.monotonic() + PATIENCE_S
        while words not in bench.process.status()["rendering"]["faults"].get("mri-live", "-"):
            assert time.monotonic() < end, change
            sender.send_raw({**good, **change}, bytes(16))
            time.sleep(0.05)
    with Page(bench, **VIEW) as page:
        page.until(lambda header: header.get("text", "").startswith("volume"))
        keep_sending(sender, page)
        assert bench.process.status()["rendering"]["faults"] == {}
        page.until(is_finest)
        sender.send_raw({**good, "slope": 0.0}, bytes(16))  # what is seen now gets old, and the page says why
        page.until(lambda header: header.get("text", "").startswith("volume: slope 0.0"))


def test_so_many_viewers_and_no_more(bench, sender):
    with contextlib.ExitStack() as stack:
        pages = [stack.enter_context(Page(bench, **VIEW)) for _ in range(MOST_VIEWERS)]
        with Page(bench) as refused, pytest.raises(ConnectionClosed) as closed:
            refused.receive()
        assert closed.value.rcvd.code == 1013 and "16 viewers look already" in closed.value.rcvd.reason
        keep_sending(sender, pages[0])
        for page in pages[1:]:  # all are served
            page.until(lambda header: header["state"] == "picture")
    with Page(bench, **VIEW) as page:
        page.until(lambda header: header["state"] == "picture")


def test_the_event_loop_answers_while_a_picture_is_drawn_and_large_volumes_come(bench, sender, monkeypatch):
    """Were the picture drawn on the loop, it would be sent before what was asked after it was begun is answered."""
    monkeypatch.setattr(renderer, "_PATIENCE_S", 1e9)  # it is drawn to its end
    large = np.full((200, 320, 320), -1000, np.int16)
    large[50:150, 100:200, 100:200] = np.arange(100) * 10
    with Page(bench, preset="soft tissue", width=1536, height=1536) as page, Page(bench) as other:
        keep_sending(sender, page, array=large)
        page.until(lambda header: header.get("quality") == "sharp")  # acknowledged: the finest is begun
        answers = []
        for n in range(5):
            sender.send(large)
            answers.append(other.ping(n))
        header, _ = page.receive()
    assert header["quality"] == "finest"
    assert [answer["pong"] for answer in answers] == [0, 1, 2, 3, 4]
    assert answers[-1]["now_ns"] < header["sent_ns"]  # by the server's clock


def test_an_unknown_pipeline_and_a_foreign_origin_are_refused(bench):
    for path, headers in (("?pipeline=other", {}), ("?pipeline=mri-live", {"Origin": "http://evil.example"})):
        with pytest.raises(Exception, match="403"):
            connect(f"ws://{bench.address}/ws/volume{path}", proxy=None, additional_headers=headers).__enter__()
