"""Other systems: does it split without what they lack, or say what is missing?

It is taken away in a child process, which then runs a real split.
"""

from __future__ import annotations

import ast
import glob
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from helpers import (
    NO_ISAL,
    ROOT,
    SCRIPT,
    SOURCE,
    load_set,
    modes,
    names,
    run,
    split_without,
    write_batch,
)

TRACES = [{"question_id": f"q_{i}", "text": "x" * 1000} for i in range(10)]
NO_FCNTL = "sys.modules['fcntl'] = None"
NO_LOCKS = """
import fcntl
def flock(*args): raise OSError(errno.ENOTSUP, 'Operation not supported')
fcntl.flock = flock
"""
NO_FADVISE = "del os.posix_fadvise"
FADVISE_FAILS = """
def posix_fadvise(*args): raise OSError(errno.ESPIPE, 'Illegal seek')
os.posix_fadvise = posix_fadvise
"""
NO_FOLDER_FSYNC = """
fsync = os.fsync
def file_fsync(fd):
    if stat.S_ISDIR(os.fstat(fd).st_mode): raise OSError(errno.EINVAL, 'Invalid argument')
    fsync(fd)
os.fsync = file_fsync
"""
NO_PROC = """
read_text = pathlib.Path.read_text
def guarded(self, *args, **options):
    if str(self).startswith('/proc/'): raise FileNotFoundError(errno.ENOENT, 'none', str(self))
    return read_text(self, *args, **options)
pathlib.Path.read_text = guarded
"""
NO_RESOURCE = "sys.modules['resource'] = None"
NO_AFFINITY = "del os.sched_getaffinity"
NO_PROCESSOR_COUNT = "del os.sched_getaffinity; os.cpu_count = lambda: None"
OTHER_LIBC = "ctypes.CDLL = lambda name: object()"
NO_LIBC = """
def CDLL(name): raise TypeError('bad argument')  # Windows, for None
ctypes.CDLL = CDLL
"""
NO_UTIME_BY_FD = "os.supports_fd.discard(os.utime)"


# No Linux knows this command of macOS, nor does a network volume there: a real EINVAL.
FULLFSYNC_REFUSED = "import fcntl; fcntl.F_FULLFSYNC = 51"


NO_SIGHUP = "del signal.SIGHUP"
HARMLESS = {
    "no fcntl": NO_FCNTL,
    "flock not supported": NO_LOCKS,
    "no posix_fadvise": NO_FADVISE,
    "posix_fadvise fails": FADVISE_FAILS,
    "no resource": NO_RESOURCE,
    "no proc": NO_PROC,
    "no sched_getaffinity": NO_AFFINITY,
    "processors unknown": NO_PROCESSOR_COUNT,
    "another C library": OTHER_LIBC,
    "no C library": NO_LIBC,
    "no utime by descriptor": NO_UTIME_BY_FD,
    "F_FULLFSYNC refused": FULLFSYNC_REFUSED,
    "no SIGHUP": NO_SIGHUP,
    "no isal": NO_ISAL,
    "none of them": "\n".join(
        (NO_FCNTL, NO_FADVISE, NO_RESOURCE, NO_PROC, NO_PROCESSOR_COUNT, NO_LIBC, NO_SIGHUP)
    ),
}


def arguments(folder: Path, *more: object) -> list[object]:
    """Write a batch; return the arguments that split it in four, and delete it."""
    source = write_batch(folder / "in" / "a.pkl.gz", TRACES)
    return ["-i", source, "-o", folder / "out", "-n", 3, "--delete-original", "--yes", *more]


@modes
@pytest.mark.parametrize("lacking", HARMLESS)
def test_split_and_delete_without(tmp_path: Path, lacking: str, mode: tuple[str, ...]) -> None:
    done = split_without(HARMLESS[lacking], *arguments(tmp_path, *mode))
    assert (done.returncode, done.stderr) == (0, "")
    assert [trace for sub in load_set(tmp_path / "out", "a") for trace in sub] == TRACES
    assert len(names(tmp_path / "out")) == 4  # no part, no lock
    assert names(tmp_path / "in") == []


