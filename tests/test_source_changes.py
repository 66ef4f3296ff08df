"""A source that is written to, moved or removed while it is split: is that noticed?"""

from __future__ import annotations

import gzip
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from bad_files import GOOD_NAMES, GOOD_TRACES, errors_of
from faults import (
    Box,
    Fault,
    append_byte,
    cut_half,
    empty_file,
    needs_strace,
    rewrite_in_place,
    stopped,
)
from helpers import (
    Mode,
    load_set,
    modes,
    names,
    pickled_call,
    pickled_list,
    pickled_value,
    split,
    write_batch,
    write_module,
)

import divide_conquer
from divide_conquer import LoadError

MOVING = """
import os, pathlib


def append(path):
    with open(path, "ab") as file:
        file.write(b"more")


def touch(path):
    os.utime(path, ns=(1, 1))


def remove(path):
    pathlib.Path(path).unlink(missing_ok=True)
"""


@pytest.mark.parametrize("action", ["append", "touch"])
@pytest.mark.parametrize("compressed", [False, True], ids=["plain", "gzip"])
def test_source_that_changes_while_it_is_read(
    tmp_path: Path, action: str, compressed: bool
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    bad = source / "bad.pkl"
    data = pickled_list(pickled_value(1), pickled_call("moving", action, str(bad)))
    bad.write_bytes(gzip.compress(data) if compressed else data)
    env = write_module(tmp_path / "modules", "moving", MOVING)
    done = split(*("-i", source, "-o", output, "-n", 3, "--delete-original", "--yes"), env=env)
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "bad.pkl: cambió mientras se leía" in error
    assert "Qué hacer: espera a que nadie lo escriba" in error
    assert names(output) == GOOD_NAMES
    assert names(source) == ["bad.pkl"]


def test_source_removed_after_it_was_opened_is_still_split(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    source.mkdir()
    path = source / "a.pkl"
    path.write_bytes(pickled_list(pickled_value(1), pickled_call("moving", "remove", str(path))))
    env = write_module(tmp_path / "modules", "moving", MOVING)
    done = split("-i", source, "-o", output, env=env)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(source) == []
    assert names(output) == ["a_sub0000.pkl.gz"]
    assert load_set(output, "a") == [[1, None]]


def test_source_that_vanishes_before_its_turn(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "b.pkl", [2])
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    (source / "a.pkl").write_bytes(
        pickled_list(pickled_call("moving", "remove", str(source / "b.pkl")))
    )
    env = write_module(tmp_path / "modules", "moving", MOVING)
    done = split("-i", source, "-o", output, "-n", 3, env=env)
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "b.pkl: no se puede leer (el archivo no existe)" in error
    assert "Qué hacer" in error
    assert names(output) == ["a_sub0000.pkl.gz", *GOOD_NAMES]
    assert names(source) == ["a.pkl", "good.pkl.gz"]


@needs_strace
@pytest.mark.sampled
@modes
@pytest.mark.parametrize("change", [append_byte, cut_half, empty_file, rewrite_in_place])
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(("read", "in/batch.pkl.gz"), id="while_it_is_read"),
        pytest.param(("fsync", "out/split/batch_sub0000.pkl.gz.part"), id="while_it_is_saved"),
    ],
)
def test_a_source_written_to_during_the_run_is_refused(
    tmp_path: Path, at: tuple[str, str], change: Callable[[Path], None], mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, True, 600_000).make()
    with stopped(box, Fault(*at, 1, "signal=SIGSTOP")) as runs:
        change(box.source)
        changed = box.source.read_bytes()
    run = runs[0]
    assert run.code == 1, run.err
    assert "cambió mientras se leía" in run.err
    assert run.err.count("ERROR ") == 1 and "Traceback" not in run.err
    assert box.source.read_bytes() == changed
    assert names(box.output) == []


def test_damage_after_the_index_is_a_load_error(tmp_path: Path) -> None:
    """The source is truncated in place between the two passes."""
    source = write_batch(tmp_path / "a.pkl", [os.urandom(3 << 20) for _ in range(4)])
    size = source.stat().st_size

    def progress(phase: divide_conquer.Phase, done: int, expected: int) -> None:
        if phase is divide_conquer.Phase.SAVE and done == 0:
            os.truncate(source, size // 2)

    with pytest.raises(LoadError, match="cambió mientras se leía"):
        divide_conquer.split_file(
            source, tmp_path / "out", traces_per_batch=1, low_memory=True, progress=progress
        )
    assert names(tmp_path / "out") == []
