"""The worst day of a cluster: full disks, kills, two runs at once, files that change under us."""

from __future__ import annotations

import gzip
import os
import random
import resource
import shutil
import signal
import subprocess
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Callable, NamedTuple, Optional

import pytest
from faults import (
    ALL_FAULTS,
    STEM,
    Box,
    Fault,
    assert_honest_end,
    assert_nothing_lost,
    finish_after_kill,
    needs_strace,
    stopped,
)
from helpers import LIMIT_SECONDS, command, load, load_set, names, split, start, write_batch

pytestmark = pytest.mark.timeout(600 if ALL_FAULTS else 120)

MODES = [pytest.param((), id="default"), pytest.param(("--low-memory",), id="low_memory")]
Mode = tuple[str, ...]

# ---------------------------------------------------------------------------------------------
# A full disk

FILLER = "filler"


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Optional[Path]]:
    """Mount a disk of 4 MiB, or give None where this user may not mount."""
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=4m", "small_disk", os.fspath(disk)]
    try:
        mounted = subprocess.run(mount, capture_output=True, timeout=LIMIT_SECONDS).returncode == 0
    except FileNotFoundError:
        mounted = False
    yield disk if mounted else None
    if mounted:
        subprocess.run(["umount", "-l", os.fspath(disk)], check=True, timeout=LIMIT_SECONDS)


def fill_disk(disk: Path, room: int) -> None:
    """Leave room bytes: tmpfs gives and counts whole pages of 4 KiB."""
    with (disk / FILLER).open("wb") as file:
        free = shutil.disk_usage(disk).free
        file.write(bytes(free - room))
    assert shutil.disk_usage(disk).free == room


class Fullness(NamedTuple):
    """Where a disk, or a limit on one file, ends: after these bytes of a set of 3 parts."""

    of_part: float  # how many parts fit
    less_bytes: int = 0


