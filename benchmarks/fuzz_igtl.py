# SPDX-License-Identifier: Apache-2.0
"""Mutated OpenIGTLink messages through the parser, in process: what came of each.

    python benchmarks/fuzz_igtl.py [--mutations 100000] [--seed 0] [--json FILE]

Every message is one of each kind that we write, damaged in one of nine ways, most with a correct CRC over the damage,
fed in one piece or cut at random. Allowed outcomes: read, skipped, still waiting for bytes, PeerError. What was read
is written and read again, and must be the same bytes. Ends with 1 if anything else happened or memory grew.
"""

from __future__ import annotations

import argparse
import collections
import json
import random
import re
import struct
import sys
import time
import traceback
import warnings

import numpy as np
import psutil

from appliance.errors import PeerError
from appliance.igtl import (
    Attribute,
    Bind,
    Capability,
    Cells,
    Connection,
    Image,
    ImageInfo,
    ImageInfos,
    ImagePart,
    LabelInfo,
    LabelInfos,
    Message,
    Pace,
    Point,
    Points,
    PolyData,
    Position,
    QuaternionData,
    QuaternionTool,
    Query,
    Reply,
    Sensor,
    Status,
    Text,
    Tool,
    TrackingData,
    Trajectories,
    Trajectory,
    Transform,
    encode,
)
from appliance.igtl.header import HEADER_BYTES, checksum
from appliance.igtl.queries import start
from appliance.igtl.rigid import rigid_fault

OBLIQUE = np.array([[0.9, 0.1, 0.0, -80.0], [-0.12, 1.1, 0.3, 20.5], [0.05, -0.2, 4.0, 31.25], [0, 0, 0, 1.0]])
POSE = np.array([[0.0, -1, 0, 12.5], [1, 0, 0, -3], [0, 0, 1, 99], [0, 0, 0, 1]])
TIME_NS = 1_700_000_000_123_456_789
MAX_BODY_BYTES = 1 << 20
MEMORY_MIB = 64  # what the process may grow by once every kind was seen


def pixels(shape, dtype):
    return np.arange(np.prod(shape)).astype(dtype).reshape(shape)


def cells(*lists):
    return Cells(len(lists), np.array([n for one in lists for n in (len(one), *one)], np.uint32))


SURFACE = PolyData(
    pixels((5, 3), np.float32),
    vertices=cells([0], [4]),
    lines=cells([0, 1], [1, 2, 3]),
    polygons=cells([0, 1, 2], [2, 3, 4]),
    strips=cells([0, 1, 2, 3, 4]),
    attributes=(
        Attribute("heat", pixels((5, 1), np.float32)),
        Attribute("normals", pixels((5, 3), np.float32), 0x02),
        Attribute("cell colour", pixels((2, 4), np.float32), 0x14),
    ),
)
EVERY_KIND = [
    Message(Image(pixels((1, 5, 4), "u2"), OBLIQUE), "nearscan", TIME_NS),
    Message(Image(pixels((2, 3, 4, 3), "u1"), OBLIQUE), "rgb", 0, 2, {"age_ms": "12.5", "ü": "é"}, 7),
    Message(Image(pixels((3, 2, 2), "f4"), OBLIQUE), "float", version=3),
    Message(ImagePart(pixels((1, 2, 3), "i2"), OBLIQUE, (1, 2, 3), (4, 4, 4)), "part"),
    Message(ImageInfos((ImageInfo("Kopf", "IMAGE_0", "MR", "A^B", "1", TIME_NS, (512, 512, 64), 5),)), "lab"),
    Message(LabelInfos((LabelInfo("liver", "LABEL_0", 1, (255, 0, 0, 255), (6, 5, 1), "IMAGE_0"),)), "lab"),
    Message(Status(7, "STALE", "no live data since 812 ms", 812), "nearscan", version=3),
    Message(Text("denoise left out: model failed"), "nearscan"),
    Message(Text("größer"), "nearscan", version=2),
    Message(Sensor(pixels(6, np.float64), 0x0445_0000_0000_0000), "force"),
    Message(Transform(POSE), "ProbeToReference", TIME_NS),
    Message(Position(np.array([1.0, 2, 3]), np.array([0.0, 0, 0.6, 0.8])), "probe"),
    Message(TrackingData((Tool("Probe", POSE, 1), Tool("Stylus", POSE, 3))), "tracker", TIME_NS, 2, {"a": "b"}),
    Message(QuaternionData((QuaternionTool("Probe", np.array([1.0, 2, 3]), np.array([0.0, 0, 0.6, 0.8])),)), "q"),
    Message(
        Points((Point("tip", (1.0, 2.0, 3.0), 0.5, "Fiducial", (1, 2, 3, 4), "IMAGE_0"), Point("", (0.0, 0.0, 0.0)))),
        "p",
    ),
    Message(Trajectories((Trajectory("path", (1.0, 2.0, 3.0), (4.0, 5.0, 6.0), 1.5, owner="IMAGE_0"),)), "plan"),
    Message(SURFACE, "mesh"),
    Message(Capability(("IMAGE", "STATUS")), "nearscan"),
    Message(Query("GET", "CAPABIL"), "slicer"),
    Message(start("TDATA", Pace(50, "Reference")), "slicer"),
    Message(Query("STP", "TDATA"), "slicer"),
    Message(Reply("TDATA", False), "nearscan"),
    Message(Bind((("words", Text("abc")), ("probe", Transform(POSE)))), "both", version=2),
]


