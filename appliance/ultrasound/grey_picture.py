# SPDX-License-Identifier: Apache-2.0
"""B-mode pictures as they come from video: grey, or grey that was sent as colour."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from appliance.frames import Array

_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601
_COLOURED = 24  # of 255, between the channels: beyond what video compression makes of grey
_FEW = 0.001  # of the picture: a logo or a marker


def grey_picture(array: Array) -> tuple[NDArray[np.float32], str]:
    """Return (picture, remark): float32 (y, x), and what is lost with the colour, or an empty text.

    Parameters
    ----------
    array : any plain number, (z, y, x) or (z, y, x, component) with 3 (RGB) or 4 (RGBA) components; not modified.

    Raises
    ------
    ValueError
        More than one plane, or other numbers of components.
    """
    if array.ndim not in (3, 4) or array.shape[0] != 1:
        raise ValueError(f"a volume of {array.shape[0]} planes; pictures of one plane are taken")
    picture = array[0]
    if picture.ndim == 2:
        return np.ascontiguousarray(picture, np.float32), ""
    if picture.shape[2] not in (3, 4):
        raise ValueError(f"{picture.shape[2]} components a pixel; grey, RGB and RGBA are taken")
    rgb = picture[..., :3].astype(np.float32)
    coloured = np.count_nonzero(rgb.max(axis=2) - rgb.min(axis=2) > _COLOURED) / rgb[..., 0].size
    remark = f"{100 * coloured:.1f} % of the picture is coloured and shown in grey" if coloured > _FEW else ""
    return rgb @ _LUMA, remark
