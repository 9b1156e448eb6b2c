# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from appliance.bus import Publisher, Subscriber
from appliance.frames import Mark
from appliance.imaging.volume_message import MOST_VOXELS, TOPIC, Volume, pack, unpack

AFFINE = np.array([[0, -0.4, 0, 12.5], [0.5, 0, 0, -3], [0, 0, -2.5, 80], [0, 0, 0, 1]])


def volume(array, **changes):
    given = {
        "pipeline": "or",
        "scan_id": "or-1",
        "modality": "US",
        "array": array,
        "affine": AFFINE,
        "value_range": (0.0, 255.0),
        "acquired_ns": 1_700_000_000_123_456_789,
        "received_ns": 987_654_321,
        "version": 3,
        "complete": True,
        "slope": 0.5,
        "intercept": -1024.0,
        "filled": 0.25,
        "marks": (Mark("tracking", "left out 3 frames"),),
    }
    return Volume(**{**given, **changes})


@settings(deadline=None)
@given(
    st.sampled_from([np.uint8, np.int16]).flatmap(
        lambda dtype: arrays(dtype, array_shapes(min_dims=3, max_dims=3, max_side=5))
    )
)
def test_what_is_packed_is_unpacked_through_json_and_bytes(array):
    packed = volume(array)
    header, payload = pack(packed)
    found = unpack(json.loads(json.dumps(header)), payload.tobytes())
    np.testing.assert_array_equal(found.array, array)
    np.testing.assert_array_equal(found.affine, AFFINE)
    assert found.array.dtype == array.dtype and not found.array.flags.writeable
    for name in set(Volume.__dataclass_fields__) - {"array", "affine"}:
        assert getattr(found, name) == getattr(packed, name), name


def test_it_travels_on_the_bus(tmp_path):
    sent = np.arange(24, dtype=np.int16).reshape(2, 3, 4)
    publisher = Publisher(tmp_path, "pipeline-or", TOPIC)
    subscriber = Subscriber(tmp_path, [("pipeline-or", TOPIC)])
    got = None
    while got is None:
        publisher.publish(*pack(volume(sent)))
        got = subscriber.receive(0.05)
    publisher.close()
    subscriber.close()
    assert got[:2] == ("pipeline-or", "volume")
    np.testing.assert_array_equal(unpack(*got[2:]).array, sent)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"shape": [2, 3]}, "shape"),
        ({"shape": [2, 3, 0]}, "shape"),
        ({"shape": [2, 3, -4]}, "shape"),
        ({"shape": [2, 3, 4.0]}, "shape"),
        ({"shape": [1 << 20, 1 << 20, 1 << 20]}, f"at most {MOST_VOXELS}"),
        ({"dtype": "float64"}, "'float64'"),
        ({"dtype": "int16"}, "with 24 bytes"),
        ({"affine": [1.0] * 12}, "affine"),
        ({"affine": [float("nan")] * 16}, "affine"),
        ({"affine": [0.0] * 16}, "affine"),
    ],
)
def test_a_header_that_cannot_be_is_refused(change, words):
    header, payload = pack(volume(np.zeros((2, 3, 4), np.uint8)))
    with pytest.raises(ValueError, match=words):
        unpack({**header, **change}, payload.tobytes())


@pytest.mark.parametrize("key", ["scan_id", "dtype", "shape", "marks", "filled"])
def test_a_header_that_lacks_something_is_refused(key):
    header, payload = pack(volume(np.zeros((2, 3, 4), np.uint8)))
    del header[key]
    with pytest.raises(ValueError, match=f"lacks {key}"):
        unpack(header, payload.tobytes())


def test_what_could_not_be_read_is_not_sent():
    with pytest.raises(ValueError, match="C-contiguous"):
        pack(volume(np.zeros((2, 3, 4), np.uint8).T))
    with pytest.raises(ValueError, match="float32"):
        pack(volume(np.zeros((2, 3, 4), np.float32)))
