# SPDX-License-Identifier: Apache-2.0
"""DICOM in and out beside its peers in one run: receive, send, durable commits, memory.

    python benchmarks/dicom.py [--only A B C D] [--skip D] [--rounds 3] [--instances 500] [--folder DIR] [--json FILE]

A, receive: CT instances of 525 kB over 1 and 4 associations. The same raw sender, one process for each association,
stores what it encoded before the clock started. Ours answers after its fdatasync; Orthanc syncs too; pynetdicom's
documented server (decode and save) and DCMTK's storescp +B (PDUs of 16 KiB, its default, or 128 KiB) do not. The
floor is a bare socket server that appends and syncs. Each measurement has a new server and a new folder. B, send: one
association, files read from the disk, to storescp --ignore; the start of storescu (its time for one file) is taken
off. C, commits of 2 kB by 16 threads; litequeue at synchronous=FULL, with one connection for all threads and with one
for each. D, memory: the receiver's resident set with 64 associations, and while 2 GiB stream in. DCMTK and Orthanc
run with TCP_NODELAY=1, and with 0 where a peer is to have Nagle on; what receives is best with large PDUs and has them.
Medians of the rounds, in which all take turns; a ratio is the median of the rounds' ratios.
"""

from __future__ import annotations

import argparse
import importlib.util
import io
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import numpy as np
from dicom_peers import AE_TITLE, CT, EXPLICIT, N_WARM, RawSender, dataset_in, read_instances, uid
from dicom_servers import ask, role, serving
from pydicom.dataset import Dataset, FileMetaDataset

from appliance.buffer import Buffer, NewInstance

SERVERS = ("ours", "pynetdicom", "orthanc", "storescp", "storescp_128k", "floor")
SENDERS = ("ours", "pynetdicom", "storescu")
AIMS_A = {"pynetdicom": 3.0, "orthanc": 2.0, "storescp": 1.0, "storescp_128k": None}
AIMS_B = {"fast": {"pynetdicom": 5.0, "storescu": 1.0}, "Nagle": {"pynetdicom": 8.0, "storescu": 8.0}}
AIM_C, AIM_OPEN_MIB, AIM_STREAM_MIB = 10.0, 200.0, 32.0
ASSOCIATIONS, N_PRODUCERS, N_NAGLE, COMMIT_S = (1, 4), 16, 60, 3.0
N_OPEN, N_EACH, N_FRAMES = 64, 5, 4096  # part D; a frame has 512 KiB
STORED = "stored"
Figures = dict[str, Any]


def part10(rows: int, columns: int, n_frames: int = 1) -> bytes:
    """Instance 0, a CT image of noise; of several frames only the first is there."""
    ds, ds.file_meta = Dataset(), FileMetaDataset()
    ds.file_meta.TransferSyntaxUID, ds.SOPClassUID, ds.SOPInstanceUID = EXPLICIT, CT, uid(0)
    ds.PatientName, ds.PatientID, ds.Modality = "Bench^Mark", "BENCH", "CT"
    ds.StudyDate, ds.StudyTime, ds.StudyID, ds.AccessionNumber = "20240101", "120000", "1", "1"
    ds.StudyInstanceUID, ds.SeriesInstanceUID, ds.FrameOfReferenceUID = "2.25.11", "2.25.12", "2.25.13"
    ds.SeriesNumber, ds.InstanceNumber, ds.ImageType = 1, 1, ["ORIGINAL", "PRIMARY", "AXIAL"]
    ds.ImagePositionPatient, ds.ImageOrientationPatient = [0, 0, 0], [1, 0, 0, 0, 1, 0]
    ds.Rows, ds.Columns, ds.PixelSpacing, ds.SliceThickness = rows, columns, [0.7, 0.7], 1.0
    ds.NumberOfFrames, ds.SamplesPerPixel, ds.PhotometricInterpretation = n_frames, 1, "MONOCHROME2"
    ds.BitsAllocated = ds.BitsStored = 16
    ds.HighBit, ds.PixelRepresentation, ds.RescaleIntercept, ds.RescaleSlope = 15, 0, -1024, 1
    ds.PixelData = np.random.default_rng(0).integers(0, 4096, rows * columns, np.uint16).tobytes()
    file = io.BytesIO()
    ds.save_as(file, enforce_file_format=True)
    return file.getvalue()


def make_files(folder: Path, n_files: int) -> int:
    """Write instances 0, 1, …; give the size of one."""
    template = part10(512, 512)
    for n in range(n_files):
        (folder / f"{n}.dcm").write_bytes(template.replace(uid(0).encode(), uid(n).encode()))
    return len(template)


