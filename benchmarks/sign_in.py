# SPDX-License-Identifier: Apache-2.0
"""What the sign-in costs: a page load, a request, and the live page while somebody guesses passwords.

    python benchmarks/sign_in.py [--json FILE]

A console runs as a process of its own, on loopback. Page load: headless Chromium, from the navigation to the load event
and to the first answer of /api/status, as a kiosk (no sign-in) and signed in, by turns. Request: the same small file
through the console and through uvicorn with Starlette's StaticFiles alone (the peer), one connection, by turns.
Guessing: from 200 addresses, five times a second each, while a page pings its WebSocket.
"""

from __future__ import annotations

import argparse
import asyncio
import http.client
import importlib.util
import itertools
import json
import multiprocessing
import secrets
import socket
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import uvicorn
from live import machine
from starlette.applications import Starlette
from starlette.routing import Mount
from starlette.staticfiles import StaticFiles
from websockets.sync.client import connect

from appliance.console.accounts import Accounts, accounts_file, nobodys_hash, verify
from appliance.console.app import STATIC
from appliance.simulate.site import Site

N_LOADS, N_REQUESTS, N_PINGS, N_GUESSERS = 15, 500, 500, 200
FILE = "/static/sign_in.js"
SITE = """\
site: {name: bench, data_dir: $data_dir, run_dir: $run_dir}
console: {port: $console, kiosk: [127.0.0.1]}
"""
_spec = importlib.util.spec_from_file_location(
    "chromium", Path(__file__).parents[1] / "tests/appliance/console/browser.py"
)
chromium = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(chromium)


def post_sign_in(port: int, name: str, password: str, source: str = "127.0.0.1") -> tuple[int, str]:
    """Return the status, and the cookie where it is right."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60, source_address=(source, 0))
    body = json.dumps({"name": name, "password": password})
    connection.request("POST", "/api/sign-in", body, {"Content-Type": "application/json"})
    answer = connection.getresponse()
    answer.read()
    connection.close()
    return answer.status, (answer.getheader("set-cookie") or "").partition(";")[0]


def load_ms(page: Any, url: str) -> list[float]:
    """Load the page; return ms from the navigation to the load event, and to the first status."""
    page.open("about:blank")
    page.open(url)
    page.wait_for("performance.getEntriesByName(new URL('api/status', location).href).length")
    return page.ask(
        "[performance.getEntriesByType('navigation')[0].loadEventEnd,"
        "performance.getEntriesByName(new URL('api/status', location).href)[0].responseEnd]"
    )


def page_loads(port: int, cookie: str) -> dict[str, Any]:
    """Medians, as a kiosk and signed in by turns, in a browser that has the page in no cache."""
    url, (name, _, token) = f"http://127.0.0.1:{port}/", cookie.partition("=")
    times: dict[str, list[list[float]]] = {"kiosk": [], "signed in": []}
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile, chromium.Browser(Path(profile)) as page:
        page.call("Network.enable")
        for _ in range(N_LOADS + 1):
            page.call("Network.clearBrowserCookies")
            times["kiosk"].append(load_ms(page, url))
            page.call("Network.setCookie", url=url, name=name, value=token, httpOnly=True, sameSite="Strict")
            times["signed in"].append(load_ms(page, url))
    names = ("load_event_ms", "first_status_ms")
    return {who: dict(zip(names, np.median(all_[1:], axis=0).tolist(), strict=True)) for who, all_ in times.items()}


def be_peer(listener: socket.socket) -> None:
    """uvicorn and Starlette alone, with the console's protocol settings that matter for speed."""
    app = Starlette(routes=[Mount("/static", StaticFiles(directory=STATIC))])
    config = uvicorn.Config(app, http="h11", access_log=False, log_config=None)
    asyncio.run(uvicorn.Server(config).serve([listener]))


@contextmanager
def peer() -> Iterator[int]:
    """Run the peer in a process; gives its port."""
    with socket.socket(proto=socket.IPPROTO_TCP) as listener:  # so made, asyncio turns Nagle's algorithm off
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        process = multiprocessing.get_context("fork").Process(target=be_peer, args=(listener,), daemon=True)
        process.start()
        yield int(listener.getsockname()[1])
        process.kill()
        process.join()


def request_us(port: int, headers: dict[str, str]) -> float:
    """Return the median time of one request on one connection, in microseconds."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=60)
    times = []
    for _ in range(N_REQUESTS):
        start = time.perf_counter()
        connection.request("GET", FILE, headers=headers)
        connection.getresponse().read()
        times.append(time.perf_counter() - start)
    connection.close()
    return float(np.median(times)) * 1e6


def requests(port: int, cookie: str) -> dict[str, float]:
    """Return medians in microseconds: ours and the peer's, by turns."""
    with peer() as other:
        rounds = [(request_us(port, {"Cookie": cookie}), request_us(other, {})) for _ in range(5)]
    ours, theirs = np.median(rounds, axis=0).tolist()
    return {"ours_us": ours, "starlette_us": theirs, "ratio": theirs / ours}


