# SPDX-License-Identifier: Apache-2.0
"""A segment gives back what was durable, whatever the end of the file looks like, and nothing else."""

import errno
import hashlib
import os
import threading

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from appliance.buffer import segments as module
from appliance.buffer.segments import ObjectError, Place, Segments
from appliance.errors import StorageError


@pytest.fixture
def folder(tmp_path):
    one = Segments(tmp_path / "segments")
    yield one
    one.close()


def put(folder, data, **meta):
    with folder.writer() as writer:
        writer.write(data)
        return writer.commit(meta)


def all_of(folder):
    return [record for name in folder.names() for record in folder.records(name)]


def test_a_record_gives_back_its_data_and_what_it_says(folder):
    records = [put(folder, bytes([n]) * n, n=n) for n in range(20)]
    assert [record.meta["n"] for record in all_of(folder)] == list(range(20))
    for n, record in enumerate(records):
        assert record.digest == hashlib.sha256(bytes([n]) * n).hexdigest()
        assert folder.read(record.place, record.digest) == bytes([n]) * n
        assert record.end % 8 == 0
    assert len(folder.names()) == 1


@pytest.mark.parametrize("n_bytes", [0, 1, 4095, 4096, 4097, 3 * 4096, 50_000])
def test_pieces_are_the_data_and_never_many_at_once(folder, n_bytes):
    data = os.urandom(n_bytes)
    record = put(folder, data)
    pieces = list(folder.pieces(record.place, record.digest, 4096))
    assert b"".join(pieces) == data
    assert max(map(len, pieces)) <= 4096


@pytest.mark.parametrize("at", [4096, 9_000, 19_999])
def test_altered_data_give_no_piece_and_those_altered_meanwhile_not_all(folder, tmp_path, at):
    data = os.urandom(20_000)
    record = put(folder, data)
    (path,) = (tmp_path / "segments").iterdir()

    def alter():
        with path.open("r+b") as file:
            file.seek(record.place.position + 64 + at)
            file.write(bytes([data[at] ^ 1]))

    under_way = folder.pieces(record.place, record.digest, 4096)
    got = [bytes(next(under_way))]
    alter()
    with pytest.raises(ObjectError, match="was altered on the disk"):
        got += (bytes(piece) for piece in under_way)
    assert sum(map(len, got)) < len(data)
    with pytest.raises(ObjectError, match="was altered on the disk"):
        next(folder.pieces(record.place, record.digest, 4096))


def test_pieces_of_what_is_purged_under_way_or_never_was_are_refused(folder):
    record = put(folder, b"x" * 50_000)
    under_way = folder.pieces(record.place, record.digest, 4096)
    next(under_way)
    folder.purge(record.place)
    for pieces in (under_way, folder.pieces(Place(record.place.segment, 8), record.digest)):
        with pytest.raises(ObjectError, match="was altered on the disk"):
            list(pieces)
    with pytest.raises(ObjectError, match="cannot be read"):
        list(folder.pieces(Place("none.segment", 0), record.digest))


def test_one_fdatasync_makes_a_record_durable(folder, monkeypatch):
    put(folder, b"the segment is there")
    calls = []
    for name in ("fsync", "fdatasync"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda fd, name=name, real=real: (calls.append(name), real(fd)))
    put(folder, b"data", uid="1.2")
    assert calls == ["fdatasync"]


def test_a_file_cut_at_any_byte_keeps_the_whole_records_before(folder, tmp_path):
    records = [put(folder, b"x" * 30, n=n) for n in range(3)]
    (path,) = (tmp_path / "segments").iterdir()
    raw = path.read_bytes()
    for cut in range(len(raw)):
        path.write_bytes(raw[:cut])
        whole = [record for record in records if record.end <= cut]
        assert all_of(folder) == whole, cut


@pytest.mark.parametrize("at", [3, 20, 70, 106])  # magic, SHA-256, data, meta
def test_a_damaged_record_is_stepped_over(folder, tmp_path, at):
    records = [put(folder, b"data" * 10, n=n) for n in range(3)]
    (path,) = (tmp_path / "segments").iterdir()
    raw = bytearray(path.read_bytes())
    raw[records[1].place.position + at] ^= 0x0F
    path.write_bytes(raw)
    found = [record.meta["n"] for record in all_of(folder)]
    assert found == ([0, 1, 2] if at == 70 else [0, 2])
    if at == 70:
        with pytest.raises(ObjectError, match="was altered"):
            folder.read(records[1].place, records[1].digest)


