# SPDX-License-Identifier: Apache-2.0
"""The console page in a real browser: what a technologist sees live, stale and after the scan."""

import re
import time

import pytest
from browser import screenshot_folder
from scanner import FOUND, NOT_YET, SPIKE, STATUS, ZIPPER, Scanner, phantom

from appliance.console.app import STATIC

pytestmark = pytest.mark.peer


@pytest.fixture
def page(bench, owed, browser):
    browser.messages.clear()
    browser.open(f"http://{bench.address}/")
    yield browser
    assert browser.messages == []  # no error, no refused script or style
    browser.open("about:blank")


def state(page):
    return page.ask("document.getElementById('state').textContent")


def test_live_then_stale_then_live_then_ended(bench, page, tmp_path):
    folder = screenshot_folder(tmp_path)
    page.wait_for("document.getElementById('banner-text').textContent === 'no image yet'")
    mark = {"stage": "denoise", "reason": "the model failed its golden test"}
    scanner = Scanner(bench, findings=FOUND, marks=[mark])
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    page.wait_for("document.getElementById('frames').innerText.includes('1234')")
    text = page.ask("document.body.innerText")
    for said in (
        "UNPROCESSED by denoise: the model failed its golden test",
        "Applied: reconstruct → denoise",
        NOT_YET,
        SPIKE,
        f"coil 3, k-space line 81, sample 12{SPIKE}",
        "31.3 dB",
        ZIPPER,
        "coil 5 lost its signal: check its plug",
        "in 40 images",
        "deliverer, pacs: pacs does not answer since 12 s; check its network",
        "Research use only",
    ):
        assert said in text, text
    assert page.ask("document.querySelector('footer').getBoundingClientRect().bottom <= innerHeight")  # always seen
    assert page.ask("getComputedStyle(document.getElementById('banner')).display") == "none"
    middle = "[...document.getElementById('image').getContext('2d').getImageData(128, 128, 1, 1).data]"
    assert page.ask(middle) == [170, 170, 170, 255]
    page.screenshot(folder / "console.png")

    scanner.stop()
    page.wait_for("document.getElementById('state').textContent === 'NO LIVE DATA'")
    page.wait_for("/newest image is .* s old/.test(document.getElementById('banner-text').textContent)")
    assert page.ask("getComputedStyle(document.getElementById('banner')).display") != "none"
    first, _ = age_s(page), time.sleep(0.3)
    assert age_s(page) > first  # it grows by itself
    page.screenshot(folder / "console-stale.png")

    scanner = Scanner(bench)
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    page.wait_for("document.getElementById('marks').textContent === 'No remarks on this image'")
    scanner.stop()
    said = "/scan has ended: aborted, the scanner hung up/.test(document.getElementById('banner-text').textContent)"
    while not page.ask(said):  # the sink repeats it, too: the bus may drop one
        bench.previews.publish({"pipeline": "mri-live", "state": "ended", "reason": "aborted, the scanner hung up"})
        time.sleep(0.1)
    assert state(page) == "NO LIVE DATA"


def test_whether_fault_detection_is_commissioned_is_said_and_is_no_alarm(bench, page):
    scanner = Scanner(bench)
    said = "document.getElementById('commissioned').textContent"
    page.wait_for(f'{said} === "{NOT_YET}"')
    scanner.stop()
    done = "for 8 coils, acceleration 2, from 600 frames"
    bench.tell("pipeline-mri-live", **STATUS | {"stages": {"detect_anomalies": {"commissioned": done}}})
    bench.tell("deliverer")
    page.wait_for(f"{said} === 'thresholds {done}'")
    page.wait_for("document.getElementById('alarm-box').hidden")
    bench.tell("pipeline-mri-live", **STATUS | {"stages": {}})
    page.wait_for(f"{said} === ''")


def age_s(page):
    said = page.ask("document.getElementById('age-value').textContent")
    return float(said.split()[0]) / (1000 if said.endswith("ms") else 1)


def test_before_and_after_by_keyboard_and_button(bench, page):
    scanner = Scanner(bench)
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    pixels = "document.getElementById('image').getContext('2d').getImageData(0, 0, 40, 40).data"
    corner = f"{pixels}.filter((v, i) => i % 4 == 0 && v > 0).length"
    assert page.ask(corner) == 0  # after: no noise
    page.press("b")
    page.wait_for(f"{corner} > 100")
    assert page.ask("document.getElementById('which').textContent") == "BEFORE: unprocessed image"
    page.press("r")
    page.wait_for(f"{corner} === 1600")  # what is not changed is mid grey
    assert page.ask("document.getElementById('which').textContent").startswith("REMOVED")
    assert page.ask("document.getElementById('before').getAttribute('aria-pressed')") == "false"
    page.press("b")
    page.ask("document.getElementById('before').click()")
    page.wait_for(f"{corner} === 0")
    page.press("s")
    page.wait_for("getComputedStyle(document.getElementById('image')).imageRendering === 'pixelated'")
    scanner.stop()


