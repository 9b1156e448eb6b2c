# SPDX-License-Identifier: Apache-2.0
"""Signing in and out in a real browser."""

import json
import threading
import time

import numpy as np
import pytest
from browser import Browser, screenshot_folder
from console_bench import PASSWORDS, Bench

from appliance.console import sign_in
from appliance.console.sign_in_waits import Waits

pytestmark = pytest.mark.peer

HOSTILE = '<img src=x onerror="document.title=\'OWNED\'"><script>document.title="OWNED"</script>'


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    with Browser(tmp_path_factory.mktemp("profile")) as browser:
        browser.call("Network.enable")
        yield browser


@pytest.fixture
def strict(tmp_path, monkeypatch):
    monkeypatch.setattr(sign_in, "Waits", lambda: Waits(lambda: 0.0))  # no wait ends by itself
    bench = Bench(tmp_path, kiosk=[])
    yield bench
    bench.close()


@pytest.fixture
def page(strict, browser):
    browser.call("Network.clearBrowserCookies")
    browser.messages.clear()
    browser.call("Page.navigate", url=f"http://{strict.address}/")
    browser.wait_for("location.pathname === '/sign-in' && document.readyState === 'complete'")
    yield browser
    browser.call("Page.navigate", url="about:blank")


def type_in(page, name, password):
    for field, text in (("name", name), ("password", password)):
        page.ask(f"document.getElementById('{field}').value = {json.dumps(text)}")
    page.ask("document.getElementById('enter').click()")


def enter(page, name):
    type_in(page, name, PASSWORDS[name])
    page.wait_for("location.pathname === '/' && document.getElementById('sign-out')")


def test_sign_in_look_and_sign_out(strict, page, tmp_path):
    folder = screenshot_folder(tmp_path)
    page.screenshot(folder / "console-sign-in.png")
    type_in(page, "technologist", "wrong")
    problem = "document.getElementById('problem').textContent"
    page.wait_for(f"{problem}.startsWith('sign-in: name or password is wrong')")
    assert page.ask("document.getElementById('password').value") == ""
    assert page.messages and all("401" in message for message in page.messages), "the browser notes the refusal"
    page.messages.clear()

    enter(page, "technologist")
    page.wait_for("document.getElementById('who').innerText.includes('technologist')")
    assert page.ask("document.cookie") == "", "no script sees the cookie"
    kept = page.call("Network.getCookies")["cookies"]
    assert [(one["httpOnly"], one["sameSite"], one["path"], one["session"]) for one in kept] == [
        (True, "Strict", "/", True)
    ]
    page.screenshot(folder / "console-signed-in.png")
    page.ask("document.getElementById('sign-out').click()")
    page.wait_for("location.pathname === '/sign-in'")
    assert page.call("Network.getCookies")["cookies"] == []
    assert page.messages == []


def test_a_page_whose_session_ends_goes_to_the_sign_in(strict, page):
    enter(page, "viewer")
    strict.accounts.remove("viewer")
    page.wait_for("location.pathname === '/sign-in'")


def test_too_many_wrong_passwords_are_counted_down(strict, page, tmp_path):
    for _ in range(8):
        strict.try_sign_in("viewer", "wrong")
    type_in(page, "viewer", "wrong")
    page.wait_for("document.getElementById('problem').textContent.startsWith('sign-in: too many wrong passwords; try')")
    assert page.ask("document.getElementById('enter').disabled")
    page.screenshot(screenshot_folder(tmp_path) / "console-sign-in-wait.png")
    page.wait_for("!document.getElementById('enter').disabled")


def test_a_page_that_nobody_touches_forgets_who_was_there(tmp_path, browser):
    bench = Bench(tmp_path, kiosk=[], idle_minutes=3 / 60)
    try:
        browser.call("Network.clearBrowserCookies")
        browser.call("Page.navigate", url=f"http://{bench.address}/")
        browser.wait_for("location.pathname === '/sign-in' && document.readyState === 'complete'")
        enter(browser, "engineer")
        browser.wait_for("document.getElementById('to-sign-in')")
        assert browser.ask("location.pathname") == "/", "the live image stays"
    finally:
        browser.call("Page.navigate", url="about:blank")
        bench.close()


def test_text_from_outside_is_shown_as_text_and_never_runs(strict, page):
    """Where the page would be fooled, the content security policy stops it: both are tried."""
    enter(page, "engineer")
    over = threading.Event()
    telling = threading.Thread(target=tell_hostile, args=(strict, over))
    telling.start()
    try:
        page.wait_for("document.body.innerText.includes('onerror=')")
        assert page.ask("document.querySelectorAll('img[src=x], body script').length") == 0
        assert "OWNED" not in page.ask("document.title")
    finally:
        over.set()
        telling.join()
    assert page.messages == [], "nothing was even tried"
    page.ask(f"document.body.insertAdjacentHTML('beforeend', {json.dumps(HOSTILE)})")
    page.wait_for("document.querySelector('img[src=x]')")
    page.ask("new Promise(done => setTimeout(done, 300))")
    assert "OWNED" not in page.ask("document.title")
    assert any("Content Security Policy" in message for message in page.messages), page.messages


def tell_hostile(bench, over):
    mark = {"stage": HOSTILE, "reason": HOSTILE}
    finding = {"kind": "spike", "severity": "alarm", "message": HOSTILE, "where": {"line": 1, "coil": 0}}
    while not over.is_set():
        bench.tell("deliverer", alarms={HOSTILE: HOSTILE})
        bench.tell("pipeline-mri-live", pipeline="mri-live", stages={HOSTILE: {"latency_ms": {"p50": 1.0}}})
        bench.show(int(time.monotonic() * 100), np.zeros((8, 8), np.uint8), marks=[mark], findings=[finding])
        time.sleep(0.05)
