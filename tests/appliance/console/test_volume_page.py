# SPDX-License-Identifier: Apache-2.0
"""The view 3D in a real browser: what a surgeon sees while a volume fills, turns, grows old and ends."""

import math
import threading
import time

import numpy as np
import pytest
from browser import Browser, screenshot_folder
from test_volume_socket import Sender

from appliance.frames import Mark

pytestmark = pytest.mark.peer

WORD, SENTENCE = (f"document.getElementById('volume-{name}').textContent" for name in ("word", "sentence"))
LISTENING = """window.sent = [];
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (said) { if (/view/.test(said)) sent.push(said); send.call(this, said); };"""
CANVAS = "document.getElementById('volume-canvas')"
ROTATION = "JSON.parse(sent[sent.length - 1]).view.rotation"
AFFINE = np.array([[1.0, 0, 0, -60], [0, 1, 0, -60], [0, 0, 1.5, 0], [0, 0, 0, 1]])


def body():
    """Something like a torso in CT: soft tissue, ribs, a spine behind, and a ball of metal on the patient's left."""
    z, y, x = np.mgrid[:80, :120, :120].astype(np.float32)
    x, y, z = x - 60, y - 60, (z - 40) * 1.5
    hu = np.full(x.shape, -1000.0, np.float32)
    hu[(x / 50) ** 2 + (y / 34) ** 2 < 1] = 40
    rib = np.abs((x / 46) ** 2 + (y / 31) ** 2 - 1) < 0.06
    hu[rib & (np.abs((z + 0.3 * y) % 22 - 11) < 4)] = 700
    hu[(x**2 + (y - 26) ** 2 < 60) & (np.abs(z % 20 - 10) < 8.5)] = 900
    hu[(x - 25) ** 2 + (y + 10) ** 2 + (z - 12) ** 2 < 81] = 2000
    return np.round(hu).astype(np.int16)


class Filling:
    """Sends a volume that fills, five times a second, until told to stop."""

    def __init__(self, bench, **changed):
        self._sender, self._changed, self._array = Sender(bench.settings), changed, body()
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def _run(self):
        n = 0
        while not self._stopping.wait(0.2):
            n = min(n + 8, 80)
            array = self._array.copy()
            array[n:] = -1024
            self._sender.send(array, **{"affine": AFFINE, "filled": n / 80, **self._changed})

    def stop(self):
        self._stopping.set()
        self._thread.join()
        self._sender.close()


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        # what the page tells the server, to be looked at
        browser.call("Page.addScriptToEvaluateOnNewDocument", source=LISTENING)
        yield browser


@pytest.fixture
def page(bench, browser):
    browser.messages.clear()
    browser.open(f"http://{bench.address}/#volume")
    yield browser
    assert browser.messages == []
    browser.open("about:blank")


def mouse(page, kind, x, y, **more):
    page.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", **more)


def middle(page):
    box = page.ask(
        "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('stage').getBoundingClientRect())"
    )
    return box[0] + box[2] / 2, box[1] + box[3] / 2


def bright(page, x, y):
    """Brightness at a part (0..1) of the canvas."""
    pixel = f"{CANVAS}.getContext('2d').getImageData({CANVAS}.width * {x}, {CANVAS}.height * {y}, 1, 1).data"
    return page.ask(f"Math.max(...{pixel}.slice(0, 3))")


def test_a_volume_fills_turns_grows_old_and_ends(bench, page, tmp_path):
    folder = screenshot_folder(tmp_path)
    page.wait_for(f"{WORD} === 'NO VOLUME'")
    page.wait_for(f"/sink 'volume'|made ready/.test({SENTENCE})")
    filling = Filling(bench)
    page.wait_for(f"{WORD} === 'LIVE'")
    page.wait_for("/Still filling: \\d+ %/.test(document.getElementById('volume-marks').textContent)")
    page.wait_for("document.getElementById('volume-marks').textContent === ''")
    page.wait_for("/sharp|finest/.test(document.getElementById('volume-facts').textContent)")
    assert bright(page, 0.5, 0.5) > 60 and bright(page, 0.1, 0.5) == 0
    page.screenshot(folder / "volume-live.png")

    x, y = middle(page)
    mouse(page, "mousePressed", x, y, clickCount=1)
    for n in range(20):
        mouse(page, "mouseMoved", x + 8 * n, y + 2 * n, buttons=1)
        time.sleep(0.02)
    page.wait_for("/draft/.test(document.getElementById('volume-facts').textContent)")
    mouse(page, "mouseReleased", x + 152, y + 38)
    page.wait_for("/Sharp after release\\d+ ms/.test(document.getElementById('volume-facts').textContent)")
    page.wait_for("/images.s/.test(document.getElementById('volume-facts').textContent)")
    turned = page.ask(ROTATION)
    assert turned[2] < -0.4 and math.isclose(math.hypot(*turned), 1, rel_tol=1e-6)  # to the right: seen from its right

    filling.stop()
    page.wait_for(f"{WORD} === 'OLD VOLUME'")
    page.wait_for(f"/newest image is .* old/.test({SENTENCE})")
    assert "stale" in page.ask("document.getElementById('stage').className")
    page.screenshot(folder / "volume-old.png")
    ended = Filling(bench, complete=True, filled=0.98, scan_id="s2", marks=(Mark("denoise", "too late"),))
    page.wait_for(f"{WORD} === 'SCAN ENDED'")
    marks = page.ask("document.getElementById('volume-marks').innerText")
    assert marks.split("\n") == ["UNPROCESSED by denoise: too late", "INCOMPLETE: 98 % of the volume is measured"]
    ended.stop()