def test_the_divider_is_dragged_and_says_which_side_is_which(bench, page, tmp_path):
    scanner = Scanner(bench)
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    page.wait_for("!document.getElementById('before').disabled")
    box = page.ask("(({left, top, width, height}) => [left, top, width, height])(image.getBoundingClientRect())")
    middle = box[1] + box[3] / 2
    page.drag((box[0] + 2, middle), (box[0] + box[2] * 0.75, middle))
    part = "document.getElementById('divider').getAttribute('aria-valuenow')"
    page.wait_for(f"{part} === '75'")
    pixels = "document.getElementById('image').getContext('2d').getImageData(AT, 0, 40, 40).data"
    noise = f"{pixels}.filter((v, i) => i % 4 == 0 && v > 0).length"
    assert page.ask(noise.replace("AT", "0")) > 100  # before: noise in the corner
    assert page.ask(noise.replace("AT", "216")) == 0  # after: none
    shown = (
        "[...document.querySelectorAll('.sheet .which')].filter((p) => p.offsetParent).map((p) => p.textContent).join()"
    )
    assert page.ask(shown) == "BEFORE,AFTER"
    sides = "[...document.querySelectorAll('.sheet .which')].map((p) => p.getBoundingClientRect())"
    assert page.ask(f"(([a, b]) => a.right < b.left)({sides})")
    page.screenshot(screenshot_folder(tmp_path) / "console-compare.png")
    page.press("ArrowLeft")
    page.wait_for(f"{part} === '70'")
    page.press("c")
    page.wait_for(f"{part} === '50'")
    page.press("c")
    page.wait_for(f"{part} === '0'")
    assert page.ask(shown) == ""
    page.press("c")
    scanner.stop()
    scanner = Scanner(bench, original=False)  # nothing was changed: there is no before
    page.wait_for("document.getElementById('before').disabled")
    assert page.ask(shown) == ""
    assert page.ask("document.getElementById('which').hidden")
    scanner.stop()


def test_the_whole_image_stays_in_its_frame_when_an_alarm_takes_room(bench, page):
    scanner = Scanner(bench)
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    page.wait_for("!document.getElementById('alarm-box').hidden")
    inside = "image.getBoundingClientRect().bottom <= picture.getBoundingClientRect().bottom + 1"
    inside += " && image.getBoundingClientRect().top >= picture.getBoundingClientRect().top - 1"
    page.wait_for(inside)
    many = {f"alarm {n}": "something is wrong" for n in range(3)}
    before = page.ask("picture.clientHeight")
    scanner.stop()
    while page.ask("picture.clientHeight") >= before:
        bench.tell("daemon", alarms=many)
        time.sleep(0.1)
    page.wait_for(inside)


def test_a_finding_in_the_banner_is_in_the_list_of_the_same_moment(bench, page):
    scanner = Scanner(bench)
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    page.wait_for("document.getElementById('findings').textContent === 'Nothing found.'")
    scanner.stop()
    page.ask(
        "window.seen = []; new MutationObserver(() => seen.push([marks.textContent, findings.textContent]))"
        ".observe(document.getElementById('marks'), {childList: true}); 1"
    )
    while not page.ask("seen.length"):  # the bus may drop one
        bench.show(0, phantom(), findings=[FOUND[0]])  # and no status after it
        time.sleep(0.1)
    (marks, findings), *_ = page.ask("new Promise((r) => setTimeout(() => r(seen), 0))")
    assert SPIKE in marks
    assert SPIKE in findings


def test_no_live_data_is_said_before_the_newest_image_is_half_a_second_old(bench, page):
    """By what the page itself decides at each age, and how often it decides; how it is drawn is tested above."""
    scanner = Scanner(bench)
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    oldest_ms = page.ask(
        "import('/static/live.js').then(({ live }) => { let age = 0; live.age = () => age;"
        "while (live.verdict()[0] === 'live' && age < 2000) age += 1; delete live.age; return age })"
    )
    scanner.stop()
    (tick_ms,) = re.findall(r"^const TICK_MS = (\d+);", (STATIC / "live.js").read_text(), re.M)
    assert 300 < oldest_ms + int(tick_ms) <= 500


def test_without_detection_the_list_does_not_say_that_nothing_is_found(bench, page):
    page.wait_for("document.getElementById('findings')")
    while not page.ask("document.getElementById('findings').textContent.startsWith('Nobody looks')"):
        bench.tell("pipeline-mri-live", stages={"denoise": {}})
        bench.show(0, phantom())
        time.sleep(0.05)


def test_the_age_counts_the_time_before_the_page_got_the_image(bench, page):
    page.wait_for("document.getElementById('banner-text').textContent === 'no image yet'")
    for sequence in range(5):
        bench.show(sequence, phantom(), received_ns=time.monotonic_ns() - 7_000_000_000)
        time.sleep(0.05)
    page.wait_for("document.getElementById('age-value').textContent.endsWith(' s')")
    assert age_s(page) >= 7
    assert state(page) == "NO LIVE DATA"


def test_a_console_that_is_gone_is_said(bench, page):
    scanner = Scanner(bench)
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    bench.process.stopping.set()
    page.wait_for("document.getElementById('banner-text').textContent === 'the console does not answer'")
    scanner.stop()
    page.messages.clear()  # the browser reports that it cannot connect
    page.open("about:blank")
