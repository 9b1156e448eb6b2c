# SPDX-License-Identifier: Apache-2.0
"""Acquisitions of a 2D Cartesian scan to frames.

Rule: no sockets, no clocks. Averages are frames of their own: a display wants the first one at once, and whoever wants
the mean can take it from complex or magnitude images later. Slices, echoes and cardiac phases may come interleaved, so
a frame is complete only at its own LAST_IN_SLICE or LAST_IN_REPETITION, at LAST_IN_MEASUREMENT, when its slice begins
another repetition, when every line that it can have is there, or at the end of the stream.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from appliance.errors import PeerError
from appliance.frames import Affine, Frame, Mark, Position, read_only
from appliance.mrd.faults import Faults, name_lines
from appliance.mrd.geometry import directions_known, image_affine
from appliance.mrd.header import MrdHeader
from appliance.mrd.lines import Gathered, Lines, place_readout
from appliance.mrd.messages import ACQUISITION_HEADER, ENCODING_COUNTERS, Acquisitions, Flag

_STAGE = "mrd"
_SKIPPED = {
    Flag.NAVIGATION.mask: "navigation",
    Flag.PHASE_CORRECTION.mask: "phase correction",
    Flag.HP_FEEDBACK.mask: "feedback",
    Flag.RT_FEEDBACK.mask: "feedback",
    Flag.DUMMY.mask: "dummy",
    Flag.SURFACE_COIL_CORRECTION.mask: "surface coil correction",
    Flag.PHASE_STABILISATION_REFERENCE.mask: "phase stabilisation",
    Flag.PHASE_STABILISATION.mask: "phase stabilisation",
}
_SKIPPING = sum(_SKIPPED)
_NOISE, _REVERSE, _CALIBRATION = Flag.NOISE.mask, Flag.REVERSE.mask, Flag.PARALLEL_CALIBRATION.mask
_CALIBRATING = _CALIBRATION | Flag.PARALLEL_CALIBRATION_AND_IMAGING.mask
_KIND = _SKIPPING | _NOISE | _REVERSE
_FIRST = Flag.FIRST_IN_SLICE.mask | Flag.FIRST_IN_REPETITION.mask
_LAST_OF_FRAME = Flag.LAST_IN_SLICE.mask | Flag.LAST_IN_REPETITION.mask
_LAST_OF_ALL = Flag.LAST_IN_MEASUREMENT.mask
_LAST = _LAST_OF_FRAME | _LAST_OF_ALL

# Lines with equal values in these columns of the header, seen as u16, can be copied together.
_READOUT_COLUMNS = ("discard_pre", "discard_post", "center_sample", "encoding_space_ref")
_COUNTER_COLUMNS = ("kspace_encode_step_2", "average", "slice", "contrast", "phase", "repetition", "set")
_IDX = ACQUISITION_HEADER.fields["idx"][1] if ACQUISITION_HEADER.fields else 0


def _column(dtype: np.dtype[Any], name: str, offset: int = 0) -> int:
    assert dtype.fields is not None
    return (dtype.fields[name][1] + offset) // 2


_COLUMNS = [_column(ACQUISITION_HEADER, name) for name in _READOUT_COLUMNS]
_COLUMNS += [_column(ENCODING_COUNTERS, name, _IDX) for name in _COUNTER_COLUMNS]
_PLACE = slice(ACQUISITION_HEADER.fields["position"][1], ACQUISITION_HEADER.fields["patient_table_position"][1])  # type: ignore[index]

Role = Literal["imaging", "calibration"]


@dataclass(frozen=True)
class _Run:
    """Lines of one message shape, frame, kind and readout."""

    heads: NDArray[Any]
    data: NDArray[np.complex64]
    flags: NDArray[np.uint64]
    discards: tuple[int, int]
    centre_sample: int
    encoding_space: int
    partition: int
    position: Position
    received_ns: int
    acquired_ns: int


@dataclass(eq=False)
class _Open:
    """A frame whose lines are still coming."""

    role: Role
    position: Position
    head: NDArray[np.uint8]
    lines: Lines
    received_ns: int = 0
    acquired_ns: int = 0


class Assembler:
    """Frames of one scan. `n_coils` is what the lines have, `max_open_bytes` what may be gathered at one time."""

    def __init__(self, scan_id: str, header: MrdHeader, n_coils: int, max_open_bytes: int = 1 << 30) -> None:
        self.faults = Faults()
        self.n_frames = 0
        self.skipped: dict[str, int] = {}
        self._scan_id = scan_id
        self._header = header
        self._n_coils = n_coils
        self._max_open_bytes = max_open_bytes
        self._capacity = -(-header.encoding.encoded_matrix[1] // header.encoding.acceleration_y)
        self._separate = header.encoding.calibration == "separate"
        self._kind = np.uint64(_KIND | (_CALIBRATION if self._separate else 0))
        self._open: dict[tuple[Role, Position], _Open] = {}
        self._done: dict[int, Position] = {}  # slice -> its last completed frame
        self._noise: list[NDArray[np.complex64]] = []
        self._noise_at: tuple[Affine, int, int] | None = None
        self._affines: dict[bytes, tuple[Affine, bool]] = {}

    def add(self, lines: Acquisitions, received_ns: int, acquired_ns: int) -> Iterator[Frame]:
        """Take lines and give the frames they complete. Times: monotonic and UTC, of their last byte."""
        if lines.data.shape[1] != self._n_coils:
            raise PeerError(
                f"mrd: acquisition with {lines.data.shape[1]} channels in a scan of {self._n_coils}; "
                "every line must have the same channels"
            )
        flags = lines.heads["flags"].astype(np.uint64)
        columns = lines.heads[:, np.newaxis].view("<u2")[:, _COLUMNS]
        kinds = flags & self._kind
        changes = (columns[1:] != columns[:-1]).any(axis=1) | (kinds[1:] != kinds[:-1])
        changes |= (flags[:-1] & np.uint64(_LAST)) != 0
        bounds = [0, *(np.flatnonzero(changes) + 1).tolist(), len(flags)]
        for begin, end in pairwise(bounds):
            pre, post, centre, space, partition, *counters = columns[begin].tolist()
            average, slice_, contrast, phase, repetition, set_ = counters
            run = _Run(
                heads=lines.heads[begin:end],
                data=lines.data[begin:end],
                flags=flags[begin:end],
                discards=(pre, post),
                centre_sample=centre,
                encoding_space=space,
                partition=partition,
                position=Position(slice_, repetition, phase, contrast, set_, average),
                received_ns=received_ns,
                acquired_ns=acquired_ns,
            )
            yield from self._take(run)

    def finish(self) -> Iterator[Frame]:
        """Give what has not been completed; for the end of the stream, however it came."""
        yield from self._complete_noise()
        for key in list(self._open):
            yield from self._complete(key)

    def _take(self, run: _Run) -> Iterator[Frame]:
        flags = int(run.flags[0])
        kind = None
        if flags & _SKIPPING:
            kind = next(name for mask, name in _SKIPPED.items() if flags & mask)
        if kind is None and run.encoding_space > 0:
            kind = f"encoding space {run.encoding_space}"
            self.faults.add(kind, f"lines of {kind} were left out: only space 0 is reconstructed")
        if kind is not None:
            self.skipped[kind] = self.skipped.get(kind, 0) + len(run.heads)
        elif flags & _NOISE:
            self._take_noise(run)
        else:
            yield from self._complete_noise()
            yield from self._take_lines(run, flags)
        if int(run.flags[-1]) & _LAST_OF_ALL:
            yield from self.finish()

    def _take_noise(self, run: _Run) -> None:
        for line in run.data:
            if not np.isfinite(line).all():
                self.faults.add("noise", "a noise line holds NaN or Inf and was left out")
            elif sum(part.nbytes for part in self._noise) + line.nbytes <= self._max_open_bytes // 16:
                self._noise.append(line.copy())
        self._noise_at = (self._affine(run.heads[0])[0], run.acquired_ns, run.received_ns)

    def _complete_noise(self) -> Iterator[Frame]:
        if self._noise and self._noise_at is not None:
            affine, acquired_ns, received_ns = self._noise_at
            array = read_only(np.concatenate(self._noise, axis=1))
            self._noise = []
            yield Frame(
                scan_id=self._scan_id,
                sequence=-1,
                array=array,
                axes=("coil", "sample"),
                affine=affine,
                acquired_ns=acquired_ns,
                received_ns=received_ns,
                role="noise",
            )

    def _take_lines(self, run: _Run, flags: int) -> Iterator[Frame]:
        if run.partition > 0:
            raise PeerError(f"mrd: line of partition {run.partition} in a 2D scan; 3D encoding is not supported")
        ky = self._ky(run.heads)
        calibrating = self._separate and bool(flags & _CALIBRATION)
        role: Role = "calibration" if calibrating else "imaging"
        position = Position(slice=run.position.slice) if calibrating else run.position
        key = (role, position)
        if key not in self._open:
            if role == "imaging" and self._done.get(position.slice) == position and not flags & _FIRST:
                self.faults.add("late", f"{name_lines(ky)} came after the end of its frame, left out")
                return
            yield from self._complete_others(key)
            self._begin(key, run)
        frame = self._open[key]
        self._copy(frame, run, ky, flags)
        if int(run.flags[-1]) & _LAST_OF_FRAME or (role == "imaging" and self._has_every_line(frame)):
            yield from self._complete(key)

    def _ky(self, heads: NDArray[Any]) -> NDArray[np.int64]:
        raw = heads["idx"]["kspace_encode_step_1"].astype(np.int64)
        ky: NDArray[np.int64] = raw + self._header.ky_shift
        n_lines = self._header.encoding.encoded_matrix[1]
        if ky.min() < 0 or ky.max() >= n_lines:
            wrong = int(raw[(ky < 0) | (ky >= n_lines)][0])
            raise PeerError(f"mrd: line {wrong} lies outside the {n_lines} encoded lines of the header")
        return ky

    def _complete_others(self, key: tuple[Role, Position]) -> Iterator[Frame]:
        """Complete what the first line of a new frame shows to be over."""
        role, position = key
        for other_role, other in list(self._open):
            same_slice = other.slice == position.slice
            if (
                same_slice
                and role == "imaging"
                and (other_role == "calibration" or other.repetition != position.repetition)
            ):
                yield from self._complete((other_role, other))
        while self._open and sum(frame.lines.n_bytes for frame in self._open.values()) > self._max_open_bytes:
            yield from self._complete(next(iter(self._open)))

    def _begin(self, key: tuple[Role, Position], run: _Run) -> None:
        n_columns, n_lines, _ = self._header.encoding.encoded_matrix
        head = np.frombuffer(run.heads[0].tobytes(), np.uint8)
        self._open[key] = _Open(key[0], key[1], head, Lines(self._n_coils, n_lines, n_columns, self._capacity))

    def _copy(self, frame: _Open, run: _Run, ky: NDArray[np.int64], flags: int) -> None:
        readout = place_readout(
            run.data.shape[2],
            *run.discards,
            run.centre_sample,
            self._header.encoding.encoded_matrix[0],
            bool(flags & _REVERSE),
        )
        only = (run.flags & np.uint64(_CALIBRATING)) == _CALIBRATION
        frame.lines.add(ky, only, run.data, readout)
        frame.received_ns, frame.acquired_ns = run.received_ns, run.acquired_ns

    def _expected(self, imaging_ky: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return the lines that a complete frame has, from the header's limits and the lines that came."""
        step = self._header.encoding.acceleration_y
        first, last = self._header.ky_first, self._header.ky_last
        offset = int(np.bincount(imaging_ky % step).argmax()) if len(imaging_ky) else first % step
        return np.arange(first + (offset - first) % step, last + 1, step)

    def _has_every_line(self, frame: _Open) -> bool:
        if self._header.encoding.calibration == "embedded":
            return False  # calibration lines may still come
        step = self._header.encoding.acceleration_y
        if frame.lines.n_imaging * step < self._header.ky_last - self._header.ky_first + 1 - step:
            return False
        return bool(frame.lines.seen[self._expected(frame.lines.imaging_ky())].all())

    def _complete(self, key: tuple[Role, Position]) -> Iterator[Frame]:
        frame = self._open.pop(key)
        missing = self._expected(frame.lines.imaging_ky())
        missing = missing[~frame.lines.seen[missing]]
        gathered = frame.lines.gather()
        if frame.role == "imaging":
            self._done[frame.position.slice] = frame.position
            self._capacity = max(frame.lines.n, 1)
        texts = self._faults_of(gathered, missing if frame.role == "imaging" else missing[:0])
        what = f"frame {self.n_frames}" if frame.role == "imaging" else f"calibration of slice {frame.position.slice}"
        for text in texts:
            self.faults.add("frame", f"{what}: {text}")
        if not len(gathered.ky):
            self.faults.add("frame", f"{what}: no line is left, so there is no image")
            return
        yield self._frame(frame, gathered, texts)

    def _faults_of(self, gathered: Gathered, missing: NDArray[np.int64]) -> list[str]:
        texts = []
        if len(missing):
            texts.append(f"{name_lines(missing)} did not come")
        if len(gathered.not_finite):
            texts.append(f"{name_lines(gathered.not_finite)} with NaN or Inf left out")
        if gathered.repeated:
            texts.append(f"{name_lines(np.array(gathered.repeated))} came more than once, the first is kept")
        if gathered.all_zero:
            texts.append("all samples are zero")
        return texts

    def _frame(self, frame: _Open, gathered: Gathered, texts: list[str]) -> Frame:
        affine, known = self._affine(frame.head.view(ACQUISITION_HEADER)[0])
        marks = [Mark(_STAGE, text) for text in texts]
        if not known:
            marks.append(Mark(_STAGE, "the scanner sent no valid slice orientation, axial is assumed"))
        if self._header.trajectory == "epi":
            marks.append(Mark(_STAGE, "epi phase correction is not applied, expect ghosts"))
        sequence = -1
        if frame.role == "imaging":
            sequence, self.n_frames = self.n_frames, self.n_frames + 1
        attachments = {"ky": gathered.ky, "calibration_only": gathered.calibration_only, "mrd_header": frame.head}
        return Frame(
            scan_id=self._scan_id,
            sequence=sequence,
            array=read_only(gathered.kspace),
            axes=("coil", "ky", "kx"),
            affine=affine,
            acquired_ns=frame.acquired_ns,
            received_ns=frame.received_ns,
            role=frame.role,
            position=frame.position,
            marks=tuple(marks),
            attachments={name: read_only(array) for name, array in attachments.items()},
        )

    def _affine(self, head: Any) -> tuple[Affine, bool]:
        """Return the affine of the reconstructed image, and whether the scanner said how it lies."""
        place = head.tobytes()[_PLACE]
        if place not in self._affines:
            if len(self._affines) > 256:  # a moving slice; each affine is used by the frames of one place
                self._affines.clear()
            self._affines[place] = self._make_affine(head)
        return self._affines[place]

    def _make_affine(self, head: Any) -> tuple[Affine, bool]:
        position, read, phase, normal = (head[name] for name in ("position", "read_dir", "phase_dir", "slice_dir"))
        known = directions_known(read, phase) and bool(np.isfinite(position).all())
        if not known:
            position, read, phase, normal = (np.zeros(3), *np.eye(3))
        encoding = self._header.encoding
        affine = image_affine(position, read, phase, normal, encoding.recon_fov_mm, encoding.recon_matrix)
        return read_only(affine), known
