# SPDX-License-Identifier: Apache-2.0
"""The OpenIGTLink sink and its server over loopback: displays of every temper."""

import socket
import subprocess
import time
from pathlib import Path

import numpy as np
import pyigtl
import pytest
from displays import AFFINE, PATIENCE_S, frame, scan, until

from appliance.context import Context
from appliance.errors import ConfigError
from appliance.frames import Applied, End, Finding, Mark
from appliance.igtl import Capability, Image, Message, Query, Status, Text, encode
from operators.sinks.openigtlink import Settings, make


def test_what_was_removed_arrives_under_its_own_name(start, connect):
    sink, port = start(removed_name="removed")
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    before = np.linspace(-3, 50, 30, dtype=np.float32).reshape(6, 5)
    sink.frame(frame(original=before))
    images = {message.device_name: message.content for message in (display.image(), display.image())}
    assert images.keys() == {"nearscan", "removed"}
    np.testing.assert_array_equal(images["removed"].array[0], before - frame().array)
    np.testing.assert_allclose(images["removed"].affine, AFFINE, atol=2e-5)
    sink.frame(frame(1))  # nothing processed it
    assert display.image().device_name == "nearscan"
    sink.frame(frame(2, original=before))
    assert {display.image().device_name, display.image().device_name} == {"nearscan", "removed"}


def test_an_image_arrives_with_its_geometry_time_and_grey_values(start, connect):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    sink.frame(frame())
    message = display.image()
    np.testing.assert_allclose(message.content.affine, AFFINE, atol=2e-5)
    assert (message.version, message.device_name, message.time_ns) == (1, "nearscan", 1_700_000_000_000_000_000)
    assert message.content.array.dtype == np.int16
    expected = np.rint(np.arange(30).reshape(1, 6, 5) * 4095.5 / 29)
    np.testing.assert_allclose(message.content.array, expected, atol=1)  # float32 rounding


def test_the_scale_stays_for_the_whole_scan(start, connect):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    sink.frame(frame(0, np.full((6, 5), 2, np.float32)))
    assert display.image().content.array.max() == 4096
    sink.frame(frame(1, np.full((6, 5), 1, np.float32)))
    assert abs(int(display.image().content.array.max()) - 2048) <= 1


def test_float_volumes_pass_unchanged(start, connect):
    sink, port = start(image_type="float32")
    display = connect(port)
    display.status("IDLE")
    array = np.random.default_rng(1).normal(size=(3, 6, 5)).astype(np.float32)
    sink.begin(scan())
    sink.frame(frame(array=array))
    np.testing.assert_array_equal(display.image().content.array, array)


@pytest.mark.parametrize(
    ("modality", "dtype", "values"),
    [
        ("CT", np.int16, [-1024.0, -0.6, 0.0, 40.4, 3071.0]),  # Hounsfield units as they are
        ("US", np.uint8, [0.0, 0.4, 1.0, 127.6, 255.0]),  # grey levels of the display as they are
    ],
)
def test_pixels_with_a_meaning_keep_it(start, connect, modality, dtype, values):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality=modality))
    array = np.resize(np.array(values, np.float32), (6, 5))
    sink.frame(frame(array=array))
    seen = display.image().content.array
    assert seen.dtype == dtype
    np.testing.assert_array_equal(seen[0], np.rint(array))
    assert sink.status()["clipped_pixels"] == 0


def test_values_below_zero_of_mr_are_kept(start, connect):
    sink, port = start(protocol=3)
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    array = np.linspace(-2, 2, 30, dtype=np.float32).reshape(6, 5)
    sink.frame(frame(array=array))
    message = display.image()
    scale = float(message.metadata["scale"])
    np.testing.assert_allclose(message.content.array[0] / scale, array, atol=0.51 / scale)
    assert message.content.array.min() < -4000


@pytest.mark.parametrize(
    ("modality", "values", "dtype"), [("US", [300.0, -1.0], "uint8"), ("CT", [40000.0, np.nan], "int16")]
)
def test_what_does_not_fit_is_told(start, connect, modality, values, dtype):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan(modality=modality))
    sink.frame(frame(array=np.array([values], np.float32)))
    text = display.wait_for(lambda m: isinstance(m.content, Text)).content.text
    assert text == f"CLIPPED: 2 pixels lie outside what {dtype} holds at this scale\nno remarks"
    assert sink.status()["clipped_pixels"] == 2


def test_a_scale_that_leaves_few_grey_levels_is_told(start, connect):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    sink.frame(frame(array=np.full((6, 5), 1.0, np.float32)))
    display.image()
    sink.frame(frame(1, np.full((6, 5), 0.01, np.float32)))
    text = display.wait_for(lambda m: isinstance(m.content, Text)).content.text
    assert text.startswith("COARSE: only 41 grey levels are left by the scale of the scan's first image")


