"""gzip: is what is written one member that every reader takes, whatever is written, however?"""

from __future__ import annotations

import gzip
import io
import pickle
import random
import subprocess
import threading
import zlib
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from pydoc_data.topics import topics
from typing import Any

import numpy as np
import pytest
from helpers import LIMIT_SECONDS
from hypothesis import given, settings
from hypothesis import strategies as st
from make_traces import make_trace

import divide_conquer
from divide_conquer import (
    BLOCK_BYTES,
    GzipWriter,
    Meter,
    Phase,
    Stamp,
    StreamError,
    TrackedFile,
    open_stream,
)

NOISE = random.Random(0).randbytes(3 * BLOCK_BYTES)
HEADER = Stamp(250, 500, 1000, 15_032_385_536, 1_700_000_000).header()


def deflate(pieces: list[bytes], jobs: int = 2) -> bytes:
    sink = io.BytesIO()
    with ThreadPoolExecutor(jobs) as pool:
        writer = GzipWriter(sink, HEADER, pool, 2 * jobs)
        for piece in pieces:
            writer.write(memoryview(piece))
        writer.close()
    return sink.getvalue()


def read_back(path: Path) -> bytes:
    with open_stream(TrackedFile(path, len)) as stream:
        return b"".join(iter(lambda: stream.read(300_000), b""))


sizes = st.one_of(
    st.integers(0, 10),
    st.integers(0, 200_000),
    st.sampled_from([BLOCK_BYTES + d for d in (-1, 0, 1)] + [2 * BLOCK_BYTES, 2 * BLOCK_BYTES + 7]),
)


@settings(max_examples=25, deadline=None, derandomize=True)
@given(lengths=st.lists(sizes, max_size=6), jobs=st.integers(1, 3))
def test_any_writes_give_one_member(lengths: list[int], jobs: int) -> None:
    pieces = [NOISE[start : start + length] for start, length in enumerate(lengths)]
    data = deflate(pieces, jobs)
    expected = b"".join(pieces)
    member = zlib.decompressobj(31)
    assert member.decompress(data) == expected
    assert member.eof
    assert member.unused_data == b""
    assert gzip.decompress(data) == expected


def test_gzip_itself_accepts_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.gz"
    path.write_bytes(deflate([NOISE, bytes(BLOCK_BYTES + 5)]))
    subprocess.run(["gzip", "-t", path], check=True, timeout=LIMIT_SECONDS)


def test_equal_input_gives_equal_output() -> None:
    pieces = [NOISE[:BLOCK_BYTES], b"text " * 300_000]
    assert deflate(pieces, jobs=1) == deflate([b"".join(pieces)], jobs=4)


def test_memory_may_change_after_the_write() -> None:
    buffer = bytearray(b"a" * 100)
    sink = io.BytesIO()
    with ThreadPoolExecutor(2) as pool:
        writer = GzipWriter(sink, HEADER, pool, 4)
        for letter in b"abc":
            buffer[:] = bytes([letter]) * 100
            writer.write(memoryview(buffer))
        buffer[:] = b"x" * 100
        writer.close()
    assert gzip.decompress(sink.getvalue()) == b"a" * 100 + b"b" * 100 + b"c" * 100


@pytest.mark.parametrize("order", ["C", "F"])
def test_buffers_of_a_pickler_are_taken_in_any_order(order: Any) -> None:
    array = np.asarray(np.arange(600_000, dtype=np.float32).reshape(600, 1000), order=order)
    sink = io.BytesIO()
    meter = Meter(lambda *_: None, Phase.SAVE, 1)
    with ThreadPoolExecutor(2) as pool:
        writer = GzipWriter(sink, HEADER, pool, 4)
        pickled = divide_conquer.PickleSink(writer, meter)
        pickle.Pickler(pickled, 5).dump([array, pickle.PickleBuffer(array.data), b"small"])
        writer.close()
    data = gzip.decompress(sink.getvalue())
    assert len(data) == pickled.n_bytes
    np.testing.assert_array_equal(pickle.loads(data)[0], array)


class FullDisk:
    """A real device that is always full, from the n-th write on."""

    def __init__(self, good_writes: int) -> None:
        self._good_writes = good_writes

    def write(self, data: Any, /) -> None:
        self._good_writes -= 1
        if self._good_writes < 0:
            with open("/dev/full", "wb", buffering=0) as full:
                full.write(data)