def framed(wire: bytes, body: bytes, kind: bytes = b"", version: int = 0) -> bytes:
    """The header of `wire` around another body, with the right length and CRC."""
    head_version, head_kind, name, stamp = struct.unpack_from(">H12s20sQ", wire)
    head = (version or head_version, kind or head_kind, name, stamp, len(body), checksum(body))
    return struct.pack(">H12s20sQQQ", *head) + body


def with_bytes(data: bytes, at: int, new: bytes) -> bytes:
    return data[:at] + new + data[at + len(new) :]


NUMBERS = [
    value.to_bytes(size, "big")
    for size in (1, 2, 4, 8)
    for value in (0, 1, 1 << (8 * size - 1), (1 << (8 * size)) - 1, (1 << (8 * size)) - 2)
] + [struct.pack(">f", value) for value in (np.nan, np.inf, -np.inf, 3.4e38, 1e-45)]


def mutate(rng: random.Random, wires: list[bytes]) -> tuple[str, bytes]:
    """Return the name of the damage, and a damaged message."""
    wire, other = rng.choice(wires), rng.choice(wires)
    body = wire[HEADER_BYTES:]
    at = rng.randrange(len(body) + 1)
    how = rng.randrange(9)
    if how == 0:
        for _ in range(rng.randint(1, 8)):
            body = with_bytes(body, rng.randrange(len(body) + 1), rng.randbytes(1))
        return "bytes of the body", framed(wire, body)
    if how == 1:
        return "a number in the body", framed(wire, with_bytes(body, at, rng.choice(NUMBERS)))
    if how == 2:
        return "body cut short", framed(wire, body[:at])
    if how == 3:
        return "body with a tail", framed(wire, body + rng.randbytes(rng.randint(1, 64)))
    if how == 4:
        return "another type's name", framed(wire, body, kind=other[2:14])
    if how == 5:
        return "another version", framed(wire, body, version=rng.choice((1, 2, 3)))
    if how == 6:
        return "two bodies spliced", framed(wire, body[:at] + other[HEADER_BYTES:][rng.randrange(64) :])
    if how == 7:
        return "bytes anywhere, CRC as it was", with_bytes(
            wire, rng.randrange(len(wire)), rng.randbytes(rng.randint(1, 9))
        )
    return "the length in the header", with_bytes(
        wire, 42, rng.choice((rng.randbytes(8), rng.randrange(1 << 12).to_bytes(8, "big")))
    )


