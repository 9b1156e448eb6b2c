# SPDX-License-Identifier: Apache-2.0
"""Empties the outbox: one thread for each destination, priority first, and nothing is ever given up.

A destination that cannot be reached is left alone with a growing wait and then probed by C-ECHO; an instance that
it will never take is quarantined with an alarm.
"""

from __future__ import annotations

import fcntl
import logging
import os
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from appliance.buffer import Buffer, Delivery, ObjectError
from appliance.buffer.commitment_requests import CommitmentRequests
from appliance.buffer.commitments import Commitments
from appliance.buffer.mpps import ProcedureSteps
from appliance.dicom.admit import admit
from appliance.dicom.answer_commitment import AnswerCommitment
from appliance.dicom.association import ECHO_CONTEXT, Association
from appliance.dicom.build_results import Alarm, build_results
from appliance.dicom.follow_series import FollowSeries
from appliance.dicom.part10 import dataset_of
from appliance.dicom.request_commitment import ENOUGH, RequestCommitment
from appliance.dicom.series import Report
from appliance.dicom.status import is_out_of_resources
from appliance.dicom.stow_client import StowConnection
from appliance.dicom.transcode import PLAIN, transcode
from appliance.errors import DeliveryError, StorageError
from appliance.settings import Buffer as BufferSettings
from appliance.settings import DicomDestination, DicomwebDestination, Settings

Peer = DicomDestination | DicomwebDestination

_BATCH = 32  # instances; an association takes 128 presentation contexts
_POLL_S = 0.2
_IDLE_RELEASE_S = 5.0  # an association with nothing to send is released after this long
_PURGE_EVERY_S = 60.0
_REMEMBER_S = 7 * 86_400.0  # what was settled in storage commitment

log = logging.getLogger(__name__)


def connect(name: str, peer: Peer, contexts: Sequence[tuple[str, str]] | None) -> Association | StowConnection:
    """Open what a destination speaks, for these (SOP class, transfer syntax); None: only to see whether it is there."""
    if isinstance(peer, DicomwebDestination):
        return StowConnection(name, peer)
    return Association(name, peer, [ECHO_CONTEXT] if contexts is None else contexts)