@pytest.mark.parametrize("good_writes", [1, 2, 4, 6])
def test_full_disk_reaches_the_caller(good_writes: int) -> None:
    before = threading.active_count()
    with pytest.raises(OSError, match="No space left"), ThreadPoolExecutor(2) as pool:
        writer = GzipWriter(FullDisk(good_writes), HEADER, pool, 4)
        for _ in range(4):
            writer.write(memoryview(NOISE)[:BLOCK_BYTES])
        writer.close()
    assert threading.active_count() == before


def test_error_of_a_worker_reaches_the_caller(monkeypatch: pytest.MonkeyPatch) -> None:
    # A level that the library refuses: the error is its own, raised in the worker.
    monkeypatch.setattr(divide_conquer, "_FOR_TENSORS", (divide_conquer.deflate_library, 77, 0))
    before = threading.active_count()
    with pytest.raises(Exception, match=r"(?i)level|initialization|option"):
        deflate([NOISE])
    assert threading.active_count() == before


def test_members_and_zeros_after_them(tmp_path: Path) -> None:
    path = tmp_path / "a"
    parts = [gzip.compress(b"one"), gzip.compress(b""), gzip.compress(NOISE), bytes(600_000)]
    path.write_bytes(b"".join(parts))
    assert read_back(path) == b"one" + NOISE


@pytest.mark.parametrize("n_bytes", [1, 2, 3, 10, 11, 20, 41, 60])
def test_the_header_of_a_member_may_be_cut_by_a_read(tmp_path: Path, n_bytes: int) -> None:
    path = tmp_path / "a"
    wanted = divide_conquer._DEFLATED_BYTES - n_bytes
    overhead = len(gzip.compress(NOISE[:wanted], 1)) - wanted
    first = wanted - overhead
    assert len(gzip.compress(NOISE[:first], 1)) == wanted
    named = io.BytesIO()
    with gzip.GzipFile("traces_of_a_model_with_a_long_name", "wb", 1, named) as member:
        member.write(b"two")
    path.write_bytes(gzip.compress(NOISE[:first], 1) + named.getvalue())
    assert read_back(path) == NOISE[:first] + b"two"


@pytest.mark.parametrize("junk", [b"x", b"\x1f", b"junk" * 9, b"\0\0junk"])
def test_junk_after_a_member_is_an_error(tmp_path: Path, junk: bytes) -> None:
    path = tmp_path / "a"
    path.write_bytes(gzip.compress(b"one") + junk)
    with pytest.raises(StreamError):
        read_back(path)


def test_every_flipped_byte_of_the_end_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = gzip.compress(NOISE[:5000])
    for position in range(-8, 0):
        damaged = bytearray(data)
        damaged[position] ^= 1
        path.write_bytes(damaged)
        with pytest.raises(StreamError, match="el gzip está dañado"):
            read_back(path)


def test_every_cut_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "a"
    data = gzip.compress(b"some text " * 50)
    for length in range(2, len(data)):
        path.write_bytes(data[:length])
        with pytest.raises(StreamError, match="está truncado"):
            read_back(path)


def make_prose(rng: random.Random) -> list[str]:
    """Real English, on which isal is weakest: at level 3 it is 11 % larger than zlib at 6."""
    return rng.sample(sorted(topics.values()), k=len(topics))


def make_tokens(rng: random.Random) -> list[dict[str, Any]]:
    words = [f"token{i}" for i in range(500)]
    return [
        {
            "question_id": f"q_{i}",
            "tokens": [rng.randrange(32_000) for _ in range(50)],
            "tokens_decoded": rng.choices(words, k=50),
        }
        for i in range(4000)
    ]


def make_numbers(rng: random.Random) -> list[dict[str, float]]:
    return [
        {"loss": rng.random(), "step": i, "rate": rng.choice([1e-3, 1e-4])} for i in range(60_000)
    ]


TEXT_LIKE = {"prose": make_prose, "tokens": make_tokens, "numbers": make_numbers}


def deflate_at(data: bytes, level: int) -> int:
    return len(gzip.compress(data, level))


def test_size_on_tensors_is_that_of_level_9() -> None:
    shape = {"layers": 4, "hidden": 4096, "heads": 32, "tokens": 50}
    data = pickle.dumps(make_trace(np.random.default_rng(0), "q", **shape))
    assert len(deflate([data])) <= 1.005 * deflate_at(data, 9)


@pytest.mark.parametrize("make", TEXT_LIKE.values(), ids=list(TEXT_LIKE))
def test_size_on_text_is_near_that_of_level_6(make: Callable[[random.Random], object]) -> None:
    data = pickle.dumps(make(random.Random(0)))
    with_isal = divide_conquer.deflate_library is not zlib
    assert len(deflate([data])) <= (1.10 if with_isal else 1.05) * deflate_at(data, 6)
