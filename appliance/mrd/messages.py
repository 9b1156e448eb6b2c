# SPDX-License-Identifier: Apache-2.0
"""MRD messages: layouts, flags, event classes and encoders.

Rule: no sockets here. Everything is little-endian; each message starts with a u16 id. Reference: "MRD Streaming
Protocol" and "Message Types" of https://ismrmrd.readthedocs.io.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from enum import IntEnum
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray


class Id(IntEnum):
    """Message ids."""

    CONFIG_FILE = 1
    CONFIG_TEXT = 2
    HEADER = 3
    CLOSE = 4
    TEXT = 5
    ACQUISITION = 1008
    IMAGE = 1022
    WAVEFORM = 1026


class Flag(IntEnum):
    """Acquisition flags: 1-based bit numbers, as the standard counts them."""

    FIRST_IN_SLICE = 7
    LAST_IN_SLICE = 8
    FIRST_IN_REPETITION = 13
    LAST_IN_REPETITION = 14
    NOISE = 19
    PARALLEL_CALIBRATION = 20
    PARALLEL_CALIBRATION_AND_IMAGING = 21
    REVERSE = 22
    NAVIGATION = 23
    PHASE_CORRECTION = 24
    LAST_IN_MEASUREMENT = 25
    HP_FEEDBACK = 26
    DUMMY = 27
    RT_FEEDBACK = 28
    SURFACE_COIL_CORRECTION = 29
    PHASE_STABILISATION_REFERENCE = 30
    PHASE_STABILISATION = 31

    @property
    def mask(self) -> int:
        """The flag as a bit mask."""
        return 1 << (self.value - 1)


ENCODING_COUNTERS = np.dtype(
    [
        ("kspace_encode_step_1", "<u2"),
        ("kspace_encode_step_2", "<u2"),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("segment", "<u2"),
        ("user", "<u2", (8,)),
    ]
)
ACQUISITION_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("number_of_samples", "<u2"),
        ("available_channels", "<u2"),
        ("active_channels", "<u2"),
        ("channel_mask", "<u8", (16,)),
        ("discard_pre", "<u2"),
        ("discard_post", "<u2"),
        ("center_sample", "<u2"),
        ("encoding_space_ref", "<u2"),
        ("trajectory_dimensions", "<u2"),
        ("sample_time_us", "<f4"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("idx", ENCODING_COUNTERS),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
    ]
)
IMAGE_HEADER = np.dtype(
    [
        ("version", "<u2"),
        ("data_type", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("matrix_size", "<u2", (3,)),
        ("field_of_view", "<f4", (3,)),
        ("channels", "<u2"),
        ("position", "<f4", (3,)),
        ("read_dir", "<f4", (3,)),
        ("phase_dir", "<f4", (3,)),
        ("slice_dir", "<f4", (3,)),
        ("patient_table_position", "<f4", (3,)),
        ("average", "<u2"),
        ("slice", "<u2"),
        ("contrast", "<u2"),
        ("phase", "<u2"),
        ("repetition", "<u2"),
        ("set", "<u2"),
        ("acquisition_time_stamp", "<u4"),
        ("physiology_time_stamp", "<u4", (3,)),
        ("image_type", "<u2"),
        ("image_index", "<u2"),
        ("image_series_index", "<u2"),
        ("user_int", "<i4", (8,)),
        ("user_float", "<f4", (8,)),
        ("attribute_string_len", "<u4"),
    ]
)
WAVEFORM_HEADER = np.dtype(  # a C struct with natural alignment, unlike the two above
    [
        ("version", "<u2"),
        ("flags", "<u8"),
        ("measurement_uid", "<u4"),
        ("scan_counter", "<u4"),
        ("time_stamp", "<u4"),
        ("number_of_samples", "<u2"),
        ("channels", "<u2"),
        ("sample_time_us", "<f4"),
        ("waveform_id", "<u2"),
    ],
    align=True,
)
CONFIG_FILE_SIZE = 1024
DATA_TYPES: dict[int, np.dtype[Any]] = {
    1: np.dtype("<u2"),
    2: np.dtype("<i2"),
    3: np.dtype("<u4"),
    4: np.dtype("<i4"),
    5: np.dtype("<f4"),
    6: np.dtype("<f8"),
    7: np.dtype("<c8"),
    8: np.dtype("<c16"),
}
IMAGE_TYPE_MAGNITUDE, IMAGE_TYPE_COMPLEX, IMAGE_TYPE_RGB = 1, 5, 6


@lru_cache(maxsize=16)
def acquisition_message(n_samples: int, n_channels: int, trajectory_dimensions: int) -> np.dtype[Any]:
    """Return the layout of one whole ACQUISITION message."""
    return np.dtype(
        [
            ("id", "<u2"),
            ("head", ACQUISITION_HEADER),
            ("trajectory", "<f4", (n_samples, trajectory_dimensions)),
            ("data", "<c8", (n_channels, n_samples)),
        ]
    )


# Events ------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class ConfigFile:
    """Name of a configuration on our side. Never imported or opened: it is only recorded."""

    name: str


@dataclass(frozen=True)
class ConfigText:
    """Text of a configuration."""

    text: str


@dataclass(frozen=True)
class Header:
    """The MRD header, XML as sent but for trailing NULs. Identifies the patient: keep it out of logs."""

    xml: bytes

    def __repr__(self) -> str:
        return f"Header({len(self.xml)} bytes)"


@dataclass(frozen=True)
class Close:
    """No more data will come."""


@dataclass(frozen=True)
class Text:
    """A log line, or JSON parameters right after the header."""

    text: str


@dataclass(frozen=True, eq=False)
class Acquisitions:
    """A run of equally shaped lines.

    Both arrays are views into the receive buffer (not aligned): copy what you keep before the next `receive`.
    """

    heads: NDArray[Any]  # (n,) ACQUISITION_HEADER
    data: NDArray[np.complex64]  # (n, coil, sample)


@dataclass(frozen=True, eq=False)
class Image:
    """One image message. The array is a copy."""

    head: np.void  # IMAGE_HEADER
    meta_xml: bytes
    data: NDArray[Any]  # (channel, z, y, x)


@dataclass(frozen=True, eq=False)
class Waveform:
    """Physiological or gradient waveform. The array is a copy."""

    head: np.void  # WAVEFORM_HEADER
    data: NDArray[np.uint32]  # (channel, sample)


Event = ConfigFile | ConfigText | Header | Close | Text | Acquisitions | Image | Waveform

# Encoders ----------------------------------------------------------------------------------------------------------


def _with_length(message_id: Id, body: bytes) -> bytes:
    return struct.pack("<HI", message_id, len(body)) + body


def encode_config_file(name: str) -> bytes:
    """Encode CONFIG_FILE."""
    body = name.encode()
    if len(body) >= CONFIG_FILE_SIZE:
        raise ValueError(f"encode_config_file: name has {len(body)} bytes, at most {CONFIG_FILE_SIZE - 1} fit")
    return struct.pack(f"<H{CONFIG_FILE_SIZE}s", Id.CONFIG_FILE, body)


def encode_config_text(text: str) -> bytes:
    """Encode CONFIG_TEXT."""
    return _with_length(Id.CONFIG_TEXT, text.encode())


def encode_header(xml: bytes) -> bytes:
    """Encode HEADER."""
    return _with_length(Id.HEADER, xml)


def encode_text(text: str) -> bytes:
    """Encode TEXT."""
    return _with_length(Id.TEXT, text.encode())


def encode_close() -> bytes:
    """Encode CLOSE."""
    return struct.pack("<H", Id.CLOSE)


def encode_acquisitions(heads: NDArray[Any], data: NDArray[np.complex64]) -> bytes:
    """Encode a run of ACQUISITION messages without trajectories.

    `heads` is (n,) ACQUISITION_HEADER, whose sizes are set here from `data`, (n, coil, sample).
    """
    if data.ndim != 3 or heads.shape != data.shape[:1]:
        raise ValueError(f"encode_acquisitions: expected (n,) and (n, coil, sample), got {heads.shape}, {data.shape}")
    n_channels, n_samples = data.shape[1:]
    messages = np.empty(len(heads), acquisition_message(n_samples, n_channels, 0))
    messages["id"] = Id.ACQUISITION
    messages["head"] = heads
    messages["head"]["number_of_samples"] = n_samples
    messages["head"]["active_channels"] = n_channels
    messages["head"]["trajectory_dimensions"] = 0
    messages["data"] = data
    return messages.tobytes()


def encode_image(head: np.void, meta_xml: bytes, data: NDArray[Any]) -> bytes:
    """Encode IMAGE. `data` is (channel, z, y, x); its type and shape replace those in `head`."""
    types = [number for number, dtype in DATA_TYPES.items() if dtype == data.dtype]
    if not types or data.ndim != 4:
        raise ValueError(f"encode_image: expected (channel, z, y, x) of an MRD type, got {data.dtype} {data.shape}")
    head = head.copy()
    head["data_type"] = types[0]
    head["channels"] = data.shape[0]
    head["matrix_size"] = data.shape[:0:-1]
    head["attribute_string_len"] = len(meta_xml)
    parts = (struct.pack("<H", Id.IMAGE), head.tobytes(), struct.pack("<Q", len(meta_xml)), meta_xml, data.tobytes())
    return b"".join(parts)


def encode_waveform(head: np.void, data: NDArray[np.uint32]) -> bytes:
    """Encode WAVEFORM. `data` is (channel, sample); its shape replaces that in `head`."""
    head = head.copy()
    head["channels"], head["number_of_samples"] = data.shape
    return struct.pack("<H", Id.WAVEFORM) + head.tobytes() + data.tobytes()