def pings_ms(port: int, cookie: str) -> dict[str, float]:
    """Return how long the console takes to answer a page's ping."""
    url, times = f"ws://127.0.0.1:{port}/ws/live?pipeline=live", []
    with connect(url, proxy=None, additional_headers={"Cookie": cookie}) as page:
        for _ in range(N_PINGS):
            start = time.perf_counter()
            page.send('{"ping": 0}')
            page.recv(30)
            times.append((time.perf_counter() - start) * 1e3)
            time.sleep(0.01)
    return {name: float(np.percentile(times, q)) for name, q in (("p50", 50), ("p99", 99), ("max", 100))}


def be_guessers(port: int, over: Any, answers: Any) -> None:
    """Try passwords from many addresses until `over`, in a process of its own; puts the count of each status."""
    statuses: list[int] = []

    def guess(n: int) -> None:
        while not over.is_set():
            statuses.append(post_sign_in(port, "owner", secrets.token_hex(8), f"127.0.{n // 100 + 1}.{n % 100 + 1}")[0])
            time.sleep(0.2)

    threads = [threading.Thread(target=guess, args=(n,)) for n in range(N_GUESSERS)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    answers.put({str(status): statuses.count(status) for status in sorted(set(statuses))})


def guessing(port: int, cookie: str) -> dict[str, Any]:
    """Return the pings' times at rest and during an attack, and what the attack got."""
    spawn = multiprocessing.get_context("spawn")
    rest, over, answers = pings_ms(port, cookie), spawn.Event(), spawn.Queue()
    process = spawn.Process(target=be_guessers, args=(port, over, answers))
    process.start()
    time.sleep(2)  # until all of them are at it
    start = time.monotonic()
    during = pings_ms(port, cookie)
    seconds = time.monotonic() - start + 2
    over.set()
    answered = answers.get(timeout=60)
    process.join()
    return {"at_rest_ms": rest, "during_ms": during, "seconds": seconds, "guessers": N_GUESSERS, "answers": answered}


def hashing(accounts: Accounts) -> dict[str, float]:
    """Return how long one look at a password takes, where there is such an account and where there is none, by turns;
    the quickest of each: what else this machine does is not of interest."""
    owner = accounts.read()["owner"]
    nobodys_hash()
    times: dict[str, list[float]] = {"account_ms": [], "no_account_ms": []}
    for _ in range(25):
        for name, account in (("account_ms", owner), ("no_account_ms", None)):
            start = time.perf_counter()
            verify(account, "wrong password")
            times[name].append((time.perf_counter() - start) * 1e3)
    return {name: min(all_) for name, all_ in times.items()}


def run() -> dict[str, Any]:
    """Measure everything."""
    password = secrets.token_urlsafe(16)
    with tempfile.TemporaryDirectory() as folder:
        text = SITE + "pipelines: {live: {source: {mrd: {port: $mrd, bind: 127.0.0.1}}, sinks: [preview]}}\n"
        site = Site(Path(folder), text, ports=("mrd", "console"))
        site.data_dir.mkdir()
        accounts, port = Accounts(accounts_file(site.settings)), site.ports["console"]
        accounts.add("owner", "engineer", password)
        try:
            site.start()
            cookies = itertools.starmap(post_sign_in, itertools.repeat((port, "owner", password), 5))
            start = time.perf_counter()
            _, cookie = list(cookies)[-1]
            signed_ms = (time.perf_counter() - start) / 5 * 1e3
            return {
                "machine": machine(),
                "password": {**hashing(accounts), "sign_in_ms": signed_ms},
                "page": page_loads(port, cookie),
                "request": requests(port, cookie),
                "guessing": guessing(port, cookie),
            }
        finally:
            site.stop()


def table(result: dict[str, Any]) -> str:
    """Return it for people."""
    password, page, request, guessed = (result[key] for key in ("password", "page", "request", "guessing"))
    rest, during = guessed["at_rest_ms"], guessed["during_ms"]
    lines = [
        (
            "one look at a password",
            f"{password['account_ms']:.0f} ms; no such account {password['no_account_ms']:.0f} ms",
        ),
        ("sign-in, all of it", f"{password['sign_in_ms']:.0f} ms"),
        *(
            (
                f"page load, {who}",
                f"load event {one['load_event_ms']:.0f} ms, first status {one['first_status_ms']:.0f} ms",
            )
            for who, one in page.items()
        ),
        ("one request", f"{request['ours_us']:.0f} us; Starlette alone {request['starlette_us']:.0f} us"),
        ("ping at rest", f"p50 {rest['p50']:.1f} ms, p99 {rest['p99']:.1f} ms, max {rest['max']:.1f} ms"),
        (
            f"ping while {guessed['guessers']} guess",
            f"p50 {during['p50']:.1f} ms, p99 {during['p99']:.1f} ms, max {during['max']:.1f} ms",
        ),
        (f"they got in {guessed['seconds']:.0f} s", f"{guessed['answers']} (401: looked at, 429: wait, 503: busy)"),
    ]
    return "\n".join(f"  {name:<26}  {text}" for name, text in lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    result = run()
    print(table(result))
    if arguments.json:
        arguments.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
