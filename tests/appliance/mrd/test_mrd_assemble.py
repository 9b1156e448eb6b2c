# SPDX-License-Identifier: Apache-2.0
"""Acquisitions to frames: real files, counters, flags and everything that can be wrong."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import ismrmrd
import numpy as np
import pytest

from appliance.errors import PeerError
from appliance.frames import Encoding, Frame, Position
from appliance.mrd import messages as m
from appliance.mrd.assemble import Assembler
from appliance.mrd.header import encode_header_xml, parse_header

DATA = Path(__file__).parents[3] / "../shared/data/mrd"
N_X, N_Y, N_COILS = 6, 8, 2
ENCODING = Encoding((N_X, N_Y, 1), (N_X, N_Y, 1), (60.0, 80.0, 5.0), (60.0, 80.0, 5.0), N_COILS)
HALF = replace(ENCODING, acceleration_y=2, calibration="embedded")
LAST = m.Flag.LAST_IN_SLICE.mask


def head(ky: int, flags: int = 0, **idx: int) -> np.ndarray:
    one = np.zeros(1, m.ACQUISITION_HEADER)
    one["flags"], one["center_sample"] = flags, N_X // 2
    one["read_dir"], one["phase_dir"], one["slice_dir"] = np.eye(3)
    one["idx"]["kspace_encode_step_1"] = ky
    for name, value in idx.items():
        one["idx"][name] = value
    return one


def samples(ky: int, n: int = N_X) -> np.ndarray:
    """Different for each line, coil and column."""
    return (1 + ky + 1j * np.arange(N_COILS)[:, None] + np.arange(n) / 100).astype(np.complex64)


class Scan:
    """Feeds lines one batch at a time and keeps the frames."""

    def __init__(self, encoding: Encoding = ENCODING, xml: bytes = b"") -> None:
        self.assembler = Assembler("s", parse_header(xml or encode_header_xml(encoding)), N_COILS)
        self.frames: list[Frame] = []
        self.clock_ns = 0

    def send(self, *heads: np.ndarray, data: np.ndarray | None = None) -> list[Frame]:
        """Send lines in one batch; give the frames that they complete."""
        self.clock_ns += 1
        joined = np.concatenate(heads)
        if data is None:
            data = np.stack([samples(int(ky)) for ky in joined["idx"]["kspace_encode_step_1"]])
        lines = m.Acquisitions(joined, data)
        return self._keep(self.assembler.add(lines, self.clock_ns, 1000 + self.clock_ns))

    def finish(self) -> list[Frame]:
        return self._keep(self.assembler.finish())

    def _keep(self, frames: object) -> list[Frame]:
        new = list(frames)  # type: ignore[call-overload]
        self.frames += new
        return new

    @property
    def reason(self) -> str:
        return self.assembler.faults.reason


def full(**idx: int) -> list[np.ndarray]:
    return [head(ky, LAST if ky == N_Y - 1 else 0, **idx) for ky in range(N_Y)]


def texts(frame: Frame) -> list[str]:
    return [mark.reason for mark in frame.marks if mark.stage == "mrd"]


@pytest.mark.parametrize("name", ["brain8ch_semireal_full", "brain8ch_semireal_R2_acs24"])
@pytest.mark.parametrize("batch", [1, 7, 1000])
def test_a_real_file_is_assembled_as_the_reference_library_reads_it(name: str, batch: int) -> None:
    path = DATA / f"{name}.h5"
    if not path.exists():
        pytest.skip(f"{path} is not here")
    dataset = ismrmrd.Dataset(str(path), "dataset", mode="r")
    read = [dataset.read_acquisition(n) for n in range(dataset.number_of_acquisitions())]
    assembler = Assembler("s", parse_header(dataset.read_xml_header()), 8)
    heads = np.frombuffer(b"".join(bytes(each.getHead()) for each in read), m.ACQUISITION_HEADER)
    data = np.stack([each.data for each in read])
    frames = []
    for i in range(0, len(read), batch):
        frames += assembler.add(m.Acquisitions(heads[i : i + batch], data[i : i + batch]), 1, 2)
    (frame,) = [*frames, *assembler.finish()]
    by_line = {each.idx.kspace_encode_step_1: each for each in read}
    assert frame.attachments["ky"].tolist() == sorted(by_line)
    for row, ky in enumerate(sorted(by_line)):
        assert np.array_equal(frame.array[:, row], by_line[ky].data)
        only = by_line[ky].is_flag_set(ismrmrd.ACQ_IS_PARALLEL_CALIBRATION)
        assert frame.attachments["calibration_only"][row] == only
    assert frame.array.dtype == np.complex64
    assert frame.marks == ()
    assert assembler.faults.reason == ""


def test_a_frame_has_its_lines_counters_place_and_times() -> None:
    scan = Scan()
    counters = {"slice": 3, "repetition": 0, "phase": 1, "contrast": 2, "set": 4, "average": 5}
    assert scan.send(*full(**counters)[:-1]) == []
    (frame,) = scan.send(full(**counters)[-1])
    assert frame.array.shape == (N_COILS, N_Y, N_X)
    assert np.array_equal(frame.array, np.stack([samples(ky) for ky in range(N_Y)], axis=1))
    assert frame.position == Position(**counters)
    assert frame.axes == ("coil", "ky", "kx")
    assert (frame.sequence, frame.role, frame.received_ns, frame.acquired_ns) == (0, "imaging", 2, 1002)
    assert np.allclose(frame.affine @ (N_X // 2, N_Y // 2, 0, 1), (0, 0, 0, 1))
    assert np.allclose(np.diag(frame.affine), (10, 10, 5, 1))
    assert not frame.array.flags.writeable
    assert not frame.attachments["ky"].flags.writeable
    sent = frame.attachments["mrd_header"].view(m.ACQUISITION_HEADER)[0]
    assert sent["idx"]["contrast"] == 2
    assert scan.reason == ""


def test_lines_may_come_in_any_order() -> None:
    scan = Scan()
    order = [4, 0, 7, 2, 1, 6, 3, 5]
    (frame,) = scan.send(*[head(ky, LAST if ky == 5 else 0) for ky in order])
    assert np.array_equal(frame.array, np.stack([samples(ky) for ky in range(N_Y)], axis=1))
    assert frame.marks == ()


def test_interleaved_slices_echoes_and_phases_are_taken_apart() -> None:
    scan = Scan()
    keys = [{"slice": s, "contrast": c, "phase": p} for s in range(2) for c in range(2) for p in range(2)]
    for ky in range(N_Y):
        scan.send(*[head(ky, LAST if ky == N_Y - 1 else 0, **key) for key in keys])
    assert [frame.sequence for frame in scan.frames] == list(range(8))
    assert {frame.position for frame in scan.frames} == {Position(**key) for key in keys}
    assert all(frame.array.shape[1] == N_Y and frame.marks == () for frame in scan.frames)


@pytest.mark.parametrize("flag", [m.Flag.LAST_IN_SLICE, m.Flag.LAST_IN_REPETITION, m.Flag.LAST_IN_MEASUREMENT])
def test_each_last_flag_completes_a_frame(flag: m.Flag) -> None:
    scan = Scan(HALF)  # calibration lines may follow, so the number of lines does not tell
    assert scan.send(head(0), head(2), head(4)) == []
    (frame,) = scan.send(head(6, flag.mask))
    assert frame.attachments["ky"].tolist() == [0, 2, 4, 6]
    assert frame.marks == ()


def test_without_flags_a_frame_is_complete_with_its_lines_or_at_the_next_repetition_or_at_the_end() -> None:
    scan = Scan()
    assert len(scan.send(*[head(ky, repetition=0) for ky in range(N_Y)])) == 1
    scan = Scan(HALF)
    assert scan.send(*[head(ky) for ky in (0, 2, 3, 4, 6)]) == []
    (first,) = scan.send(head(0, repetition=1))
    (second,) = scan.finish()
    assert (first.position.repetition, second.position.repetition) == (0, 1)
    assert (first.received_ns, second.received_ns) == (1, 2)  # when its own last line came


def test_embedded_calibration_is_marked_and_separate_calibration_is_a_frame_of_its_own() -> None:
    only, both = m.Flag.PARALLEL_CALIBRATION.mask, m.Flag.PARALLEL_CALIBRATION_AND_IMAGING.mask
    scan = Scan(HALF)
    (frame,) = scan.send(head(0), head(2), head(3, only), head(4, both), head(5, only), head(6, LAST))
    assert frame.attachments["ky"].tolist() == [0, 2, 3, 4, 5, 6]
    assert frame.attachments["calibration_only"].tolist() == [False, False, True, False, True, False]
    assert frame.marks == ()

    scan = Scan(replace(HALF, calibration="separate"))
    assert scan.send(head(3, only), head(4, only), head(5, only)) == []
    calibration, frame = scan.send(head(0), head(2), head(4), head(6, LAST))
    assert (calibration.role, calibration.sequence) == ("calibration", -1)
    assert calibration.attachments["ky"].tolist() == [3, 4, 5]
    assert (frame.role, frame.sequence) == ("imaging", 0)
    assert frame.attachments["ky"].tolist() == [0, 2, 4, 6]
    (calibration,) = scan.send(head(3, only, slice=1), head(4, only | LAST, slice=1))
    assert calibration.position == Position(slice=1)
    assert scan.reason == ""


def test_noise_lines_become_one_frame_before_the_first_image() -> None:
    scan = Scan()
    noise = np.arange(40, dtype=np.float32).view(np.complex64).reshape(2, N_COILS, 5)
    scan.send(head(0, m.Flag.NOISE.mask), head(0, m.Flag.NOISE.mask), data=noise)
    frames = scan.send(*full())
    assert [frame.role for frame in frames] == ["noise", "imaging"]
    assert np.array_equal(frames[0].array, np.concatenate(noise, axis=1))
    assert (frames[0].axes, frames[0].sequence) == (("coil", "sample"), -1)
    assert scan.reason == ""


def test_what_is_not_imaging_is_skipped_and_counted() -> None:
    scan = Scan()
    flags = (m.Flag.NAVIGATION, m.Flag.PHASE_CORRECTION, m.Flag.HP_FEEDBACK, m.Flag.RT_FEEDBACK, m.Flag.DUMMY)
    scan.send(*[head(3, flag.mask) for flag in flags])
    (frame,) = scan.send(*full())
    assert frame.marks == ()
    assert scan.assembler.skipped == {"navigation": 1, "phase correction": 1, "feedback": 2, "dummy": 1}
    assert scan.reason == ""


def test_reversed_lines_are_turned_round() -> None:
    scan = Scan()
    heads = full()
    data = np.stack([samples(ky) for ky in range(N_Y)])
    for ky in range(1, N_Y, 2):
        heads[ky]["flags"] |= m.Flag.REVERSE.mask
        heads[ky]["center_sample"] = N_X - 1 - N_X // 2
        data[ky] = data[ky, :, ::-1]
    (frame,) = scan.send(*heads, data=data)
    assert np.array_equal(frame.array, np.stack([samples(ky) for ky in range(N_Y)], axis=1))


def test_an_asymmetric_echo_puts_its_centre_in_the_middle() -> None:
    scan = Scan()
    heads = full()
    for each in heads:
        each["center_sample"], each["discard_pre"] = 3, 1  # samples 1…4, of which 3 is the centre
    data = np.stack([samples(ky, 5) for ky in range(N_Y)])
    (frame,) = scan.send(*heads, data=data)
    assert np.array_equal(frame.array[:, :, 1:5], data[:, :, 1:].transpose(1, 0, 2))
    assert not frame.array[:, :, [0, 5]].any()


def test_partial_fourier_lines_are_shifted_to_the_middle() -> None:
    limits = b"<minimum>0</minimum><maximum>7</maximum><center>4</center>"
    xml = encode_header_xml(ENCODING)
    assert limits in xml
    xml = xml.replace(limits, b"<minimum>0</minimum><maximum>5</maximum><center>2</center>")
    scan = Scan(xml=xml)
    (frame,) = scan.send(*[head(ky) for ky in range(6)])
    assert frame.attachments["ky"].tolist() == [2, 3, 4, 5, 6, 7]
    assert frame.marks == ()


def test_a_missing_line_is_named() -> None:
    scan = Scan()
    (frame,) = scan.send(*[each for ky, each in enumerate(full()) if ky not in (2, 5)])
    assert texts(frame) == ["lines 2, 5 did not come"]
    assert scan.reason == "frame 0: lines 2, 5 did not come"
    scan = Scan(HALF)
    (frame,) = scan.send(head(1), head(5), head(7, LAST))  # a grid that begins at line 1
    assert texts(frame) == ["line 3 did not come"]


def test_a_repeated_line_is_named_and_the_first_kept() -> None:
    scan = Scan(HALF)
    data = np.stack([samples(ky) for ky in (0, 2, 99, 4, 6)])
    (frame,) = scan.send(head(0), head(2), head(2), head(4), head(6, LAST), data=data)
    assert np.array_equal(frame.array[:, 1], samples(2))
    assert texts(frame) == ["line 2 came more than once, the first is kept"]
    assert scan.send(head(6, LAST)) == []  # again, after the frame was complete
    assert scan.reason.endswith("; line 6 came after the end of its frame, left out")


def test_a_scanner_that_does_not_count_repetitions_still_gets_every_frame() -> None:
    scan = Scan(HALF)
    for _ in range(3):
        scan.send(head(0, m.Flag.FIRST_IN_SLICE.mask), head(2), head(4), head(6, LAST))
    assert [frame.sequence for frame in scan.frames] == [0, 1, 2]
    assert scan.reason == ""


def test_lines_with_nan_are_left_out_and_named() -> None:
    scan = Scan()
    data = np.stack([samples(ky) for ky in range(N_Y)])
    data[3, 1, 2] = np.nan
    (frame,) = scan.send(*full(), data=data)
    assert frame.attachments["ky"].tolist() == [0, 1, 2, 4, 5, 6, 7]
    assert texts(frame) == ["line 3 with NaN or Inf left out"]
    data[:] = np.inf
    assert scan.send(*full(repetition=1), data=data) == []
    assert "frame 1: no line is left, so there is no image" in scan.reason


def test_an_all_zero_frame_is_marked() -> None:
    scan = Scan()
    (frame,) = scan.send(*full(), data=np.zeros((N_Y, N_COILS, N_X), np.complex64))
    assert texts(frame) == ["all samples are zero"]
    assert scan.reason == "frame 0: all samples are zero"


def test_the_reason_stays_short_however_much_is_wrong() -> None:
    scan = Scan()
    for n in range(500):
        scan.send(head(0, LAST, repetition=n))
    assert scan.reason.startswith("frame 0: lines 1, 2, 3, 4, 5, 6, 7 did not come; frame 1:")
    assert scan.reason.endswith("; and 497 more faults")


def test_a_slice_without_orientation_is_marked() -> None:
    scan = Scan()
    heads = full()
    for each in heads:
        each["read_dir"] = each["phase_dir"] = 0
    (frame,) = scan.send(*heads)
    assert texts(frame) == ["the scanner sent no valid slice orientation, axial is assumed"]
    assert np.allclose(np.diag(frame.affine), (10, 10, 5, 1))
    assert scan.reason == ""


def test_epi_is_marked() -> None:
    scan = Scan(xml=encode_header_xml(ENCODING).replace(b">cartesian<", b">epi<"))
    (frame,) = scan.send(*full())
    assert texts(frame) == ["epi phase correction is not applied, expect ghosts"]


def test_another_encoding_space_is_left_out_with_a_reason() -> None:
    scan = Scan()
    other = head(1)
    other["encoding_space_ref"] = 1
    scan.send(other, *full())
    assert scan.assembler.skipped == {"encoding space 1": 1}
    assert scan.reason == "lines of encoding space 1 were left out: only space 0 is reconstructed"


def test_memory_is_bounded_by_completing_the_oldest_frame() -> None:
    scan = Scan()
    scan.assembler = Assembler("s", parse_header(encode_header_xml(ENCODING)), N_COILS, 8 * N_COILS * N_X * N_Y)
    scan.send(head(0, slice=0))
    scan.send(head(0, slice=1))
    (frame,) = scan.send(head(0, slice=2))
    assert frame.position.slice == 0


@pytest.mark.parametrize(
    ("one", "data", "text"),
    [
        (head(N_Y), None, "mrd: line 8 lies outside the 8 encoded lines of the header"),
        (head(0, kspace_encode_step_2=1), None, "mrd: line of partition 1 in a 2D scan; 3D encoding is not supported"),
        (head(0), np.zeros((1, 3, N_X), np.complex64), "mrd: acquisition with 3 channels in a scan of 2"),
        (head(0), np.zeros((1, N_COILS, 7), np.complex64), "mrd: line of 7 samples, 0 and 0 of them to discard"),
    ],
)
def test_what_breaks_the_scan(one: np.ndarray, data: np.ndarray | None, text: str) -> None:
    scan = Scan()
    with pytest.raises(PeerError, match="^" + text):
        scan.send(one, data=data)
