"""What many tests share: running the script as a user does, and reading its output without it."""

from __future__ import annotations

import contextlib
import gzip
import os
import pickle
import pickletools
import re
import select
import shutil
import struct
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest

if sys.platform != "win32":  # there, only tests without terminals and signals can run
    import fcntl
    import pty
    import resource
    import termios

ROOT = Path(__file__).parent.parent
SOURCE = ROOT / "divide_conquer.py"
# Python compiles every line of a script at each start, which takes a third of a short run: .ci/run
# names a compiled one where it starts thousands.
SCRIPT = Path(os.environ.get("DIVIDE_CONQUER_SCRIPT", SOURCE))

LIMIT_SECONDS = 60  # no test may hang the suite
ALL_FAULTS = os.environ.get("DIVIDE_CONQUER_ALL_FAULTS") == "1"

Mode = tuple[str, ...]
MODES = [pytest.param((), id="default"), pytest.param(("--low-memory",), id="low_memory")]
modes = pytest.mark.parametrize("mode", MODES)
low_memory_or_not = pytest.mark.parametrize(
    "low_memory", [False, True], ids=["default", "low_memory"]
)


# Running the script

OUTPUTS = "DIVIDE_CONQUER_TESTS_OUTPUTS"
"""Variable that names the folder where all runs' output is kept until the session ends."""


PYTHON_WARNING = re.compile(r"^.*:\d+: \w*Warning: .*", re.MULTILINE)


def note_output(*texts: str) -> None:
    """Keep what a run printed: conftest.py compares it all with README.md's table of messages.

    Fails where Python itself warned of the run: environment() makes it tell all that it knows;
    and where it showed a traceback, but as the script does for a fault of its own, or as Python for
    a Ctrl-C that comes while it imports.
    """
    text = "\n".join((*texts, ""))
    assert not (told := PYTHON_WARNING.findall(text)), told
    is_explained = "fallo inesperado" in text or text.rstrip().endswith("KeyboardInterrupt")
    assert 'divide_conquer.py", line' not in text or is_explained, text
    if folder := os.environ.get(OUTPUTS):
        with open(Path(folder, str(os.getpid())), "a", encoding="utf-8") as file:
            file.write(text)


def command(*args: object) -> list[str]:
    """Return the argument list that runs the script with this interpreter."""
    return [
        sys.executable,
        str(SCRIPT),
        *(os.fspath(arg) if isinstance(arg, Path) else str(arg) for arg in args),
    ]


class Script(subprocess.Popen[str]):
    """A running script, or what runs it; its output is text, odd bytes escaped, and is noted."""

    def __init__(self, line: Sequence[str], **options: Any) -> None:
        options = {
            "stdin": subprocess.DEVNULL,
            "stdout": subprocess.PIPE,
            "stderr": subprocess.PIPE,
            "env": environment(),
            **options,
        }
        super().__init__(line, encoding="utf-8", errors="backslashreplace", **options)

    def communicate(self, *args: Any, **options: Any) -> tuple[str, str]:
        out, err = super().communicate(*args, **options)
        note_output(out or "", err or "")
        return out, err


