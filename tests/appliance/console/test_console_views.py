# SPDX-License-Identifier: Apache-2.0
"""Every view in a real browser, at the sizes of a desk, a console and a tablet: what people see and can do."""

import json

import pytest
from browser import screenshot_folder
from console_bench import PASSWORDS
from day import busy_day
from scanner import Scanner

pytestmark = pytest.mark.peer

SIZES = {"": (1600, 900), "-small": (1280, 720), "-large": (1920, 1080), "-tablet": (768, 1024)}
CONFIG = """\
site: {name: mri-1, data_dir: /var/lib/nearscan}
# the archive's own password is in this address, the token in its own file
destinations:
  pacs: {dicom: {host: 192.0.2.10, port: 104, ae_title: PACS}}
  archive: {dicomweb: {url: "https://box:s3cret@archive.example/dicom-web", token_file: /etc/nearscan/token}}
pipelines:
  mri-live:
    source: {mrd: {port: 9002}}
    stages: [reconstruct, {denoise: {model: mr-denoise}}, detect_anomalies]
    sinks: [mrd_reply, openigtlink, {dicom_results: {to: [pacs]}}, preview]
console: {port: 8080}
"""


@pytest.fixture
def day(bench):
    day = busy_day(bench.settings.site.data_dir)
    yield day
    day.close()


@pytest.fixture
def scanner(bench):
    scanner = Scanner(bench)
    yield scanner
    scanner.stop()


@pytest.fixture
def page(bench, browser):
    browser.messages.clear()
    yield browser
    assert browser.messages == []
    browser.call("Network.clearBrowserCookies")
    browser.open("about:blank")


def enter(page, bench, role, view):
    page.sign_in(bench.address, role, PASSWORDS[role])
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    page.ask(f"location.hash = {json.dumps(view)}")
    page.wait_for(
        f"!document.getElementById('view-{view}').hidden && document.getElementById('view-{view}').children.length"
    )


def pictures(page, folder, name):
    """One picture at each size; nothing may stick out to the side, and the header and footer stay."""
    for suffix, size in SIZES.items():
        page.resize(size)
        page.wait_for(f"innerWidth === {size[0]}")
        page.ask("new Promise((done) => setTimeout(done, 400))")
        page.screenshot(folder / f"console-{name}{suffix}.png")
        assert page.ask("document.documentElement.scrollWidth <= innerWidth"), suffix
        assert page.ask("document.querySelector('footer').getBoundingClientRect().bottom <= innerHeight + 1"), suffix
        assert page.ask("document.getElementById('state').getBoundingClientRect().top >= 0"), suffix
    page.resize(SIZES[""])


def text(page, id_):
    return page.ask(f"document.getElementById({json.dumps(id_)}).innerText")


def press(page, words, inside="document"):
    """Press the first button that is seen and says `words`."""
    buttons = f"[...{inside}.querySelectorAll('button')].filter((b) => b.offsetParent)"
    page.ask(f"{buttons}.find((b) => b.innerText === {json.dumps(words)}).click()")


def test_today_says_what_came_and_what_became_of_it(bench, page, day, scanner, tmp_path):
    enter(page, bench, "viewer", "today")
    page.wait_for("document.querySelectorAll('#today-rows tr').length === 8")
    rows = text(page, "today-rows")
    for said in (
        "Lindqvist, Maja",
        "220114",
        "committed 17 s after its end",
        "aborted: the scanner hung up",
        "pacs: 4 of 5, 1 quarantined",
    ):
        assert said in rows
    assert "<b>Bold</b>, <script>alert(1)</script>" in rows  # as text
    assert "<img src=x onerror=alert(1)>" in rows
    assert (
        page.ask("document.querySelectorAll('#view-today b, #view-today script, img[onerror], img[src=x]').length") == 0
    )
    page.ask("[...document.querySelectorAll('#today-rows tr')].find((r) => r.innerText.includes('Okafor')).click()")
    page.wait_for("document.querySelector('.stored img').naturalWidth === 128")
    page.wait_for(
        "[...document.querySelectorAll('.strip img')].filter((i) => i.complete && i.naturalWidth).length === 6"
    )
    said = text(page, "today-detail")
    for words in (
        "Okafor, Chidi",
        "mr-denoise 3 (ab12cd34ef56)",
        "4.5 / 4.5 ms",
        "STORED, not live",
        "image 7 of 12, reconstructed",
    ):
        assert words in said
    pictures(page, screenshot_folder(tmp_path), "today")
    assert "Okafor" not in page.ask(
        "location.href + performance.getEntriesByType('resource').map((e) => e.name).join()"
    )


def test_on_a_tablet_the_scan_that_is_touched_comes_into_sight(bench, page, day, scanner):
    page.resize(SIZES["-tablet"])
    enter(page, bench, "viewer", "today")
    page.wait_for("document.querySelectorAll('#today-rows tr').length === 8")
    page.ask("[...document.querySelectorAll('#today-rows tr')].find((r) => r.innerText.includes('Okafor')).click()")
    page.wait_for("document.querySelector('.stored img').naturalWidth === 128")
    place = "document.querySelector('.stored .tag').getBoundingClientRect()"
    page.wait_for(f"{place}.top > 0 && {place}.bottom < innerHeight")
    page.resize(SIZES[""])


