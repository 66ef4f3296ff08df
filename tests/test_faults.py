"""Faults: every system call that can change a file fails, or is the last: is no trace lost?

A clean run under strace tells which calls there are; then each occurrence gets EIO, ENOSPC,
SIGKILL and SIGTERM, one run each.  A seeded sample runs by default, all of them with
DIVIDE_CONQUER_ALL_FAULTS=1 in the environment.
"""

from __future__ import annotations

import dataclasses
import os
import random
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Callable, NamedTuple, Optional

import pytest
from faults import (
    RENAMES,
    SYNCS,
    UNLINKS,
    WRITES,
    Box,
    Call,
    Fault,
    Run,
    assert_honest_end,
    assert_nothing_lost,
    find_sites,
    finish_after_kill,
    needs_strace,
    nth_in_thread,
    print_past_capture,
    shows_injection,
    traced,
)
from helpers import ALL_FAULTS, Mode, modes, names, split

pytestmark = [needs_strace, pytest.mark.sampled]

FORMATS = [pytest.param(True, id="gz"), pytest.param(False, id="plain")]

EFFECTS = ("error=EIO", "error=ENOSPC", "signal=SIGKILL", "signal=SIGTERM")
TAKE_NO_SPACE = ("utimensat", "futimesat", "fadvise64", "flock", *UNLINKS)
SAMPLE = 5  # of each sweep
TRACE_BYTES = 600_000  # so that a part, and the source, take more than one write or read of 1 MiB

INJECTED: Counter[str] = Counter()
LOSSES: Counter[str] = Counter()


def mode_name(mode: Mode) -> str:
    return " ".join(mode).lstrip("-") or "default"


