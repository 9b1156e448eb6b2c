# SPDX-License-Identifier: Apache-2.0
"""A working day in a real buffer: series that were received and routed, live scans whose images were built, some
delivered, some stuck. Made by what the receiver, the pipelines and the deliverer use themselves."""

import time
from io import BytesIO

import numpy as np
from pydicom import dcmread
from pydicom.data import get_testdata_file

from appliance.buffer import Buffer, NewInstance, scans, series
from appliance.buffer.audit import append
from appliance.dicom.admit import admit_next
from appliance.dicom.build_results import build_next
from appliance.dicom.spool import Levels, Spooled, images_to_keep, new_scan, pack
from appliance.frames import Applied, Encoding, Frame, Identity, Position, Scan, read_only
from appliance.mri.phantom import cine_image
from appliance.settings import Route

HOSTILE = "<b>Bold</b>^<script>alert(1)</script>"
RULES = {"everything": Route(to=("pacs",))}
MODEL = Applied("denoise", "0.1", "5e77", "mr-denoise 3", "ab12cd34ef56aa", "e1")
STEPS = (Applied("reconstruct", "0.1", "c0de"), MODEL, Applied("detect_anomalies", "0.1", "d00d", altered=False))
TOOK_MS = {"reconstruct": 3.25, "denoise": 4.5, "detect_anomalies": 2.0}


class Day:
    """`now` is when everything is looked at."""

    def __init__(self, data_dir):
        self.buffer = Buffer(data_dir)
        self.now = time.time()
        self.alarms = {}
        self.n_received = 0

    def close(self):
        self.buffer.close()

    def alarm(self, key, text):
        self.alarms[key] = text

    def receive(self, name, description, n_images, ago_s, file="CT_small.dcm", patient_id="4711", complete="4 of 4"):
        """A series that came so long ago, one image a second, and was routed to the pacs; gives its UID."""
        self.n_received += 1
        ds = dcmread(get_testdata_file(file))
        ds.PatientName, ds.PatientID, ds.SeriesDescription = name, patient_id, description
        ds.SeriesInstanceUID = f"1.2.826.0.1.3680043.8.498.{self.n_received}"
        for n in range(n_images):
            ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"{ds.SeriesInstanceUID}.{n}"
            file = BytesIO()
            ds.save_as(file)
            came = (str(ds.SOPClassUID), str(ds.SOPInstanceUID), str(ds.file_meta.TransferSyntaxUID), "received", "CT1")
            self.buffer.put_instance(NewInstance(file.getvalue(), *came), self.now - ago_s + n)
        admit_next(self.buffer, RULES, self.alarm, self.now - ago_s + n_images)
        if complete:
            found = series.one_series(self.buffer.database, str(ds.SeriesInstanceUID))
            assert series.complete(self.buffer.database, found, complete, n_images, self.now - ago_s + n_images)
        return str(ds.SeriesInstanceUID)

    def scan(self, scan_id, name, protocol, n_images, ago_s, status="complete", reason="", build=True):
        """A live MR scan, three images a second, reconstructed and denoised and owed to the pacs."""
        started_s = self.now - ago_s
        encoding = Encoding(
            (128, 128, 1), (128, 128, 1), (300.0, 300.0, 8.0), (300.0, 300.0, 8.0), 8, protocol_name=protocol
        )
        identity = Identity(patient_name=name, patient_id=f"PID-{scan_id}")
        given = ("y", "x"), (128, 128), "float32", int(started_s * 1e9)
        scan = Scan(scan_id, "MR", *given, identity=identity, encoding=encoding)
        scans.begin(self.buffer.database, new_scan(scan, "mri-live"))
        levels, rng, jobs = Levels(), np.random.default_rng(0), []
        for n in range(n_images):
            clean = cine_image(n, (128, 128)).astype(np.float32)
            noisy = np.abs(clean + rng.normal(scale=0.06 * clean.max(), size=clean.shape)).astype(np.float32)
            frame = Frame(
                scan_id=scan_id, sequence=n, array=read_only(clean), original=read_only(noisy), axes=("y", "x"),
                affine=np.diag([2.34, 2.34, 8.0, 1.0]), acquired_ns=int((started_s + n / 3) * 1e9), received_ns=0,
                position=Position(repetition=n), provenance=STEPS, took_ms=TOOK_MS,
            )  # fmt: skip
            images = images_to_keep(frame, ("reconstructed", "denoised"))
            shown = levels.of(next(iter(images.values())), 0)
            jobs.append(pack(Spooled(scan, frame, images, *shown, ("pacs",), frame.acquired_ns), 5))
        self.buffer.put_jobs(jobs, started_s)
        while build and build_next(self.buffer, self.alarm, started_s + n_images / 3):
            pass
        if status:
            scans.end(self.buffer.database, scan_id, status, reason, n_images, started_s + n_images / 3)

    def deliver(self, ago_s, limit=10_000, committed=False):
        """The pacs takes what waits."""
        taken = self.buffer.outbox.claim("pacs", self.now, limit)
        self.buffer.outbox.mark_sent(taken, self.now - ago_s, enough="committed" if committed else "sent")
        if committed:
            with self.buffer.database.transaction() as conn:
                conn.executemany(
                    "UPDATE deliveries SET state = 'committed', changed_s = ? WHERE id = ?",
                    [(self.now - ago_s + 2, one.delivery_id) for one in taken],
                )
                append(conn, self.now, "committed reported", "test")
        return len(taken)

    def refuse(self, ago_s, reason, limit=1):
        for one in self.buffer.outbox.claim("pacs", self.now, limit):
            self.buffer.outbox.quarantine(one, reason, self.now - ago_s)


def busy_day(data_dir):
    """What Today and Delivery are looked at with."""
    day = Day(data_dir)
    day.receive("Lindqvist^Maja", "Thorax 1.5 mm", 6, 7_400, patient_id="220114")
    day.deliver(7_380, committed=True)
    day.scan("scan-a", "Okafor^Chidi", "cine_trufi_R2", 6, 5_100)
    day.deliver(5_090, committed=True)
    day.receive("Meier^Ulla", "Abdomen portal venous", 4, 3_900, patient_id="198-7")
    day.deliver(3_880)
    day.scan("scan-b", "Sato^Kenji", "cine_trufi_R2", 4, 1_700, "aborted", "the scanner hung up")
    day.deliver(1_690)
    day.receive(HOSTILE, "Head without contrast", 5, 900, patient_id="<img src=x onerror=alert(1)>")
    day.refuse(880, "C-STORE: the pacs refuses the SOP class (0x0122); ask its administrator")
    day.deliver(870)
    day.receive("Novak^Petra", "Knee sag T1", 5, 300, file="MR_small.dcm", patient_id="77-31")
    day.scan("scan-c", "Haddad^Leila", "realtime_speech", 5, 12, status="", build=False)
    day.receive("Brandt^Otto", "Angio head", 3, 8, patient_id="5150", complete="")
    return day