@settings(max_examples=200, deadline=None)
@given(noise=st.binary(max_size=300), at=st.integers(0, 400))
def test_noise_in_a_segment_never_raises_and_never_lies(tmp_path_factory, noise, at):
    folder = Segments(tmp_path_factory.mktemp("noise") / "segments")
    put(folder, b"a" * 50, n=0)
    put(folder, b"b" * 50, n=1)
    (name,) = folder.names()
    path = folder._folder / name
    raw = path.read_bytes()
    path.write_bytes(raw[:at] + noise + raw[at + len(noise) :])
    for record in folder.records(name):
        try:
            assert bytes(folder.read(record.place, record.digest)) in (b"a" * 50, b"b" * 50)
        except ObjectError:
            continue
    folder.close()


@pytest.mark.parametrize("call", ["pwrite", "fdatasync"])
def test_after_a_failed_write_or_sync_nothing_was_kept_and_the_next_goes_elsewhere(folder, monkeypatch, call):
    put(folder, b"before", n=0)

    def fail(*_):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as broken, pytest.raises(StorageError, match="Input/output error; check the disk"):
        broken.setattr(os, call, fail)
        put(folder, b"refused", n=1)
    put(folder, b"after", n=2)
    assert [record.meta["n"] for record in all_of(folder)] == [0, 2]
    assert len(folder.names()) == 2


def test_a_short_write_is_gone_on_with(folder, monkeypatch):
    real = os.pwrite
    monkeypatch.setattr(os, "pwrite", lambda fd, data, at: real(fd, data[:7], at))
    record = put(folder, b"0123456789" * 10)
    assert folder.read(record.place, record.digest) == b"0123456789" * 10


def test_a_full_segment_is_closed_and_another_begun(folder, monkeypatch):
    monkeypatch.setattr(module, "SEGMENT_BYTES", 1000)
    for _ in range(4):
        put(folder, b"x" * 600)
    assert len(folder.names()) == 2
    assert [folder.is_written_to(name) for name in folder.names()] == [False, False]


def test_two_processes_never_share_a_segment(folder, tmp_path):
    other = Segments(tmp_path / "segments")
    put(folder, b"ours")
    put(other, b"theirs")
    assert [folder.is_written_to(name) for name in folder.names()] == [True, True]
    other.close()
    assert sorted(folder.is_written_to(name) for name in folder.names()) == [False, True]


def test_purged_data_are_gone_from_the_disk_and_the_rest_is_found(folder, tmp_path):
    records = [put(folder, os.urandom(1 << 20), n=n) for n in range(3)]
    (path,) = (tmp_path / "segments").iterdir()
    before = path.stat().st_blocks
    folder.purge(records[1].place)
    folder.purge(records[1].place)
    assert path.stat().st_blocks * 512 <= before * 512 - (1 << 20) + 8192
    assert [(record.gone, record.meta) for record in all_of(folder)] == [
        (False, {"n": 0}),
        (True, {}),
        (False, {"n": 2}),
    ]
    with pytest.raises(ObjectError, match="was altered"):
        folder.read(records[1].place, records[1].digest)


def test_what_looks_like_a_record_in_a_killed_writers_data_is_none(folder, tmp_path):
    genuine = put(folder, b"what a peer may know", destinations=["attacker"])
    (path,) = (tmp_path / "segments").iterdir()
    forged = path.read_bytes()
    other = Segments(tmp_path / "segments")
    writer = other.writer()
    writer.write(bytes(64 - 64 % 8) + forged + bytes(100))  # and then it is killed
    assert [record.place for record in all_of(folder)] == [genuine.place]
    shared = path.with_name(folder.names()[-1])
    assert b"what a peer may know" in shared.read_bytes()
    writer.close()
    other.close()


def test_a_place_that_never_was_is_told(folder):
    with pytest.raises(ObjectError, match="cannot be read"):
        folder.read(Place("none.segment", 0), "0" * 64)


def test_many_threads_lose_nothing(folder):
    def work(thread):
        for n in range(50):
            put(folder, b"%d-%d" % (thread, n), thread=thread, n=n)

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    found = all_of(folder)
    assert sorted((record.meta["thread"], record.meta["n"]) for record in found) == [
        (thread, n) for thread in range(8) for n in range(50)
    ]
    assert all(folder.read(one.place, one.digest) == b"%d-%d" % (one.meta["thread"], one.meta["n"]) for one in found)
