# SPDX-License-Identifier: Apache-2.0
"""One session where our own side fails; everything else is tested through the source."""

from __future__ import annotations

import socket
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from appliance.context import Context
from appliance.errors import PeerError
from appliance.frames import End, Frame, Message, Scan
from appliance.live import mrd_session
from appliance.live.mrd_session import Session, SessionOptions
from appliance.mrd import messages as m
from appliance.mrd.header import encode_header_xml
from appliance.simulate.mri import cine_encoding, cine_lines

SHAPE = (2, 16, 12)
GOOD = (
    m.encode_header(encode_header_xml(cine_encoding(SHAPE, 1)))
    + m.encode_acquisitions(*cine_lines(np.ones(SHAPE, np.complex64), 0, 1, 0))
    + m.encode_close()
)


def session_of(data: bytes, context: Context, emit: object) -> tuple[Session, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as server:
        theirs = socket.create_connection(server.getsockname())
        ours, _ = server.accept()
    theirs.sendall(data)
    theirs.shutdown(socket.SHUT_WR)
    theirs.settimeout(20)
    return Session(ours, "127.0.0.1:1", "s", SessionOptions(), context, emit), theirs  # type: ignore[arg-type]


def answer(scanner: socket.socket) -> bytes:
    received = b""
    with scanner:
        while piece := scanner.recv(1 << 16):
            received += piece
    return received


def test_an_exception_of_our_own_still_ends_the_scan_and_answers() -> None:
    messages: list[Message] = []

    def emit(message: Message) -> None:
        if isinstance(message, Frame):
            raise RuntimeError("a bug of ours")
        messages.append(message)

    context = Context("p", Path(), Path())
    session, scanner = session_of(GOOD, context, emit)
    with pytest.raises(RuntimeError, match="a bug of ours"):
        session.run()
    assert [type(message) for message in messages] == [Scan, End]
    assert messages[1].status == "aborted"
    text = m.encode_text("nearscan: scan aborted: internal error, see the log")
    assert answer(scanner) == text + m.encode_close()
    assert context.replies == {}


def test_a_graph_that_takes_nothing_any_more_still_leaves_the_scanner_answered() -> None:
    def emit(message: Message) -> None:
        raise RuntimeError("the graph is gone")

    session, scanner = session_of(GOOD, Context("p", Path(), Path()), emit)
    with pytest.raises(RuntimeError, match="the graph is gone"):
        session.run()
    assert answer(scanner).endswith(m.encode_close())


def test_a_reply_that_nobody_closes_is_closed_in_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mrd_session, "_REPLY_WAIT_S", 0.3)
    context = Context("p", Path(), Path())
    context.reply_wanted.set()
    session, scanner = session_of(GOOD, context, lambda message: None)
    assert session.run() == ("complete", "")
    assert answer(scanner) == m.encode_close()


def test_images_on_their_way_still_go_out_when_we_stop() -> None:
    context = Context("p", Path(), Path())
    context.reply_wanted.set()
    ended = threading.Event()
    session, scanner = session_of(GOOD, context, lambda message: ended.set() if isinstance(message, End) else None)
    thread = threading.Thread(target=session.run)
    thread.start()
    assert ended.wait(20)
    session.stop()
    time.sleep(0.3)  # the graph is still at work
    session.send(b"image")
    session.close("complete", "")
    thread.join(20)
    assert answer(scanner) == b"image" + m.encode_close()


def test_after_close_nothing_more_is_sent() -> None:
    session, scanner = session_of(GOOD, Context("p", Path(), Path()), lambda message: None)
    session.close("complete", "")
    session.close("aborted", "said once")
    with pytest.raises(PeerError, match="mrd: the scanner's connection is closed"):
        session.send(b"late")
    session.run()
    assert answer(scanner) == m.encode_close()
