# SPDX-License-Identifier: Apache-2.0
"""How fast passwords can be guessed, and that guessing keeps nobody out, by a clock that the test moves."""

from types import SimpleNamespace

import pytest

from appliance.console.sign_in_waits import FORGET_S, OF_ACCOUNT, OF_ADDRESS, Waits


@pytest.fixture
def clock():
    return SimpleNamespace(s=1000.0)


@pytest.fixture
def waits(clock):
    return Waits(lambda: clock.s)


def guess(waits, clock, address, name, seconds):
    """Try as often as is let through; gives the count."""
    end, n = clock.s + seconds, 0
    while clock.s < end:
        wait_s = waits.begin(address, name)
        n += not wait_s
        clock.s += wait_s
    return n


def test_the_wait_of_an_address_grows_to_a_minute(waits, clock):
    said = []
    for _ in range(15):
        while wait_s := waits.begin("192.0.2.1", "anna"):
            said.append(wait_s)
            clock.s += wait_s
    assert said == [1, 2, 4, 8, 16, 32, 60, 60, 60]
    assert waits.begin("192.0.2.2", "bert") == 0, "others are not made to wait"


def test_refused_tries_do_not_lengthen_the_wait(waits, clock):
    guess(waits, clock, "192.0.2.1", "anna", 300)
    waits.begin("192.0.2.1", "anna")
    before = waits.begin("192.0.2.1", "anna")
    for _ in range(1000):
        assert waits.begin("192.0.2.1", "anna") == before


def test_many_tries_at_one_time_gain_nothing(waits):
    assert [waits.begin("192.0.2.1", "anna") for _ in range(100)].count(0) == OF_ADDRESS.free + 1


def test_a_day_of_guessing(waits, clock):
    assert guess(waits, clock, "192.0.2.1", "anna", 86_400) < 86_400 / OF_ADDRESS.longest_s + 20
    n = sum(not waits.begin(f"198.51.{n // 250}.{n % 250}", "bert") for n in range(50_000))
    assert n == OF_ACCOUNT.free + 1, "from however many addresses, at one time"


def test_who_has_an_account_cannot_guess_at_others_for_nothing(waits, clock):
    n, end = 0, clock.s + 3600
    while clock.s < end:
        wait_s = waits.begin("192.0.2.1", "mallory")
        if not wait_s:
            waits.was_right("192.0.2.1", "mallory")
            n += not waits.begin("192.0.2.1", "anna")
        clock.s += wait_s or waits.begin("192.0.2.1", "anna")
    assert n < 3600 / OF_ADDRESS.longest_s + 20


def test_an_attack_on_an_account_keeps_its_owner_out_for_no_longer_than_ten_seconds(waits, clock):
    for n in range(5000):
        waits.begin(f"198.51.{n // 250}.{n % 250}", "anna")
        clock.s += 1.0
    wait_s = waits.begin("192.0.2.1", "anna")
    assert 0 <= wait_s <= OF_ACCOUNT.longest_s
    clock.s += wait_s
    assert waits.begin("192.0.2.1", "anna") == 0
    waits.was_right("192.0.2.1", "anna")
    for n in range(5000):
        waits.begin(f"198.51.{n // 250}.{n % 250}", "anna")
        assert waits.begin("192.0.2.1", "anna") == 0, "from where she has signed in before, not at all"
        waits.was_right("192.0.2.1", "anna")


def test_mistakes_are_forgotten(waits, clock):
    guess(waits, clock, "192.0.2.1", "anna", 300)
    clock.s += FORGET_S + 1
    assert [waits.begin("192.0.2.1", "anna") for _ in range(OF_ADDRESS.free)] == [0] * OF_ADDRESS.free


def test_an_ipv6_host_is_its_network(waits):
    tries = [waits.begin(f"2001:db8::{n:x}", f"name{n}") for n in range(100)]
    assert tries.count(0) == OF_ADDRESS.free + 1
    assert waits.begin("2001:db8:0:1::1", "anna") == 0
    assert waits.begin("fe80::1%eth0", "anna") == 0


def test_memory_is_bounded(waits):
    for n in range(30_000):
        waits.begin(f"10.{n // 65536}.{n // 256 % 256}.{n % 256}", f"name{n}")
        waits.was_right(f"10.{n // 65536}.{n // 256 % 256}.{n % 256}", f"name{n}")
    held = [*vars(waits._addresses).values(), *vars(waits._accounts).values(), waits._homes]
    assert max(len(one) for one in held if hasattr(one, "__len__")) <= 10_000