def test_protocol_3_carries_what_was_done_with_the_image(start, connect):
    sink, port = start(protocol=3)
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    applied = Applied("denoise", "1", "abc", "mr-denoise", "0123456789abcdef")
    sink.frame(frame(4, marks=(Mark("denoise", "late"),), provenance=(applied,)))
    said = display.image().metadata
    assert float(said.pop("age_ms")) >= 0
    assert said == {
        "acquired_ns": "1700000000000000004",
        "sequence": "4",
        "scan_id": "s1",
        "models": "mr-denoise 0123456789ab",
        "unprocessed": "denoise: late",
        "findings": "",
        "scale": "141.224138",
    }


def test_remarks_are_said_when_they_change_and_to_who_comes_later(start, connect):
    sink, port = start()
    display = connect(port)
    sink.begin(scan())
    spike = Finding("spike", "RF spike in line 81; check the door", "alarm")
    expected = "UNPROCESSED by denoise: model failed\nALARM: RF spike in line 81; check the door"
    for sequence in range(2):
        sink.frame(frame(sequence, marks=(Mark("denoise", "model failed"),), findings=(spike,)))
        before = []
        display.wait_for(lambda m, before=before: before.append(m.content) or isinstance(m.content, Image))
        assert [c.text for c in before if isinstance(c, Text)] == ([expected] if sequence == 0 else [])
    late = connect(port)
    assert late.wait_for(lambda m: isinstance(m.content, Text)).content.text == expected
    sink.frame(frame(2))
    assert display.wait_for(lambda m: isinstance(m.content, Text)).content.text == "no remarks"


def test_live_stale_live_ended(start, connect):
    sink, port = start(stale_ms=300, keepalive_s=30)  # so every status below is a change, not a keep-alive
    display = connect(port)
    assert display.status("IDLE").code == 1
    sink.begin(scan())
    sink.frame(frame())
    assert display.status("LIVE").code == 1
    stale = display.status("STALE")
    assert (stale.code, stale.text) == (7, f"no live data since {stale.subcode} ms")
    assert stale.subcode >= 300
    sink.frame(frame(1))
    assert display.status("LIVE").code == 1
    sink.end(End("s1", "aborted", "the scanner hung up", 2))
    ended = display.status("ENDED")
    assert (ended.code, ended.text) == (7, "scan ended: aborted, the scanner hung up")
    sink.begin(scan("s2"))
    display.status("LIVE")
    sink.end(End("s2", "complete", "", 0))
    ended = display.status("ENDED")
    assert (ended.code, ended.text) == (1, "scan ended: complete")
    sink.close()
    assert display.status("SHUTDOWN").code == 19


def test_a_scan_without_a_first_image_is_never_called_an_image(start, connect):
    sink, port = start(stale_ms=60_000, keepalive_s=0.05)
    display = connect(port)
    sink.begin(scan())
    assert display.status("LIVE").text.startswith("live, scan began ")
    sink.frame(frame())
    display.image()
    display.wait_for(lambda m: isinstance(m.content, Status) and "newest image" in m.content.text)


def test_keep_alive_status_comes_without_any_scan(start, connect):
    _, port = start(keepalive_s=0.05)
    display = connect(port)
    for _ in range(4):
        display.status("IDLE")


def test_a_display_that_never_reads_is_dropped_and_others_go_on(start, connect):
    sink, port = start(send_timeout_s=0.5, image_type="float32")
    reader = connect(port)
    with socket.socket() as stuck:
        stuck.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        stuck.connect(("127.0.0.1", port))
        until(lambda: len(sink.status()["displays"]) == 2)
        sink.begin(scan())
        array = np.ones((1024, 1024), np.float32)
        n_sent = 0
        end = time.monotonic() + PATIENCE_S
        while not sink.status()["dropped_displays"]:
            assert time.monotonic() < end
            sink.frame(frame(n_sent, array))
            assert reader.image().time_ns == 1_700_000_000_000_000_000 + n_sent
            n_sent += 1
        sink.frame(frame(n_sent, array))
        reader.image()
    left = {"peer": "{}:{}".format(*reader.socket.getsockname()), "sent": n_sent + 1, "dropped": 0}
    until(lambda: sink.status()["displays"] == [left])


def test_a_slow_display_gets_the_newest_and_its_drops_are_counted(start, connect):
    sink, port = start(image_type="float32", send_timeout_s=60)
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    array = np.ones((1024, 1024), np.float32)
    n_frames = 0

    def n_dropped():
        return sink.status()["displays"][0]["dropped"]

    while n_dropped() < 5:  # it reads nothing for now
        sink.frame(frame(n_frames, array))
        n_frames += 1
        time.sleep(0.005)
    numbers = []
    while not numbers or numbers[-1] != n_frames - 1:
        numbers.append(display.image().time_ns - 1_700_000_000_000_000_000)
    assert numbers == sorted(set(numbers))
    status = sink.status()
    assert len(numbers) == n_frames - n_dropped() - status["overwritten"]


