"""Locking: what do two runs on one batch, or in one output folder, do to each other?"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
from collections.abc import Sequence
from pathlib import Path

import pytest
from faults import Box, Fault, needs_strace, stopped, under_strace
from helpers import (
    LIMIT_SECONDS,
    Folders,
    Mode,
    load_set,
    modes,
    names,
    pickled_call,
    pickled_list,
    snapshot,
    split,
    start,
    sub_names,
    wait_until,
    write_batch,
    write_module,
)

from divide_conquer import OutputError, split_file


def test_stem_locked_by_another_process_fails_at_once(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    write_batch(folders.source / "b.pkl.gz", [2])
    folders.output.mkdir()
    (folders.output / "a_sub0000.pkl.gz.part").write_bytes(b"being written")
    with (folders.output / "a.lock.part").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = split(*folders.args())
    assert done.returncode == 1
    assert "a.pkl.gz: otro proceso lo está dividiendo" in done.stderr
    assert names(folders.output) == ["a.lock.part", "a_sub0000.pkl.gz.part", "b_sub0000.pkl.gz"]
    assert (folders.output / "a_sub0000.pkl.gz.part").read_bytes() == b"being written"


def test_run_that_is_locked_out_leaves_no_file_open(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    with (tmp_path / "a.lock.part").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        n_open = len(os.listdir("/dev/fd"))
        with pytest.raises(OutputError):
            split_file(source, tmp_path)
        assert len(os.listdir("/dev/fd")) == n_open


def test_lock_that_cannot_be_looked_at_is_left(tmp_path: Path) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1]), tmp_path / "out"
    lock = output / "a.lock.part"
    done = split("-i", source, "-o", output, prefix=under_strace("%%stat:error=EIO:when=3+", lock))
    assert (done.returncode, done.stderr) == (0, "")
    assert names(output) == [lock.name, *sub_names("a", 1)]


def test_stale_lock_file_is_no_obstacle(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    folders.output.mkdir()
    (folders.output / "a.lock.part").write_bytes(b"")
    assert split(*folders.args()).returncode == 0
    assert names(folders.output) == sub_names("a", 1)


def test_warning_of_a_skipped_file_is_told(tmp_path: Path) -> None:
    source, output = write_batch(tmp_path / "a.pkl.gz", [1, 2, 3]), tmp_path / "out"
    assert split("-i", source, "-o", output).returncode == 0
    prefix = under_strace("unlink:error=EIO", output / "a.lock.part")
    done = split("-i", source, "-o", output, "--skip-existing", prefix=prefix)
    assert done.returncode == 0
    assert "AVISO a.pkl.gz: no se pudo quitar a.lock.part" in done.stderr


WATCHING = """
import os
def names(folder): return sorted(os.listdir(folder))
"""


def test_lock_that_its_owner_removed_meanwhile_is_no_lock(tmp_path: Path) -> None:
    """Who waits between open and flock may lock a file that has no name any more."""
    env = write_module(tmp_path / "modules", "watching", WATCHING)
    (tmp_path / "a.pkl").write_bytes(pickled_list(pickled_call("watching", "names", "out")))
    (tmp_path / "out").mkdir()
    lock = tmp_path / "out" / "a.lock.part"
    late = under_strace("flock:delay_enter=700000:when=1", lock, tmp_path / "log")
    args = ("-i", "a.pkl", "-o", "out", "--no-compress")
    process = start(*args, prefix=late, cwd=tmp_path, env=env)
    wait_until(lock.exists, process)
    lock.unlink()
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0
    assert "DELAYED" in (tmp_path / "log").read_text()
    assert load_set(tmp_path / "out", "a") == [[["a.lock.part"]]]  # it was there while it was used


@needs_strace
@pytest.mark.sampled
@modes
@pytest.mark.parametrize("more", [(), ("--skip-existing",)], ids=["again", "skip_existing"])
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(
            Fault("rename", "out/split/batch_sub0001.pkl.gz.part", 1, "signal=SIGSTOP"),
            id="between_two_renames",
        ),
        pytest.param(
            Fault("rename", "out/split/batch_sub0000.pkl.gz.part", 1, "signal=SIGSTOP"),
            id="after_the_last_rename",
        ),
        pytest.param(
            Fault("fsync", "out/split/batch_sub0000.pkl.gz.part", 1, "signal=SIGSTOP"),
            id="while_writing",
        ),
    ],
)
def test_a_second_run_touches_nothing_of_a_publish_in_progress(
    tmp_path: Path, at: Fault, more: Sequence[str], mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    with stopped(box, at) as runs:
        before = snapshot(box.output)
        second = split(*box.arguments(*more))
        assert snapshot(box.output) == before
        assert box.source_is_whole()
        assert second.returncode == 1
        assert second.stderr.count("ERROR ") == 1
        assert re.search("otro proceso lo está|sus sub-batches ya existen", second.stderr)
    assert (runs[0].code, runs[0].err) == (0, "")
    assert box.set_is_complete() and not box.source.exists() and box.rest() == []


def run_together(lines: Sequence[Sequence[object]]) -> list[tuple[int, str]]:
    """Start all at once; return exit code and stderr of each."""
    processes = [start(*line, stdout=subprocess.DEVNULL) for line in lines]
    errors = [process.communicate(timeout=LIMIT_SECONDS)[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, errors)]


@pytest.mark.sampled
@modes
@pytest.mark.parametrize("delete", [False, True], ids=["keep", "delete"])
@pytest.mark.parametrize("repeat", range(4))
def test_two_runs_on_one_source_make_one_set(
    tmp_path: Path, repeat: int, delete: bool, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, True, 100_000 * (repeat + 1)).make()
    line = box.arguments("--skip-existing", delete=delete)
    ends = run_together([line, line])
    assert box.set_is_complete()
    assert box.rest() == []
    assert box.source.exists() != delete or all("original conservado" in e for _, e in ends)
    # The one that came second: locked out, or too late and all was done, or the input was gone.
    codes = sorted(code for code, _ in ends)
    assert codes[0] == 0 and codes[1] in ((0, 1, 2) if delete else (0, 1)), ends
    assert all("Traceback" not in err for _, err in ends)


@pytest.mark.sampled
@modes
@pytest.mark.parametrize("repeat", range(3))
def test_many_runs_on_many_sources_share_one_output_folder(
    tmp_path: Path, repeat: int, mode: Mode
) -> None:
    output = tmp_path / "out" / "split"
    batches = {f"batch_{i:04d}": [f"{i}-{j}" * 1000 for j in range(7)] for i in range(8)}
    for stem, traces in batches.items():
        write_batch(tmp_path / "in" / f"{stem}.pkl.gz", traces)
    more = ["-n", 2, "--delete-original", "--yes", *mode]
    ends = run_together(
        [["-i", tmp_path / "in" / f"{stem}.pkl.gz", "-o", output, *more] for stem in batches]
    )
    assert ends == [(0, "")] * 8
    for stem, traces in batches.items():
        assert load_set(output, stem) == [traces[i : i + 2] for i in range(0, 7, 2)]
    assert len(names(output)) == 4 * 8
    assert names(tmp_path / "in") == []
