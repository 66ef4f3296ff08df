"""Shared by the fault tests: a batch in a folder, runs under strace, and what must hold after.

strace counts the K of ``when=K`` in each thread for itself, among the calls that its -P paths and
its -e trace set let through.  So a fault here names one file and one call: K is then the K-th call
on that file in one thread, whatever the other threads and files do meanwhile.
"""

from __future__ import annotations

import contextlib
import functools
import gzip
import os
import pickle
import re
import shutil
import signal
import subprocess
import tempfile
import threading
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NamedTuple, Optional, Union

import pytest
from helpers import LIMIT_SECONDS, Script, load, names, split, start, write_batch

STEM = "batch"
N_TRACES = 6
TRACES_PER_BATCH = 2
N_PARTS = N_TRACES // TRACES_PER_BATCH

TRACED = (
    "open,openat,creat,read,write,writev,pwrite64,pwritev,fsync,fdatasync,close,flock,fadvise64,"
    "ftruncate,fallocate,utimensat,futimesat,rename,renameat,renameat2,link,linkat,symlink,"
    "symlinkat,unlink,unlinkat,mkdir,mkdirat,rmdir"
)
WRITES = ("write", "writev", "pwrite64", "pwritev")
SYNCS = ("fsync", "fdatasync")
RENAMES = ("rename", "renameat", "renameat2")
UNLINKS = ("unlink", "unlinkat")


@functools.cache
def make_traces(trace_bytes: int) -> list[dict[str, Any]]:
    """Return six small traces that do not compress; equal arguments give equal traces."""
    return [
        {"question_id": f"q{i}", "states": pickle.dumps(i) + os.urandom(trace_bytes)}
        for i in range(N_TRACES)
    ]


@functools.cache
def pickled_source(trace_bytes: int, suffix: str) -> bytes:
    """Return the bytes of a source file of these traces."""
    with tempfile.TemporaryDirectory() as folder:
        return write_batch(Path(folder, STEM + suffix), make_traces(trace_bytes)).read_bytes()


@dataclass(frozen=True)
class Box:
    """One source and one output folder (two levels, not made yet) below root, and how to split."""

    root: Path
    mode: tuple[str, ...] = ()
    compress: bool = True
    trace_bytes: int = 2_000
    verify: bool = False  # compare a set that is there, in place of making it

    @property
    def source(self) -> Path:
        return self.root / "in" / f"{STEM}{self.suffix}"

    @property
    def suffix(self) -> str:
        return ".pkl.gz" if self.compress else ".pkl"

    @property
    def output(self) -> Path:
        return self.root / "out" / "split"

    @property
    def lock(self) -> Path:
        return self.output / f"{STEM}.lock.part"

    @property
    def traces(self) -> list[dict[str, Any]]:
        return make_traces(self.trace_bytes)

    @property
    def finals(self) -> list[Path]:
        return [self.output / f"{STEM}_sub{i:04d}{self.suffix}" for i in range(N_PARTS)]

    @property
    def parts(self) -> list[Path]:
        return [path.with_name(path.name + ".part") for path in self.finals]

    @property
    def watched(self) -> list[Path]:
        """All that a run may open, make, rename or remove."""
        folders = [self.root, self.output.parent, self.output]
        return [self.source, self.lock, *self.parts, *self.finals, *folders]

    def arguments(self, *more: object, delete: bool = True) -> list[object]:
        gone = ("--delete-original", "--yes") if delete else ()
        plain = () if self.compress else ("--no-compress",)
        how = ("--verify",) if self.verify else ("-n", TRACES_PER_BATCH, *plain)
        return ["-i", self.source, "-o", self.output, *how, *gone, *self.mode, *more]

    def make(self) -> Box:
        self.source.parent.mkdir(parents=True)
        self.source.write_bytes(pickled_source(self.trace_bytes, self.suffix))
        os.utime(self.source, ns=(1_700_000_000_000_000_000, 1_700_000_000_123_456_789))
        return self

    def copy_to(self, root: Path) -> Box:
        shutil.copytree(self.root, root)  # modification times included
        return replace(self, root=root)

    def source_is_whole(self) -> bool:
        return self.source.exists() and self.source.read_bytes() == pickled_source(
            self.trace_bytes, self.suffix
        )

    def set_is_complete(self) -> bool:
        """Return whether all final files are there and hold the traces, in order."""
        there = [name for name in names(self.output) if not name.endswith(".part")]
        if there != [path.name for path in self.finals]:
            return False
        slices = [
            self.traces[i : i + TRACES_PER_BATCH] for i in range(0, N_TRACES, TRACES_PER_BATCH)
        ]
        return [load(path) for path in self.finals] == slices

    def rest(self) -> list[str]:
        """Return the .part files in the output folder, the lock included."""
        return [name for name in names(self.output) if name.endswith(".part")]


