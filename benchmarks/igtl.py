# SPDX-License-Identifier: Apache-2.0
"""OpenIGTLink beside pyigtl in the same run: poses, images, and 32 displays of which one is stalled.

    python benchmarks/igtl.py [--seconds 10] [--json FILE]

Sender and receiver are two processes; all, the peer's too, run at real-time priority where that is permitted. A pose's
time is from handing it over (`put`, `send_message`) to the receiver's callback having it decoded, its CRC checked
(pyigtl checks none). An image is 512 x 512 of uint16; as many as go through, each read and decoded; for pyigtl every
message that its thread decoded counts, whether or not anybody comes to take it within its 10 ms. Floors: the same
bytes through a bare pair of sockets, nothing computed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import platform
import selectors
import socket
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyigtl

from appliance.context import Context
from appliance.frames import Frame, Scan
from appliance.igtl import Connection, Image, Message, Status, Transform, encode
from appliance.live.igtl_client import Client
from appliance.live.igtl_server import DisplayServer
from appliance.simulate.free_ports import free_ports
from operators.sinks.openigtlink import Settings, make

POSE_RATES_HZ, DISPLAYS_HZ, N_DISPLAYS, SIZE = (50.0, 500.0), 30.0, 32, 512
POSE_BYTES = 58 + 48
AFFINE = np.diag([0.5, 0.5, 1.0, 1.0])
CONTEXT = multiprocessing.get_context("spawn")


def instrument() -> None:
    """As the appliance runs its pipelines, and so the peer too: real-time priority, switches between threads soon."""
    sys.setswitchinterval(0.0005)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(20))
    except PermissionError:
        print("no real-time priority here: whatever else runs on this machine is in the figures")


def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 4096, (1, SIZE, SIZE), np.uint16)


def percentiles(times_ms: list[float]) -> dict[str, float]:
    values = np.percentile(times_ms, [50, 99, 100])
    return dict(zip(("p50_ms", "p99_ms", "max_ms"), values.tolist(), strict=True)) | {"n": len(times_ms)}


def pace(n: int, rate_hz: float, work: Callable[[int], None]) -> list[int]:
    """Do `work` n times at a rate; return when each began."""
    begin, began_ns = time.monotonic(), []
    for number in range(n):
        time.sleep(max(0.0, begin + number / rate_hz - time.monotonic()))
        began_ns.append(time.monotonic_ns())
        work(number)
    return began_ns


class Receiver:
    """A receiving function in a process of its own; it says "ready" and, when told, hands over what it noted."""

    def __init__(self, function: Callable[..., None], *arguments: Any) -> None:
        self.pipe, other = CONTEXT.Pipe()
        self._process = CONTEXT.Process(target=receive, args=(other, function, *arguments), daemon=True)
        self._process.start()
        self.pipe.recv()

    def stop(self) -> Any:
        self.pipe.send("stop")
        noted = self.pipe.recv()
        self._process.join()
        return noted


def receive(pipe: Any, function: Callable[..., None], *arguments: Any) -> None:
    instrument()
    function(pipe, *arguments)


def until_stopped(pipe: Any, noted: Callable[[], Any]) -> None:
    pipe.recv()
    pipe.send(noted())


# ---- poses


def our_poses(pipe: Any, port: int) -> None:
    arrived: dict[int, int] = {}

    def note(message: Message, _: int) -> None:
        if isinstance(message.content, Transform):
            arrived[int(message.content.matrix[0, 3])] = time.monotonic_ns()

    client = Client("127.0.0.1", port, on_message=note, on_state=lambda state: pipe.send(state))
    client.start()
    until_stopped(pipe, lambda: arrived)
    client.close()


def their_poses(pipe: Any, port: int) -> None:
    client, arrived, over = pyigtl.OpenIGTLinkClient("127.0.0.1", port), {}, threading.Event()

    def read() -> None:
        while not over.is_set():
            message = client.wait_for_message("probe", timeout=0.5)
            if message is not None:
                arrived[int(message.matrix[0, 3])] = time.monotonic_ns()

    thread = threading.Thread(target=read)
    thread.start()
    while not client.is_connected():
        time.sleep(0.01)
    pipe.send("ready")
    until_stopped(pipe, lambda: arrived)
    over.set()
    thread.join()
    client.stop()


def bare_poses(pipe: Any, port: int) -> None:
    connected = socket.create_connection(("127.0.0.1", port))
    arrived: dict[int, int] = {}
    pipe.send("ready")
    for number in range(10**9):
        if len(connected.recv(POSE_BYTES, socket.MSG_WAITALL)) < POSE_BYTES:
            break
        arrived[number] = time.monotonic_ns()
    until_stopped(pipe, lambda: arrived)


def pose(number: int) -> np.ndarray:
    matrix = np.eye(4)
    matrix[0, 3] = number
    return matrix


def server_of(encode_item: Callable[[Any], Any], send_timeout_s: float = 5.0) -> DisplayServer:
    return DisplayServer("127.0.0.1", 0, encode_item, lambda: ({}, 0.5), send_timeout_s, N_DISPLAYS)


def latency_ms(began_ns: list[int], arrived: dict[int, int]) -> list[float]:
    return [(arrived[number] - ns) / 1e6 for number, ns in enumerate(began_ns) if number in arrived]


def time_our_poses(n: int, rate_hz: float) -> dict[str, float]:
    poses = [pose(number) for number in range(n)]
    server = server_of(lambda number: {"TRANSFORM probe": encode(Message(Transform(poses[number]), "probe"))})
    receiver = Receiver(our_poses, server.port)
    time.sleep(0.5)
    began_ns = pace(n, rate_hz, server.put)
    time.sleep(0.5)
    result = percentiles(latency_ms(began_ns, receiver.stop()))
    server.close({})
    return result


def time_their_poses(n: int, rate_hz: float) -> dict[str, float]:
    server, poses = pyigtl.OpenIGTLinkServer(port=free_port(), local_server=True), [pose(k) for k in range(n)]
    receiver = Receiver(their_poses, server.port)
    time.sleep(0.5)

    def send(number: int) -> None:
        server.send_message(pyigtl.TransformMessage(poses[number], device_name="probe"), wait=False)

    began_ns = pace(n, rate_hz, send)
    time.sleep(0.5)
    result = percentiles(latency_ms(began_ns, receiver.stop()))
    server.stop()
    return result


def time_bare_poses(n: int, rate_hz: float) -> dict[str, float]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = Receiver(bare_poses, listener.getsockname()[1])
        connected, _ = listener.accept()
    connected.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    wire = encode(Message(Transform(np.eye(4)), "probe"))
    began_ns = pace(n, rate_hz, lambda _: connected.sendall(wire))
    time.sleep(0.2)
    connected.close()
    return percentiles(latency_ms(began_ns, receiver.stop()))


def time_poses(n: int, rate_hz: float) -> dict[str, Any]:
    return {
        "nearscan": time_our_poses(n, rate_hz),
        "pyigtl": time_their_poses(n, rate_hz),
        "floor": time_bare_poses(n, rate_hz),
    }


def free_port() -> int:
    return free_ports(1)[0]


# ---- images


def our_images(pipe: Any, port: int, window: Any) -> None:
    arrived: list[int] = []

    def note(message: Message, received_ns: int) -> None:
        if isinstance(message.content, Image):
            arrived.append(received_ns)
            window.release()

    client = Client("127.0.0.1", port, on_message=note, on_state=lambda state: pipe.send(state))
    client.start()
    until_stopped(pipe, lambda: arrived)
    client.close()


def their_images(pipe: Any, port: int) -> None:
    client, arrived = pyigtl.OpenIGTLinkClient("127.0.0.1", port), []
    receive = client._receive_message_from_socket

    def counted(connected: socket.socket) -> bool:
        got = bool(receive(connected))
        if got:
            arrived.append(time.monotonic_ns())
        return got

    client._receive_message_from_socket = counted
    while not client.is_connected():
        time.sleep(0.01)
    pipe.send("ready")
    until_stopped(pipe, lambda: arrived)
    client.stop()


def bare_images(pipe: Any, port: int, n_bytes: int) -> None:
    connected, buffer, arrived = socket.create_connection(("127.0.0.1", port)), memoryview(bytearray(n_bytes)), []
    pipe.send("ready")
    while connected.recv_into(buffer, n_bytes, socket.MSG_WAITALL) == n_bytes:
        arrived.append(time.monotonic_ns())
    until_stopped(pipe, lambda: arrived)


def rate(arrived_ns: list[int]) -> dict[str, float]:
    seconds = (arrived_ns[-1] - arrived_ns[0]) / 1e9
    return {"images_per_s": (len(arrived_ns) - 1) / seconds, "n": len(arrived_ns)}


def count_our_images(seconds: float) -> dict[str, float]:
    image, window, taken = pixels(), CONTEXT.Semaphore(2), threading.Semaphore(1)

    def encode_item(number: int) -> dict[str, bytes]:
        taken.release()
        return {"IMAGE": encode(Message(Image(image, AFFINE), "scan", number))}

    server = server_of(encode_item)
    receiver = Receiver(our_images, server.port, window)
    end, number = time.monotonic() + seconds, 0
    while time.monotonic() < end:
        window.acquire()  # two on their way: one being read, one being written
        taken.acquire()  # and none in the server's slot, where it would be replaced
        server.put(number := number + 1)
    result = rate(receiver.stop())
    server.close({})
    return result


def count_their_images(seconds: float) -> dict[str, float]:
    image, server = pixels(), pyigtl.OpenIGTLinkServer(port=free_port(), local_server=True)
    receiver = Receiver(their_images, server.port)
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if len(server.outgoing_messages) < 4:
            server.send_message(pyigtl.ImageMessage(image, device_name="scan"), wait=False)
        else:
            time.sleep(0.0005)
    result = rate(receiver.stop())
    server.stop()
    return result


def count_bare_images(seconds: float) -> dict[str, float]:
    wire = encode(Message(Image(pixels(), AFFINE), "scan"))
    with socket.create_server(("127.0.0.1", 0)) as listener:
        receiver = Receiver(bare_images, listener.getsockname()[1], len(wire))
        connected, _ = listener.accept()
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        connected.sendall(wire)
    connected.close()
    return rate(receiver.stop())


# ---- 32 displays


def many_displays(pipe: Any, port: int, n_displays: int) -> None:
    """Read as `n_displays` displays from one process."""
    selector, arrived, over = selectors.DefaultSelector(), [], threading.Event()
    for _ in range(n_displays):
        connected = socket.create_connection(("127.0.0.1", port))
        connected.setblocking(False)
        selector.register(connected, selectors.EVENT_READ, Connection())

    def read() -> None:
        while not over.is_set():
            for key, _ in selector.select(0.1):
                connection = key.data
                for event in connection.received(key.fileobj.recv_into(connection.room())):
                    if isinstance(event, Message) and isinstance(event.content, Image):
                        arrived.append((event.time_ns, time.monotonic_ns()))

    thread = threading.Thread(target=read)
    thread.start()
    pipe.send("ready")
    until_stopped(pipe, lambda: (over.set(), thread.join(), arrived)[2])


def time_displays(seconds: float, *, stalled: bool) -> dict[str, float]:
    """Latency of each image at each display that reads; with one that never does, or that reads too."""
    image = pixels()
    server = server_of(lambda number: {"IMAGE": encode(Message(Image(image, AFFINE), "scan", number))}, 2 * seconds)
    silent = socket.create_connection(("127.0.0.1", server.port)) if stalled else None
    receiver = Receiver(many_displays, server.port, N_DISPLAYS - stalled)
    time.sleep(0.5)
    began_ns = pace(int(seconds * DISPLAYS_HZ), DISPLAYS_HZ, lambda n: server.put(n + 1))
    time.sleep(0.5)
    counts = server.status()["displays"]
    times = [(ns - began_ns[number - 1]) / 1e6 for number, ns in receiver.stop()]
    server.close({})
    if silent is not None:
        silent.close()
    whole = sum(display["dropped"] == 0 for display in counts)
    return {**percentiles(times), "displays_without_a_drop": whole, "frames": len(began_ns)}


# ---- a source that stops


def time_staleness(rounds: int) -> dict[str, float]:
    """From the newest image's arrival at the appliance to a display being told that there is no live data."""
    told, heard = threading.Event(), []

    def note(message: Message, received_ns: int) -> None:
        if isinstance(message.content, Status) and message.content.name == "STALE":
            heard.append(received_ns)
            told.set()

    sink = make(Settings(port=0), Context("bench", Path(), Path()))
    client = Client("127.0.0.1", sink.status()["port"], on_message=note, on_state=lambda state: None)
    client.start()
    sink.begin(Scan("s", "MR", ("y", "x"), (SIZE, SIZE), "float32", time.time_ns()))
    array, times, began_ns = pixels()[0].astype(np.float32), [], []
    for _ in range(rounds):
        began_ns = pace(10, DISPLAYS_HZ, lambda n: sink.frame(frame_of(n, array)))
        told.clear()
        told.wait(5)
        times.append((heard[-1] - began_ns[-1]) / 1e6)
    client.close()
    sink.close()
    return percentiles(times)