# A: receive


def receive(kind: str, n_associations: int, files: Path, n: int, size: int) -> Figures:
    load = "load_floor" if kind == "floor" else "load"
    with serving(kind, files.parent) as (server, folder), ExitStack() as stack:
        senders = [
            stack.enter_context(role(load, server.port, files, i, n_associations, n)) for i in range(n_associations)
        ]
        for sender in senders:
            ask(sender, "")  # ready
        cpu_s = server.cpu_s()
        for sender in senders:
            sender.stdin.write("go\n")
            sender.stdin.flush()
        times = np.array([json.loads(ask(sender, "")) for sender in senders])
        cpu_s, peak_mib = server.cpu_s() - cpu_s, server.mib()
        stored = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    if stored < n * (size - 2000):
        raise RuntimeError(f"{kind}: {n} instances were acknowledged, and {stored} bytes are in its folder")
    return {"per_s": n / float(np.ptp(times)), "cpu_ms": 1e3 * cpu_s / n, "peak_mib": peak_mib}


def part_a(files: Path, options: argparse.Namespace, size: int) -> Figures:
    rounds: Figures = {kind: {str(n): [] for n in ASSOCIATIONS} for kind in SERVERS}
    for _ in range(options.rounds):
        for n in ASSOCIATIONS:
            for kind in SERVERS:
                rounds[kind][str(n)].append(receive(kind, n, files, options.instances, size))
    return {"rounds": rounds, "fdatasync_ms": fdatasync_ms(files.parent, size)}


def fdatasync_ms(under: Path, size: int, n: int = 200) -> dict[str, float]:
    """How long an append takes to be on this disk, one after the other."""
    data, times = os.urandom(size), []
    with tempfile.NamedTemporaryFile(dir=under, buffering=0) as file:
        for _ in range(n):
            started = time.perf_counter()
            file.write(data)
            os.fdatasync(file.fileno())
            times.append(1e3 * (time.perf_counter() - started))
    p50, p99 = np.percentile(times, [50, 99]).tolist()
    return {"p50": p50, "p99": p99, "per_s": 1e3 / statistics.mean(times)}


# B: send


def send_role(name: str, port: int, files: Path, n: int) -> float:
    if name == "storescu":
        return (n - 1) / (storescu_s(port, files, n) - storescu_s(port, files, 1))
    with role(f"send_{name}", port, files, n) as sender:
        n_stored, seconds = json.loads(ask(sender, ""))
    return n_stored / seconds


def storescu_s(port: int, files: Path, n: int) -> float:
    paths = [str(files / f"{index}.dcm") for index in range(n)]
    words = ["storescu", "-aec", AE_TITLE, "-R", "127.0.0.1", str(port), *paths]
    started = time.monotonic()
    subprocess.run(words, check=True, env={**os.environ, "TCP_NODELAY": "1"})
    return time.monotonic() - started


def part_b(files: Path, options: argparse.Namespace) -> Figures:
    rounds: Figures = {peer: {name: [] for name in SENDERS} for peer in AIMS_B}
    for _ in range(options.rounds):
        for peer, by_name in rounds.items():
            n = min(options.instances, N_NAGLE) if peer == "Nagle" else options.instances
            with serving("ignore", files.parent, tcp_nodelay="0" if peer == "Nagle" else "1") as (server, _):
                for name, rates in by_name.items():
                    rates.append(send_role(name, server.port, files, n))
    return {"rounds": rounds}


# C: durable commits


def commits_per_s(puts: list[Callable[[int], object]]) -> float:
    """Call each of `puts` in a thread of its own, with a number of its own each time, for COMMIT_S."""
    started = time.monotonic()

    def produce(first: int) -> int:
        count = 0
        while time.monotonic() < started + COMMIT_S:
            puts[first](first + N_PRODUCERS * count)
            count += 1
        return count

    with ThreadPoolExecutor(N_PRODUCERS) as pool:
        total = sum(pool.map(produce, range(N_PRODUCERS)))
    return total / (time.monotonic() - started)


def commit_ours(folder: Path, template: bytes) -> float:
    """Keep instances as the receiver does; another thread brings the index up to date meanwhile, as there."""
    buffer, old, stop = Buffer(folder), uid(0).encode(), threading.Event()

    def put(n: int) -> None:
        with buffer.writer() as writer:
            writer.write(template.replace(old, uid(n).encode()))
            writer.commit(NewInstance(b"", CT, uid(n), EXPLICIT, origin="received", peer="BENCH"), time.time())

    def index() -> None:
        while not stop.wait(0.05):
            buffer.index()

    thread = threading.Thread(target=index)
    thread.start()
    try:
        return commits_per_s([put] * N_PRODUCERS)
    finally:
        stop.set()
        thread.join()
        buffer.close()


