# SPDX-License-Identifier: Apache-2.0
"""Encoders and layouts against the `ismrmrd` library, which is independent of ours."""

from __future__ import annotations

import io

import ismrmrd
import numpy as np
import pytest
from ismrmrd.serialization import ConfigFile, ConfigText, ProtocolDeserializer

from appliance.mrd import messages as m

RNG = np.random.default_rng(5)


def random_head(dtype: np.dtype, **fields: object) -> np.void:
    """Every byte random, floats finite."""
    head = np.frombuffer(RNG.bytes(dtype.itemsize), dtype)[0].copy()
    for name in dtype.names:
        if dtype[name].base.kind == "f":
            head[name] = RNG.standard_normal(dtype[name].shape)
    for name, value in fields.items():
        head[name] = value
    return head


def assert_same_fields(theirs: object, ours: np.void) -> None:
    for name in ours.dtype.names:
        value = getattr(theirs, name)
        if name == "idx":
            assert_same_fields(value, ours["idx"])
        else:
            assert np.array_equal(np.array(value), ours[name]), name


def test_header_sizes_are_those_of_the_standard() -> None:
    assert m.ACQUISITION_HEADER.itemsize == 340
    assert m.IMAGE_HEADER.itemsize == 198
    assert m.WAVEFORM_HEADER.itemsize == 40


def test_acquisitions_are_read_by_the_reference_library() -> None:
    heads = np.array([random_head(m.ACQUISITION_HEADER, version=1) for _ in range(3)])
    data = RNG.standard_normal((3, 4, 14)).astype(np.float32).view(np.complex64)
    stream = io.BytesIO(m.encode_acquisitions(heads, data) + m.encode_close())
    read = list(ProtocolDeserializer(stream).deserialize())
    assert len(read) == 3
    for acquisition, head, line in zip(read, heads, data, strict=True):
        head["number_of_samples"], head["active_channels"], head["trajectory_dimensions"] = 7, 4, 0
        assert_same_fields(acquisition.getHead(), head)
        assert np.array_equal(acquisition.data, line)


@pytest.mark.parametrize("number", [1, 2, 3, 5, 6, 7, 8])  # the library takes type 4 (int32) for 64 bits wide
def test_an_image_is_read_by_the_reference_library(number: int) -> None:
    head = random_head(m.IMAGE_HEADER, version=1)
    data = RNG.integers(0, 100, (2, 3, 5, 7)).astype(m.DATA_TYPES[number])
    meta = b"<ismrmrdMeta><meta><name>DataRole</name><value>Image</value></meta></ismrmrdMeta>"
    read = next(ProtocolDeserializer(io.BytesIO(m.encode_image(head, meta, data))).deserialize())
    head["data_type"], head["channels"], head["matrix_size"] = number, 2, (7, 5, 3)
    head["attribute_string_len"] = len(meta)
    assert_same_fields(read.getHead(), head)
    assert np.array_equal(read.data, data)
    assert read.meta["DataRole"] == "Image"


def test_a_waveform_is_read_by_the_reference_library() -> None:
    head = random_head(m.WAVEFORM_HEADER, version=1)
    data = RNG.integers(0, 2**32, (2, 9), dtype=np.uint32)
    read = next(ProtocolDeserializer(io.BytesIO(m.encode_waveform(head, data))).deserialize())
    head["channels"], head["number_of_samples"] = 2, 9
    assert_same_fields(read.getHead(), head)
    assert np.array_equal(read.data, data)


def test_texts_are_read_by_the_reference_library() -> None:
    stream = m.encode_config_file("naïve.xml") + m.encode_config_text("<a/>") + m.encode_text("µ") + m.encode_close()
    assert list(ProtocolDeserializer(io.BytesIO(stream)).deserialize()) == [
        ConfigFile("naïve.xml"),
        ConfigText("<a/>"),
        "µ",
    ]


def test_flag_masks_are_those_of_the_reference_library() -> None:
    for flag in m.Flag:
        acquisition = ismrmrd.Acquisition()
        acquisition.set_flag(flag.value)
        assert acquisition.flags == flag.mask


def test_wrong_use_is_a_value_error() -> None:
    with pytest.raises(ValueError, match="name has 1024 bytes, at most 1023 fit"):
        m.encode_config_file("x" * 1024)
    with pytest.raises(ValueError, match="expected \\(n,\\) and \\(n, coil, sample\\)"):
        m.encode_acquisitions(np.zeros(2, m.ACQUISITION_HEADER), np.zeros((3, 1, 4), np.complex64))
    with pytest.raises(ValueError, match="of an MRD type, got int8"):
        m.encode_image(np.zeros(1, m.IMAGE_HEADER)[0], b"", np.zeros((1, 1, 2, 2), np.int8))


def test_identity_in_the_header_never_shows_in_a_log() -> None:
    assert "Doe" not in repr(m.Header(b"<patientName>Doe</patientName>"))
