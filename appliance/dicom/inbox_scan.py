# SPDX-License-Identifier: Apache-2.0
"""One received series as one scan of a pipeline: Scan, a Frame for each image in the order of arrival, End.

Rule: the same series and opening give the same scan id, sequence numbers, positions and times, however often it is
done and wherever a crash was; a result made of them is the same object again.
"""

from __future__ import annotations

import hashlib
import logging
import time
from collections.abc import Callable, Mapping
from typing import Any, Literal, cast

import numpy as np

from appliance.buffer import Buffer, ObjectError
from appliance.buffer.series import COMPLETE, Member, Series, members, one_series
from appliance.dicom.image_decoder import Decoded, DecodeError, ImageDecoder
from appliance.frames import IMAGE_AXES, End, Frame, Identity, Mark, Message, Position, Scan, read_only

MODALITIES = ("MR", "CT", "US")
_AT_ONCE = 16
_IDENTITY = {
    "patient_id": "PatientID",
    "patient_name": "PatientName",
    "birth_date": "PatientBirthDate",
    "sex": "PatientSex",
    "accession_number": "AccessionNumber",
    "study_instance_uid": "StudyInstanceUID",
    "frame_of_reference_uid": "FrameOfReferenceUID",
    "study_date": "StudyDate",
    "study_time": "StudyTime",
    "study_description": "StudyDescription",
    "referring_physician": "ReferringPhysicianName",
}

log = logging.getLogger(__name__)


def scan_id_for(pipeline: str, series_instance_uid: str, opening: int) -> str:
    """Give the id of the n-th scan of a series; that of the first is the beginning of all others."""
    digest = hashlib.sha256(f"{pipeline}\n{series_instance_uid}".encode()).hexdigest()[:16]
    return f"{pipeline.replace('_', '-')}-{digest}" + (f"-{opening}" if opening > 1 else "")


def identity_of(attributes: Mapping[str, str]) -> Identity:
    """Give who was scanned, as the first instance says."""
    return Identity(**{field: attributes.get(keyword, "") for field, keyword in _IDENTITY.items()})


class InboxScan:
    """A scan on its way from the buffer to the graph. `last_instance_id`: everything up to it was emitted."""

    def __init__(
        self, series: Series, opening: int, pipeline: str, buffer: Buffer, decoder: ImageDecoder, longest_bytes: int
    ) -> None:
        self.series_instance_uid, self.opening = series.series_instance_uid, opening
        self.scan_id = scan_id_for(pipeline, series.series_instance_uid, opening)
        self.last_instance_id = 0
        self.began = self.ended = False
        self.status = self.reason = ""  # once it has ended
        self.lost: list[str] = []
        self._buffer, self._decoder, self._longest_bytes = buffer, decoder, longest_bytes
        self._sequence = self._n_emitted = 0
        self._places: dict[tuple[float, ...], list[int]] = {}  # of slices: the slice index, and how often it was here

    def advance(self, emit: Callable[[Message], None], stopped: Callable[[], bool]) -> bool:
        """Emit what has come; False: nothing to do now. Raises StorageError."""
        series = one_series(self._buffer.database, self.series_instance_uid)  # before its members: none is overlooked
        batch = members(self._buffer.database, self.series_instance_uid, self.last_instance_id, _AT_ONCE)
        for member in batch:
            if stopped():  # in the middle of a multi-frame instance too
                break
            self._instance(member, emit, stopped)
            self.last_instance_id = member.instance_id
        if not batch and series and series.state == COMPLETE and self.last_instance_id >= series.last_instance_id:
            self._end(series, emit)
        return bool(batch)

    def abort(self, emit: Callable[[Message], None], reason: str) -> None:
        """End it for now."""
        if self.began and not self.ended:
            emit(End(self.scan_id, "aborted", reason, self._n_emitted))
        self.ended = True

    def _instance(self, member: Member, emit: Callable[[Message], None], stopped: Callable[[], bool]) -> None:
        first = self._sequence
        try:
            for decoded in self._decoder.decode(self._read(member)):
                if stopped():
                    return
                if not self.began:
                    self.began = True
                    emit(self._scan(member))
                emit(self._frame(member, decoded))
                self._n_emitted += 1
        except (ObjectError, DecodeError) as error:
            log.warning("scan %s: instance %d gives no image: %s", self.scan_id, member.instance_id, error)
            self.lost.append(str(error))
        # As many numbers as it says it has frames, so that a failure moves no later frame to another number.
        self._sequence = max(self._sequence, first + _n_frames(member))

    def _read(self, member: Member) -> bytearray:
        if member.purged:
            raise ObjectError("inbox: its bytes were purged before this pipeline took them; raise keep_delivered_h")
        if member.n_bytes > self._longest_bytes:
            limit = self._longest_bytes >> 20
            raise ObjectError(f"inbox: {member.n_bytes >> 20} MiB, {limit} are taken; raise max_instance_mb")
        return self._buffer.segments.read(member.place, member.digest)

    def _scan(self, member: Member) -> Scan:
        attributes: dict[str, Any] = {
            "repeatable": True,
            "opening": self.opening,
            "clips": True,  # frames of one instance have one time
            "image_type": tuple(filter(None, member.attributes.get("ImageType", "").split("\\"))),
        }
        return Scan(
            scan_id=self.scan_id,
            modality=cast(Literal["MR", "CT", "US"], member.attributes["Modality"]),
            axes=IMAGE_AXES,
            shape=(None, None),
            dtype="float32",
            started_ns=_ns(member.created_s),
            source=f"dicom {member.peer}",
            identity=identity_of(member.attributes),
            attributes=attributes,
        )

    def _frame(self, member: Member, decoded: Decoded) -> Frame:
        number, self._sequence = self._sequence, self._sequence + 1
        lost = decoded.affine is None and member.attributes.get("Modality") != "US"  # clips have no place
        return Frame(
            scan_id=self.scan_id,
            sequence=number,
            array=read_only(decoded.image),
            axes=IMAGE_AXES,
            affine=np.eye(4) if decoded.affine is None else decoded.affine,
            acquired_ns=_ns(member.created_s),  # of its receipt: DICOM's own has no time zone
            received_ns=time.monotonic_ns(),  # it may have waited for the pipeline: that is no lateness of ours
            position=self._position(decoded),
            marks=(Mark("dicom", "the image does not say where it is"),) if lost else (),
        )

    def _position(self, decoded: Decoded) -> Position:
        """Count slices in the order in which they came, and how often each was here before."""
        key = () if decoded.affine is None else tuple(np.round(decoded.affine[:3, 3], 3))
        seen = self._places.setdefault(key, [len(self._places), 0])
        seen[1] += 1
        return Position(slice=seen[0], repetition=seen[1] - 1)

    def _end(self, series: Series, emit: Callable[[Message], None]) -> None:
        self.ended, self.reason = True, series.reason
        if self.lost:
            self.reason += f"; {len(self.lost)} instances gave no image: {self.lost[0]}"
        status: Literal["complete", "incomplete"] = "complete"
        if self.lost or series.n_instances < series.n_expected:
            status = "incomplete"
        self.status = status
        if self.began:
            emit(End(self.scan_id, status, self.reason, self._n_emitted))


def _n_frames(member: Member) -> int:
    text = member.attributes.get("NumberOfFrames", "").strip()
    return int(text) if text.isascii() and text.isdigit() and len(text) < 7 else 1


def _ns(seconds: float) -> int:
    return round(seconds * 1e6) * 1000
