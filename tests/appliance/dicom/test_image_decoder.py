# SPDX-License-Identifier: Apache-2.0
"""Images out of files: the same as pydicom and numpy give, and nothing bad out of bad files."""

import os
import time
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.data import get_testdata_file
from received import ct

from appliance.dicom.image_decoder import DecodeError, ImageDecoder

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not DATA.exists(), reason=f"needs the scanner data in {DATA}")
MEMORY = 1 << 30


@pytest.fixture(scope="module")
def decoder():
    one = ImageDecoder(MEMORY, 20.0)
    yield one
    one.close()


def child_of(decoder):
    return decoder._child.pid


def test_pixels_are_rescaled_and_lie_where_the_standard_says(decoder):
    (one,) = decoder.decode(ct(7))
    assert one.image.dtype == np.float32
    np.testing.assert_array_equal(one.image, np.full((4, 6), 7 * 2 - 1024, np.float32))
    # PS3.3 C.7.6.2.1.1: x grows along a row, its step is the distance between columns, the second of PixelSpacing
    np.testing.assert_allclose(one.affine @ [0, 0, 0, 1], [-10, -20, 35, 1])
    np.testing.assert_allclose(one.affine @ [2, 0, 0, 1], [-9.5, -20, 35, 1])
    np.testing.assert_allclose(one.affine @ [0, 2, 0, 1], [-10, -19, 35, 1])
    np.testing.assert_allclose(one.affine @ [0, 0, 1, 1], [-10, -20, 40, 1])


@needs_data
@pytest.mark.filterwarnings("ignore")
def test_an_enhanced_object_gives_each_frame_with_its_own_place(decoder):
    path = DATA / "vendors" / "canon_philips_siemens_enh" / "Philips" / "IM_0027_fMAP.dcm"
    ds, frames = dcmread(path), list(decoder.decode(path.read_bytes()))
    assert len(frames) == int(ds.NumberOfFrames) == 64
    for frame, group, raw in zip(frames, ds.PerFrameFunctionalGroupsSequence, ds.pixel_array, strict=True):
        np.testing.assert_allclose(
            frame.affine[:3, 3], [float(v) for v in group.PlanePositionSequence[0].ImagePositionPatient]
        )
        values = group.PixelValueTransformationSequence[0]
        expected = raw * float(values.RescaleSlope) + float(values.RescaleIntercept)
        np.testing.assert_allclose(frame.image, expected, rtol=1e-6, atol=1e-3)  # float32
    assert len({tuple(frame.affine[:3, 3]) for frame in frames}) > 1


@pytest.mark.parametrize(
    "name",
    ["CT_small.dcm", "MR_small_RLE.dcm", "JPEG2000.dcm", "MR_small_bigendian.dcm", "MR_small_jpeg_ls_lossless.dcm"],
)
@pytest.mark.filterwarnings("ignore")
def test_compressed_or_not_the_values_are_those_of_pydicom(decoder, name):
    path = Path(get_testdata_file(name))
    (one,) = decoder.decode(path.read_bytes())
    ds = dcmread(path)
    expected = ds.pixel_array * float(ds.get("RescaleSlope", 1)) + float(ds.get("RescaleIntercept", 0))
    np.testing.assert_allclose(one.image, expected, rtol=1e-6)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "decode: it is no grey image"),
        ({"PixelData": b"\0\0"}, "decode: ValueError while decoding"),
    ],
)
def test_what_gives_no_image_is_told_in_our_words(decoder, change, words):
    before = child_of(decoder) if decoder._child else None
    with pytest.raises(DecodeError) as caught:
        list(decoder.decode(ct(1, **change)))
    assert str(caught.value) == words
    assert len(list(decoder.decode(ct(2)))) == 1, "the next is taken"
    assert before in (None, child_of(decoder))


@pytest.mark.parametrize(
    "change",
    [{"PixelSpacing": [0, 1]}, {"ImageOrientationPatient": [1, 0, 0, 1, 0, 0]}, {"ImagePositionPatient": None}],
)
def test_a_place_that_cannot_be_is_none(decoder, change):
    (one,) = decoder.decode(ct(1, **change))
    assert one.affine is None
    assert one.image.shape == (4, 6)


@needs_data
@pytest.mark.parametrize("path", sorted((DATA / "malformed_generated").glob("*.dcm")), ids=lambda path: path.name)
def test_hostile_files_end_within_their_time_and_the_next_is_taken(decoder, path):
    started = time.monotonic()
    try:
        images = [one.image for one in decoder.decode(path.read_bytes())]
    except DecodeError as error:
        assert str(error).startswith("decode: ")
    else:
        assert images[0].shape == (64, 64)
    assert time.monotonic() - started < 60
    (after,) = decoder.decode(ct(3))
    assert after.image[0, 0] == 3 * 2 - 1024


def test_a_file_that_asks_for_too_much_memory_ends_nothing_but_itself(decoder):
    ds = dcmread(Path(get_testdata_file("MR_small_RLE.dcm")))
    ds.Rows = ds.Columns = 65535
    out = BytesIO()
    ds.save_as(out)
    with pytest.raises(DecodeError):
        list(decoder.decode(out.getvalue()))
    assert len(list(decoder.decode(ct(2)))) == 1


def test_a_child_that_is_gone_is_replaced(decoder):
    list(decoder.decode(ct(1)))
    os.kill(child_of(decoder), 9)
    decoder._child.wait()
    with pytest.raises(DecodeError, match="it needs more memory or time than it may have"):
        list(decoder.decode(ct(2)))
    assert len(list(decoder.decode(ct(2)))) == 1


def test_a_file_that_is_left_in_the_middle_leaves_nothing_in_the_pipe(decoder):
    frames = decoder.decode(ct(1, NumberOfFrames=3, PixelData=bytes(3 * 4 * 6 * 2)))
    next(frames)
    frames.close()
    (one,) = decoder.decode(ct(5))
    assert one.image[0, 0] == 5 * 2 - 1024


def test_one_that_takes_too_long_is_stopped():
    slow = ImageDecoder(MEMORY, 0.001)  # no interpreter starts within a millisecond
    with pytest.raises(DecodeError, match=r"decode: it took more than 0.001 s"):
        list(slow.decode(ct(1)))
    assert slow._child is None
