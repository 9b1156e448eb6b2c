# SPDX-License-Identifier: Apache-2.0
"""When a received series is complete, and why: the field's oldest question.

Rule: pure; the clock and what is known come as parameters. The surest sign that there is decides: the modality's own
report (MPPS), then the number of images that they announce, then the end of the association, and silence last. A sign
can be wrong: whatever comes later opens the series again.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

# PS3.4 B.5: the SOP classes of which one object is a whole stack. Those of volumes that came later are alike.
ENHANCED = {
    "1.2.840.10008.5.1.4.1.1.2.1": "Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.2.2": "Legacy Converted Enhanced CT",
    "1.2.840.10008.5.1.4.1.1.4.1": "Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.4.3": "Enhanced MR Color",
    "1.2.840.10008.5.1.4.1.1.4.4": "Legacy Converted Enhanced MR",
    "1.2.840.10008.5.1.4.1.1.6.2": "Enhanced US Volume",
    "1.2.840.10008.5.1.4.1.1.130": "Enhanced PET",
}
_MOST = 100_000  # images of a series; a larger number is none


@dataclass(frozen=True)
class Image:
    """One instance of a series, in the order of arrival. `attributes` is identity: never log it."""

    sop_class_uid: str
    sop_instance_uid: str
    attributes: Mapping[str, str] = field(repr=False)


@dataclass(frozen=True)
class Report:
    """What MPPS says of one series (PS3.4 F.7.2): its status and the images it says there are."""

    status: str  # IN PROGRESS | COMPLETED | DISCONTINUED
    sop_instance_uids: Collection[str]

    @property
    def final(self) -> bool:
        """Whether it says what there is."""
        return self.status != "IN PROGRESS" and bool(self.sop_instance_uids)


@dataclass(frozen=True)
class Came:
    """The instances of the series that one association brought, and how it ended."""

    n_instances: int
    released: bool  # False: still open, aborted or broken


def n_expected(images: Sequence[Image], report: Report | None = None) -> int:
    """Give how many instances there will be, by the MPPS or as far as they say so themselves; 0: nobody does."""
    if report and report.final:
        return len(set(report.sop_instance_uids))
    if not images:
        return 0
    first = images[0]
    n_times = _count(first, "NumberOfTemporalPositions") or 1
    if first.sop_class_uid in ENHANCED:
        return n_times * (_count(first, "InConcatenationTotalNumber") or 1)
    by_acquisition = {image.attributes.get("AcquisitionNumber", ""): image for image in images}
    announced = [_count(image, "ImagesInAcquisition") for image in by_acquisition.values()]
    if all(announced):
        return n_times * sum(announced)  # seen: GE counts the images of one temporal position
    return n_times * _n_slices(images) if n_times > 1 else 0


def _count(image: Image, keyword: str) -> int:
    text = image.attributes.get(keyword, "").strip()
    number = int(text) if text.isascii() and text.isdigit() and len(text) < 10 else 0
    return number if number <= _MOST else 0


def _n_slices(images: Sequence[Image]) -> int:
    """Give the number of slices once it is certain: the first one is there again and none is new since. 0: not yet,
    or the images come slice by slice, so that nobody can know."""
    places = [image.attributes.get("ImagePositionPatient", "") for image in images]
    if "" in places:
        return 0
    n_first = next((n for n, place in enumerate(places) if place in places[:n]), 0)
    return n_first if n_first > 1 and len(set(places)) == n_first else 0


def completion(
    images: Sequence[Image], came: Sequence[Came], report: Report | None, silent_s: float, silence_s: float
) -> str:
    """Give why the series is complete; empty: it is not."""
    if not images:
        return ""
    if report and report.final:
        missing = set(report.sop_instance_uids) - {image.sop_instance_uid for image in images}
        if not missing:
            return f"MPPS {report.status.lower()}: all its {len(set(report.sop_instance_uids))} images are here"
        return _silence(silent_s, silence_s, f", {len(missing)} images of the MPPS are missing")
    expected = n_expected(images)
    if 0 < expected <= len(images):
        return f"expected count: {len(images)} of {expected} instances are here"
    # One association for each image is common: its end says nothing of the next.
    if all(one.released for one in came) and sum(one.n_instances for one in came) > len(came):
        lacking = f", {expected} were expected" if expected else ""
        return f"association released after {len(images)} instances{lacking}"
    return _silence(silent_s, silence_s, f", {expected} instances were expected" if expected else "")


def _silence(silent_s: float, silence_s: float, lacking: str) -> str:
    return f"silence: nothing came for {silence_s:g} s{lacking}" if silent_s >= silence_s else ""
