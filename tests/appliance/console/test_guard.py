# SPDX-License-Identifier: Apache-2.0
"""What hostile requests get: each case with its stated outcome, over real sockets."""

import json

import pytest
from conftest import Bench


@pytest.fixture
def strict(tmp_path):
    """A console without kiosks."""
    bench = Bench(tmp_path, kiosk=[], metrics=["192.0.2.0/24"])
    yield bench
    bench.close()


def sign_out(bench, **headers):
    answer, body = bench.ask("POST", "/api/sign-out", "", **headers)
    return answer.status, json.loads(body).get("error", "")


MISSING = (403, "console: X-CSRF-Token is missing or not this session's; load the page again")
NOBODY = (401, "console: nobody is signed in; sign in first")


def test_a_post_needs_the_csrf_token_of_its_own_session(strict):
    mine, others = strict.sign_in("engineer"), strict.sign_in("viewer")
    assert sign_out(strict, Cookie=mine.cookie) == MISSING
    for stolen in (others.csrf, mine.csrf[:-1], mine.csrf + "x", "", "\xff"):
        assert sign_out(strict, Cookie=mine.cookie, **{"X-CSRF-Token": stolen}) == MISSING
    assert sign_out(strict, **{"X-CSRF-Token": mine.csrf}) == NOBODY
    assert strict.ask("GET", "/api/status", **mine.headers)[0].status == 200, "the session is as it was"
    assert sign_out(strict, **mine.headers) == (200, "")
    assert sign_out(strict, **mine.headers) == NOBODY, "signed out: the cookie is worth nothing"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "PROPFIND"])
def test_every_method_that_may_change_something_needs_it(strict, method):
    mine = strict.sign_in("engineer")
    answer, body = strict.ask(method, "/api/anything", "", Cookie=mine.cookie)
    assert (answer.status, json.loads(body)["error"]) == MISSING