def feed(rng: random.Random, wire: bytes) -> str:
    """Give a connection the bytes and return what came of it. Raises whatever should not have come."""
    connection, events = Connection(MAX_BODY_BYTES), []
    cuts = sorted(rng.randrange(len(wire) + 1) for _ in range(rng.choice((0, 0, 1, 2, 5))))
    try:
        for a, b in zip([0, *cuts], [*cuts, len(wire)], strict=True):
            events += connection.receive(wire[a:b])
        connection.received(0)
    except PeerError as error:
        text = re.sub(r"^([A-Z_]+|[0-9]+) ", "… ", str(error).removeprefix("igtl: "))
        return "PeerError: " + re.sub(r" (of )?(b?['\"]|[0-9(]).*", " …", text)
    for event in events:
        if isinstance(event, Message):
            check_again(event)
    return type(events[0]).__name__.replace("Message", "read").replace("Skipped", "skipped") if events else "waiting"


def check_again(message: Message) -> None:
    """What was read can be written, and that is read and written as the same bytes; every pose gets its verdict."""
    for tool in getattr(message.content, "tools", (message.content,)):
        if hasattr(tool, "matrix"):
            rigid_fault(tool.matrix)
    try:
        wire = encode(message)
    except ValueError:
        return  # e.g. a name whose broken UTF-8 is longer once it is repaired
    (again,) = Connection(2 * MAX_BODY_BYTES).receive(wire)
    if isinstance(message.content, Image | ImagePart):  # the centre on the wire is rounded, the corner is not
        affine, scale = message.content.affine, np.abs(message.content.affine).max()
        np.testing.assert_allclose(again.content.affine / scale, affine / scale, atol=1e-3)
        np.testing.assert_array_equal(again.content.array, message.content.array)
    elif encode(again) != wire:
        raise AssertionError("written again, it is another message")


def fuzz(n_mutations: int, seed: int) -> tuple[dict[str, collections.Counter[str]], list[str], float]:
    """Return outcomes by damage, the tracebacks of what should not have come, and MiB that the process grew by."""
    rng, wires = random.Random(seed), [encode(message) for message in EVERY_KIND]
    outcomes: dict[str, collections.Counter[str]] = collections.defaultdict(collections.Counter)
    failures, process, before = [], psutil.Process(), 0
    for number in range(n_mutations):
        damage, wire = mutate(rng, wires)
        try:
            outcomes[damage][feed(rng, wire)] += 1
        except Exception:  # noqa: BLE001 whatever it is, it is what we look for
            failures.append(f"mutation {number} of seed {seed}, {damage}: {wire.hex()}\n{traceback.format_exc()}")
        if number == n_mutations // 10:
            before = process.memory_info().rss
    return outcomes, failures, (process.memory_info().rss - before) / 2**20


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--mutations", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=argparse.FileType("w"))
    options = parser.parse_args()
    warnings.simplefilter("error")
    began = time.perf_counter()
    outcomes, failures, grown_mib = fuzz(options.mutations, options.seed)
    seconds = time.perf_counter() - began
    show(outcomes, failures, grown_mib, seconds)
    if options.json:
        result = {"mutations": options.mutations, "seed": options.seed, "seconds": seconds, "grown_mib": grown_mib}
        json.dump({**result, "outcomes": outcomes, "failures": failures}, options.json, indent=2)
    return 1 if failures or grown_mib > MEMORY_MIB else 0


def show(outcomes, failures, grown_mib, seconds) -> None:
    print(f"{'damage':<32}{'all':>8}{'read':>8}{'skipped':>8}{'waiting':>8}{'PeerError':>10}")
    total: collections.Counter[str] = collections.Counter()
    for damage, counts in sorted(outcomes.items()):
        plain = collections.Counter({key: n for key, n in counts.items() if not key.startswith("PeerError")})
        plain["PeerError"] = sum(counts.values()) - sum(plain.values())
        total += counts
        columns = (sum(counts.values()), *(plain[key] for key in ("read", "skipped", "waiting")))
        print(f"{damage:<32}" + "".join(f"{n:>8}" for n in columns) + f"{plain['PeerError']:>10}")
    print("\noutcomes")
    for outcome, n in total.most_common():
        print(f"{n:>8}  {outcome}")
    print(f"\n{sum(total.values())} mutations in {seconds:.1f} s, memory grew by {grown_mib:.1f} MiB")
    print(f"{len(failures)} ended in anything else")
    for failure in failures[:5]:
        print(failure)


if __name__ == "__main__":
    sys.exit(main())
