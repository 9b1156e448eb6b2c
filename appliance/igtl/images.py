# SPDX-License-Identifier: Apache-2.0
"""IMAGE, whole or a part of one, and IMGMETA and LBMETA: which images and labels a server has.

Geometry: LPS mm inside, RAS on the wire. IMAGE has a field for either, but most displays never read it and
assume RAS, so RAS is what we send, and the field says so.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from appliance.errors import PeerError
from appliance.frames import Affine, Array
from appliance.igtl.header import from_timestamp, to_timestamp
from appliance.igtl.rigid import RAS_TO_LPS
from appliance.igtl.words import name_bytes, read_name

_IMAGE = struct.Struct(">HBBBB3H12f6H")
_IMAGE_META = struct.Struct(">64s20s32s64s64sQ3HBx")
_LABEL_META = struct.Struct(">64s20sBx4B3H20s")
_SCALARS = {2: "i1", 3: "u1", 4: "i2", 5: "u2", 6: "i4", 7: "u4", 10: "f4", 11: "f8"}
_CODES = {np.dtype(name): code for code, name in _SCALARS.items()}
_BIG, _LITTLE = 1, 2
_RAS, _LPS = 1, 2

Size = tuple[int, int, int]  # x, y, z


@dataclass(frozen=True, eq=False)
class Image:
    """IMAGE. `array` is (z, y, x) or (z, y, x, component); `affine` maps (x, y, z) index to LPS mm."""

    array: Array
    affine: Affine


@dataclass(frozen=True, eq=False)
class ImagePart:
    """IMAGE that updates a part: `array` as in Image belongs at `offset` in an image of `size`, both (x, y, z).

    `affine` is that of the whole image. A part is no Image, so that nobody shows it in the place of one.
    """

    array: Array
    affine: Affine
    offset: Size
    size: Size


@dataclass(frozen=True)
class ImageInfo:
    """One image of IMGMETA. `device_name` is what GET_IMAGE asks for; `scalar_type` as in IMAGE."""

    name: str
    device_name: str
    modality: str = ""
    patient_name: str = ""
    patient_id: str = ""
    time_ns: int = 0  # UTC
    size: Size = (0, 0, 0)
    scalar_type: int = 3

    def __repr__(self) -> str:  # no patient data in a log line
        return f"ImageInfo({self.device_name!r}, {self.size})"


@dataclass(frozen=True)
class ImageInfos:
    """IMGMETA."""

    images: tuple[ImageInfo, ...]


@dataclass(frozen=True)
class LabelInfo:
    """One label of LBMETA: voxels of value `label` in the image `device_name`."""

    name: str
    device_name: str
    label: int
    rgba: tuple[int, int, int, int] = (0, 0, 0, 0)
    size: Size = (0, 0, 0)
    owner: str = ""


@dataclass(frozen=True)
class LabelInfos:
    """LBMETA."""

    labels: tuple[LabelInfo, ...]


def paste(part: ImagePart, onto: Image) -> Image:
    """Return `onto` (not modified) with `part` in it.

    Raises PeerError where the part does not belong to that image: other size, pixel type or place in the room.
    """
    x, y, z = part.offset
    depth, height, width = part.array.shape[:3]
    same_kind = part.array.dtype == onto.array.dtype and part.array.shape[3:] == onto.array.shape[3:]
    if onto.array.shape[2::-1] != part.size or not same_kind or not np.array_equal(part.affine, onto.affine):
        raise PeerError(
            f"igtl: a part of an image of {part.size} {part.array.dtype} does not belong to one of "
            f"{onto.array.shape[2::-1]} {onto.array.dtype}, or to another place; let the peer send whole images"
        )
    array = np.array(onto.array)
    array[z : z + depth, y : y + height, x : x + width] = part.array
    array.flags.writeable = False
    return Image(array, onto.affine)


def write_image(image: Image | ImagePart) -> tuple[bytes | memoryview, ...]:
    """Return the content of IMAGE in parts."""
    array = np.asarray(image.array)
    if array.dtype.newbyteorder("=") not in _CODES or array.ndim not in (3, 4):
        raise ValueError(f"encode: expected a (z, y, x) array of a plain number type, got {array.dtype} {array.shape}")
    components = array.shape[3] if array.ndim == 4 else 1
    if not 0 < min(array.shape[:3]) <= max(array.shape[:3]) <= 0xFFFF or not 0 < components <= 0xFF:
        raise ValueError(f"encode: IMAGE holds 1 to 65535 voxels along an axis, got {array.shape}")
    part: Size = array.shape[2::-1]
    size, offset = (image.size, image.offset) if isinstance(image, ImagePart) else (part, (0, 0, 0))
    if not _fits(offset, part, size):
        raise ValueError(f"encode: a part of {part} at {offset} is not within an image of {size}")
    ras = RAS_TO_LPS @ image.affine
    if not np.isfinite(ras).all():
        raise ValueError(f"encode: IMAGE with the geometry {image.affine.tolist()}; mend its source")
    centre = ras @ [*((n - 1) / 2 for n in size), 1.0]
    head = _IMAGE.pack(
        *(1, components, _CODES[array.dtype.newbyteorder("=")], _LITTLE, _RAS),
        *size,
        *ras[:3, :3].T.ravel(),  # the columns, each direction times spacing
        *centre[:3],  # "position" is the centre of the image
        *offset,
        *part,
    )
    pixels = np.ascontiguousarray(array, dtype=array.dtype.newbyteorder("<"))
    return head, pixels.reshape(-1).view(np.uint8).data


def _fits(offset: Size, part: Size, size: Size) -> bool:
    return all(o >= 0 and n > 0 and o + n <= whole for o, n, whole in zip(offset, part, size, strict=True))


def read_image(content: memoryview) -> Image | ImagePart:
    """Return what the content of IMAGE says."""
    values = _IMAGE.unpack_from(content)
    _, components, scalar, endian, coordinates = values[:5]
    size, geometry, offset, part = values[5:8], np.array(values[8:20], np.float64), values[20:23], values[23:26]
    if scalar not in _SCALARS or endian not in (_BIG, _LITTLE) or coordinates not in (_RAS, _LPS) or not components:
        raise PeerError(
            f"igtl: IMAGE with scalar type {scalar}, endian {endian}, coordinates {coordinates} and {components} "
            "components; mend the sender"
        )
    if not min(size) or not np.isfinite(geometry).all():
        raise PeerError(f"igtl: IMAGE of size {size} with geometry {geometry.tolist()}; mend the sender")
    if not _fits(offset, part, size):
        raise PeerError(f"igtl: IMAGE updates a part {part} at {offset}, which is not within {size}; mend the sender")
    dtype = np.dtype(("<" if endian == _LITTLE else ">") + _SCALARS[scalar])
    array = _read_pixels(content, dtype, (*part[::-1], components) if components > 1 else part[::-1])
    affine = np.eye(4)
    affine[:3, :3] = geometry[:9].reshape(3, 3).T
    affine[:3, 3] = geometry[9:] - affine[:3, :3] @ [(n - 1) / 2 for n in size]
    affine = affine if coordinates == _LPS else RAS_TO_LPS @ affine
    return Image(array, affine) if part == size else ImagePart(array, affine, offset, size)


def _read_pixels(content: memoryview, dtype: np.dtype, shape: tuple[int, ...]) -> Array:
    n_bytes, expected = len(content) - _IMAGE.size, dtype.itemsize * int(np.prod(shape, dtype=object))
    if n_bytes != expected:
        raise PeerError(f"igtl: IMAGE of {shape} {dtype} has {n_bytes} bytes, not {expected}; mend the sender")
    array = np.frombuffer(content, dtype, offset=_IMAGE.size).reshape(shape)
    return array.astype(dtype.newbyteorder("="), copy=False)


def write_image_infos(infos: ImageInfos) -> tuple[bytes, ...]:
    """Return the content of IMGMETA in parts."""
    return tuple(
        _IMAGE_META.pack(
            name_bytes(one.name, 64),
            name_bytes(one.device_name),
            name_bytes(one.modality, 32),
            name_bytes(one.patient_name, 64),
            name_bytes(one.patient_id, 64),
            to_timestamp(one.time_ns),
            *one.size,
            one.scalar_type,
        )
        for one in infos.images
    )


def read_image_infos(content: memoryview) -> ImageInfos:
    """Return what the content of IMGMETA says."""
    return ImageInfos(
        tuple(
            ImageInfo(
                *(read_name(name), read_name(device), read_name(modality), read_name(patient), read_name(patient_id)),
                *(from_timestamp(timestamp), (x, y, z), scalar),
            )
            for name, device, modality, patient, patient_id, timestamp, x, y, z, scalar in _IMAGE_META.iter_unpack(
                content
            )
        )
    )


def write_label_infos(infos: LabelInfos) -> tuple[bytes, ...]:
    """Return the content of LBMETA in parts."""
    return tuple(
        _LABEL_META.pack(
            name_bytes(one.name, 64),
            name_bytes(one.device_name),
            one.label,
            *one.rgba,
            *one.size,
            name_bytes(one.owner),
        )
        for one in infos.labels
    )


def read_label_infos(content: memoryview) -> LabelInfos:
    """Return what the content of LBMETA says."""
    return LabelInfos(
        tuple(
            LabelInfo(read_name(name), read_name(device), label, tuple(more[:4]), tuple(more[4:]), read_name(owner))
            for name, device, label, *more, owner in _LABEL_META.iter_unpack(content)
        )
    )