class Fault(NamedTuple):
    """What strace is to do to the when-th call of this name on the file path (relative to root)."""

    call: str
    path: str
    when: Union[int, str]  # strace's own: 2, 3+
    effect: str  # "error=EIO", "signal=SIGKILL"

    def __str__(self) -> str:
        return f"{self.effect.split('=')[1]} in {self.call} {self.when} of {self.path}"


class Call(NamedTuple):
    """One system call of a trace: the lines where it began and ended, and the files it names.

    paths: relative to the root of the box, watched ones only, at least one.
    """

    tid: int
    name: str
    paths: tuple[str, ...]
    text: str
    began: int
    ended: int

    @property
    def path(self) -> str:
        return self.paths[0]

    @property
    def injected(self) -> bool:
        return self.text.endswith("(INJECTED)")


@dataclass(frozen=True)
class Run:
    """One run to its end: exit code (negative for a signal), what it printed, what strace saw."""

    code: int
    out: str
    err: str
    log: str
    calls: tuple[Call, ...]


_CALL = re.compile(r"(\d+) +(\w+)\((.*)")
_RESUMED = re.compile(r"(\d+) +<\.\.\. (\w+) resumed>(.*)")
_NAMED = re.compile(r'"([^"]*)"|<([^<>]*)>')


def parse_trace(log: str, root: Path, watched: Sequence[Path]) -> Iterator[Call]:
    """Yield the calls of an strace -f -y log in the order they began, each with its file."""
    known = {os.fspath(path) for path in watched}
    lines = log.splitlines()
    ends: dict[tuple[int, int], tuple[int, str]] = {}
    waiting: dict[int, int] = {}
    for number, line in enumerate(lines):
        if line.endswith("<unfinished ...>"):
            waiting[int(line.split()[0])] = number
        elif match := _RESUMED.match(line):
            tid = int(match[1])
            ends[tid, waiting.pop(tid)] = number, match[3]
    for number, line in enumerate(lines):
        match = _CALL.match(line)
        if match is None:
            continue
        tid = int(match[1])
        ended, rest = ends.get((tid, number), (number, ""))
        files = [quoted or described for quoted, described in _NAMED.findall(match[3] + rest)]
        paths = dict.fromkeys(os.path.relpath(file, root) for file in files if file in known)
        if paths:
            text = match[3] if ended == number else match[3] + rest
            yield Call(tid, match[2], tuple(paths), text, number, ended)


@functools.cache
def why_no_strace() -> Optional[str]:
    """Return why no fault can be injected here, or None where it can."""
    if shutil.which("strace") is None:
        return "strace is not installed"
    probe = ["strace", "-f", "-qq", "-o", os.devnull, "-e", "trace=fsync", "true"]
    done = subprocess.run(probe, capture_output=True, text=True, timeout=LIMIT_SECONDS)
    return f"strace cannot trace here: {done.stderr.strip()}" if done.returncode else None