def frame_of(number: int, array: np.ndarray) -> Frame:
    now_ns = time.monotonic_ns()
    return Frame(
        scan_id="s",
        sequence=number,
        array=array,
        axes=("y", "x"),
        affine=AFFINE,
        acquired_ns=time.time_ns(),
        received_ns=now_ns,
    )


def machine() -> dict[str, Any]:
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    model = next((line.split(":")[1].strip() for line in lines if "model name" in line), "unknown")
    load = [round(one, 1) for one in os.getloadavg()]
    return {"cpu": model, "cores": os.cpu_count(), "python": platform.python_version(), "load_before": load}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    instrument()
    result: dict[str, Any] = {"machine": machine()}
    seconds = options.seconds
    result["poses"] = {f"{rate_hz:.0f}/s": time_poses(int(seconds * rate_hz), rate_hz) for rate_hz in POSE_RATES_HZ}
    result["images"] = {
        "nearscan": count_our_images(seconds),
        "pyigtl": count_their_images(seconds),
        "floor": count_bare_images(seconds),
    }
    result["displays"] = {
        "all read": time_displays(seconds, stalled=False),
        "one stalled": time_displays(seconds, stalled=True),
    }
    result["stale"] = time_staleness(max(2, int(seconds)))
    show(result)
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")