def test_today_is_searched_and_comes_back(bench, page, day, scanner):
    enter(page, bench, "viewer", "today")
    page.wait_for("document.querySelectorAll('#today-rows tr').length === 8")
    search = "document.getElementById('search')"
    page.ask(f"{search}.value = 'bold head'; {search}.dispatchEvent(new Event('input'))")
    page.wait_for("document.querySelectorAll('#today-rows tr').length === 1")
    page.ask(f"{search}.value = ''; {search}.dispatchEvent(new Event('input'))")
    page.wait_for("document.querySelectorAll('#today-rows tr').length === 8")


def test_delivery_is_held_and_released_by_a_technologist_after_a_question(bench, page, day, scanner, tmp_path):
    enter(page, bench, "technologist", "delivery")
    page.wait_for("document.querySelectorAll('#delivery-rows tr').length === 3")
    said = text(page, "view-delivery")
    for words in (
        "PACS at 192.0.2.10:104",
        "cannot be reached; 4 tries",
        "connection refused",
        "refuses the SOP class",
        "Delivered: 26, of these committed: 18",
    ):
        assert words in said
    pictures(page, screenshot_folder(tmp_path), "delivery")
    press(page, "Hold all")
    page.wait_for("document.querySelector('dialog[open]')")
    assert "Hold: all" in page.ask("document.querySelector('dialog').innerText")
    press(page, "Cancel")
    assert "held" not in text(page, "delivery-rows")
    page.ask("document.querySelector('.waiting li:last-child button').click()")
    page.wait_for("document.querySelector('dialog[open]')")
    assert "all 8 images queued for pacs" in page.ask("document.querySelector('dialog').innerText")
    page.screenshot(screenshot_folder(tmp_path) / "console-delivery-question.png")
    press(page, "Hold 8")
    page.wait_for("document.getElementById('delivery-rows').innerText.split('held by technologist').length === 3")
    rows = day.buffer.database.query("SELECT count(*), min(detail) FROM audit WHERE event = 'hold'")
    assert rows == [(8, "pacs: queued -> held by technologist")]


def test_a_viewer_sees_deliveries_and_no_buttons(bench, page, day, scanner):
    enter(page, bench, "viewer", "delivery")
    page.wait_for("document.querySelectorAll('#delivery-rows tr').length === 3")
    assert page.ask("[...document.querySelectorAll('#view-delivery button')].filter((b) => b.offsetParent).length") == 0
    assert page.ask("document.querySelectorAll('#alarms button').length") == 0


def test_system_shows_pipelines_alarms_and_what_is_wrong_with_an_edited_copy(bench, page, day, scanner, tmp_path):
    bench.settings.site.accepted_file.write_text(CONFIG)
    enter(page, bench, "engineer", "system")
    page.wait_for("document.getElementById('config').value.includes('mri-live')")
    assert "s3cret" not in page.ask("document.getElementById('config').value")
    page.wait_for("document.querySelector('.meters').innerText.includes('GB free')")
    page.wait_for("document.getElementById('view-system').innerText.includes('in denoise')")
    said = text(page, "view-system")
    for words in (
        "mr-denoise 3 on openvino bf16, running",
        "3 passed unprocessed, 1 too late",
        "unlike its card",
        "to openigtlink",
        "below 2 GB nothing is taken in",
    ):
        assert words in said
    assert page.ask("[...document.querySelectorAll('.histogram rect')].some((r) => r.getAttribute('height') > 15)")
    config = "document.getElementById('config')"
    page.ask(f"{config}.value = {config}.value.replace('denoise: {{', 'denois: {{')")
    press(page, "Check this text")
    page.wait_for("document.getElementById('config-problems').children.length")
    assert "copy:9:28: pipelines.mri-live.stages[1].denois" in text(page, "config-problems")
    assert "did you mean 'denoise'" in text(page, "config-problems")
    pictures(page, screenshot_folder(tmp_path), "system")


def test_an_alarm_is_acknowledged_once_for_everybody_and_its_list_says_by_whom(bench, page, day, scanner):
    enter(page, bench, "technologist", "system")
    page.wait_for("document.getElementById('alarms').innerText.includes('does not answer since 12 s')")
    press(page, "Acknowledge", "document.getElementById('alarms')")
    page.wait_for("document.getElementById('alarms').children.length === 0")
    page.wait_for("document.getElementById('alarms-seen').innerText === '1 acknowledged alarm still stands'")
    page.wait_for("document.getElementById('view-system').innerText.includes('acknowledged by technologist at')")


def test_a_display_that_nobody_signed_in_at_has_the_live_image_and_3d_and_nothing_else(
    bench, page, day, scanner, tmp_path
):
    page.open(f"http://{bench.address}/#today")
    page.wait_for("document.getElementById('state').textContent === 'LIVE'")
    assert page.ask("[...document.getElementById('nav').children].map((a) => a.id)") == ["to-live", "to-volume"]
    assert page.ask("!document.getElementById('view-live').hidden")
    assert "not signed in" in text(page, "who")
    pictures(page, screenshot_folder(tmp_path), "kiosk")


def test_keys_and_addresses_lead_to_the_views(bench, page, day, scanner):
    enter(page, bench, "viewer", "live")
    for key, name in (("2", "volume"), ("3", "today"), ("4", "delivery"), ("5", "system"), ("1", "live")):
        page.press(key)
        page.wait_for(f"!document.getElementById('view-{name}').hidden")
        assert page.ask("[...document.querySelectorAll('.view')].filter((v) => !v.hidden).length") == 1
        assert page.ask(f"document.getElementById('to-{name}').getAttribute('aria-current')") == "page"
        assert text(page, "state").endswith("LIVE")
        assert "does not answer" in text(page, "alarms")  # above every view