def test_displays_come_and_go(start, connect):
    sink, port = start()
    sink.begin(scan())
    for sequence in range(100):
        display = socket.create_connection(("127.0.0.1", port))
        if sequence % 3 == 0:
            display.sendall(b"\0")
        sink.frame(frame(sequence))
        if sequence % 2:
            display.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")  # reset instead of FIN
        display.close()
    until(lambda: not sink.status()["displays"])
    reader = connect(port)
    for sequence in range(100, 150):  # a late one of the hundred may still be counted as the display
        sink.frame(frame(sequence))
        time.sleep(0.02)
    reader.image()


def test_more_displays_than_allowed_are_refused(start, connect):
    sink, port = start(max_displays=1)
    first = connect(port)
    first.status("IDLE")
    with socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S) as second:
        assert second.recv(1) == b""
    assert sink.status()["refused_displays"] == 1


def test_what_a_display_may_ask_and_say(start, connect):
    _, port = start(keepalive_s=60)
    display = connect(port)
    display.status("IDLE")
    picture = encode(Message(Image(np.zeros((1, 4, 4), np.uint8), np.eye(4))))
    display.socket.sendall(picture + encode(Message(Query("GET", "CAPABIL"))))
    assert "IMAGE" in display.wait_for(lambda m: isinstance(m.content, Capability)).content.types
    display.socket.sendall(encode(Message(Query("GET", "STATUS"))))
    display.status("IDLE")


def test_a_peer_that_speaks_something_else_is_hung_up_on(start):
    sink, port = start()
    display = socket.create_connection(("127.0.0.1", port), timeout=PATIENCE_S)
    display.sendall(b"GET / HTTP/1.1\r\nHost: nearscan\r\nUser-Agent: something curious\r\n\r\n")
    until(lambda: not sink.status()["displays"])
    display.close()


def test_an_image_that_cannot_be_sent_raises_an_alarm_and_the_next_one_goes(start, connect):
    sink, port = start()
    display = connect(port)
    display.status("IDLE")
    sink.begin(scan())
    sink.frame(frame(array=np.zeros((6, 5), np.complex64)))
    until(lambda: "openigtlink" in sink.alarms)
    assert sink.alarms["openigtlink"] == "openigtlink: pixels are complex64, not numbers; put reconstruct before it"
    sink.frame(frame(1))
    display.image()
    assert sink.alarms["openigtlink"] == ""


def test_a_taken_port_says_so(start):
    _, port = start()
    with pytest.raises(ConfigError, match=f"openigtlink: cannot listen on 127.0.0.1:{port}: .*; choose another port"):
        make(Settings(port=port), Context("p", None, None))


def test_pyigtl_receives_from_the_server(start):
    sink, port = start()
    client = pyigtl.OpenIGTLinkClient(host="127.0.0.1", port=port)
    try:
        until(lambda: sink.status()["displays"])
        sink.begin(scan())
        sink.frame(frame())
        message = client.wait_for_message("nearscan", timeout=PATIENCE_S)
        while not isinstance(message, pyigtl.ImageMessage):
            message = client.wait_for_message("nearscan", timeout=PATIENCE_S)
        lps = np.diag([-1, -1, 1, 1]) @ message.ijk_to_world_matrix
        np.testing.assert_allclose(lps, AFFINE, atol=1e-4)
        assert message.image.shape == (1, 6, 5)
    finally:
        client.stop()


@pytest.mark.peer
def test_the_cpp_library_reads_what_we_send(start, tmp_path):
    source = Path("/usr/share/doc/openigtlink-examples/examples/Receiver/ReceiveClient.cxx")
    include = Path("/usr/include/openigtlink")
    for needed in (source, include):
        if not needed.exists():
            pytest.skip(f"{needed} is absent (Debian: openigtlink-examples, libopenigtlink-dev)")
    program = tmp_path / "receive"
    build = ["g++", "-w", str(source), f"-I{include}", "-lOpenIGTLink", "-lpthread", "-o", str(program)]
    subprocess.run(build, check=True)
    sink, port = start(keepalive_s=60)
    client = subprocess.Popen([program, "127.0.0.1", str(port)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    until(lambda: sink.status()["displays"])
    sink.begin(scan())
    sink.frame(frame(findings=(Finding("spike", "RF spike in line 81"),)))
    until(lambda: sink.status()["displays"][0]["sent"] == 1)
    sink.end(End("s1", "complete", "", 1))
    sink.close()
    said = client.communicate(timeout=PATIENCE_S)[0].decode()
    spacing = np.linalg.norm(AFFINE[:3, :3], axis=0)
    expected = "Dimensions            : (5, 6, 1)\nSpacing               : ({:.6g}, {:.6g}, {:.6g})".format(*spacing)
    assert expected in said  # printed only after the library's own CRC check
    assert "String: WARNING: RF spike in line 81" in said
    assert "Status    : scan ended: complete" in said or "Status    : nearscan stops" in said


@pytest.mark.parametrize("key", ["device_name", "removed_name"])
def test_names_that_do_not_fit_the_wire_are_told_before_anything_starts(key):
    with pytest.raises(ValueError, match="should match pattern"):
        Settings(**{key: "größer"})  # letters of two bytes: 20 of them would be 40
