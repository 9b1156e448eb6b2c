# SPDX-License-Identifier: Apache-2.0
"""Sessions by a clock that the test moves."""

from types import SimpleNamespace

import pytest

from appliance.console.accounts import Account
from appliance.console.sessions import Sessions

ANNA, BERT = Account(role="viewer", password="$argon2id$a"), Account(role="engineer", password="$argon2id$b")


@pytest.fixture
def clock():
    return SimpleNamespace(s=100.0)


@pytest.fixture
def sessions(clock):
    return Sessions(idle_s=60, longest_s=600, clock=lambda: clock.s)


def test_each_sign_in_has_a_token_and_csrf_of_its_own(sessions):
    (one, first), (two, second) = sessions.begin("anna", ANNA), sessions.begin("anna", ANNA)
    assert len({one, two, first.csrf, second.csrf}) == 4
    assert (sessions.find(one), sessions.find(two)) == (first, second)
    assert sessions.find(one[:-1]) is sessions.find("") is sessions.find("\udcff") is None
    assert one not in repr(vars(sessions)), "of a token the hash alone is kept"
    assert first.csrf not in repr(first)


def test_the_longest_time_ends_it_however_it_is_used(sessions, clock):
    token, session = sessions.begin("anna", ANNA)
    for _ in range(20):
        clock.s += 30 - 1e-3
        assert sessions.find(token) is session
        sessions.touch(session, 0)
    clock.s += 1
    assert sessions.find(token) is None
    assert session.ended.is_set()


def test_what_a_page_does_by_itself_keeps_nobody_awake(sessions, clock):
    token, session = sessions.begin("anna", ANNA)
    for idle_s in range(0, 61, 10):
        assert not sessions.find(token).is_idle
        sessions.touch(session, idle_s)
        clock.s += 10
    assert sessions.find(token).is_idle
    sessions.touch(session, 0)
    assert sessions.find(token).is_idle, "a touch after that wants the password first"


def test_a_person_has_so_many_sessions_and_the_oldest_gives_way(sessions):
    made = [sessions.begin("anna", ANNA) for _ in range(25)]
    other, _ = sessions.begin("bert", BERT)
    alive = [sessions.find(token) is not None for token, _ in made]
    assert alive == [False] * 5 + [True] * 20
    assert [session.ended.is_set() for _, session in made] == [not is_alive for is_alive in alive]
    assert sessions.find(other)


def test_there_are_so_many_sessions_in_all(sessions):
    tokens = [sessions.begin(f"name{n}", ANNA)[0] for n in range(1010)]
    assert sum(sessions.find(token) is not None for token in tokens) == 1000


def test_changed_accounts_end_theirs(sessions):
    kept, gone, changed = (sessions.begin(name, ANNA)[0] for name in ("anna", "bert", "carl"))
    sessions.keep({"anna": ANNA, "carl": BERT})
    assert [sessions.find(token) is not None for token in (kept, gone, changed)] == [True, False, False]
