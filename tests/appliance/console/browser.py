# SPDX-License-Identifier: Apache-2.0
"""A headless Chromium, driven over its DevTools protocol: open a page, ask it, press keys, take its picture."""

import base64
import contextlib
import itertools
import json
import os
import subprocess
import time
import urllib.request
from pathlib import Path

from websockets.sync.client import connect

PATIENCE_S = 30
_FLAGS = [
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--remote-debugging-port=0",
]


class Navigated(Exception):
    """The page went elsewhere while it was asked."""


class Browser:
    """One page in a fresh profile. `messages` collects its errors."""

    def __init__(self, profile: Path, size: tuple[int, int] = (1600, 900)) -> None:
        self.messages: list[str] = []
        self.on_event = lambda method, params: None  # every DevTools event
        self._numbers = itertools.count(1)
        self._stack = contextlib.ExitStack()
        command = [
            "chromium",
            *_FLAGS,
            f"--user-data-dir={profile}",
            f"--window-size={size[0]},{size[1]}",
            "about:blank",
        ]
        self._process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            address = self._page_address(profile)
            self._socket = self._stack.enter_context(connect(address, max_size=64 << 20, proxy=None))
            for domain in ("Page", "Runtime", "Log"):
                self.call(f"{domain}.enable")
            self.resize(size)
        except BaseException:
            self.__exit__()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._stack.close()
        self._process.terminate()
        self._process.wait(PATIENCE_S)

    def open(self, url: str):
        """Go to a page and wait until it is there."""
        self.call("Page.navigate", url=url)
        self.wait_for(f"location.href === {json.dumps(url)} && document.readyState === 'complete'")

    def resize(self, size: tuple[int, int]):
        """Have a window of this width and height."""
        view = {"width": size[0], "height": size[1], "deviceScaleFactor": 1, "mobile": False}
        self.call("Emulation.setDeviceMetricsOverride", **view)

    def sign_in(self, address: str, name: str, password: str):
        """Sign in as a person does, and wait for the page."""
        self.open(f"http://{address}/sign-in")
        for field, text in (("name", name), ("password", password)):
            self.ask(f"document.getElementById('{field}').value = {json.dumps(text)}")
        self.ask("document.getElementById('enter').click()")
        self.wait_for("location.pathname === '/' && document.getElementById('sign-out')")

    def call(self, method: str, **params):
        """Call one DevTools method and return its result."""
        number = next(self._numbers)
        self._socket.send(json.dumps({"id": number, "method": method, "params": params}))
        while True:
            answer = json.loads(self._socket.recv(PATIENCE_S))
            if answer.get("id") == number:
                if answer.get("error", {}).get("message") == "Inspected target navigated or closed":
                    raise Navigated(method)
                assert "error" not in answer, answer
                return answer["result"]
            params = answer.get("params", {})
            self.on_event(answer["method"], params)
            if answer["method"] == "Runtime.exceptionThrown" or params.get("entry", {}).get("level") == "error":
                self.messages.append(json.dumps(params)[:500])

    def ask(self, expression: str):
        """Return the value of a JavaScript expression."""
        answer = self.call("Runtime.evaluate", expression=expression, returnByValue=True, awaitPromise=True)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait_for(self, expression: str):
        """Wait until a JavaScript expression is true in the page; one that fails, for want of an element, is not."""
        end = time.monotonic() + PATIENCE_S
        guarded = f"(() => {{ try {{ return Boolean({expression}) }} catch (error) {{ return String(error) }} }})()"
        value = text = None
        while True:
            with contextlib.suppress(Navigated):
                if (value := self.ask(guarded)) is True:
                    return
                text = self.ask("document.body ? document.body.innerText : ''")
            assert time.monotonic() < end, f"{value}: {expression}; the page says: {text!r}; {self.messages}"
            time.sleep(0.02)

    def press(self, key: str):
        """Press one key: a letter, or one with a name such as "ArrowLeft"."""
        for kind in ("keyDown", "keyUp"):
            self.call(
                "Input.dispatchKeyEvent", type=kind, key=key, text=key if kind == "keyDown" and len(key) == 1 else ""
            )

    def drag(self, start: tuple[float, float], end: tuple[float, float]):
        """Press the left button at one place of the page, move in steps, and let go at another."""
        path = [tuple(a + (b - a) * i / 4 for a, b in zip(start, end, strict=True)) for i in range(5)]
        events = [
            ("mousePressed", path[0]),
            *(("mouseMoved", place) for place in path[1:]),
            ("mouseReleased", path[-1]),
        ]
        for kind, (x, y) in events:
            self.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", buttons=1, clickCount=1)

    def screenshot(self, path: Path):
        """Write a PNG of what is seen."""
        path.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def _page_address(self, profile: Path) -> str:
        end = time.monotonic() + PATIENCE_S
        port_file = profile / "DevToolsActivePort"
        while not (port_file.exists() and port_file.read_text().count("\n")):
            assert time.monotonic() < end and self._process.poll() is None, "chromium did not start"
            time.sleep(0.05)
        port = port_file.read_text().splitlines()[0]
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        with opener.open(f"http://127.0.0.1:{port}/json", timeout=PATIENCE_S) as answer:
            return next(page for page in json.load(answer) if page["type"] == "page")["webSocketDebuggerUrl"]


def screenshot_folder(default: Path) -> Path:
    """Where pictures go: the folder named by NEARSCAN_SCREENSHOTS, or `default`."""
    folder = Path(os.environ.get("NEARSCAN_SCREENSHOTS") or default)
    folder.mkdir(parents=True, exist_ok=True)
    return folder
