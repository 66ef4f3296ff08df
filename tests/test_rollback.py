"""Rolling back: after any exception, is what split_file made gone, and others' files still there?

A notebook raises KeyboardInterrupt between any two statements; a run that was suspended may find
that another one has taken its place.
"""

from __future__ import annotations

import contextlib
import errno
import linecache
import os
import pickle
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import FrameType
from typing import Any, Optional

import pytest
from helpers import load_set, low_memory_or_not, names, note_output, sub_names, write_batch

import divide_conquer
from divide_conquer import Interrupted, Phase, SaveError, SplitError, split_file

# Where one more exception, while the first is handled, may leave what the next run clears.
CLEANING = {"__exit__", "_roll_back", "_remove", "_is_ours", "close"}


@contextlib.contextmanager
def interrupted_at(line: int) -> Iterator[list[int]]:
    """Raise KeyboardInterrupt before the line-th line that this thread runs of what makes a set."""
    seen = [0]
    watched = {"publish", "_rename", "create_part", "resolve", "_save_parts", "validate_parts"}
    watched |= {"split_file", "sync_folder"}

    def trace(frame: FrameType, event: str, arg: Any) -> Any:
        if frame.f_code.co_filename != divide_conquer.__file__:
            return None
        outer: Optional[FrameType] = frame
        while outer is not None:
            if outer.f_code.co_name in CLEANING:
                return None
            outer = outer.f_back
        if frame.f_code.co_name not in watched:
            return None
        # A with statement has a line again when it ends, where CPython looks for no signal.
        is_with = linecache.getline(frame.f_code.co_filename, frame.f_lineno).strip()[:5] == "with "
        if event == "line" and not is_with:
            seen[0] += 1
            if seen[0] == line:
                raise KeyboardInterrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield seen
    finally:
        sys.settrace(before)


@pytest.mark.filterwarnings("ignore:unclosed file")  # made, and interrupted before its with begins
@low_memory_or_not
def test_interruption_between_any_two_lines(tmp_path: Path, low_memory: bool) -> None:
    source = write_batch(tmp_path / "a.pkl", list(range(5)))
    outcomes = {"undone": 0, "published": 0}
    line = 0
    while True:
        line += 1
        output = tmp_path / f"out{line}"
        with interrupted_at(line) as seen, contextlib.suppress(KeyboardInterrupt):
            split_file(source, output, traces_per_batch=2, low_memory=low_memory, jobs=1)
        if seen[0] < line:
            break
        left = names(output) if output.exists() else []
        if left:
            assert load_set(output, "a") == [[0, 1], [2, 3], [4]], (line, left)
            assert len(left) == 3, (line, left)
        outcomes["published" if left else "undone"] += 1
    assert outcomes["undone"] > 40
    assert outcomes["published"] < 25  # what comes after the last rename
    assert source.exists()


@low_memory_or_not
def test_files_of_the_run_that_took_our_place_are_not_touched(
    tmp_path: Path, low_memory: bool
) -> None:
    """This run was suspended, its lock and its parts were removed by hand, and another one came."""
    source, output = write_batch(tmp_path / "a.pkl", list(range(5))), tmp_path / "out"
    others = {"a_sub0000.pkl.gz.part": b"of the other run", "a.lock.part": b""}

    def progress(phase: Phase, done: int, expected: int) -> None:
        if phase is Phase.VALIDATE and done == expected:
            for name in names(output):
                (output / name).unlink()
            for name, data in others.items():
                (output / name).write_bytes(data)

    with pytest.raises(SplitError, match="otro proceso lo ha quitado o cambiado") as raised:
        split_file(source, output, traces_per_batch=2, low_memory=low_memory, progress=progress)
    note_output(str(raised.value))
    assert names(output) == sorted(others)
    assert (output / "a_sub0000.pkl.gz.part").read_bytes() == b"of the other run"
    assert pickle.loads(source.read_bytes()) == list(range(5))


def test_interrupted_clean_up_locks_nothing_for_the_rest_of_a_notebook(tmp_path: Path) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"

    def interrupt_roll_back(frame: FrameType, event: str, arg: Any) -> None:
        if frame.f_code.co_name == "_roll_back":
            raise KeyboardInterrupt

    def progress(phase: Phase, done: int, expected: int) -> None:
        if phase is Phase.SAVE and done == expected:
            sys.settrace(interrupt_roll_back)
            raise Interrupted

    before = sys.gettrace()
    try:
        with pytest.raises(KeyboardInterrupt):
            split_file(source, output, progress=progress)
    finally:
        sys.settrace(before)
    assert "a_sub0000.pkl.gz.part" in names(output)
    assert split_file(source, output).n_traces == 3
    assert names(output) == ["a_sub0000.pkl.gz"]


def test_folder_that_cannot_be_listed_does_not_hide_the_first_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(phase: Phase, done: int, expected: int) -> None:
        if phase is Phase.SAVE:
            monkeypatch.setattr(os, "listdir", os.readlink)  # an OSError
            raise Interrupted

    source = write_batch(tmp_path / "a.pkl", [1, 2, 3])
    with pytest.raises(Interrupted):
        split_file(source, tmp_path / "out", progress=progress)


def test_what_somebody_else_has_removed_is_not_left(tmp_path: Path) -> None:
    assert divide_conquer._remove([tmp_path / "a_sub0000.pkl.part"]) == []


@pytest.fixture
def after_number_0(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[], object]], None]:
    """Return what makes the last fsync of the folder fail, and lets something happen before."""

    def fail(meanwhile: Callable[[], object]) -> None:
        def sync_folder(path: Path) -> bool:
            if (path / "a_sub0000.pkl").exists():
                meanwhile()
                raise OSError(errno.EIO, os.strerror(errno.EIO))
            return True

        monkeypatch.setattr(divide_conquer, "sync_folder", sync_folder)

    return fail


def test_part_that_appeared_after_the_last_rename_is_not_replaced_to_undo_it(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_number_0: Callable[[Callable[[], object]], None],
) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"
    part = output / "a_sub0000.pkl.part"
    monkeypatch.setattr(divide_conquer, "lock_file", lambda fd: None)  # so it may be another run's
    after_number_0(lambda: part.write_bytes(b"theirs"))
    with pytest.raises(SaveError):
        split_file(source, output, compress=False, traces_per_batch=2)
    assert names(output) == [part.name]
    assert part.read_bytes() == b"theirs"


def test_without_locks_too_a_failed_run_removes_its_parts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def progress(phase: Phase, done: int, expected: int) -> None:
        if phase is Phase.VALIDATE:
            raise Interrupted

    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"
    monkeypatch.setattr(divide_conquer, "lock_file", lambda fd: None)
    with pytest.raises(Interrupted):
        split_file(source, output, progress=progress)
    assert names(output) == []


def test_number_0_that_keeps_its_name_keeps_the_whole_set(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    after_number_0: Callable[[Callable[[], object]], None],
) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"
    after_number_0(lambda: monkeypatch.setattr(os, "rename", lambda old, new: os.readlink(old)))
    with pytest.raises(SaveError) as raised:
        split_file(source, output, compress=False, traces_per_batch=2)
    assert names(output) == sub_names("a", 2, ".pkl")
    assert raised.value.leftovers == tuple(sorted(output.iterdir()))