@pytest.fixture(scope="module", autouse=True)
def tell_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print at the end how many faults were injected in each mode, and how many lost a trace."""
    yield
    counts = [f"{name} {count}, losses {LOSSES[name]}" for name, count in sorted(INJECTED.items())]
    print_past_capture(request, f"faults injected: {'; '.join(counts) or 'none'}")


# ---------------------------------------------------------------------------------------------
# Starts: what lies in the output folder when the run begins


def start_fresh(root: Path, mode: Mode, compress: bool) -> Box:
    return Box(root, mode, compress, TRACE_BYTES).make()


def start_interrupted(root: Path, mode: Mode, compress: bool) -> Box:
    """Kill a run between two renames: one final file, and the parts of the others."""
    box = start_fresh(root, mode, compress)
    part = os.path.relpath(box.parts[-1], root)
    run = traced(box, Fault(rename_call(box), part, 1, "signal=SIGKILL"))
    assert run.code == -9
    assert len(names(box.output)) == 1 + len(box.finals)
    assert box.finals[1].exists() and not box.finals[0].exists()
    return box


def start_verify(root: Path, mode: Mode, compress: bool) -> Box:
    """The set is there: it is compared with its original, which goes."""
    box = start_fresh(root, mode, compress)
    assert split(*box.arguments(delete=False)).returncode == 0
    return dataclasses.replace(box, verify=True)


def rename_call(box: Box) -> str:
    """Return which of the rename calls this C library uses."""
    probe = Box(box.root.with_name(box.root.name + "_probe"), box.mode, box.compress).make()
    called = {call.name for call in traced(probe).calls}
    return next(name for name in RENAMES if name in called)


STARTS = [
    pytest.param(start_fresh, id="fresh"),
    pytest.param(start_interrupted, id="interrupted_publish"),
    pytest.param(start_verify, id="verify"),
]
Start = Callable[[Path, Mode, bool], Box]


# ---------------------------------------------------------------------------------------------
# The sweep: one run per fault, checked by how that run ended


def expected_codes(box: Box, fault: Fault) -> set[int]:
    """Return the exit codes that the design has for one fault in a run that began fresh."""
    if fault.effect == "signal=SIGKILL":
        return {-9}
    if fault.effect == "signal=SIGTERM":
        return {143}
    if fault.call in ("utimensat", "futimesat", "fadvise64", "flock", *UNLINKS):
        # Costs a warning, at most; or it keeps an original that was to be deleted.
        return {int(fault.call in UNLINKS and box.source.match(fault.path))}
    if fault.call == "close" and not fault.path.endswith(".part"):
        return {0, 1}  # nothing was written through it
    return {1}


def check_fresh(box: Box, fault: Fault, run: Run) -> None:
    if run.code == -9:
        return finish_after_kill(box)
    stuck = [box.lock.name] if fault.call in UNLINKS and box.lock.match(fault.path) else []
    assert_honest_end(box, run.code, run.err, stuck=stuck)
    if stuck and run.code == 0:
        assert "AVISO" in run.err and box.lock.name in run.err
    if fault.call == "utimensat" and run.code == 0:
        assert "AVISO" in run.err
    return None


def check_interrupted(box: Box, fault: Fault, run: Run) -> None:
    """What an earlier run left may still be there, but no more, and the next run finishes."""
    assert_nothing_lost(box)
    assert "Traceback" not in run.err, run.err
    assert run.code != 0 or box.set_is_complete()
    if run.code not in (0, -9):
        assert run.err.count("ERROR ") + run.err.count("Interrumpido") == 1, run.err
    finish_after_kill(box)


def read_only_close(fault: Fault, calls: Sequence[Call]) -> bool:
    """A close that can report no lost write: no file system fails it, so no fault is made of it."""
    opened_to_write = {c.path for c in calls if c.name in WRITES}
    return fault.call == "close" and (fault.path not in opened_to_write or fault.when != 1)


def all_faults(calls: Sequence[Call]) -> list[Fault]:
    faults = [
        Fault(call, path, when, effect)
        for call, path, when in find_sites(calls)
        for effect in EFFECTS
        # A read changes nothing: only that it can fail.  And only what takes space can lack it.
        if effect == "error=EIO" or call != "read"
        if effect != "error=ENOSPC" or call not in TAKE_NO_SPACE
    ]
    return [fault for fault in faults if not read_only_close(fault, calls)]


def choose(faults: Sequence[Fault], seed: str) -> list[Fault]:
    """Return all faults, or the sample of them that the normal suite tries."""
    if ALL_FAULTS:
        return list(faults)
    return random.Random(seed).sample(list(faults), min(SAMPLE, len(faults)))


class Trial(NamedTuple):
    """Run box with all of faults; check what is left, by the last of them."""

    faults: tuple[Fault, ...]
    check: Callable[[Box, Fault, Run], None]
    codes: Optional[set[int]]
    watch: Sequence[str] = ()


def try_one(template: Box, root: Path, trial: Trial) -> Optional[str]:
    """Return what does not hold after this trial, or None."""
    box = template.copy_to(root)
    run = traced(box, *trial.faults, watch=trial.watch)
    name = mode_name(box.mode)
    INJECTED[name] += 1
    try:
        for fault in trial.faults:
            assert shows_injection(run, fault), f"not injected: {run.log}"
        if trial.codes is not None:
            assert run.code in trial.codes, f"exit {run.code}, not {trial.codes}: {run.err}"
        trial.check(box, trial.faults[-1], run)
    except AssertionError as error:
        LOSSES[name] += "LOST" in str(error)
        return f"{' then '.join(map(str, trial.faults))}: {str(error)[:600]}"
    shutil.rmtree(root)
    return None


def sweep(template: Box, folder: Path, trials: Sequence[Trial]) -> None:
    """Try all, two at a time, and fail with everything that did not hold."""
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        roots = [folder / f"run{number}" for number in range(len(trials))]
        wrong = [w for w in pool.map(try_one, [template] * len(trials), roots, trials) if w]
    assert not wrong, f"{len(wrong)} of {len(trials)} faults:\n" + "\n".join(wrong)


@modes
@pytest.mark.parametrize("compress", FORMATS)
@pytest.mark.parametrize("start", STARTS)
def test_no_single_fault_loses_a_trace(
    tmp_path: Path, start: Start, compress: bool, mode: Mode
) -> None:
    template = start(tmp_path / "template", mode, compress)
    clean = template.copy_to(tmp_path / "clean")
    run = traced(clean)
    assert (run.code, run.err) == (0, "")
    fresh = start is not start_interrupted
    calls: Sequence[Call] = run.calls
    if start is start_interrupted:  # once the rest of the killed run is cleared, all is as fresh
        cleared = min(call.began for call in run.calls if call.name in WRITES)
        calls = [call for call in run.calls if call.began < cleared]
    faults = choose(all_faults(calls), f"{start.__name__}{compress}{mode}")
    sweep(
        template,
        tmp_path,
        [
            Trial((fault,), check_fresh, expected_codes(clean, fault))
            if fresh
            else Trial((fault,), check_interrupted, None)
            for fault in faults
        ],
    )


# ---------------------------------------------------------------------------------------------
# A second fault, while the first is being undone


def check_roll_back(box: Box, fault: Fault, run: Run) -> None:
    """Whatever could not be removed is named, nothing is lost, and the next run finishes."""
    if run.code != -9:
        left = [*names(box.output)]
        assert_honest_end(box, run.code, run.err, stuck=left, once=False)
        markers = (box.lock.name, box.parts[0].name)  # see the next test
        unnamed = [name for name in left if name not in run.err and name not in markers]
        assert box.set_is_complete() or not unnamed, f"left without a word: {unnamed}; {run.err}"
    finish_after_kill(box)


FIRST_FAULTS = [
    pytest.param(-1, id="last_folder_fsync"),
    pytest.param(-2, id="folder_fsync_before_the_first_name"),
]


@modes
@pytest.mark.parametrize("which", FIRST_FAULTS)
def test_no_fault_during_the_roll_back_loses_a_trace(
    tmp_path: Path, which: int, mode: Mode
) -> None:
    template = start_fresh(tmp_path / "template", mode, False)
    clean = template.copy_to(tmp_path / "clean")
    calls = traced(clean).calls
    folder = os.path.relpath(clean.output, clean.root)
    target = [call for call in calls if call.name in SYNCS and call.path == folder][which]

    def first(paths: Collection[str]) -> Fault:
        return Fault(target.name, folder, nth_in_thread(calls, target, paths), "error=EIO")

    # The thread that syncs the parts has calls of its own that count: more of them, and it is hit.
    parents = [".", "out"]
    every = [os.path.relpath(p, clean.root) for p in clean.watched if p != clean.parts[-1]]
    undone = template.copy_to(tmp_path / "undone")
    run = traced(undone, first(every), watch=every)
    assert run.code == 1
    assert_honest_end(undone, run.code, run.err)
    assert_gone_before_the_first_part(run, undone)
    failed = next(call for call in run.calls if call.injected)
    assert failed.path == folder
    seconds = [
        Fault(call, path, when, effect)
        for call, path, when in find_sites(run.calls, after=failed.ended)
        for effect in EFFECTS
        if call in (*RENAMES, *UNLINKS)
    ]
    assert len(seconds) >= len(EFFECTS) * len(clean.parts)
    trials = [
        Trial((first((*parents, folder, second.path)), second), check_roll_back, None, parents)
        for second in choose(seconds, f"{which}{mode}")
    ]
    sweep(template, tmp_path, trials)


@modes
@pytest.mark.parametrize(
    "stuck, left",
    [
        pytest.param(
            "batch_sub0001.pkl.gz",
            ["batch_sub0000.pkl.gz.part", "batch_sub0001.pkl.gz"],
            id="a_final_file_and_the_first_part_that_marks_it",
        ),
        pytest.param("batch.lock.part", ["batch.lock.part"], id="the_lock"),
    ],
)
def test_whatever_the_roll_back_leaves_is_named(
    tmp_path: Path, stuck: str, left: list[str], mode: Mode
) -> None:
    box = start_fresh(tmp_path / "box", mode, True)
    failing = Fault("fsync", "out/split", 2, "error=EIO")
    run = traced(box, failing, Fault("unlink", f"out/split/{stuck}", 1, "error=EIO"))
    if run.code != 1 or names(box.output) != left:
        pytest.fail(f"not what this test is about: {run.code} {names(box.output)}")
    assert [name for name in left if name not in run.err] == []


def test_names_that_are_not_taken_back_on_disk_are_told_as_they_are(tmp_path: Path) -> None:
    box = start_fresh(tmp_path / "box", (), True)
    run = traced(box, Fault("fsync", "out/split", "2+", "error=EIO"))
    left = [box.parts[0].name, *(path.name for path in box.finals[1:])]
    assert (run.code, names(box.output)) == (1, left)
    assert f"No se pudo quitar de la salida: {', '.join(left)}\n" in run.err


def test_a_failed_sync_of_what_was_taken_back_does_not_hide_the_first_error(tmp_path: Path) -> None:
    box = start_fresh(tmp_path / "box", (), True)
    run = traced(box, Fault("fsync", "out/split", "2+2", "error=EIO"))
    assert run.log.count("(INJECTED)") == 2
    assert_honest_end(box, run.code, run.err)
    assert names(box.output) == []


# ---------------------------------------------------------------------------------------------
# The order on disk, from a recorded run


def assert_gone_before_the_first_part(run: Run, box: Box) -> None:
    """What was published is gone on disk before the part that marks it as ours to remove."""
    gone = the_call_on(run, box, box.finals[1], UNLINKS).ended
    first_part = calls_on(run, box, box.parts[0], UNLINKS)[0]
    syncs = calls_on(run, box, box.output, SYNCS)
    assert [s for s in syncs if gone < s.began and s.ended < first_part.began]


def recorded(folder: Path, mode: Mode, compress: bool) -> tuple[Box, Run]:
    box = start_fresh(folder / "box", mode, compress)
    run = traced(box)
    assert (run.code, run.err) == (0, "")
    assert box.set_is_complete() and not box.source.exists()
    return box, run


def calls_on(run: Run, box: Box, path: Path, calls: Collection[str]) -> list[Call]:
    wanted = os.path.relpath(path, box.root)
    return [call for call in run.calls if call.name in calls and wanted in call.paths]


def the_call_on(run: Run, box: Box, path: Path, calls: Collection[str]) -> Call:
    (call,) = calls_on(run, box, path, calls)
    return call


@modes
@pytest.mark.parametrize("compress", FORMATS)
class TestOrderOnDisk:
    def test_each_part_is_synced_after_its_last_write_and_before_any_rename(
        self, tmp_path: Path, compress: bool, mode: Mode
    ) -> None:
        box, run = recorded(tmp_path, mode, compress)
        first_rename = min(c.began for p in box.parts for c in calls_on(run, box, p, RENAMES))
        for part in box.parts:
            written = max(call.ended for call in calls_on(run, box, part, WRITES))
            synced = the_call_on(run, box, part, SYNCS)
            assert written < synced.began
            assert synced.ended < first_rename

    def test_each_part_gets_its_time_between_its_last_write_and_its_fsync(
        self, tmp_path: Path, compress: bool, mode: Mode
    ) -> None:
        if compress:
            pytest.skip("a .pkl.gz has a stamp, and the time of its last write")
        box, run = recorded(tmp_path, mode, compress)
        for part in box.parts:
            written = max(call.ended for call in calls_on(run, box, part, WRITES))
            dated = the_call_on(run, box, part, ["utimensat", "futimesat"])
            assert written < dated.began
            assert dated.ended < the_call_on(run, box, part, SYNCS).began

    def test_the_first_part_is_renamed_last_between_two_folder_fsyncs(
        self, tmp_path: Path, compress: bool, mode: Mode
    ) -> None:
        box, run = recorded(tmp_path, mode, compress)
        first, *others = (the_call_on(run, box, part, RENAMES) for part in box.parts)
        others_named = max(call.ended for call in others)
        deleted = the_call_on(run, box, box.source, UNLINKS)
        syncs = calls_on(run, box, box.output, SYNCS)
        assert [s for s in syncs if others_named < s.began and s.ended < first.began]
        assert [s for s in syncs if first.ended < s.began and s.ended < deleted.began]

    def test_every_part_is_read_back_between_its_fsync_and_the_first_rename(
        self, tmp_path: Path, compress: bool, mode: Mode
    ) -> None:
        box, run = recorded(tmp_path, mode, compress)
        first_rename = min(c.began for p in box.parts for c in calls_on(run, box, p, RENAMES))
        for part in box.parts:
            synced = the_call_on(run, box, part, SYNCS).ended
            reads = calls_on(run, box, part, ["read", "pread64"])
            assert reads
            assert all(synced < read.began and read.ended < first_rename for read in reads)

    def test_the_lock_is_taken_first_and_removed_last(
        self, tmp_path: Path, compress: bool, mode: Mode
    ) -> None:
        box, run = recorded(tmp_path, mode, compress)
        locked = the_call_on(run, box, box.lock, ["flock"]).ended
        unlocked = the_call_on(run, box, box.lock, UNLINKS).began
        held = [*box.parts, *box.finals]
        for path in held:
            for call in calls_on(run, box, path, [*WRITES, *SYNCS, *RENAMES, *UNLINKS, "openat"]):
                assert locked < call.began and call.ended < unlocked
        assert the_call_on(run, box, box.source, UNLINKS).ended < unlocked

    def test_new_folders_are_synced_into_their_parents_before_the_first_rename(
        self, tmp_path: Path, compress: bool, mode: Mode
    ) -> None:
        box, run = recorded(tmp_path, mode, compress)
        first_rename = min(c.began for p in box.parts for c in calls_on(run, box, p, RENAMES))
        for folder in (box.output, box.output.parent):
            made = the_call_on(run, box, folder, ["mkdir", "mkdirat"]).ended
            syncs = calls_on(run, box, folder.parent, SYNCS)
            assert [s for s in syncs if made < s.began and s.ended < first_rename]


def test_what_a_killed_run_published_is_gone_on_disk_before_the_part_that_marks_it(
    tmp_path: Path,
) -> None:
    box = start_interrupted(tmp_path / "box", (), True)
    run = traced(box)
    assert_gone_before_the_first_part(run, box)


# ---------------------------------------------------------------------------------------------
# Failures with an answer of their own


@modes
@pytest.mark.parametrize("index", range(3))
def test_a_failed_fsync_of_a_part_is_never_retried(tmp_path: Path, index: int, mode: Mode) -> None:
    box = start_fresh(tmp_path / "box", mode, True)
    part = os.path.relpath(box.parts[index], box.root)
    run = traced(box, Fault("fsync", part, 1, "error=EIO"))
    syncs = [call for call in run.calls if call.name in SYNCS]
    assert [call.injected for call in syncs] == [True]
    assert run.code == 1
    assert "No se pudo guardar" in run.err
    assert_honest_end(box, run.code, run.err)
    assert names(box.output) == []


@modes
@pytest.mark.parametrize("when", [1, 2])
@pytest.mark.parametrize("error", ["EIO", "ENOSPC", "EROFS"])
def test_a_failed_folder_fsync_keeps_the_original_and_takes_the_names_back(
    tmp_path: Path, error: str, when: int, mode: Mode
) -> None:
    box = start_fresh(tmp_path / "box", mode, True)
    run = traced(box, Fault("fsync", "out/split", when, f"error={error}"))
    assert run.code == 1
    assert "No se pudo guardar" in run.err
    assert box.source_is_whole()
    assert names(box.output) == []


@modes
@pytest.mark.parametrize("when", ["2", "1+"])
@pytest.mark.parametrize("error", ["EINVAL", "EOPNOTSUPP", "EBADF", "EACCES"])
def test_a_folder_that_cannot_be_synced_publishes_with_a_warning_and_keeps_the_original(
    tmp_path: Path, error: str, when: str, mode: Mode
) -> None:
    box = start_fresh(tmp_path / "box", mode, True)
    run = traced(box, Fault("fsync", "out/split", when, f"error={error}"))
    assert "(INJECTED)" in run.log
    assert run.code == 1
    assert box.set_is_complete()
    assert box.source_is_whole()
    assert "AVISO" in run.err and "original conservado" in run.err
    assert box.rest() == []


@modes
@pytest.mark.parametrize(
    "when",
    [pytest.param(1, id="first_read"), pytest.param(2, id="second_read")],
)
@pytest.mark.parametrize("compress", FORMATS)
def test_a_source_that_cannot_be_read_is_a_clear_error(
    tmp_path: Path, compress: bool, when: int, mode: Mode
) -> None:
    box = start_fresh(tmp_path / "box", mode, compress)
    source = os.path.relpath(box.source, box.root)
    run = traced(box, Fault("read", source, when, "error=EIO"))
    assert "(INJECTED)" in run.log
    assert run.code == 1
    assert_honest_end(box, run.code, run.err)
    assert "no se puede leer" in run.err


@modes
@pytest.mark.parametrize("folder", [".", "out"])
def test_a_parent_of_a_new_folder_that_cannot_be_synced_keeps_the_original(
    tmp_path: Path, folder: str, mode: Mode
) -> None:
    box = start_fresh(tmp_path / "box", mode, True)
    run = traced(box, Fault("fsync", folder, 1, "error=EINVAL"))
    assert "(INJECTED)" in run.log
    assert run.code == 1
    assert box.set_is_complete()
    assert box.source_is_whole()
    assert "original conservado" in run.err


def test_a_new_folder_whose_name_cannot_be_synced_is_removed_again(tmp_path: Path) -> None:
    """The next source makes it, and syncs its name, again."""
    box = start_fresh(tmp_path / "box", (), True)
    run = traced(box, Fault("fsync", "out", 1, "error=EIO"))
    assert run.code == 1
    assert_honest_end(box, run.code, run.err)
    assert not box.output.exists()


class Harmless(NamedTuple):
    call: str
    path: str
    told: str


HARMLESS = [
    pytest.param(
        Harmless("utimensat", "out/split/batch_sub0001.pkl.part", "no lleva la fecha"),
        id="time_of_a_part",
    ),
    pytest.param(
        Harmless("fadvise64", "out/split/batch_sub0001.pkl.gz.part", ""), id="page_cache_hint"
    ),
    pytest.param(
        Harmless("unlink", "in/batch.pkl.gz", "original conservado"), id="unlink_of_the_original"
    ),
    pytest.param(
        Harmless("unlink", "out/split/batch.lock.part", "no se pudo quitar"),
        id="unlink_of_the_lock",
    ),
    pytest.param(Harmless("flock", "out/split/batch.lock.part", ""), id="no_locks_here"),
]


@modes
@pytest.mark.parametrize("case", HARMLESS)
@pytest.mark.parametrize("error", ["EIO", "EPERM", "ENOSYS"])
def test_a_failure_that_costs_no_data_only_warns(
    tmp_path: Path, error: str, case: Harmless, mode: Mode
) -> None:
    box = start_fresh(tmp_path / "box", mode, not case.path.endswith(".pkl.part"))
    run = traced(box, Fault(case.call, case.path, 1, f"error={error}"))
    assert "(INJECTED)" in run.log
    assert run.code == ("conservado" in case.told), run.err
    assert box.set_is_complete()
    assert case.told in run.err
    assert ("AVISO" in run.err) == bool(case.told)
    assert box.source.exists() == (case.path == "in/batch.pkl.gz")
    assert box.rest() == (
        [box.lock.name] if case.path.endswith(box.lock.name) and case.told else []
    )