def run(
    line: Sequence[str], *, timeout: float = LIMIT_SECONDS, **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run a command line that runs the script, without a terminal, to its end."""
    with Script(line, **options) as process:
        try:
            out, err = process.communicate(timeout=timeout)
        except subprocess.TimeoutExpired:
            process.kill()
            raise
    return subprocess.CompletedProcess(line, process.returncode, out, err)


def split(
    *args: object, prefix: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the script with these arguments.

    prefix: a command that runs the script's command, such as setpriv with its options.
    """
    return run([*prefix, *command(*args)], **options)


def start(*args: object, prefix: tuple[str, ...] = (), **options: Any) -> Script:
    """Start the script as split does, and do not wait for it."""
    return Script([*prefix, *command(*args)], **options)


def limit(what: int, amount: int) -> Callable[[], None]:
    """Return a preexec_fn that limits a resource of the run, such as resource.RLIMIT_AS."""
    return lambda: resource.setrlimit(what, (amount, amount))


def wait_until(happened: Callable[[], bool], process: Script) -> None:
    """Wait for what a running script does; fail if it ends before, or does not do it in time."""
    deadline = time.monotonic() + LIMIT_SECONDS / 2
    while not happened():
        if process.poll() is not None and not happened():
            raise AssertionError(f"ended without it: {process.communicate()}")
        assert time.monotonic() < deadline
        time.sleep(0.002)


BEGIN = "import ctypes, errno, os, pathlib, runpy, signal, stat, sys\n"
END = f"\nsys.argv[0] = {str(SCRIPT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
NO_ISAL = "sys.modules['isal'] = None"


def split_without(lacking: str, *args: object) -> subprocess.CompletedProcess[str]:
    """Run the script in a Python from which something was taken away first, by this code."""
    line = [sys.executable, "-c", BEGIN + lacking + END, *map(str, args)]
    return run(line, env=environment(PYTHONUTF8="1"))


class TerminalRun(NamedTuple):
    """A run whose stdin and stderr were a terminal; terminal is all that it showed."""

    returncode: int
    stdout: str
    terminal: str


def split_on_terminal(
    *args: object,
    answer: Optional[bytes] = None,
    prompt: str = "[s/N]",
    env: Optional[dict[str, str]] = None,
    controlling: bool = False,
    rows: int = 24,
    columns: int = 100,
) -> TerminalRun:
    """Run the script on a pseudo-terminal and type answer once it shows the prompt.

    controlling: make it the terminal whose Ctrl-C reaches the script as SIGINT.
    """
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("4H", rows, columns, 0, 0))
    process = subprocess.Popen(
        command(*args),
        stdin=slave,
        stdout=subprocess.PIPE,
        stderr=slave,
        start_new_session=True,
        env=env or environment(),
        preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if controlling else None,
    )
    os.close(slave)
    try:
        shown = _converse(master, answer, prompt.encode())
        assert process.stdout is not None
        stdout = process.stdout.read().decode()
        terminal = shown.decode(errors="backslashreplace")
        note_output(stdout, terminal)
        return TerminalRun(process.wait(LIMIT_SECONDS), stdout, terminal)
    finally:
        process.kill()
        process.wait()
        if process.stdout is not None:
            process.stdout.close()
        os.close(master)


def _converse(master: int, answer: Optional[bytes], prompt: bytes) -> bytes:
    shown = b""
    deadline = time.monotonic() + LIMIT_SECONDS
    while time.monotonic() < deadline:
        if not select.select([master], [], [], 1)[0]:
            continue
        try:
            piece = os.read(master, 65536)
        except OSError:  # Linux says EIO when the last process has closed its end
            return shown
        if not piece:
            return shown
        shown += piece
        if answer is not None and prompt in shown:
            if answer == b"\x03":
                time.sleep(0.2)  # as a person would: before read(2) begins a signal wakes nobody
            os.write(master, answer)
            answer = None
    raise AssertionError(f"no end after {LIMIT_SECONDS} s; shown so far: {shown!r}")


