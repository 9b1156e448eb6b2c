# SPDX-License-Identifier: Apache-2.0
"""Images from the scanner to frames, and frames to answers."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.testing import assert_allclose

from appliance.errors import PeerError
from appliance.frames import Applied, Finding, Frame, Mark, Position
from appliance.mrd import messages as m
from appliance.mrd.answer import AnswerEncoder, place_of
from appliance.mrd.connection import Connection
from appliance.mrd.images import ImageReader
from appliance.mrd.meta import encode_meta, parse_meta

RNG = np.random.default_rng(9)


def image(data: np.ndarray, **fields: object) -> m.Image:
    head = np.zeros(1, m.IMAGE_HEADER)[0]
    head["image_type"] = 1
    head["field_of_view"] = (200, 100, 12)
    head["read_dir"], head["phase_dir"], head["slice_dir"] = np.eye(3)
    head["position"] = (5, 6, 7)
    for name, value in fields.items():
        head[name] = value
    return m.Image(head, b"", data)


def read(*images: m.Image) -> tuple[list[Frame], ImageReader]:
    reader = ImageReader("s")
    return [frame for each in images for frame in reader.add(each, 1, 2)], reader


def test_a_magnitude_image_becomes_a_frame() -> None:
    pixels = RNG.integers(0, 4000, (1, 1, 5, 10)).astype(np.uint16)
    (frame,), reader = read(image(pixels, slice=4, repetition=2))
    assert np.array_equal(frame.array, pixels[0, 0].astype(np.float32))
    assert frame.array.dtype == np.float32
    assert (frame.axes, frame.sequence, frame.position) == (("y", "x"), 0, Position(slice=4, repetition=2))
    assert_allclose(frame.affine @ (5, 2, 0, 1), (5, 6, 7, 1))
    assert_allclose(np.diag(frame.affine), (20, 20, 12, 1))
    assert (frame.marks, reader.faults.reason) == ((), "")


def test_a_volume_becomes_one_frame_for_each_z() -> None:
    pixels = RNG.random((1, 4, 5, 10)).astype(np.float32)
    frames, _ = read(image(pixels))
    assert [frame.sequence for frame in frames] == [0, 1, 2, 3]
    assert all(np.array_equal(frame.array, pixels[0, z]) for z, frame in enumerate(frames))
    assert [frame.affine[2, 3] for frame in frames] == [1, 4, 7, 10]  # 3 mm apart, slice 4 // 2 at the position


def test_complex_and_multi_channel_images_keep_their_pixels_beside_the_magnitude() -> None:
    pixels = (RNG.random((3, 1, 5, 10)) + 1j * RNG.random((3, 1, 5, 10))).astype(np.complex64)
    frames, _ = read(image(pixels[:1], image_type=5), image(pixels, image_type=5))
    assert_allclose(frames[0].array, np.abs(pixels[0, 0]), rtol=1e-6)
    assert np.array_equal(frames[0].attachments["complex"], pixels[0, 0])
    assert_allclose(frames[1].array, np.linalg.norm(pixels[:, 0], axis=0), rtol=1e-6)
    assert np.array_equal(frames[1].attachments["complex"], pixels[:, 0])


def test_phase_images_are_left_out_with_a_reason() -> None:
    frames, reader = read(image(np.zeros((1, 1, 4, 4), np.float32), image_type=2))
    assert frames == []
    assert reader.skipped == {"images of type 2": 1}
    assert reader.faults.reason == "images of type 2 were left out: only magnitude (1) and complex (5) are taken"


def test_pixels_with_nan_become_zero_with_a_mark() -> None:
    pixels = np.ones((1, 1, 2, 2), np.float32)
    pixels[0, 0, 0, 1] = np.nan
    (frame,), reader = read(image(pixels))
    assert frame.array.tolist() == [[1, 0], [1, 1]]
    assert frame.marks == (Mark("mrd", "pixels with NaN or Inf set to 0"),)
    assert reader.faults.reason == "frame 0: pixels with NaN or Inf set to 0"


def test_an_image_without_size_is_refused_and_without_orientation_marked() -> None:
    with pytest.raises(PeerError, match="mrd: image with a field of view of 0 x 100 mm; send its size"):
        read(image(np.ones((1, 1, 2, 2), np.float32), field_of_view=(0, 100, 1)))
    (frame,), _ = read(image(np.ones((1, 1, 2, 2), np.float32), read_dir=0))
    assert frame.marks[0].reason == "the scanner sent no valid slice orientation, axial is assumed"


# Answers -----------------------------------------------------------------------------------------------------------


def answer(encoder: AnswerEncoder, frame: Frame) -> m.Image:
    (event,) = Connection("appliance").receive(encoder.encode(frame))
    assert isinstance(event, m.Image)
    return event


def raw_head(**fields: object) -> np.ndarray:
    head = np.zeros(1, m.ACQUISITION_HEADER)
    for name, value in fields.items():
        head[name] = value
    return head.view(np.uint8)


def test_an_answer_to_raw_data_copies_what_the_scanner_sent() -> None:
    (frame,), _ = read(image(np.full((1, 1, 5, 10), 2.0, np.float32), repetition=7))
    sent = raw_head(measurement_uid=77, acquisition_time_stamp=123, patient_table_position=(1, 2, 3), user_int=range(8))
    frame = replace(frame, sequence=7, attachments={"mrd_header": sent})
    reply = answer(AnswerEncoder("float32", "nearscan"), frame)
    head = reply.head
    assert (head["measurement_uid"], head["acquisition_time_stamp"], head["repetition"]) == (77, 123, 7)
    assert (head["image_index"], head["image_series_index"], head["image_type"]) == (8, 1, 1)
    assert head["user_int"].tolist() == list(range(8))
    assert head["patient_table_position"].tolist() == [1, 2, 3]
    assert_allclose(head["position"], (5, 6, 7))
    assert_allclose(head["field_of_view"], (200, 100, 12))
    assert_allclose([head["read_dir"], head["phase_dir"], head["slice_dir"]], np.eye(3), atol=1e-7)
    assert np.array_equal(reply.data[0, 0], frame.array)


def test_an_answer_to_an_image_changes_only_what_changed() -> None:
    original = image(np.full((1, 1, 5, 10), 3, np.uint16), image_series_index=5, flags=64, user_float=range(8))
    (frame,), _ = read(original)
    head = answer(AnswerEncoder("uint16", "nearscan"), frame).head
    for name in set(m.IMAGE_HEADER.names) - {
        "data_type",
        "matrix_size",
        "channels",
        "image_index",
        "attribute_string_len",
    }:
        assert_allclose(head[name], original.head[name], atol=1e-6, err_msg=name)


def test_meta_says_what_was_done_and_what_was_wrong() -> None:
    (frame,), _ = read(image(np.full((1, 1, 5, 10), 2.0, np.float32)))
    frame = replace(
        frame,
        marks=(Mark("denoise", "model failed its golden test"),),
        findings=(Finding("spike", "RF spike in line 81"),),
        provenance=(Applied("reconstruct", "1", ""), Applied("denoise", "1", "")),
    )
    meta = parse_meta(answer(AnswerEncoder("uint16", "suffix"), frame).meta_xml)
    assert meta["DataRole"] == ["Image"]
    assert meta["ImageProcessingHistory"] == ["nearscan", "reconstruct", "denoise"]
    assert meta["SequenceDescriptionAdditional"] == ["suffix"]
    assert meta["ImageComments"] == ["denoise: model failed its golden test", "RF spike in line 81"]
    assert meta["Keep_image_geometry"] == ["1"]
    assert [float(value) for value in meta["ImageRowDir"]] == [1, 0, 0]
    assert [float(value) for value in meta["ImageColumnDir"]] == [0, 1, 0]
    assert (float(meta["WindowCenter"][0]), float(meta["WindowWidth"][0])) == (4095.5, 8191)


def test_integers_keep_the_scale_and_window_of_the_first_image_and_clipping_is_told() -> None:
    (first,), _ = read(image(np.linspace(0, 2, 50, dtype=np.float32).reshape(1, 1, 5, 10)))
    encoder = AnswerEncoder("uint16", "nearscan")
    one = answer(encoder, first)
    brighter = answer(encoder, replace(first, array=first.array * 4))
    clipped = answer(encoder, replace(first, array=first.array * 9))
    assert (one.data.dtype, one.data.max(), brighter.data.max(), clipped.data.max()) == (np.uint16, 8191, 32764, 65535)
    windows = [parse_meta(each.meta_xml)["WindowWidth"] for each in (one, brighter, clipped)]
    assert windows[0] == windows[1] == windows[2]
    n_clipped = int((first.array * 9 * 8191 / 2 > 65535.5).sum())
    told = f"CLIPPED: {n_clipped} pixels lie outside the range that the first image of the scan set"
    assert parse_meta(clipped.meta_xml)["ImageComments"] == [told]


def test_only_single_images_can_be_answered() -> None:
    (frame,), _ = read(image(np.ones((1, 1, 2, 2), np.float32)))
    with pytest.raises(ValueError, match="expected axes"):
        place_of(replace(frame, axes=("coil", "ky", "kx")))


def test_meta_survives_the_way_there_and_back_with_odd_characters() -> None:
    meta = {"a": ["<&>\"'", "µ ü 心"], "b": []}
    assert parse_meta(encode_meta(meta)) == meta
    assert parse_meta(encode_meta({"a": ["bell\a nul\0"]})) == {"a": ["bell? nul?"]}
    assert parse_meta(b"") == {}
    with pytest.raises(PeerError, match="mrd image meta: not well-formed XML"):
        parse_meta(b"<ismrmrdMeta>")
