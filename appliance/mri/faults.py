# SPDX-License-Identifier: Apache-2.0
"""The detector of MRI acquisition faults: rules on raw k-space, on the image, and what is usual in this scan."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable, Mapping
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from appliance.arrays import to_host
from appliance.faults.detector import Rule
from appliance.frames import Encoding, Finding, Frame, Scan
from appliance.mri import quality
from appliance.mri.baseline import Baseline, Baselines, Levels, measure
from appliance.mri.consistency import find_displacement, find_motion, find_odd_even_ghost, phase_by_neighbours
from appliance.mri.image_quality import find_ghosting, find_unusable_image, find_wrap, judge_image
from appliance.mri.line_quality import find_line_drop, find_zipper
from appliance.mri.rules import RULES, Bools, Found, Kspace

KSPACE_AXES = ("coil", "ky", "kx")
WITHOUT_KSPACE = ("ghosting", "signal_drop", "slice_dropout", "frozen")
LASTING = ("signal_drop", "low_snr", "displacement", "motion")  # a change that lasts becomes the new normal


class MrFaults:
    """One scan; a running baseline for each slice position."""

    RULES: ClassVar[Mapping[str, Rule]] = RULES

    def __init__(self, thresholds: Mapping[str, float]) -> None:
        self._thresholds = thresholds
        self._baselines = Baselines()
        self._encoding: Encoding | None = None
        self._lost: dict[Hashable, float] = {}  # part of the usual signal lost, newest frame of each slice
        self.measured: dict[str, float] = {}
        self.unchecked: list[str] = []
        self.snr_db: float | None = None

    @staticmethod
    def setup(scan: Scan) -> str:
        """Coils and acceleration: what the levels of k-space depend on."""
        if scan.encoding is None:
            return "MR images"
        return f"{scan.encoding.n_coils} coils, acceleration {scan.encoding.acceleration_y}"

    def begin(self, scan: Scan) -> None:
        """Take k-space or images. Raises ValueError."""
        if scan.axes != KSPACE_AXES and (scan.axes[-2:] != ("y", "x") or "coil" in scan.axes):
            raise ValueError(
                f"expected axes (coil, ky, kx) or (y, x), got ({', '.join(scan.axes)}); put it after reconstruct"
            )
        self._encoding = scan.encoding

    def judge(self, frame: Frame) -> list[Finding]:
        """Judge k-space of the frame, if it has any, and the image as it was before denoising, if there is one."""
        kspace = frame.array if frame.axes == KSPACE_AXES else frame.attachments.get("kspace")
        image = None
        if frame.is_image:
            image = to_host(frame.array if frame.original is None else frame.original)
        self.measured, self.unchecked = {}, []
        found = self._judge_raw(frame, kspace, image)
        if image is None or any(finding.severity == "alarm" for finding in found):
            return found
        return found or self._judge_image(image, raw=kspace is not None)

    def _judge_raw(self, frame: Frame, kspace: Any, image: Any) -> list[Finding]:
        """Judge the raw data, or the image where there is none, against what is usual."""
        where = (frame.position.slice, frame.position.contrast, frame.position.set)
        if kspace is None:
            key = (*where, *image.shape)
            found, levels, lost = judge_image(image, self._baselines.get(key), self._thresholds)
            self.unchecked += [n for n in RULES if n not in WITHOUT_KSPACE]
            self._note("signal_drop", lost)
        else:
            raw, ky, calibration = _raw(frame, kspace)
            key = (*where, raw.shape[0], raw.shape[2], ky[~calibration].tobytes())
            levels = measure(raw, ky, ~calibration, self._baselines.get(key))
            found = self.judge_kspace(raw, ky, calibration, self._baselines.get(key), levels)
        found = self._told_apart(key, frame.position.slice, found)
        changed = bool(found) and all(f.kind in LASTING for f in found)
        self._baselines.learn(key, levels, clean=not found, changed=changed)
        self.snr_db = levels.snr_db
        return found

    def judge_kspace(
        self, raw: Kspace, ky: NDArray[np.int64], calibration: Bools, baseline: Baseline, levels: Levels
    ) -> list[Finding]:
        """Judge raw data (coil, ky, kx) of one frame against its `baseline`, which this does not let it into."""
        found = quality.find_unusable(raw, ky, levels)
        if found:
            return found
        limit, imaging_ky = self._thresholds, ky[~calibration]
        found = quality.find_frozen(levels, baseline)
        noisy = self._take("noisy_coil", quality.find_noisy_coils, levels, imaging_ky, baseline, limit["noisy_coil"])
        names = {int(finding.where["coil"]) for finding in noisy}
        found += noisy
        found += self._take("coil_drop", quality.find_dropped_coils, levels, baseline, limit["coil_drop"], names)
        found += self._take("clipping", quality.find_clipping, raw, levels, limit["clipping"])
        if levels.sparse or raw.shape[2] < quality.MIN_COLUMNS:
            self._note("spike", None)
        else:
            spikes = self._take("spike", quality.find_spike, raw, ky, ~calibration, levels, baseline, limit["spike"])
            found += [spike for spike in spikes if spike.where["coil"] not in names]
        found += self._take("line_drop", find_line_drop, levels, imaging_ky, baseline, limit["line_drop"])
        zippers = self._take("zipper", find_zipper, raw, ky, ~calibration, levels, limit["zipper"])
        found += [_on_image(zipper, raw.shape[2], self._encoding) for zipper in zippers]
        if found:
            return found
        snr = self._take("low_snr", quality.find_low_snr, levels, baseline, limit["low_snr"])
        if snr and not quality.any_signal(levels):
            return snr
        signal = self._take("signal_drop", quality.find_signal_drop, levels, baseline, limit["signal_drop"])
        moved, lines = self._compare(imaging_ky, raw.shape[2], levels)
        return moved + (signal or snr) + ([] if snr else lines)  # more noise is no motion

    def _compare(self, ky: NDArray[np.int64], n_columns: int, levels: Levels) -> tuple[list[Finding], list[Finding]]:
        """Judge how the lines compare with those of the last clean frames: a shift of them all, and what else."""
        limit, comparison = self._thresholds, levels.comparison
        if comparison is None:
            self.unchecked += ["displacement", "motion", "odd_even"]
            return [], self._judge_alone(levels)
        moved = self._take("displacement", find_displacement, comparison, ky, n_columns, limit["displacement"])
        motion = self._take("motion", find_motion, comparison, ky, limit["motion"])
        ghost = self._take("odd_even", find_odd_even_ghost, comparison.odd_even, limit["odd_even"])
        return moved, motion or ghost  # motion also turns odd lines against even ones

    def _judge_alone(self, levels: Levels) -> list[Finding]:
        """Judge a frame that there is nothing to compare with: a scan may be bad from its beginning."""
        phase = None if levels.block is None or levels.sparse else phase_by_neighbours(levels.block)
        if phase is None:
            self.unchecked.append("odd_even_first")
            return []
        return self._take("odd_even_first", find_odd_even_ghost, phase, self._thresholds["odd_even_first"])

    def _told_apart(self, key: Hashable, slice_index: int, found: list[Finding]) -> list[Finding]:
        """Say "slice dropout" where a slice lost signal and the others did not."""
        lost = self.measured.get("signal_drop")
        if lost is None:
            return found
        others = [part for other, part in self._lost.items() if other != key]
        self._lost[key] = lost
        if not others:
            return found
        dropout = self._take(
            "slice_dropout", quality.find_slice_dropout, lost, others, slice_index, self._thresholds["slice_dropout"]
        )
        return [f for f in found if f.kind != "signal_drop"] + dropout if dropout else found

    def _judge_image(self, image: Any, raw: bool) -> list[Finding]:
        found = find_unusable_image(image)
        if found or image.ndim != 2:
            return found
        found = self._take("ghosting", find_ghosting, image, self._thresholds["ghosting"])
        if raw:
            found += self._take("wrap", find_wrap, image, self._thresholds["wrap"])
        return found

    def _take(self, rule: str, find: Callable[..., Found], *given: Any) -> list[Finding]:
        measured, found = find(*given)
        self._note(rule, measured)
        return found

    def _note(self, rule: str, measured: float | None) -> None:
        if measured is None:
            self.unchecked.append(rule)
        else:
            self.measured[rule] = measured


def _on_image(zipper: Finding, n_columns: int, encoding: Encoding | None) -> Finding:
    """Add where the column lies on the image, 0 to 1 of its width; beyond it where oversampling was cut off."""
    if encoding is None:
        return zipper
    times = encoding.encoded_fov_mm[0] / encoding.recon_fov_mm[0]
    part = 0.5 + (zipper.where["column"] - n_columns // 2) / n_columns * times
    return dataclasses.replace(zipper, where={**zipper.where, "of_width": round(part, 4)})


def _raw(frame: Frame, kspace: Any) -> tuple[Kspace, NDArray[np.int64], Bools]:
    """Return k-space, line indices and which lines only calibrate, on the host."""
    raw = np.asarray(to_host(kspace), np.complex64)
    ky = np.asarray(to_host(frame.attachments.get("ky", np.arange(raw.shape[1]))))
    calibration = np.asarray(to_host(frame.attachments.get("calibration_only", np.zeros(len(ky), bool))))
    if len(ky) != raw.shape[1] or len(ky) != len(calibration) or not raw.size or calibration.all():
        raise ValueError(
            f"detect_anomalies: k-space of shape {raw.shape} does not fit {len(ky)} line indices, of which "
            f"{int(calibration.sum())} only calibrate; the source must send a frame's lines with it"
        )
    return raw, ky, calibration