def peak_mib(report: str) -> float:
    """Return the peak memory (MiB) that the report of a run tells."""
    found = re.search(r"memoria máxima hasta ahora ([\d.]+) ([kMG])B", report)
    assert found, report
    return float(found[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[found[2]] / 2**20


# Every warning is shown, those of files left open and of encodings left out included.  The debug
# allocator stays off: it finds errors of C alone, and many tests measure or limit the memory.
# A start takes 0.1 s longer so, hence .ci/run turns it off (PYTHONDEVMODE=) for thousands of runs.
DEV_MODE = {"PYTHONDEVMODE": "1", "PYTHONWARNDEFAULTENCODING": "1", "PYTHONMALLOC": "default"}


def environment(**changes: str) -> dict[str, str]:
    """Return this environment, in Python's development mode unless it says, with changes."""
    return {**DEV_MODE, **os.environ, **changes}


def assert_fails(done: subprocess.CompletedProcess[str], *told: str, code: int = 1) -> None:
    """Check the exit code of a run, what it tells on stderr, and that no traceback is shown."""
    assert done.returncode == code, done
    assert [words for words in told if words not in done.stderr] == [], done.stderr
    assert "Traceback" not in done.stderr, done.stderr


# Writing batches


class Folders(NamedTuple):
    """An input folder that is there and an output folder that is not."""

    source: Path
    output: Path

    def args(self, *more: object) -> tuple[object, ...]:
        return ("--input", self.source, "--output", self.output, *more)


def write_batch(path: Path, traces: object, protocol: int = 4) -> Path:
    """Write traces as the producer does: gzip where the name says so, else plain."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wb", 6) if path.suffix == ".gz" else path.open("wb") as file:
        pickle.dump(traces, file, protocol)
    return path


def pickled_value(value: object) -> bytes:
    """Return the opcodes that push value: a pickle without its PROTO and STOP."""
    return pickle.dumps(value, 2)[2:-1]


def pickled_call(module: str, function: str, *args: object) -> bytes:
    """Return the opcodes that push module.function(*args), which need not be importable here."""
    return f"c{module}\n{function}\n".encode() + pickled_value(args) + b"R"


def pickled_list(*items: bytes) -> bytes:
    """Return a pickle (protocol 2) of the list of what the items push."""
    return b"\x80\x02]" + b"".join(item + b"a" for item in items) + b"."


def opcodes(data: bytes) -> list[tuple[str, Any]]:
    """Return opcodes and arguments, FRAMEs aside."""
    return [(op.name, arg) for op, arg, _ in pickletools.genops(data) if op.name != "FRAME"]


def write_module(folder: Path, name: str, source: str) -> dict[str, str]:
    """Write a module; return an environment in which the script can import it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    return environment(PYTHONPATH=str(folder))


# Reading what is there, without the script


def load(path: Path) -> Any:
    """Load one file with the standard library alone; fail if anything follows the pickle."""
    with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
        value = pickle.load(file)
        assert file.read() == b""
    return value


def load_set(folder: Path, stem: str) -> list[Any]:
    """Return the sub-batches of one source, in the order of their names."""
    final = re.compile(re.escape(stem) + r"_sub[0-9]+\.pkl(\.gz)?")
    return [load(folder / name) for name in names(folder) if final.fullmatch(name)]


def sub_names(stem: str, count: int, suffix: str = ".pkl.gz") -> list[str]:
    """Return the names of a set of count sub-batches."""
    return [f"{stem}_sub{index:04d}{suffix}" for index in range(count)]


def names(folder: Path) -> list[str]:
    """Return what lies in a folder, sorted; an empty list where there is no folder."""
    return sorted(os.listdir(folder)) if folder.exists() else []


class Entry(NamedTuple):
    """One file of a snapshot; content is None for what is no regular file."""

    content: Optional[bytes]
    inode: int
    mtime_ns: int


def snapshot(folder: Path) -> dict[str, Entry]:
    """Return all that lies under folder, to be compared with a later snapshot."""
    entries = {}
    for path in sorted(folder.rglob("*")):
        status = path.lstat()
        content = path.read_bytes() if path.is_file() else None
        mtime_ns = 0 if path.is_dir() else status.st_mtime_ns
        entries[str(path.relative_to(folder))] = Entry(content, status.st_ino, mtime_ns)
    return entries


@contextlib.contextmanager
def mounted_tmpfs(folder: Path, size: str) -> Iterator[bool]:
    """Make a folder and mount a file system of this size on it; yield whether that was allowed."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={size}", "none", str(folder)]
    mounted = (
        shutil.which("mount") is not None
        and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    )
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@contextlib.contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """Make a folder that is a disk of this size, or skip the test."""
    with mounted_tmpfs(folder, size) as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        yield
