"""The stamp: what do sub-batches say of their original, and take from it (time, permissions)?"""

from __future__ import annotations

import gzip
import os
import shutil
import subprocess
import time
import zlib

import pytest
from helpers import Folders, split, sub_names, write_batch

import divide_conquer


def test_stamp_says_what_a_sub_batch_is(folders: Folders) -> None:
    source = write_batch(folders.source / "a.pkl.gz", list(range(7)))
    os.utime(source, (1_700_000_001, 1_700_000_001))
    assert split(*folders.args("-n", 3)).returncode == 0
    size = source.stat().st_size
    ranges = [(0, 3), (3, 6), (6, 7)]
    for name, (first, stop) in zip(sub_names("a", 3), ranges):
        path = folders.output / name
        stamp = divide_conquer.read_stamp(path)
        assert stamp == (first, stop, 7, size, 1_700_000_001)
        data = path.read_bytes()
        comment = f"traces {first}-{stop - 1} of 7; original {size} bytes".encode() + bytes(1)
        assert data[:4] == bytes([0x1F, 0x8B, 8, 16])  # deflate, FCOMMENT: RFC 1952, 2.3
        assert data[10 : 10 + len(comment)] == comment
        assert gzip.decompress(data) == zlib.decompress(data, 31)
        for tool in ("gzip", "pigz"):
            if shutil.which(tool):
                subprocess.run([tool, "-t", path], check=True)
    assert divide_conquer.read_stamp(source) is None
    assert divide_conquer.read_stamp(write_batch(folders.source / "b.pkl", [1])) is None


def test_plain_outputs_have_the_time_of_the_original_and_stamped_ones_of_now(
    folders: Folders,
) -> None:
    source = write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    os.utime(source, ns=(1_000_000_000_123_456_789, 1_234_567_890_123_456_789))
    assert split(*folders.args("--no-compress")).returncode == 0
    plain = folders.output / "a_sub0000.pkl"
    assert plain.stat().st_mtime_ns == 1_234_567_890_123_456_789
    plain.unlink()
    before = time.time() - 2  # the clock of a file system is coarse
    assert split(*folders.args()).returncode == 0
    assert (folders.output / "a_sub0000.pkl.gz").stat().st_mtime >= before


@pytest.mark.parametrize("umask", [0o002, 0o077], ids=oct)
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o444], ids=oct)
def test_outputs_are_no_more_open_than_the_original(
    folders: Folders, mode: int, umask: int
) -> None:
    source = write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    source.chmod(mode)
    assert split(*folders.args("-n", 2), umask=umask).returncode == 0
    modes = {(folders.output / name).stat().st_mode & 0o777 for name in sub_names("a", 2)}
    assert modes == {mode & ~umask}