@pytest.mark.parametrize("lacking", [NO_FCNTL, NO_LOCKS], ids=["no fcntl", "not supported"])
def test_without_locks_leftovers_are_named_and_left(tmp_path: Path, lacking: str) -> None:
    args = arguments(tmp_path)
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "a_sub0002.pkl.gz.part").write_bytes(b"another's")
    done = split_without(lacking, *args)
    assert done.returncode == 1
    assert "aquí no se pueden bloquear archivos: a_sub0002.pkl.gz.part" in done.stderr
    assert names(tmp_path / "out") == ["a_sub0002.pkl.gz.part"]
    assert names(tmp_path / "in") == ["a.pkl.gz"]


@pytest.mark.parametrize("made_before", [True, False], ids=["folder there", "folder made"])
def test_without_folder_fsync_the_set_is_published_and_the_original_kept(
    tmp_path: Path, made_before: bool
) -> None:
    args = arguments(tmp_path)
    if made_before:
        (tmp_path / "out").mkdir()
    done = split_without(NO_FOLDER_FSYNC, *args)
    assert done.returncode == 1
    assert "este sistema de archivos no garantiza los nombres tras un corte de luz" in done.stderr
    assert "original conservado" in done.stderr
    assert [trace for sub in load_set(tmp_path / "out", "a") for trace in sub] == TRACES
    assert names(tmp_path / "in") == ["a.pkl.gz"]


@pytest.mark.parametrize(
    ("lacking", "told"),
    [
        (NO_RESOURCE, os.path.exists("/proc/self/status")),
        (NO_PROC, True),
        (NO_PROC + "\n" + NO_RESOURCE, False),
    ],
    ids=["no resource", "no proc", "neither"],
)
def test_peak_memory_is_told_where_the_system_tells_it(
    tmp_path: Path, lacking: str, told: bool
) -> None:
    done = split_without(lacking, *arguments(tmp_path))
    assert done.returncode == 0
    assert ("memoria máxima" in done.stdout) == told


def test_without_proc_no_memory_warning_is_possible(tmp_path: Path) -> None:
    done = split_without(NO_PROC, *arguments(tmp_path, "--dry-run"))
    assert (done.returncode, done.stderr) == (0, "")


# What must be there


def test_without_tqdm_one_line_says_what_to_install() -> None:
    without = [sys.executable, "-I", "-S"]  # no site-packages
    done = run([*without, str(SCRIPT), "-i", "x"])
    assert (done.returncode, done.stdout) == (1, "")
    install = f"instálalo con «{sys.executable} -m pip install tqdm»"
    assert done.stderr == f"divide_conquer.py necesita tqdm: {install}.\n"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import divide_conquer"
    done = subprocess.run([*without, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert "ImportError: divide_conquer.py necesita tqdm: " in done.stderr  # what callers catch


def find_python38() -> Optional[str]:
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/3.8.*/bin/python"))
    return found[0] if found else shutil.which("python3.8")


def test_python_3_8_says_which_python_to_install() -> None:
    python = find_python38()
    if python is None:
        pytest.skip("no Python 3.8 here")
    done = run([python, str(SOURCE), "--help"])
    assert (done.returncode, done.stdout) == (1, "")
    needed = r"divide_conquer\.py necesita Python 3\.9 o posterior, y este es 3\.8\.\d+"
    install = r"instala uno más nuevo \(por ejemplo, con «uv python install 3\.12»\)"
    assert re.fullmatch(rf"{needed}: {install} y ejecútalo con él\.\n", done.stderr)


def test_the_script_parses_under_python_3_8() -> None:
    ast.parse(SOURCE.read_text(encoding="utf-8"), feature_version=(3, 8))
