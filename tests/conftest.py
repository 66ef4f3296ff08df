"""What the tests share: running the script as a user does, and reading its output without it."""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import pickle
import pty
import random
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple, Optional

import pytest

ROOT = Path(__file__).parent.parent
SCRIPT = ROOT / "divide_conquer.py"
sys.path.insert(0, str(ROOT))  # the module under test, also where it is not installed

# Where the suite itself runs in the background (CI, nohup), these come ignored, and a child would
# inherit that: the script rightly leaves it so, and the tests would send them in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

LIMIT_SECONDS = 60  # no test may hang the suite


def command(*args: object) -> list[str]:
    """Return the argument list that runs the script with this interpreter."""
    return [
        sys.executable,
        str(SCRIPT),
        *(os.fspath(arg) if isinstance(arg, Path) else str(arg) for arg in args),
    ]


def split(
    *args: object, prefix: tuple[str, ...] = (), **options: Any
) -> subprocess.CompletedProcess[str]:
    """Run the script without a terminal; its output comes back as text, odd bytes escaped.

    prefix: a command that runs the script's command, such as setpriv with its options.
    """
    options = {
        "stdin": subprocess.DEVNULL,
        "stdout": subprocess.PIPE,
        "stderr": subprocess.PIPE,
        "timeout": LIMIT_SECONDS,
        **options,
    }
    return subprocess.run(
        [*prefix, *command(*args)], encoding="utf-8", errors="backslashreplace", **options
    )


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
        env=env,
        preexec_fn=(lambda: fcntl.ioctl(0, termios.TIOCSCTTY, 0)) if controlling else None,
    )
    os.close(slave)
    try:
        shown = _converse(master, answer, prompt.encode())
        assert process.stdout is not None
        stdout = process.stdout.read().decode()
        return TerminalRun(
            process.wait(LIMIT_SECONDS), stdout, shown.decode(errors="backslashreplace")
        )
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
            time.sleep(0.2)  # as a person would: a signal before read(2) begins does not wake it
            os.write(master, answer)
            answer = None
    raise AssertionError(f"no end after {LIMIT_SECONDS} s; shown so far: {shown!r}")


def peak_mib(report: str) -> float:
    """Return the peak memory (MiB) that the report of a run tells."""
    found = re.search(r"memoria máxima hasta ahora ([\d.]+) ([kMG])B", report)
    assert found, report
    return float(found[1]) * {"k": 1e3, "M": 1e6, "G": 1e9}[found[2]] / 2**20


def environment(**changes: str) -> dict[str, str]:
    """Return this environment with changes."""
    return {**os.environ, **changes}


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


def write_module(folder: Path, name: str, source: str) -> dict[str, str]:
    """Write a module; return an environment in which the script can import it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / f"{name}.py").write_text(source, encoding="utf-8")
    return environment(PYTHONPATH=str(folder))


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
            subprocess.run(["umount", str(folder)], check=True)


@pytest.fixture
def unprivileged() -> tuple[str, ...]:
    """Return the prefix that makes permissions count, also for root."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: no permission is ever denied")
    return ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


ALL_FAULTS = os.environ.get("DIVIDE_CONQUER_ALL_FAULTS") == "1"
SAMPLED_FILES = ("test_faults.py", "test_worst_day.py")
SAMPLED_CASES = 2  # of each test of these files


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run a seeded sample of the many faults, unless all of them are asked for (.ci/run does)."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.path.name in SAMPLED_FILES and not ALL_FAULTS:
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
    left_out = set()
    for test, members in cases.items():
        sample = random.Random(test).sample(members, min(SAMPLED_CASES, len(members)))
        left_out.update(set(members) - set(sample))
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]