def under_strace(inject: str, path: Path, log: Path = Path(os.devnull)) -> tuple[str, ...]:
    """Return the command that runs another with this inject of strace(1) in its calls on path.

    inject: such as "fsync:error=EIO:when=1".  Skips the test where strace cannot trace.
    """
    if why := why_no_strace():
        pytest.skip(why)
    what = ("-e", f"trace={inject.split(':')[0]}", "-e", f"inject={inject}")
    return ("strace", "-f", "-qq", "-o", os.fspath(log), "-P", os.fspath(path), *what)


needs_strace = pytest.mark.skipif(why_no_strace() is not None, reason=str(why_no_strace()))


def _strace(watched: Sequence[Path], log: Path, faults: Sequence[Fault]) -> list[str]:
    line = ["strace", "-f", "-q", "-y", "-s", "0", "-o", os.fspath(log), "-e", f"trace={TRACED}"]
    # With --seccomp-bpf untraced calls cost nothing, but strace 6.1 then injects no signals.
    if not any(fault.effect.startswith("signal") for fault in faults):
        line.append("--seccomp-bpf")
    for path in dict.fromkeys(watched):
        line += ["-P", os.fspath(path)]
    for fault in faults:
        line += ["-e", f"inject={fault.call}:{fault.effect}:when={fault.when}"]
    return line


def _finish(process: Script) -> tuple[str, str]:
    """Wait for a run; one that hangs is killed, its children too, and is a failure."""
    try:
        return process.communicate(timeout=LIMIT_SECONDS)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise AssertionError("the run hangs") from None


def _start(box: Box, strace: Sequence[str], delete: bool) -> Script:
    arguments = box.arguments(delete=delete)
    return start(*arguments, prefix=tuple(strace), start_new_session=True, cwd="/")


def _log_path(box: Box) -> Path:
    return box.root.with_name(box.root.name + ".strace")


def traced(box: Box, *faults: Fault, watch: Sequence[str] = (), delete: bool = True) -> Run:
    """Run the script on box under strace, with these faults injected (none: only recorded).

    watch: record the calls on these files, and count K over them, too, not only those of faults.
    """
    log_path = _log_path(box)
    watched = [box.root / path for path in (*watch, *(f.path for f in faults))] or box.watched
    process = _start(box, _strace(watched, log_path, faults), delete)
    out, err = _finish(process)
    assert log_path.exists(), f"strace did not begin: {err}"
    log = log_path.read_text(encoding="utf-8", errors="backslashreplace")
    calls = tuple(parse_trace(log, box.root, box.watched))
    return Run(process.returncode, out, err, log, calls)


def _keep_going(process_id: int, ended: threading.Event) -> None:
    """Let a process go on whenever it is stopped: strace counts K in each of its threads."""
    while not ended.wait(0.1):
        with contextlib.suppress(ProcessLookupError):
            os.kill(process_id, signal.SIGCONT)


@contextmanager
def stopped(box: Box, at: Fault, *, delete: bool = True) -> Iterator[list[Run]]:
    """Stop a run with SIGSTOP when the call of at is done; go on after the block.

    The list is empty in the block and holds the finished run after it.
    """
    log_path = _log_path(box)
    process = _start(box, _strace([box.root / at.path], log_path, [at]), delete)
    runs: list[Run] = []
    try:
        limit = time.monotonic() + LIMIT_SECONDS
        log = ""
        while "--- stopped by SIGSTOP ---" not in log:
            assert process.poll() is None, f"never stopped: {process.communicate()}"
            assert time.monotonic() < limit
            time.sleep(0.01)
            log = log_path.read_text(encoding="utf-8") if log_path.exists() else ""
        yield runs
        stopped_id = int(re.findall(r"^(\d+) +--- stopped", log, re.MULTILINE)[0])
        ended = threading.Event()
        going_on = threading.Thread(target=_keep_going, args=(stopped_id, ended))
        going_on.start()
        try:
            out, err = _finish(process)
        finally:
            ended.set()
            going_on.join()
        runs.append(Run(process.returncode, out, err, log, ()))
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()


