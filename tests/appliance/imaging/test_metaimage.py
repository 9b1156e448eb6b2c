# SPDX-License-Identifier: Apache-2.0
import zlib
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.imaging.metaimage import read_metaimage

TRACKED = Path(__file__).parents[3] / "../shared/data/us_tracked/TestImages"
PIXELS = np.arange(2 * 3 * 4, dtype=np.uint8).reshape(2, 3, 4)
POSE = "1 0 0 5 0 1 0 6 0 0 1 7 0 0 0 1"


def mha(data=None, compressed=False, **fields):
    data = PIXELS.tobytes() if data is None else data
    head = {
        "NDims": "3",
        "CompressedData": str(compressed),
        "DimSize": "4 3 2",
        "ElementType": "MET_UCHAR",
        "ElementSpacing": "0.5 0.6 2",
        "Offset": "1 -2 3",
        "Seq_Frame0000_ProbeToTrackerTransform": POSE,
        "Seq_Frame0000_ProbeToTrackerTransformStatus": "OK",
        "Seq_Frame0001_ProbeToTrackerTransform": POSE,
        "Seq_Frame0001_ProbeToTrackerTransformStatus": "INVALID",
        "Seq_Frame0001_Timestamp": "12.5",
        "Seq_Frame0007_Timestamp": "of no frame",
        **fields,
    }
    text = "".join(f"{key} = {value}\n" for key, value in head.items())
    return (text + "ElementDataFile = LOCAL\n").encode() + data


@pytest.mark.parametrize("compressed", [False, True])
def test_pixels_poses_and_times(compressed):
    data = zlib.compress(PIXELS.tobytes()) if compressed else PIXELS.tobytes()
    image = read_metaimage(mha(data, compressed))
    np.testing.assert_array_equal(image.array, PIXELS)
    assert image.spacing_mm == (0.5, 0.6, 2) and image.offset_mm == (1, -2, 3)
    assert image.transform_names() == ("ProbeToTracker",) and not image.array.flags.writeable
    np.testing.assert_array_equal(image.transform(0, "ProbeToTracker")[:3, 3], [5, 6, 7])
    assert image.transform(1, "ProbeToTracker") is None and image.transform(0, "Stylus") is None
    assert len(image.frames) == 2 and image.frames[1]["Timestamp"] == "12.5"


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (b"", "expected three dimensions"),
        (mha(NDims="2", DimSize="4 3"), "expected three dimensions"),
        (mha(DimSize="4 -3 2"), "expected three dimensions"),
        (mha(ElementType="MET_OTHER"), "'MET_OTHER'"),
        (mha(PIXELS.tobytes()[:-1]), "23 bytes of pixels, 24 are meant"),
        (mha(b"xyz", compressed=True), "its pixels are damaged"),
        (mha(DimSize="100000 100000 100000"), "over 4 GiB"),
    ],
)
def test_a_file_that_is_none_is_told(data, words):
    with pytest.raises(ValueError, match=words):
        read_metaimage(data)


def test_a_pose_of_too_few_numbers_is_told():
    image = read_metaimage(mha(Seq_Frame0000_ProbeToTrackerTransform="1 2 3"))
    with pytest.raises(ValueError, match="frame 0: ProbeToTrackerTransform has 3 numbers, not 16"):
        image.transform(0, "ProbeToTracker")


def test_a_small_file_does_not_become_a_large_image():
    bomb = zlib.compress(bytes(1 << 24))
    assert len(bomb) < 20_000
    np.testing.assert_array_equal(read_metaimage(mha(bomb, compressed=True)).array, np.zeros((2, 3, 4)))


@settings(deadline=None)
@given(st.binary(max_size=200), st.integers(0, 600))
def test_damage_is_an_error_of_value(junk, at):
    data = mha()
    try:
        read_metaimage(data[:at] + junk + data[at:])
    except ValueError:
        return


@pytest.mark.parametrize("name", ["SpinePhantomFreehand", "fCal_Test_Validation_3NWires_fCal2.0"])
def test_real_sequences(name):
    path = TRACKED / f"{name}.igs.mha"
    if not path.exists():
        pytest.skip(f"{path} is absent")
    image = read_metaimage(path.read_bytes())
    assert image.transform_names() == ("ProbeToTracker", "ReferenceToTracker", "StylusToTracker")
    times = [float(fields["Timestamp"]) for fields in image.frames]
    assert len(times) == len(image.array) and times == sorted(times)
