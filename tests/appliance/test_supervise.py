# SPDX-License-Identifier: Apache-2.0
"""The restart policy, without processes and without a clock."""

import pytest

from appliance.supervise import BACKOFF_MAX_S, FIRST_HEARTBEAT_S, HEALTHY_AFTER_S, SILENCE_S, Job, Supervised


class FakeProcess:
    pids = iter(range(100, 10_000))

    def __init__(self):
        self.pid = next(self.pids)
        self.code = None
        self.signals = []

    def poll(self):
        return self.code

    def terminate(self):
        self.signals.append("TERM")

    def kill(self):
        self.signals.append("KILL")


class World:
    """A job, the processes made for it, and the hour."""

    def __init__(self):
        self.made = []
        self.child = Supervised(Job("pipeline-x", "pipeline", "x"), self.spawn, 0.0)
        self.child.step(0.0)

    def spawn(self, job):
        self.made.append(FakeProcess())
        return self.made[-1]

    @property
    def process(self):
        return self.made[-1]

    def beat(self, now, **status):
        self.child.hear({"pid": self.process.pid, **status}, now)
        self.child.step(now)

    def crash(self, now, code=-11):
        self.process.code = code
        self.child.step(now)


@pytest.fixture
def world():
    return World()


def test_back_off_doubles_to_its_cap_and_never_gives_up(world):
    now, waits = 0.0, []
    for _ in range(12):
        world.crash(now)
        wait = 0.0
        while world.process.code is not None:
            wait += 0.5
            world.child.step(now + wait)
        waits.append(wait)
        now += wait
    assert waits == [1, 2, 4, 8, 16, *[BACKOFF_MAX_S] * 7]
    assert world.child.report(now)["restarts"] == 12


def test_a_minute_of_health_resets_the_back_off_and_clears_the_alarm(world):
    for now in (0.0, 1.0, 3.0):  # 1 s, 2 s, 4 s
        world.crash(now)
        world.child.step(now + 4)
    assert world.child.alarm(7.0) == "ended by signal 11; restarted 3 times; see its lines in the log"
    started = 7.0
    for second in range(int(HEALTHY_AFTER_S) + 1):
        world.beat(started + second)
    now = started + HEALTHY_AFTER_S
    assert world.child.alarm(now) == ""
    world.crash(now)
    assert world.child.report(now)["next_start_s"] == 1.0


def test_exit_code_0_without_being_asked_is_a_failure(world):
    world.crash(5.0, code=0)
    assert world.child.report(5.0) == {
        "state": "waiting", "pid": None, "uptime_s": 0.0, "restarts": 0,
        "last_end": "ended with exit code 0", "next_start_s": 1.0,
    }  # fmt: skip


def test_a_silent_child_is_killed_and_restarted(world):
    world.beat(3.0)
    world.child.step(3.0 + SILENCE_S)
    assert world.process.signals == []
    world.child.step(3.1 + SILENCE_S)
    assert world.process.signals == ["KILL"]
    world.child.step(3.2 + SILENCE_S)
    assert world.process.signals == ["KILL"], "once is enough"
    world.crash(3.3 + SILENCE_S, code=-9)
    assert world.child.last_end == "killed: no heartbeat for 10 s"


def test_the_first_heartbeat_may_take_longer(world):
    world.child.step(FIRST_HEARTBEAT_S)
    assert world.process.signals == []
    world.child.step(FIRST_HEARTBEAT_S + 1)
    assert world.process.signals == ["KILL"]


def test_a_child_that_says_it_is_stuck_is_killed(world):
    world.beat(1.0, stuck="")
    assert world.process.signals == []
    world.beat(2.0, stuck="denoise computing for 21 s")
    assert world.process.signals == ["KILL"]
    world.crash(2.1, code=-9)
    assert world.child.last_end == "killed: stuck: denoise computing for 21 s"


def test_a_heartbeat_of_the_process_before_does_not_count(world):
    old = world.process.pid
    world.crash(0.0)
    world.child.step(1.0)
    world.child.hear({"pid": old}, 2.0)
    assert world.child.state == "starting"
    world.beat(3.0)
    assert world.child.state == "running"


def test_leaving_asks_first_and_kills_at_the_deadline(world):
    world.child.leave(20.0)
    world.child.step(19.0)
    assert (world.process.signals, world.child.state) == (["TERM"], "draining")
    world.child.step(20.0)
    assert world.process.signals == ["TERM", "KILL"]
    world.crash(20.1, code=-9)
    assert world.child.gone
    world.child.step(60.0)
    assert len(world.made) == 1, "who has left is not started again"


def test_leaving_while_waiting_to_be_restarted(world):
    world.crash(0.0)
    world.child.leave(20.0)
    world.child.step(5.0)
    assert world.child.gone and len(world.made) == 1


def test_only_what_sigkill_cannot_end_stops_the_watchdog(world):
    assert world.child.answers(0.0)
    world.crash(0.0)
    assert world.child.answers(0.5), "waiting for its restart is being taken care of"
    world.child.step(1.0)
    world.beat(2.0, stuck="in a driver")
    assert world.child.answers(31.0)
    assert not world.child.answers(33.0)


def test_a_process_that_cannot_be_made_is_tried_again():
    def refuse(job):
        raise OSError(12, "Cannot allocate memory")

    child = Supervised(Job("console", "console"), refuse, 0.0)
    child.step(0.0)
    assert (
        child.alarm(0.0) == "could not be started: Cannot allocate memory; restarted 0 times; see its lines in the log"
    )
    child.step(1.0)
    assert child.report(1.0)["next_start_s"] == 2.0