def commit_litequeue(folder: Path, template: bytes, n_connections: int) -> float:
    from litequeue import LiteQueue

    queues = [LiteQueue(folder / "queue.sqlite", timeout=60) for _ in range(n_connections)]
    for queue in queues:
        queue.conn.execute("PRAGMA synchronous = FULL")  # its own default is NORMAL, which may lose the last commits
    text = "x" * len(template)
    puts = [lambda _, queue=queue: queue.put(text) for queue in queues]
    try:
        return commits_per_s(puts * (N_PRODUCERS // n_connections))
    finally:
        for queue in queues:
            queue.conn.close()


def part_c(files: Path, options: argparse.Namespace) -> Figures:
    template = part10(32, 20)
    ways: dict[str, Callable[[Path], float]] = {
        "ours": lambda folder: commit_ours(folder, template),
        "litequeue, one connection": lambda folder: commit_litequeue(folder, template, 1),
        "litequeue, one for each": lambda folder: commit_litequeue(folder, template, N_PRODUCERS),
    }
    rounds: Figures = {name: [] for name in ways}
    for _ in range(options.rounds):
        for name, way in ways.items():
            with tempfile.TemporaryDirectory(dir=files.parent) as folder:
                rounds[name].append(way(Path(folder)))
    floor = fdatasync_ms(files.parent, len(template), 2000)
    return {"rounds": rounds, "n_bytes": len(template), "fdatasync_ms": floor}


# D: memory


def open_associations(port: int) -> list[RawSender]:
    """Those of N_OPEN that are let in."""
    senders = []
    for _ in range(N_OPEN):
        with suppress(OSError):
            senders.append(RawSender(port))
    return senders


def memory_of_many(files: Path) -> Figures:
    def store(n: int, sender: RawSender) -> int:
        stored = 0
        with suppress(OSError):
            for each in read_instances(files, range(n * N_EACH, (n + 1) * N_EACH)):
                sender.store(sender.encode(*each))
                stored += 1
        return stored

    with serving("ours", files.parent) as (server, _), ExitStack() as stack:
        senders = open_associations(server.port)
        for sender in senders:
            stack.callback(sender.close)
        with ThreadPoolExecutor(N_OPEN) as pool:
            stored = sum(pool.map(store, range(len(senders)), senders))
        return {"open": len(senders), "stored": stored, "peak_mib": server.mib()}


def memory_of_stream(files: Path) -> Figures:
    """How much the peak grows while one instance of 2 GiB comes in, and how fast it does."""
    file = part10(512, 512, N_FRAMES)
    head = file[: file.rindex(b"\xe0\x7f\x10\x00OW\0\0") + 8]
    n_bytes = N_FRAMES * 512 * 512 * 2
    with serving("ours", files.parent) as (server, _):
        sender = RawSender(server.port)
        for each in read_instances(files, range(1, 1 + N_WARM)):
            sender.store(sender.encode(*each))
        server.reset_peak()
        before, started = server.mib(), time.monotonic()
        try:
            sender.stream(0, bytes(dataset_in(head)) + n_bytes.to_bytes(4, "little"), n_bytes)
            outcome = STORED
        except OSError as error:
            outcome = str(error)
        seconds = time.monotonic() - started
        sender.close()
        return {"outcome": outcome, "increase_mib": server.mib() - before, "mb_per_s": n_bytes / seconds / 1e6}


def part_d(files: Path) -> Figures:
    return {"associations": memory_of_many(files), "stream": memory_of_stream(files)}


# The table


def ratio(ours: list[float], peer: list[float]) -> float:
    return statistics.median(a / b for a, b in zip(ours, peer, strict=True))


def verdict(value: float, aim: float | None) -> str:
    """Beside the aim that it is to reach."""
    return f"{value:8.2f}" + ("" if aim is None else f"  aim >= {aim:g}: {'met' if value >= aim else 'MISSED'}")


def memory_verdict(mib: float, aim: float, *, whole: bool) -> str:
    """Beside the aim that it may reach; `whole`: everything was done for it."""
    return f"{mib:8.1f}  aim <= {aim:g}: {'met' if whole and mib <= aim else 'MISSED'}"


def show_a(part: Figures) -> None:
    rounds, disk = part["rounds"], part["fdatasync_ms"]
    for n in map(str, ASSOCIATIONS):
        print(f"A receive, {n} association(s)  inst/s  CPU ms/inst  peak MiB  ours / it")
        for kind in SERVERS:
            per_s, cpu_ms, peak = (
                statistics.median(each[name] for each in rounds[kind][n]) for name in ("per_s", "cpu_ms", "peak_mib")
            )
            rates = [[each["per_s"] for each in rounds[who][n]] for who in ("ours", kind)]
            last = "" if kind == "ours" else verdict(ratio(*rates), AIMS_A.get(kind))
            print(f"  {kind:<26}{per_s:8.0f}{cpu_ms:13.2f}{peak:10.0f} {last}")
    print(f"  append + fdatasync of one instance: p50 {disk['p50']:.2f} ms, p99 {disk['p99']:.2f} ms")


def show_b(part: Figures) -> None:
    for peer, rounds in part["rounds"].items():
        print(f"B send to the {peer} peer{'':<14}inst/s  ours / it")
        for name in SENDERS:
            last = "" if name == "ours" else verdict(ratio(rounds["ours"], rounds[name]), AIMS_B[peer][name])
            print(f"  {name:<32}{statistics.median(rounds[name]):8.0f} {last}")


def show_c(part: Figures) -> None:
    print(f"C commits of {part['n_bytes']} bytes, {N_PRODUCERS} threads  per s  ours / it")
    for name, rates in part["rounds"].items():
        last = "" if name == "ours" else verdict(ratio(part["rounds"]["ours"], rates), AIM_C)
        print(f"  {name:<32}{statistics.median(rates):8.0f} {last}")
    disk = part["fdatasync_ms"]
    times = f"p50 {disk['p50']:.2f}, p99 {disk['p99']:.2f} ms"
    print(f"  {'floor: append + fdatasync each':<32}{disk['per_s']:8.0f}   {times}")


def show_d(part: Figures) -> None:
    many, stream = part["associations"], part["stream"]
    print("D memory, MiB")
    text = f"peak, {many['open']} of {N_OPEN} associations let in"
    whole = many["stored"] == N_OPEN * N_EACH
    print(f"  {text:<40}{memory_verdict(many['peak_mib'], AIM_OPEN_MIB, whole=whole)}  ({many['stored']} stored)")
    text, outcome = f"increase by 2 GiB at {stream['mb_per_s']:.0f} MB/s", stream["outcome"]
    print(f"  {text:<40}{memory_verdict(stream['increase_mib'], AIM_STREAM_MIB, whole=outcome == STORED)}  ({outcome})")


def machine(folder: Path) -> Figures:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    system = subprocess.run(["stat", "-f", "-c", "%T", folder], capture_output=True, text=True, check=True).stdout
    cores, load = os.cpu_count(), round(os.getloadavg()[0], 2)
    return {"cpu": model, "cores": cores, "load_before": load, "file_system": system.strip()}


def options_of() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices="ABCD", default=list("ABCD"), help="parts to run")
    parser.add_argument("--skip", nargs="+", choices="ABCD", default=[], help="parts to leave out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--instances", type=int, default=500)
    parser.add_argument("--folder", type=Path, help="where to write: on the disk that is to be measured")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()
    options.parts = [part for part in options.only if part not in options.skip]
    return options


def main() -> None:
    options = options_of()
    if "C" in options.parts and importlib.util.find_spec("litequeue") is None:
        sys.exit("dicom: litequeue, the peer of part C, is not installed; install the dev extra, or say --skip C")
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # an exception: everything is stopped on its way
    with tempfile.TemporaryDirectory(prefix="nearscan-bench-", dir=options.folder) as name:
        files = Path(name) / "files"
        files.mkdir()
        result: Figures = {"machine": machine(files)}
        print(", ".join(f"{key} {value}" for key, value in result["machine"].items()), flush=True)
        size = make_files(files, max(options.instances + max(ASSOCIATIONS) * N_WARM, N_OPEN * N_EACH))
        parts: dict[str, tuple[Callable[[], Figures], Callable[[Figures], None]]] = {
            "A": (lambda: part_a(files, options, size), show_a),
            "B": (lambda: part_b(files, options), show_b),
            "C": (lambda: part_c(files, options), show_c),
            "D": (lambda: part_d(files), show_d),
        }
        for part in options.parts:
            measure, show = parts[part]
            result[part] = measure()
            show(result[part])
            sys.stdout.flush()
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