class Destination:
    """Delivers to one destination. `step` does one round; everything it knows is rebuilt after a restart."""

    def __init__(self, name: str, peer: Peer, buffer: Buffer, waits: BufferSettings, alarm: Alarm) -> None:
        self._name, self._peer, self._buffer, self._waits, self._alarm = name, peer, buffer, waits, alarm
        self._assoc: Association | StowConnection | None = None
        self._used = 0.0
        self._free_at = 0.0  # when the rate allows to send again, monotonic
        self._failures = 0
        self._closed_until = 0.0
        self._last_error = ""
        self.enough = ENOUGH[peer.commit]
        self._unsettled = True  # what a former process had in sending
        self._stop = threading.Event()

    def status(self) -> dict[str, Any]:
        """Plain values."""
        state = "waiting" if self._failures else "ready"
        next_try_s = self._closed_until if self._failures else None
        return {
            "state": state,
            "failures": self._failures,
            "last_error": self._last_error,
            "next_try_s": next_try_s,
        }

    def loop(self, stop: threading.Event) -> None:
        """Deliver until `stop`."""
        self._stop = stop
        while not stop.is_set():
            try:
                worked = self.step(time.time())
                self._alarm(f"buffer {self._name}", "")
            except StorageError as error:
                self._alarm(f"buffer {self._name}", str(error))
                worked = False
            if not worked:
                stop.wait(_POLL_S)
        self._hang_up()

    def step(self, now: float) -> bool:
        """Probe or send one batch. False: nothing to do now."""
        if self._unsettled:
            self._settle([], now)
        if 0 < self._closed_until - now <= self._waits.retry_max_s:  # more: the clock was set back
            return False
        if self._failures and not self._probe(now):
            return False
        batch = self._buffer.outbox.claim(self._name, now, _BATCH)
        if not batch:
            self._reachable()  # as far as we know
            if self._assoc and now - self._used > _IDLE_RELEASE_S:
                self._hang_up()
            return False
        self._used = now
        self._send(batch, now)
        return True

    def _hang_up(self) -> None:
        if self._assoc:
            self._assoc.release()
        self._assoc = None

    def _abort(self) -> None:
        if self._assoc:
            self._assoc.abort()
        self._assoc = None

    def _probe(self, now: float) -> bool:
        try:
            with connect(self._name, self._peer, None) as link:
                link.echo()
        except DeliveryError as error:
            self._unreachable(error, now)
            return False
        return True

    def _unreachable(self, error: DeliveryError, now: float) -> None:
        """Leave the destination alone for a while that doubles each time, with jitter."""
        self._failures += 1
        self._closed_until = now + self._wait_s(self._failures - 1)
        self._last_error = str(error)
        self._alarm(f"destination {self._name}", str(error))

    def _wait_s(self, failures: int) -> float:
        longest = min(self._waits.retry_max_s, self._waits.retry_min_s * 2.0 ** min(failures, 30))
        return longest * random.uniform(0.5, 1.0)

    def _reachable(self) -> None:
        if self._failures:
            log.info("destination %s takes instances again", self._name)
        self._failures = 0
        self._alarm(f"destination {self._name}", "")

    def _association_for(self, batch: list[Delivery]) -> Association | StowConnection:
        contexts = {
            (delivery.sop_class_uid, syntax) for delivery in batch for syntax in (delivery.transfer_syntax_uid, *PLAIN)
        }
        if self._assoc and not self._assoc.covers(contexts):
            self._hang_up()
        if self._assoc is None:
            self._assoc = connect(self._name, self._peer, sorted(contexts))
        return self._assoc

    def _send(self, batch: list[Delivery], now: float) -> None:
        sent: list[Delivery] = []
        self._unsettled = True
        try:
            assoc = self._association_for(batch)
            for delivery in batch:
                if self._stop.is_set():
                    break
                if self._send_one(assoc, delivery, now):
                    sent.append(delivery)
                    self._pace(delivery.n_bytes)
            self._reachable()
        except DeliveryError as error:  # of the destination, not of one instance
            self._abort()
            self._unreachable(error, now)
        self._settle(sent, now)

    def _pace(self, n_bytes: int) -> None:
        """Wait until the rate allows to send again."""
        if self._peer.max_mb_s:
            now = time.monotonic()
            self._free_at = max(now, self._free_at) + n_bytes / (self._peer.max_mb_s * 1e6)
            self._stop.wait(self._free_at - now)

    def _settle(self, sent: list[Delivery], now: float) -> None:
        self._buffer.outbox.mark_sent(sent, now, enough=self.enough)
        self._buffer.outbox.release(self._name, now)
        self._unsettled = False

    def _send_one(self, assoc: Association | StowConnection, delivery: Delivery, now: float) -> bool:
        """Send one; False: it is quarantined or waits. Raises DeliveryError when the next would fail too."""
        try:
            file = self._buffer.read_instance(delivery)
            syntax, dataset = self._as_it_takes_it(assoc, delivery, file, now)
            assoc.store(delivery.sop_class_uid, delivery.sop_instance_uid, syntax, dataset)
        except DeliveryError as error:
            self._failed(delivery, error, now)
            return False
        except ObjectError as error:
            self._quarantine(delivery, str(error), now)
            return False
        return True

    def _as_it_takes_it(
        self, assoc: Association | StowConnection, delivery: Delivery, file: bytearray, now: float
    ) -> tuple[str, memoryview]:
        """Give transfer syntax and data set: as kept; in another only where the destination takes nothing else."""
        sop_class, syntax = delivery.sop_class_uid, delivery.transfer_syntax_uid
        other = next((one for one in PLAIN if assoc.takes(sop_class, one)), None)
        if assoc.takes(sop_class, syntax) or other is None:
            return syntax, dataset_of(file)
        dataset = transcode(file, other)
        self._buffer.record("transcoded", delivery.sop_instance_uid, f"{self._name}: {syntax} -> {other}", now)
        return other, memoryview(dataset)

    def _failed(self, delivery: Delivery, error: DeliveryError, now: float) -> None:
        self._last_error = str(error)
        if error.permanent:
            self._quarantine(delivery, str(error), now)
            return
        self._buffer.outbox.retry_later(delivery, now + self._wait_s(delivery.attempts), str(error), now)
        if error.status is None or is_out_of_resources(error.status):
            raise error

    def _quarantine(self, delivery: Delivery, reason: str, now: float) -> None:
        log.error("quarantined delivery %d: %s", delivery.delivery_id, reason)
        self._buffer.outbox.quarantine(delivery, reason, now)
        self._alarm(f"quarantine {self._name}", f"{reason}; the instance is kept in quarantine")