FULLNESS = [
    pytest.param(Fullness(0), id="at_the_first_byte"),
    pytest.param(Fullness(0.5), id="in_the_first_part"),
    pytest.param(Fullness(1.5), id="in_the_second_part"),
    pytest.param(Fullness(2.5), id="in_the_last_part"),
    pytest.param(Fullness(3, 8192), id="a_few_KiB_too_early"),
]
PAGE_BYTES = 4096
PART_TRACE_BYTES = 200_000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("compress", [pytest.param(True, id="gz"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("fullness", FULLNESS)
def test_full_disk_keeps_the_original_and_leaves_nothing(
    tmp_path: Path, small_disk: Optional[Path], fullness: Fullness, compress: bool, mode: Mode
) -> None:
    if small_disk is None:
        pytest.skip("may not mount a small disk here; the file-size limit is tried instead")
    box = Box(tmp_path / "box", mode, compress, PART_TRACE_BYTES).make()
    box.output.parent.mkdir()
    box.output.symlink_to(small_disk)
    room = int(fullness.of_part * 2 * PART_TRACE_BYTES) - fullness.less_bytes
    fill_disk(small_disk, room // PAGE_BYTES * PAGE_BYTES)
    done = split(*box.arguments())
    assert done.returncode == 1
    assert done.stderr.count("No se pudo guardar") == 1
    assert "no queda espacio" in done.stderr
    assert "Traceback" not in done.stderr
    assert box.source_is_whole()
    assert names(box.output) == [FILLER]


@pytest.mark.parametrize("mode", MODES)
def test_a_disk_with_just_enough_room_is_enough(
    tmp_path: Path, small_disk: Optional[Path], mode: Mode
) -> None:
    if small_disk is None:
        pytest.skip("may not mount a small disk here")
    box = Box(tmp_path / "box", mode, False, PART_TRACE_BYTES).make()
    box.output.parent.mkdir()
    box.output.symlink_to(small_disk / "set")
    (small_disk / "set").mkdir()
    fill_disk(small_disk, 3 * (2 * PART_TRACE_BYTES // PAGE_BYTES + 1) * PAGE_BYTES)
    done = split(*box.arguments())
    assert (done.returncode, done.stderr) == (0, "")
    assert box.set_is_complete() and not box.source.exists()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("limit_bytes", [0, 1, 4_096, 2 * PART_TRACE_BYTES - 100])
def test_file_size_limit_keeps_the_original_and_leaves_nothing(
    tmp_path: Path, limit_bytes: int, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, True, PART_TRACE_BYTES).make()

    def limit() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit_bytes, limit_bytes))

    done = split(*box.arguments(), preexec_fn=limit)
    assert done.returncode == 1
    assert done.stderr.count("No se pudo guardar") == 1
    assert "Traceback" not in done.stderr
    assert box.source_is_whole()
    assert names(box.output) == []


# ---------------------------------------------------------------------------------------------
# Kills and interrupts at any moment

N_MOMENTS = 35 if ALL_FAULTS else 16  # of each signal and mode: 210 in all, or 32 of the sample
RUN_TRACE_BYTES = 2_000_000  # so that a run takes about a second
MOMENTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def tell_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print at the end how the runs that were hit by a signal ended."""
    yield
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        ends = ", ".join(f"{end} {count}" for end, count in sorted(MOMENTS.items()))
        print(f"\nruns hit by a signal at a random moment: {ends or 'none'}")


class Hit(NamedTuple):
    """after_seconds: since the lock was taken, or, from_start, since the process was made."""

    number: signal.Signals
    after_seconds: float
    from_start: bool


def start_run(box: Box) -> subprocess.Popen[str]:
    return start(*box.arguments(), stdout=subprocess.DEVNULL)


def wait_for_lock(box: Box, process: subprocess.Popen[str]) -> None:
    limit = time.monotonic() + LIMIT_SECONDS
    while not box.lock.exists() and process.poll() is None and time.monotonic() < limit:
        time.sleep(0.001)


def hit_one(template: Box, root: Path, hit: Hit) -> Optional[str]:
    """Send one signal to a run at one moment; return what does not hold then, or None."""
    box = template.copy_to(root)
    process = start_run(box)
    if not hit.from_start:
        wait_for_lock(box, process)
    time.sleep(hit.after_seconds)
    process.send_signal(hit.number)
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    code = process.returncode
    MOMENTS[f"{hit.number.name} -> {code}"] += 1
    try:
        assert_nothing_lost(box)
        # Before main has begun and after it has ended the interpreter itself answers: it dies of
        # the signal, or shows a KeyboardInterrupt (with exit code 1 while it imports site).
        outside = names(box.output) == [] or box.set_is_complete()
        # (With exit code 0, even, while it looks what argv[0] is: pymain_get_importer.)
        codes = (-2, 0, 1) if "Failed checking if argv[0]" in err else (-2, 1)
        by_python = hit.number == signal.SIGINT and "KeyboardInterrupt" in err and code in codes
        if code == -hit.number or by_python:
            assert hit.number == signal.SIGKILL or outside, names(box.output)
        else:
            assert code in (0, 128 + hit.number), err
            assert_honest_end(box, code, err)
        finish_after_kill(box)
    except AssertionError as error:
        return f"{hit}: {str(error)[:600]}"
    shutil.rmtree(root)
    return None


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_loses_nothing(
    tmp_path: Path, number: signal.Signals, mode: Mode
) -> None:
    template = Box(tmp_path / "template", mode, True, RUN_TRACE_BYTES).make()
    clean = template.copy_to(tmp_path / "clean")
    started = time.perf_counter()
    process = start_run(clean)
    wait_for_lock(clean, process)
    locked = time.perf_counter()
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0
    lengths = {True: locked - started, False: time.perf_counter() - locked}
    moments = random.Random(f"{number}{mode}")
    early = [i % 6 == 0 for i in range(N_MOMENTS)]
    hits = [Hit(number, moments.uniform(0, lengths[e]), e) for e in early]
    roots = [tmp_path / f"run{i}" for i in range(len(hits))]
    with ThreadPoolExecutor(2) as pool:
        wrong = [w for w in pool.map(hit_one, [template] * len(hits), roots, hits) if w]
    assert not wrong, f"{len(wrong)} of {len(hits)}:\n" + "\n".join(wrong)


# ---------------------------------------------------------------------------------------------
# Several runs at once


def listing(folder: Path) -> list[tuple[str, int, int, int]]:
    """Return what tells whether anything in the folder was touched."""
    found = [(path.name, path.stat()) for path in sorted(folder.iterdir())]
    return [(name, s.st_ino, s.st_size, s.st_mtime_ns) for name, s in found]


@needs_strace
@pytest.mark.parametrize("mode", MODES)
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
        before = listing(box.output)
        second = split(*box.arguments(*more))
        assert listing(box.output) == before
        assert box.source_is_whole()
        assert second.returncode == 1
        assert second.stderr.count("ERROR ") == 1
    assert (runs[0].code, runs[0].err) == (0, "")
    assert box.set_is_complete() and not box.source.exists() and box.rest() == []


def run_together(lines: Sequence[Sequence[object]]) -> list[tuple[int, str]]:
    """Start all at once; return exit code and stderr of each."""
    processes = [start(*line, stdout=subprocess.DEVNULL) for line in lines]
    errors = [process.communicate(timeout=LIMIT_SECONDS)[1] for process in processes]
    return [(process.returncode, err) for process, err in zip(processes, errors)]


@pytest.mark.parametrize("mode", MODES)
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


@pytest.mark.parametrize("mode", MODES)
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


# ---------------------------------------------------------------------------------------------
# Nobody listens


def run_in_shell(box: Box, redirection: str, *more: object) -> int:
    line = ["sh", "-c", f'exec "$@" {redirection}', "sh", *command(*box.arguments(*more))]
    return subprocess.run(line, stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS).returncode


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param(">/dev/full", id="stdout_full"),
        pytest.param("2>/dev/full", id="stderr_full"),
        pytest.param(">/dev/full 2>&1", id="both_full"),
        pytest.param(">&-", id="stdout_closed"),
        pytest.param("2>&-", id="stderr_closed"),
        pytest.param(">&- 2>&-", id="both_closed"),
        pytest.param("<&- >&- 2>&-", id="all_three_closed"),
    ],
)
@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=["loud", "quiet"])
def test_output_that_goes_nowhere_does_not_stop_the_work(
    tmp_path: Path, redirection: str, quiet: Sequence[str], mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    assert run_in_shell(box, redirection, *quiet) == 0
    assert box.set_is_complete() and not box.source.exists() and box.rest() == []


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")])
@pytest.mark.parametrize("fails", [False, True], ids=["works", "fails"])
def test_a_pipe_whose_reader_left_does_not_stop_the_work(
    tmp_path: Path, streams: Sequence[str], fails: bool, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    write_batch(box.source.with_name("a_bad.pkl"), {"not": "a list"} if fails else [1, 2])
    reader, writer = os.pipe()
    os.close(reader)
    options: dict[str, Any] = dict.fromkeys(("stdout", "stderr"), subprocess.DEVNULL)
    options.update(dict.fromkeys(streams, writer))
    line = command("-i", box.source.parent, *box.arguments()[2:])
    done = subprocess.run(line, stdin=subprocess.DEVNULL, timeout=LIMIT_SECONDS, **options)
    os.close(writer)
    assert done.returncode == int(fails)
    assert not box.source.exists()
    assert load_set(box.output, STEM) == [box.traces[i : i + 2] for i in range(0, 6, 2)]
    assert box.rest() == []


# ---------------------------------------------------------------------------------------------
# Files that change under a run: it is stopped when a call is done, and goes on afterwards


def flip_byte(position: int) -> Callable[[Path], None]:
    """Return what changes one byte of a file; negative positions count from its end."""

    def flip(path: Path) -> None:
        data = bytearray(path.read_bytes())
        data[position] ^= 0x40
        with path.open("r+b") as file:
            file.write(data)

    return flip


def cut_half(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2)


def append_byte(path: Path) -> None:
    with path.open("ab") as file:
        file.write(b"\0")


def append_gzip_member(path: Path) -> None:
    """Append an empty member: gzip readers see the same content."""
    with path.open("ab") as file:
        file.write(gzip.compress(b""))


def empty_file(path: Path) -> None:
    os.truncate(path, 0)


DAMAGES = [
    pytest.param(flip_byte(0), id="magic_number"),
    pytest.param(flip_byte(3), id="gzip_flags"),
    pytest.param(flip_byte(5), id="gzip_time_that_nobody_reads"),
    pytest.param(flip_byte(200), id="content"),
    pytest.param(flip_byte(-6), id="gzip_crc"),
    pytest.param(flip_byte(-1), id="gzip_length"),
    pytest.param(cut_half, id="cut"),
    pytest.param(empty_file, id="emptied"),
    pytest.param(append_byte, id="appended"),
    pytest.param(append_gzip_member, id="appended_empty_member"),
    pytest.param(os.unlink, id="removed"),
]


@needs_strace
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("compress", [pytest.param(True, id="gz"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("index", [0, 2], ids=["first_part", "last_part"])
def test_a_part_damaged_before_validation_is_refused(
    tmp_path: Path, index: int, compress: bool, damage: Callable[[Path], None], mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, compress).make()
    last = os.path.relpath(box.parts[-1], box.root)
    with stopped(box, Fault("fsync", last, 1, "signal=SIGSTOP")) as runs:
        damage(box.parts[index])
    run = runs[0]
    assert run.code == 1, run.err
    assert "la validación" in run.err
    assert_honest_end(box, run.code, run.err)
    assert box.source_is_whole()
    assert names(box.output) == []


def rewrite_in_place(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(100))


@needs_strace
@pytest.mark.parametrize("mode", MODES)
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


@needs_strace
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(("read", "in/batch.pkl.gz"), id="while_it_is_read"),
        pytest.param(("fsync", "out/split/batch_sub0000.pkl.gz.part"), id="while_it_is_saved"),
        pytest.param(("fsync", "out/split"), id="while_it_is_published"),
    ],
)
def test_a_source_replaced_or_removed_after_opening_is_split_and_its_successor_kept(
    tmp_path: Path, at: tuple[str, str], replaced: bool, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, True, 600_000).make()
    with stopped(box, Fault(*at, 1, "signal=SIGSTOP")) as runs:
        if replaced:
            new = write_batch(box.source.with_name("new.pkl.gz"), ["new"])
            os.replace(new, box.source)
        else:
            box.source.unlink()
    run = runs[0]
    assert run.code == 1, run.err
    assert box.set_is_complete() and box.rest() == []
    assert box.source.exists() == replaced
    assert not replaced or load(box.source) == ["new"]
    assert "original conservado" in run.err if replaced else "original eliminado" not in run.out


@needs_strace
@pytest.mark.parametrize("mode", MODES)
def test_a_source_rewritten_with_its_old_time_is_kept(tmp_path: Path, mode: Mode) -> None:
    box = Box(tmp_path / "box", mode).make()
    times = box.source.stat()
    with stopped(box, Fault("fsync", "out/split", 1, "signal=SIGSTOP")) as runs:
        rewrite_in_place(box.source)
        os.utime(box.source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert box.source.exists()
    assert "original conservado: cambió durante la ejecución" in runs[0].err


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    os.replace(copy, path)


@needs_strace
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("change", [cut_half, append_byte, os.unlink, replace_by_copy])
def test_a_final_file_changed_before_the_deletion_keeps_the_original(
    tmp_path: Path, index: int, change: Callable[[Path], None], mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    with stopped(box, Fault("fsync", "out/split", 2, "signal=SIGSTOP")) as runs:
        change(box.finals[index])
    run = runs[0]
    assert box.source_is_whole()
    assert "original conservado" in run.err
    assert box.finals[index].name in run.err
    assert "Traceback" not in run.err and box.rest() == []


# ---------------------------------------------------------------------------------------------
# Aliases


@pytest.mark.parametrize("mode", MODES)
def test_an_output_that_is_the_input_folder_by_another_name_is_refused(
    tmp_path: Path, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    alias = tmp_path / "alias"
    alias.symlink_to(box.source.parent)
    done = split("-i", box.source.parent, "-o", alias, "--delete-original", "--yes", *mode)
    assert done.returncode == 2
    assert names(box.source.parent) == [box.source.name]
    assert box.source_is_whole()


@pytest.mark.parametrize("mode", MODES)
def test_a_symbolic_link_is_split_but_neither_it_nor_its_target_is_deleted(
    tmp_path: Path, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    target = box.source.rename(tmp_path / "elsewhere")
    box.source.symlink_to(target)
    done = split(*box.arguments())
    assert done.returncode == 1
    assert "original conservado: es un enlace simbólico" in done.stderr
    assert box.source.is_symlink() and box.source_is_whole() and box.set_is_complete()


@pytest.mark.parametrize("mode", MODES)
def test_a_hard_link_is_split_and_its_other_name_stays(tmp_path: Path, mode: Mode) -> None:
    box = Box(tmp_path / "box", mode).make()
    other = tmp_path / "other.gz"
    os.link(box.source, other)
    before = other.read_bytes()
    done = split(*box.arguments())
    assert (done.returncode, done.stderr) == (0, "")
    assert not box.source.exists() and other.read_bytes() == before
    assert box.set_is_complete()


@pytest.mark.parametrize("mode", MODES)
def test_a_source_inside_the_output_folder_is_split_there(tmp_path: Path, mode: Mode) -> None:
    box = Box(tmp_path / "box", mode).make()
    box.output.mkdir(parents=True)
    inside = box.source.rename(box.output / box.source.name)
    done = split("-i", inside, "-o", box.output, "-n", 2, "--delete-original", "--yes", *mode)
    assert (done.returncode, done.stderr) == (0, "")
    assert box.set_is_complete()  # and nothing else is there


@pytest.mark.parametrize("mode", MODES)
def test_names_that_differ_only_in_case_are_two_batches(tmp_path: Path, mode: Mode) -> None:
    write_batch(tmp_path / "in" / "batch.pkl", ["a", "b"])
    write_batch(tmp_path / "in" / "BATCH.pkl", ["c", "d"])
    if len(names(tmp_path / "in")) < 2:
        pytest.skip("this file system does not tell upper case from lower")
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out", "--delete-original", "--yes", *mode)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_set(tmp_path / "out", "batch") == [["a", "b"]]
    assert load_set(tmp_path / "out", "BATCH") == [["c", "d"]]
    assert names(tmp_path / "in") == []