def nth_in_thread(calls: Sequence[Call], target: Call, paths: Collection[str]) -> int:
    """Return the K that strace gives target when it is filtered to these paths.

    Of rename, unlike renameat, strace 6.1 compares the old name alone.
    """
    return sum(
        call.name == target.name
        and call.tid == target.tid
        and call.began <= target.began
        and not set(paths).isdisjoint(call.paths[:1] if call.name == "rename" else call.paths)
        for call in calls
    )


def find_sites(calls: Sequence[Call], after: int = -1) -> list[tuple[str, str, int]]:
    """Return (call, path, K) for every call that began after this line of the trace, once each.

    Filtered to that path, strace finds it again, in whichever thread it comes the next time.
    """
    sites = [
        (call.name, call.path, nth_in_thread(calls, call, (call.path,)))
        for call in calls
        if call.began > after
    ]
    return list(dict.fromkeys(sites))


def shows_injection(run: Run, fault: Fault) -> bool:
    kind, what = fault.effect.split("=")
    if kind == "error":
        return f" {what} " in run.log and "(INJECTED)" in run.log
    if what == "SIGKILL":
        return "+++ killed by SIGKILL +++" in run.log
    return f"--- {what} " in run.log


def assert_nothing_lost(box: Box) -> None:
    """The original is untouched, or its whole set is published; never a first file without all."""
    complete = box.set_is_complete()
    assert box.source_is_whole() or complete, f"LOST: {names(box.output)}"
    first_is_there = any(name.startswith(f"{STEM}_sub0000") for name in _finals_there(box))
    assert complete or not first_is_there, f"a set looks whole: {names(box.output)}"


def _finals_there(box: Box) -> list[str]:
    return [name for name in names(box.output) if not name.endswith(".part")]


def assert_honest_end(
    box: Box, code: int, err: str, *, stuck: Sequence[str] = (), once: bool = True
) -> None:
    """Check an end that the process lived through.

    stuck: names that may stay behind, because removing them is what failed.  once: exactly one
    error is to be shown, not at least one.
    """
    assert_nothing_lost(box)
    assert "Traceback" not in err, err
    assert code in (0, 1, 130, 143), f"{code}: {err}"
    complete = box.set_is_complete()
    assert complete or code != 0, f"exit 0 without a set: {err}"
    kept = "original conservado" in err  # of a set that is there: told, and exit 1, but no error
    if code == 0 or (code == 1 and kept):
        assert "ERROR" not in err
        assert complete
        assert box.source.exists() == kept, err
    else:
        n_errors = err.count("ERROR ") + err.count("Interrumpido")
        assert n_errors == 1 if once else n_errors >= 1, err
    left = [name for name in names(box.output) if name not in stuck]
    assert complete or not _finals_there(box) or set(_finals_there(box)) <= set(stuck), left
    assert not [name for name in left if name.endswith(".part")], f"left: {left}; {err}"


def finish_after_kill(box: Box) -> None:
    """Run the same command again with --skip-existing: it finishes the job and clears the rest."""
    assert_nothing_lost(box)
    if not box.source.exists():
        assert box.rest() in ([], [box.lock.name])  # killed before it could remove its lock
        return
    again = split(*box.arguments(*([] if box.verify else ["--skip-existing"])))
    assert again.returncode == 0, f"the next run fails: {again.stderr}"
    assert "Traceback" not in again.stderr
    assert box.set_is_complete()
    assert box.rest() == []


def print_past_capture(request: pytest.FixtureRequest, text: str) -> None:
    """Print a line that pytest shows of tests that pass, too."""
    capture = request.config.pluginmanager.getplugin("capturemanager")
    with capture.global_and_fixture_disabled():
        print(f"\n{text}")


# What changes a file under a stopped run


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


def exchange_with_next(path: Path) -> None:
    """Exchange a sub-batch with the next one of its set."""
    number = int(path.name[-11:-7])
    other = path.with_name(f"{path.name[:-11]}{number + 1:04d}.pkl.gz")
    data = path.read_bytes()
    path.write_bytes(other.read_bytes())
    other.write_bytes(data)


def rewrite_in_place(path: Path) -> None:
    size = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(size // 2)
        file.write(bytes(100))