@contextmanager
def _only_deliverer(data_dir: Path) -> Iterator[None]:
    """Hold the lock that makes this the one process that claims. Raises StorageError when another holds it."""
    data_dir.mkdir(parents=True, exist_ok=True, mode=0o750)
    fd = os.open(data_dir / "deliverer.lock", os.O_RDWR | os.O_CREAT, 0o640)
    try:
        _lock(fd, data_dir)
        yield
    finally:
        os.close(fd)


def _lock(fd: int, data_dir: Path) -> None:
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise StorageError(f"deliver: another process delivers from {data_dir}; stop it") from error


class Deliverer:
    """What the deliverer process does: build results, deliver to every destination, purge."""

    def __init__(self, settings: Settings, alarm: Alarm) -> None:
        self._data_dir, self._waits, self._alarm = settings.site.data_dir, settings.buffer, alarm
        self._routes, self._silence_s = settings.routes, settings.series.silence_s
        self._buffer = Buffer(self._data_dir, int(settings.buffer.reserve_gb * 1e9))
        self._answers = AnswerCommitment(self._buffer, settings.listen.peers, settings.listen.our_ae_title, alarm)
        self._steps = ProcedureSteps(self._buffer.database)
        self._destinations = {
            name: Destination(name, destination.peer, self._buffer, settings.buffer, alarm)
            for name, destination in settings.destinations.items()
        }
        self._commitments = [
            RequestCommitment(name, destination.peer, self._buffer, alarm)
            for name, destination in settings.destinations.items()
            if destination.peer.commit != "none"
        ]

    def run(self, stop: threading.Event) -> None:
        """Work until `stop`. What fails without being told how ends all of it: the daemon starts it again."""
        loops = [self._answers.loop, *(one.loop for one in self._destinations.values())]
        loops += [one.loop for one in self._commitments]
        with _only_deliverer(self._data_dir), ThreadPoolExecutor(len(loops) + 3) as pool:
            self._buffer.recover(time.time())
            for name, destination in self._destinations.items():
                self._buffer.outbox.require(name, destination.enough)
            self._warn_of_unknown_destinations()
            follow = FollowSeries(self._buffer, self._silence_s, self._report_of)
            jobs = [pool.submit(build_results, self._buffer, stop, self._alarm), pool.submit(self._purge, stop)]
            jobs += [pool.submit(admit, self._buffer, self._routes, follow, stop, self._alarm)]
            jobs += [pool.submit(loop, stop) for loop in loops]
            done, _ = wait(jobs, return_when=FIRST_EXCEPTION)
            stop.set()
        for job in done:
            job.result()

    def _report_of(self, series_instance_uid: str) -> Report | None:
        found = self._steps.of_series(series_instance_uid)
        return Report(*found) if found else None

    def _warn_of_unknown_destinations(self) -> None:
        for name, counts in self._buffer.counts()["destinations"].items():
            n_owed = counts["queued"] + counts["held"] + counts["quarantined"]
            if n_owed and name not in self._destinations:
                text = f"deliver: {n_owed} instances are owed to {name!r}, which is not in destinations; put it back"
                self._alarm(f"destination {name}", text)

    def _purge(self, stop: threading.Event) -> None:
        commitments, requests = Commitments(self._buffer.database), CommitmentRequests(self._buffer.database)
        while not stop.is_set():
            try:
                for table in (commitments, requests):
                    table.forget(time.time() - _REMEMBER_S)
                while self._buffer.purge(time.time(), self._waits.keep_delivered_h * 3600) and not stop.is_set():
                    pass
                self._alarm("buffer purge", "")
            except StorageError as error:
                self._alarm("buffer purge", str(error))
            stop.wait(_PURGE_EVERY_S)

    def status(self) -> dict[str, Any]:
        """Plain values. `delivered` counts (instance, destination) pairs."""
        counts = self._buffer.counts()
        by_name = counts.pop("destinations")
        return {
            "results": {**counts, "delivered": counts["sent"] + counts["verified"] + counts["committed"]},
            "destinations": {
                name: {**by_name.get(name, {}), **destination.status()}
                for name, destination in self._destinations.items()
            },
            "free_gb": round(self._buffer.free_bytes() / 1e9, 1),
        }

    def close(self) -> None:
        """Close the buffer, after `run`."""
        self._buffer.close()