def test_slices_are_linked_by_the_place_that_is_pointed_at(bench, page, tmp_path):
    filling = Filling(bench)
    page.wait_for(f"{WORD} === 'LIVE'")
    page.ask("document.getElementById('mode-slices').click()")
    page.wait_for("document.getElementById('mode-slices').getAttribute('aria-pressed') === 'true'")
    page.wait_for(f"{CANVAS}.getContext('2d').getImageData(0, {CANVAS}.height / 4, 1, 1).data[0] > 0")  # panes' border
    page.ask("document.getElementById('preset-soft-tissue').click()")
    page.wait_for("document.getElementById('preset-soft-tissue').getAttribute('aria-pressed') === 'true'")
    x, y, width, height = page.ask(
        "(({x, y, width, height}) => [x, y, width, height])(document.getElementById('stage').getBoundingClientRect())"
    )
    # the axial pane is the upper left quarter: point at what is to the patient's left and in front
    mouse(page, "mousePressed", x + width * 0.25 + 30, y + height * 0.25 - 12, clickCount=1)
    mouse(page, "mouseReleased", x + width * 0.25 + 30, y + height * 0.25 - 12)
    page.wait_for("JSON.parse(sent[sent.length - 1]).view.at_mm !== null")
    place = page.ask("JSON.parse(sent[sent.length - 1]).view.at_mm")
    assert place[0] > 5 and place[1] < -2 and abs(place[2] - 59) < 3  # the middle of the volume is at z = 59
    page.wait_for("document.getElementById('volume-marks').textContent === ''")  # it is full
    page.wait_for("/finest/.test(document.getElementById('volume-facts').textContent)")
    page.screenshot(screenshot_folder(tmp_path) / "volume-slices.png")
    filling.stop()


def test_keys_wheel_and_buttons(bench, page):
    filling = Filling(bench)
    page.wait_for(f"{WORD} === 'LIVE'")
    for key, code in (("ArrowRight", 39), ("+", 187)):
        for kind in ("rawKeyDown", "keyUp"):
            page.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code)
    page.wait_for("JSON.parse(sent[sent.length - 1]).view.zoom > 1.1")
    page.wait_for("JSON.parse(sent[sent.length - 1]).view.dragging === false")
    assert page.ask(ROTATION)[2] < -0.05
    x, y = middle(page)
    page.call("Input.dispatchMouseEvent", type="mouseWheel", x=x, y=y, deltaX=0, deltaY=-240)
    page.wait_for("JSON.parse(sent[sent.length - 1]).view.zoom > 1.5")
    page.ask("document.getElementById('side-left').click()")
    page.wait_for(f"{ROTATION}[2] > 0.7")
    page.ask("document.getElementById('mode-mip').click()")
    page.wait_for("JSON.parse(sent[sent.length - 1]).view.mode === 'mip'")
    page.ask("document.getElementById('volume-reset').click()")
    page.wait_for("JSON.parse(sent[sent.length - 1]).view.zoom === 1")
    filling.stop()


def test_two_fingers_zoom_and_shift(bench, page):
    filling = Filling(bench)
    page.wait_for(f"{WORD} === 'LIVE'")
    x, y = middle(page)
    touch = lambda kind, *points: page.call(  # noqa: E731
        "Input.dispatchTouchEvent",
        type=kind,
        touchPoints=[{"x": a, "y": b, "id": n} for n, (a, b) in enumerate(points)],
    )
    touch("touchStart", (x - 50, y), (x + 50, y))
    for n in range(1, 6):
        touch("touchMove", (x - 50 - 10 * n, y + 10 * n), (x + 50 + 10 * n, y + 10 * n))
    touch("touchEnd")
    page.wait_for("JSON.parse(sent[sent.length - 1]).view.dragging === false")
    view = page.ask("JSON.parse(sent[sent.length - 1]).view")
    assert 1.7 < view["zoom"] < 2.3 and view["pan_mm"][1] < -1 and abs(view["pan_mm"][0]) < 2
    assert view["rotation"] == [0, 0, 0, 1]
    filling.stop()


def test_a_view_that_is_left_takes_no_place(bench, page):
    page.wait_for(f"{WORD} === 'NO VOLUME'")
    until = time.monotonic() + 20
    while bench.process.status()["rendering"]["viewers"] != 1:
        assert time.monotonic() < until
        time.sleep(0.05)
    page.press("1")
    while bench.process.status()["rendering"]["viewers"] != 0:
        assert time.monotonic() < until
        time.sleep(0.05)
    page.press("2")
    page.wait_for(f"/sink 'volume'/.test({SENTENCE})")


def test_a_console_that_is_gone_is_said(bench, page):
    filling = Filling(bench)
    page.wait_for(f"{WORD} === 'LIVE'")
    bench.process.stopping.set()
    page.wait_for(f"{WORD} === 'NO VOLUME'")
    assert "stale" in page.ask("document.getElementById('stage').className")
    filling.stop()
    page.messages.clear()  # the browser reports that it cannot connect
    page.open("about:blank")