def show(result: dict[str, Any]) -> None:
    poses, images, displays = result["poses"], result["images"], result["displays"]
    print(f"{result['machine']['cpu']}, {result['machine']['cores']} cores, load {result['machine']['load_before']}\n")
    for rate, rows in poses.items():
        print(f"{'TRANSFORM, ' + rate:<22}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'arrived':>9}")
        for name, row in rows.items():
            print(f"{name:<22}{row['p50_ms']:>9.3f}{row['p99_ms']:>9.3f}{row['max_ms']:>9.3f}{row['n']:>9}")
        ratio = rows["pyigtl"]["p50_ms"] / rows["nearscan"]["p50_ms"]
        print(f"lower than pyigtl's by {ratio:.0f} at p50 (aim 50), p99 {rows['nearscan']['p99_ms']:.3f} ms (aim 1)\n")
    print(f"{'IMAGE, 512 x 512 uint16':<26}{'a second':>9}{'MB/s':>9}")
    for name, row in images.items():
        print(f"{name:<26}{row['images_per_s']:>9.0f}{row['images_per_s'] * SIZE * SIZE * 2 / 1e6:>9.0f}")
    print(f"times pyigtl's: {images['nearscan']['images_per_s'] / images['pyigtl']['images_per_s']:.1f} (aim 5)\n")
    print(f"{'32 displays, 30/s':<22}{'p50 ms':>9}{'p99 ms':>9}{'max ms':>9}{'without a drop':>16}")
    for name, row in displays.items():
        print(
            f"{name:<22}{row['p50_ms']:>9.2f}{row['p99_ms']:>9.2f}{row['max_ms']:>9.2f}"
            f"{row['displays_without_a_drop']:>16}"
        )
    moved = displays["one stalled"]["p99_ms"] - displays["all read"]["p99_ms"]
    stale = result["stale"]
    print(f"the others' p99 moves by {moved:.2f} ms (aim: less than a frame, {1000 / DISPLAYS_HZ:.1f} ms)\n")
    print(
        f"told that it is stale: {stale['p50_ms']:.0f} ms after the last image, {stale['max_ms']:.0f} at most (aim 500)"
    )


if __name__ == "__main__":
    main()
