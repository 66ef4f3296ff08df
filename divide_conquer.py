#!/usr/bin/env python3
# /// script
# requires-python = ">=3.9"
# dependencies = ["tqdm"]
# ///
"""Split pickled batches of LLM traces into smaller batches, and never lose a trace.

Input: files ``<stem>.pkl`` or ``<stem>.pkl.gz``, each one pickled list of N traces.
Output: files ``<stem>_sub0000.pkl.gz``, ``<stem>_sub0001.pkl.gz``, ... of at most
``--traces-per-batch`` traces each, in the order of the source; together they are its *set*.

What holds at every moment, also after ``kill -9`` or a power cut:

* the original exists, or its whole set is on disk under its final names;
* ``<stem>_sub0000`` exists only where the whole set does, because it is renamed last;
* an existing file is never written to, nor replaced.

The sections below stand in the order in which the data passes them, and each uses only what stands
above it.  ``split_file`` and ``verify_file`` are the calls for other programs; only the last
section, the command line, prints or chooses an exit code.  What the user reads is Spanish.

Sections: constants, errors, progress, the system, why a load fails, files and gzip, other formats,
loading and dumping, walking pickles (a reader may pass over it), the set of sub-batches,
validation, verification, splitting one file, planning a run, reporting, command line.
"""

from __future__ import annotations

import argparse
import array
import collections
import contextlib
import copyreg
import ctypes
import dataclasses
import difflib
import enum
import errno
import fnmatch
import functools
import gc
import hashlib
import importlib
import io
import itertools
import operator
import os
import pickle
import pickletools
import platform
import re
import shlex
import shutil
import signal
import stat
import struct
import sys
import tempfile
import threading
import time
import traceback
import zlib
from bisect import bisect_left, bisect_right, insort
from collections.abc import Collection, Generator, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from pathlib import Path
from types import FrameType, FunctionType
from typing import (
    Any,
    BinaryIO,
    Callable,
    ClassVar,
    NamedTuple,
    NoReturn,
    Optional,
    Protocol,
    TextIO,
    Union,
)


def _require(what: str) -> NoReturn:
    """Say in one line what to install; to a program that imports this, as its ImportError."""
    message = f"divide_conquer.py necesita {what}."
    if __name__ == "__main__":
        sys.exit(message)
    raise ImportError(message)


if sys.version_info < (3, 9):  # noqa: UP036 - whoever runs this has not asked pip
    _require(
        f"Python 3.9 o posterior, y este es {sys.version.split()[0]}: instala uno más nuevo (por "
        "ejemplo, con «uv python install 3.12») y ejecútalo con él"
    )

try:
    from tqdm import tqdm
except ModuleNotFoundError:
    _require(f"tqdm: instálalo con «{shlex.quote(sys.executable)} -m pip install tqdm»")

deflate_library: Any
try:
    deflate_library = importlib.import_module("isal.isal_zlib")  # extra "fast"
except ImportError:
    deflate_library = zlib

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None  # type: ignore[assignment]

try:
    import resource
except ImportError:  # Windows
    resource = None  # type: ignore[assignment]

__version__ = "1.1.0"
__all__ = [
    "Interrupted",
    "LoadError",
    "OutputError",
    "Phase",
    "SaveError",
    "SplitError",
    "SplitReport",
    "Stamp",
    "ValidationError",
    "VerificationError",
    "VerifyReport",
    "main",
    "read_stamp",
    "split_file",
    "verify_file",
]

# ---------------------------------------------------------------------------------------------
# Constants

BLOCK_BYTES = 1 << 20
"""How much is deflated or copied at a time: enough to hide the cost of a Python call."""

DEFAULT_TRACES_PER_BATCH = 250

MTIME_TOLERANCE_NS = 2_000_000_000
"""Modification times this close are equal, if one is of whole seconds: FAT stores steps of 2 s."""

GZIP_MAGIC = b"\x1f\x8b"  # RFC 1952, section 2.3.1


# ---------------------------------------------------------------------------------------------
# Errors: one class to catch, with the file, the problem and the way out.


class SplitError(Exception):
    """A file was not split; its original is untouched.

    path: the file it is about.  problem, hint: Spanish, what failed and what to do next.
    leftovers: files of this run that could not be removed again (empty in all but the worst case).
    """

    def __init__(self, path: Path, problem: str, hint: str) -> None:
        super().__init__(path, problem, hint)  # all of it in args: the error must survive pickling
        self.path = path
        self.problem = problem
        self.hint = hint
        self.leftovers: tuple[Path, ...] = ()

    def __str__(self) -> str:
        return f"{self.path}: {self.problem}"


class LoadError(SplitError):
    """The source cannot be read as one batch of traces."""


class StreamError(OSError):
    """The bytes of a file cannot be had: the disk (with its errno), a gzip damaged or cut off.

    An OSError, as reading raises; and of our own, so that an OSError, EOFError or zlib.error that
    the code of a trace raises is never taken for one of the file.  Without errno, Spanish.
    """


class OutputError(SplitError):
    """What lies in the output folder, or another process, stands in the way."""


class SaveError(SplitError):
    """A sub-batch could not be written, synced or given its name."""


class ValidationError(SplitError):
    """A sub-batch does not read back as what was written."""


class VerificationError(SplitError):
    """A set that is there is not what its original holds, or cannot be compared with it."""


class Interrupted(BaseException):
    """For a progress to raise: stop here, and undo what is half done.

    leftovers: as in SplitError.
    """

    leftovers: tuple[Path, ...] = ()


class _OsProblem(NamedTuple):
    problem: str
    hint: str = "comprueba los permisos y el disco"


_NO_PERMISSION_HINT = "comprueba los permisos del archivo y de sus carpetas (ls -l)"

# What the system refuses, in Spanish; and what to do where a batch cannot be read for it.
OS_PROBLEMS = {
    errno.EACCES: _OsProblem("permiso denegado", _NO_PERMISSION_HINT),
    errno.EPERM: _OsProblem("operación no permitida", _NO_PERMISSION_HINT),
    errno.ENOENT: _OsProblem("el archivo no existe", "comprueba si alguien lo ha movido o borrado"),
    errno.EISDIR: _OsProblem("es una carpeta"),
    errno.ENOTDIR: _OsProblem("parte de la ruta no es una carpeta"),
    errno.EEXIST: _OsProblem("el archivo ya existe"),
    errno.ENOSPC: _OsProblem("no queda espacio en el disco"),
    errno.EDQUOT: _OsProblem("cuota de disco agotada"),
    errno.EFBIG: _OsProblem("el archivo supera el tamaño permitido"),
    errno.EROFS: _OsProblem("el disco es de solo lectura"),
    errno.EIO: _OsProblem(
        "error de entrada/salida del disco",
        "parece un fallo del disco: copia el archivo desde su origen a otro disco",
    ),
    errno.ENAMETOOLONG: _OsProblem("nombre de archivo demasiado largo"),
    errno.EMFILE: _OsProblem("demasiados archivos abiertos"),
    errno.ELOOP: _OsProblem(
        "el enlace simbólico da vueltas en círculo", "corrige el enlace o quítalo de la carpeta"
    ),
    errno.ENOMEM: _OsProblem("no hay memoria suficiente"),
    errno.ESTALE: _OsProblem(
        "el servidor de archivos ya no lo encuentra",
        "comprueba que el archivo sigue en el servidor y repite el comando",
    ),
    errno.ENOTCONN: _OsProblem(
        "la carpeta de red está desconectada",
        "vuelve a montar la carpeta de red y repite el comando",
    ),
    errno.ETIMEDOUT: _OsProblem(
        "el servidor de archivos no responde", "espera a que responda y repite el comando"
    ),
}


def os_problem_of(error: OSError) -> _OsProblem:
    return OS_PROBLEMS.get(error.errno or 0) or _OsProblem(error.strerror or str(error))


def explain_os_error(error: OSError) -> str:
    """Return in Spanish why the system refused, or its own words for the rarer reasons."""
    return os_problem_of(error).problem


# ---------------------------------------------------------------------------------------------
# Progress: the sections below report bytes; whoever called decides what to show.


class Phase(enum.Enum):
    """What a progress is about."""

    LOAD = "load"
    SAVE = "save"
    VALIDATE = "validate"
    VERIFY = "verify"


Progress = Callable[[Phase, int, int], None]
"""Called as progress(phase, done_bytes, expected_bytes), one call at a time but from any thread.

To cancel the split, raise Interrupted, or any exception: it comes out of the call as it is.
It is never called between the first rename of a publish and the end.
"""


def ignore_progress(phase: Phase, done_bytes: int, expected_bytes: int) -> None:
    pass


class ProgressError(Interrupted):
    """What a progress raised, on its way out: nobody is to take its OSError for one of a file."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error


class Meter:
    """Count the bytes of one phase, in any number of threads, and pass the sum on."""

    def __init__(self, progress: Progress, phase: Phase, expected_bytes: int) -> None:
        self._progress = progress
        self._phase = phase
        self._expected_bytes = expected_bytes
        self._done_bytes = 0
        self._lock = threading.Lock()
        self.add(0)

    def add(self, n_bytes: int) -> None:
        with self._lock:
            self._done_bytes += n_bytes
            try:
                self._progress(self._phase, self._done_bytes, self._expected_bytes)
            except MemoryError:  # want of memory is told as that, wherever it is noticed
                raise
            except Exception as error:
                raise ProgressError(error) from error


# ---------------------------------------------------------------------------------------------
# The system: what differs between platforms, and what it tells of itself.


def sync_file(fd: int) -> None:
    """Return when the bytes are on the disk itself, not only handed to it."""
    if hasattr(fcntl, "F_FULLFSYNC"):  # macOS: fsync stops at the drive's cache
        try:
            fcntl.fcntl(fd, fcntl.F_FULLFSYNC)
            return
        except OSError as error:  # a network volume has no such call
            if error.errno not in (errno.EINVAL, errno.ENOTSUP, errno.ENOTTY):
                raise
    os.fsync(fd)


def sync_path(path: Path) -> None:
    fd = os.open(path, os.O_RDONLY)
    try:
        sync_file(fd)
    finally:
        os.close(fd)


def sync_folder(path: Path) -> bool:
    """Put the names in a folder on disk; return False where the system has no way to."""
    if os.name == "nt":
        return False
    try:
        sync_path(path)
    except OSError as error:
        if error.errno in (errno.EINVAL, errno.ENOTSUP, errno.EBADF, errno.EACCES):
            return False
        raise
    return True


def lock_file(fd: int) -> Optional[bool]:
    """Lock a file as long as it is open; return False where another process has, None if unable."""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    except OSError:  # a file system without locks
        return None
    return True


def drop_page_cache(fd: int) -> None:
    """Let go of what the system remembers of a file, so that what is read next is the disk.

    After the fsync only: with every 32 MB as they are written, a run took 8 % longer (2 cores).
    """
    if hasattr(os, "posix_fadvise"):
        with contextlib.suppress(OSError):
            os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)


def _read_proc(file: str, field: str) -> Optional[int]:
    """Return a number of bytes that Linux tells (proc(5)), None on another system."""
    with contextlib.suppress(OSError, ValueError, IndexError):
        text = Path(file).read_text(encoding="ascii", errors="replace")
        return int(text.split(f"{field}:")[1].split()[0]) * 1024
    return None


def peak_memory_bytes() -> Optional[int]:
    """Return the largest resident size of this process so far.

    From VmHWM where there is one: on Linux ru_maxrss starts with that of the parent.
    """
    peak = _read_proc("/proc/self/status", "VmHWM")
    if peak is not None or resource is None:
        return peak
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


@contextlib.contextmanager
def collector_off() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def trim_memory() -> None:
    """Give freed memory back to the system.

    Without malloc_trim (glibc), a run whose threads had arenas of their own peaked at 623 MB, not
    503 (a batch of 438 MB, median of 3): what one has freed is of no use to the others.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).malloc_trim(0)


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_ARENA_MAX = -1, -3, -8  # malloc.h


def tune_malloc(*, low_memory: bool) -> None:
    """Let one heap serve all threads, and keep what is freed: fresh memory is half of a load.

    What the list has freed is used again to read the parts back: with a trim in between, the system
    took 0.92 s, not 0.69 s, of 1.6 s of processor time (438 MB, plain; 2 cores, medians of 7).  The
    arrays of an index grow, and would each time leave a hole in a heap: in that mode they are
    mapped, each for itself (121 MB, not 161, for 3 million ids).
    32 MiB is the most that glibc takes, 2**31 - 1 is never: _Run trims between files.
    """
    with contextlib.suppress(AttributeError, OSError, TypeError):  # another C library
        ctypes.CDLL(None).mallopt(_M_ARENA_MAX, 1)
        ctypes.CDLL(None).mallopt(_M_MMAP_THRESHOLD, 2 << 20 if low_memory else 32 << 20)
        ctypes.CDLL(None).mallopt(_M_TRIM_THRESHOLD, 2**31 - 1)


def default_jobs(*, low_memory: bool) -> int:
    """Return on how many of the usable processors to deflate: one that copies feeds only 4."""
    usable = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        usable = len(os.sched_getaffinity(0))
    return min(usable, 4) if low_memory else usable


# cgroups(7): version 1 mounts its memory controller apart; names of limit, use and caches.
_CGROUP_FILES = {
    "": ("memory.max", "memory.current", ("inactive_file", "active_file")),
    "memory": (
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        ("total_inactive_file", "total_active_file"),
    ),
}


def _cgroup_room(group: Path, controller: str) -> Optional[int]:
    """Return what the limit of one control group leaves, or None where it has none."""
    limit_name, use_name, caches = _CGROUP_FILES[controller]
    with contextlib.suppress(OSError, ValueError):  # "max": no limit
        limit = int((group / limit_name).read_text("ascii"))
        used = int((group / use_name).read_text("ascii"))
        lines = (group / "memory.stat").read_text("ascii").splitlines()
        cached = sum(int(n) for name, _, n in (x.partition(" ") for x in lines) if name in caches)
        return max(0, limit - used + cached)  # the page cache gives way
    return None


def _cgroup_memory_bytes(
    membership: Path = Path("/proc/self/cgroup"), mount: Path = Path("/sys/fs/cgroup")
) -> Optional[int]:
    """Return what the control groups of this process leave (SLURM, containers), or None.

    The limit of a group holds for all below it, so those above count, too.
    """
    rooms = []
    with contextlib.suppress(OSError, ValueError):
        for line in membership.read_text("utf-8", "replace").splitlines():
            _, controllers, name = line.split(":", 2)
            for controller in controllers.split(","):
                if controller in _CGROUP_FILES:
                    root = mount / controller
                    group = root / name.lstrip("/")  # in a container it may be named as outside
                    groups = [group, *group.parents][: len(group.parts) - len(root.parts) + 1]
                    rooms += [_cgroup_room(each, controller) for each in groups]
    return min((room for room in rooms if room is not None), default=None)


def available_memory_bytes() -> Optional[int]:
    """Return what this process can still allocate without swapping, or None if nothing tells.

    The smaller of MemAvailable and what its control groups leave.
    """
    found = (_cgroup_memory_bytes(), _read_proc("/proc/meminfo", "MemAvailable"))
    return min((room for room in found if room is not None), default=None)


def nearest_folder(folder: Path) -> Path:
    """Return folder, or the nearest of its parents that exists."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    return folder


def free_disk_bytes(folder: Path) -> int:
    """Return the free space for folder, whether it exists or not."""
    return shutil.disk_usage(nearest_folder(folder)).free


# ---------------------------------------------------------------------------------------------
# Why a load or a dump fails: the stream, the (un)pickler itself, or the code that traces call.  A
# cause is named only where it is known, because "copy it again" costs an hour.


class _Reason(NamedTuple):
    """What the user reads; {error} in the problem is for the error's text."""

    problem: str
    hint: str

    def about(self, text: str) -> _Reason:
        return self._replace(problem=self.problem.replace("{error}", text))


COPY_HINT = "vuelve a copiar el archivo desde su origen o genera de nuevo el batch"


def read_by(library: str) -> str:
    return f"cárgalo con {library} y guarda la lista de traces con pickle.dump"


LOW_MEMORY = "--low-memory"  # named in a hint only where it is a way out
LOW_MEMORY_HINT = f"usa {LOW_MEMORY}, que copia los traces sin cargarlos"
_CODE_HINT = (
    "ejecuta el script en el entorno de Python que creó el archivo, "
    f"o usa {LOW_MEMORY}, que no necesita sus módulos"
)

_LOAD_MEMORY = _Reason(
    "no hay memoria suficiente para cargarlo entero",
    f"usa {LOW_MEMORY}, que divide el archivo sin cargarlo",
)
_CUT_PICKLE = _Reason("está truncado o dañado: termina antes de tiempo", COPY_HINT)
_NO_PICKLE = _Reason("no es un pickle o está dañado ({error})", COPY_HINT)
_BROKEN_LINK = _Reason(
    "es un enlace simbólico roto: «{error}» no existe", "corrige el enlace o quítalo de la carpeta"
)
_MISSING_CODE = _Reason("falta código que sus traces necesitan ({error})", _CODE_HINT)
_CODE_FAILS = _Reason("el código de sus traces falla al cargarlos ({error})", _CODE_HINT)
BY_VALUE = _Reason("contiene funciones o clases guardadas con {error}", LOW_MEMORY_HINT)
_PYTHON_2 = _Reason(
    "contiene textos de Python 2, que Python 3 no carga sin saber su codificación",
    f"usa {LOW_MEMORY}, que los copia como están (se cargan con pickle.load y encoding='latin1')",
)
_EXTENSION = _Reason(
    "usa códigos de copyreg que aquí no están registrados ({error})", LOW_MEMORY_HINT
)
PERSISTENT_IDS = _Reason(
    "sus traces están en parte fuera del archivo (persistent_id)",
    read_by("el programa que lo escribió"),
)
OUT_OF_BAND = _Reason(
    "sus traces están en parte fuera del archivo (búferes de PEP 574)",
    "guárdalo otra vez sin buffer_callback",
)
JOBLIB = _Reason("lo escribió joblib.dump, no pickle.dump", read_by("joblib.load"))
_NO_GPU = _Reason(
    "contiene tensores de una GPU que aquí no se puede usar ({error})",
    f"usa {LOW_MEMORY}, que no los carga, o ejecuta el script en una máquina con esa GPU",
)
_FULL_GPU = _Reason(
    "no hay memoria suficiente en la GPU a la que van sus tensores",
    f"usa {LOW_MEMORY}, que no los carga, o libera la GPU (nvidia-smi dice quién la ocupa)",
)
_TOO_DEEP = _Reason("sus traces están anidados a demasiada profundidad", LOW_MEMORY_HINT)
_NOT_PICKLABLE = _Reason(
    "sus traces no se pueden volver a guardar con pickle ({error})", LOW_MEMORY_HINT
)

NO_MEMORY = _Reason(
    "no hay memoria suficiente", f"cierra otros programas o prueba con {LOW_MEMORY}"
)
_MORE_LISTS = _Reason(
    "hay más datos después del primer pickle", "guarda cada lista en su propio archivo"
)
_MORE_PICKLES = _Reason(
    "hay más datos después del primer pickle, que no es una lista",
    "si es un pickle por trace, cárgalos uno tras otro y guárdalos todos en una lista",
)
_MORE_BYTES = _Reason("hay datos después del pickle que no son otro pickle", COPY_HINT)
NO_TRACES = _Reason("la lista de traces está vacía", "no hay nada que dividir: apártalo")

# What the C unpickler itself says of bytes that make no sense, where others raise this type, too.
_UNPICKLER_WORDS = ("unsupported pickle protocol", "invalid literal for", "could not convert")
_UNPICKLER_REASONS = (
    ("Ran out of input", _CUT_PICKLE),
    ("pickle data was truncated", _CUT_PICKLE),
    ("persistent id", PERSISTENT_IDS),
    ("out-of-band", OUT_OF_BAND),
    ("unregistered extension code", _EXTENSION),
    ("NEWOBJ", _CODE_FAILS),  # what was a class is a function now
)
_BY_VALUE_MODULES = ("cloudpickle", "dill")
_NO_MEMORY_WORDS = (
    "can't start new thread",  # a thread that gets no stack is a RuntimeError
    "DefaultCPUAllocator",  # torch
    "can't allocate memory",
    "Cannot allocate memory",
    "std::bad_alloc",
)
_ERROR_TEXT_LENGTH = 160


def _text_of(error: BaseException) -> str:
    """Return the type and the first line of an error, even where its own text fails."""
    text = ""
    with contextlib.suppress(Exception):  # __str__ may be code of a trace
        if isinstance(error, OSError) and error.filename is not None:
            text = f"{explain_os_error(error)}, {error.filename}"
        else:
            text = str(error).strip().split("\n")[0]
    if len(text) > _ERROR_TEXT_LENGTH:
        text = f"{text[:_ERROR_TEXT_LENGTH]}…"
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _chain(error: Optional[BaseException]) -> Iterator[BaseException]:
    """Yield error and what led to it."""
    seen: set[int] = set()
    while error is not None and id(error) not in seen:
        seen.add(id(error))
        yield error
        error = error.__cause__ or error.__context__


def lacks_memory(error: BaseException) -> bool:
    """Return whether it, or what led to it, is for want of memory, however a library words it."""
    return any(
        isinstance(e, MemoryError)
        or (isinstance(e, OSError) and e.errno == errno.ENOMEM)
        or any(words in _text_of(e) for words in _NO_MEMORY_WORDS)
        for e in _chain(error)
    )


class Origin(enum.Enum):
    """Who raised an error that came out of a load or a dump."""

    PICKLE = "the pickler or unpickler, or C code that a trace calls: that leaves no frame"
    LOOKUP = "the search for a class or function, which imports modules"
    CODE = "code that a trace calls"
    OURS = "this file: its reader or writer, or the progress that they report"


def _origin_of(error: BaseException) -> Origin:
    """Tell who raised it, by the first frame below the call of pickle."""
    origin = Origin.OURS
    for frame, _ in traceback.walk_tb(error.__traceback__):
        code = frame.f_code
        if code.co_filename == pickle.__file__:  # the pickler in Python
            continue
        if code.co_filename != _origin_of.__code__.co_filename:
            return Origin.CODE if origin is Origin.PICKLE else origin
        origin = CALLS_OF_PICKLE.get(code, Origin.OURS)
    return origin


def is_explained(error: BaseException) -> bool:
    """Return whether it is of the file or its traces: no cancellation, no fault of this script."""
    if isinstance(error, (KeyboardInterrupt, GeneratorExit, Interrupted)):
        return False
    known = isinstance(error, StreamError) or lacks_memory(error)
    return known or _origin_of(error) is not Origin.OURS


def _explain_file(error: BaseException, path: Path) -> tuple[_Reason, str]:
    """Return the reason, and the text for it, of an error of our own reader or walker."""
    if isinstance(error, StreamError) and error.errno is None:
        return _Reason("{error}", COPY_HINT), str(error)
    if isinstance(error, OSError):
        if error.errno == errno.ENOENT and path.is_symlink():
            return _BROKEN_LINK, os.readlink(path)
        problem, hint = os_problem_of(error)
        return _Reason("no se puede leer ({error})", hint), problem
    return (_CUT_PICKLE if isinstance(error, EOFError) else _NO_PICKLE), _text_of(error)


def _explain_gpu(error: BaseException) -> Optional[_Reason]:
    """Return the reason if torch says, in an error of many types, that a GPU is not as it needs."""
    texts = [_text_of(e) for e in _chain(error) if isinstance(e, (RuntimeError, AssertionError))]
    if any("CUDA out of memory" in t or "CUDA error: out of memory" in t for t in texts):
        return _FULL_GPU
    return _NO_GPU if any(re.search("CUDA|NVIDIA driver", text) for text in texts) else None


def _explain_unpickler(error: BaseException) -> Optional[_Reason]:
    """Return the reason if it is surely the unpickler that raised error, by its own words."""
    text = _text_of(error)
    for words, reason in _UNPICKLER_REASONS:
        if words in text:
            return reason
    if isinstance(error, UnicodeDecodeError):
        return _PYTHON_2 if error.encoding == "ascii" else _NO_PICKLE
    if isinstance(error, ValueError) and not any(words in text for words in _UNPICKLER_WORDS):
        return None
    own = (pickle.UnpicklingError, EOFError, ValueError, IndexError, OverflowError)
    return _NO_PICKLE if isinstance(error, own) else None


def _explain_load(error: BaseException, path: Path) -> tuple[_Reason, str]:
    text = _text_of(error)
    if isinstance(error, StreamError):
        return _explain_file(error, path)
    if lacks_memory(error):
        return _LOAD_MEMORY, text
    origin = _origin_of(error)
    if origin is Origin.OURS:
        return _explain_file(error, path)
    if gpu := _explain_gpu(error):
        return gpu, text
    if isinstance(error, ImportError):
        module = (error.name or "").split(".")[0]
        by_value = module in _BY_VALUE_MODULES  # installed, the default mode could not dump them
        return (BY_VALUE, module) if by_value else (_MISSING_CODE, text)
    if origin is Origin.LOOKUP and isinstance(error, AttributeError):
        return _MISSING_CODE, text
    return (origin is Origin.PICKLE and _explain_unpickler(error)) or _CODE_FAILS, text


def load_error(path: Path, error: BaseException) -> LoadError:
    """Return what the user reads of an error that reading or loading path has raised."""
    reason, text = _explain_load(error, path)
    return LoadError(path, *reason.about(text))


def may_come_of_damage(error: BaseException, path: Path) -> bool:
    """Return whether odd values may be why code failed: a gzip tells only at its end."""
    reason, _ = _explain_load(error, path)
    return reason in (_MISSING_CODE, _CODE_FAILS) and not isinstance(error, ImportError)


def explain_dump(error: BaseException) -> Optional[_Reason]:
    """Return why traces cannot be pickled, or None where the error is not theirs."""
    if not is_explained(error) or lacks_memory(error):
        return None
    reason = _explain_gpu(error) or _NOT_PICKLABLE
    if isinstance(error, RecursionError):
        reason = _TOO_DEEP
    return reason.about(_text_of(error))


def more_data(path: Path, *, first_is_list: bool, byte: bytes) -> LoadError:
    """Return the refusal of what follows the first pickle, by its first byte."""
    if byte not in b"\x80(]}c":  # PROTO, or what protocols 0 and 1 make traces and lists with
        return LoadError(path, *_MORE_BYTES)
    return LoadError(path, *(_MORE_LISTS if first_is_list else _MORE_PICKLES))


def not_a_list(path: Path, found: str) -> LoadError:
    """Return the refusal of a top object; found: its type and, where known, its length."""
    hint = "guarda los traces como una lista (list)"
    if found.startswith("tuple"):
        hint = f"una tupla suele ser (traces, etiquetas): {hint}, aparte de lo demás"
    return LoadError(path, f"contiene un objeto {found}, no una lista de traces", hint)


# ---------------------------------------------------------------------------------------------
# Files: gzip in and out, where the first two bytes decide, not the name; the source that is split.


_GZIP_STAMP_START = GZIP_MAGIC + b"\x08\x10"  # deflate; of the flags, FCOMMENT
_GZIP_STAMP_SYSTEM = b"\x00\xff"  # no extra flags; any system
_LAST_DEFLATE_BLOCK = b"\x03\x00"  # RFC 1951, 3.2.6: final, fixed codes, nothing in it
_GZIP_WBITS = 31  # zlib manual, inflateInit2: 32 KiB window, gzip header
_RAW_WBITS = -15  # deflateInit2: the same window, no header
_MEM_LEVEL = 9  # 0.16 % smaller than the default 8 on float16 traces, and as fast

# Library, level and strategy: first for float tensors, whose mantissas repeat no strings, only
# zeros, then for the rest.  A sample of each block tells which; on tensors the choosing costs
# 0.4 ms a block of 11 ms, with isal 0.3 ms of 2 ms.
_FOR_TENSORS = (zlib, 1, zlib.Z_RLE)
_FOR_TEXT = (zlib, 6, zlib.Z_DEFAULT_STRATEGY)
_WORTH_IT = 0.97  # deflating for text must save 3 % of the sample
if deflate_library is not zlib:  # isal has no Z_RLE, and its level 1 is as good on tensors
    _FOR_TENSORS = (deflate_library, 1, zlib.Z_DEFAULT_STRATEGY)
    _WORTH_IT = 0.985  # what saves 2 % of a sample of prose saves 10 % of its block
_SAMPLE_BYTES = 16 << 10

_DEFLATED_BYTES = 384 << 10  # inflated at a time; at the ratio of tensors a piece comes out whole
_INFLATED_BYTES = 512 << 10
_PICKLE_READ_BYTES = 128 << 10  # what the C unpickler asks for at a time


class Writable(Protocol):
    def write(self, data: Any, /) -> object: ...


@contextlib.contextmanager
def reading(path: Union[str, os.PathLike[str], None] = None) -> Iterator[None]:
    """Let what the system refuses be known as that: a trace may raise an OSError, too.

    path: of the file, where the system itself names none: it has been opened.
    """
    try:
        yield
    except OSError as error:
        raise StreamError(error.errno, error.strerror, error.filename or path) from error


class TrackedFile(io.FileIO):
    """A file open for reading that shows every piece it reads to on_read, in order.

    Raises StreamError where the system cannot open or read it.
    file: a path, or a descriptor that stays open and is read from its beginning.
    """

    def __init__(self, file: Union[Path, int], on_read: Callable[[memoryview], object]) -> None:
        with reading():
            super().__init__(file, "r", closefd=not isinstance(file, int))
            if isinstance(file, int):
                self.seek(0)
        self._path = None if isinstance(file, int) else file
        self._on_read = on_read

    def readinto(self, buffer: Any) -> int:
        with reading(self._path):
            n_bytes = super().readinto(buffer) or 0
        self._on_read(memoryview(buffer)[:n_bytes])
        return n_bytes


def _inflate(file: io.BufferedReader[Any]) -> Generator[bytes, None, None]:
    """Yield what the gzip members of file hold, in pieces of at most 512 KiB.

    Loading a pickle of 420 MB took 2.2 s so, 2.7 s by gzip.open (Python 3.11), and 2.4 s with a
    thread that inflates ahead of the unpickler (2 cores, medians of 6).
    The library verifies the CRC-32 and the length of each member (RFC 1952, 2.3.1).
    Raises StreamError where a member is damaged or cut off.
    """
    data = file.read(_DEFLATED_BYTES)
    while data:
        if len(data) < _DEFLATED_BYTES:  # isal takes no header that is cut in two
            data += file.read(_DEFLATED_BYTES)
        if not data.startswith(GZIP_MAGIC):  # isal would wait for the rest of a header
            raise StreamError("el gzip está dañado (hay datos que no son gzip después del final)")
        member = deflate_library.decompressobj(_GZIP_WBITS)
        while not member.eof:
            data = data or file.read(_DEFLATED_BYTES)
            if not data:
                raise StreamError("está truncado: termina antes de tiempo")
            try:
                piece = member.decompress(data, _INFLATED_BYTES)
            except (zlib.error, deflate_library.error) as error:
                raise StreamError(f"el gzip está dañado ({error})") from error
            data = member.unconsumed_tail
            if piece:  # an empty one would be the end to who reads
                yield piece
        data = member.unused_data.lstrip(b"\0")  # tapes, and gzip -t, allow zeros after a member
        while not data and (more := file.read(_DEFLATED_BYTES)):
            data = more.lstrip(b"\0")


class PieceReader(io.RawIOBase):
    """A file to read whose bytes come from a generator, which is closed with it."""

    def __init__(self, pieces: Generator[bytes, None, None]) -> None:
        self._pieces = pieces
        self._piece = memoryview(b"")
        self._position = 0

    def readable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._position

    def readinto(self, buffer: Any) -> int:
        if not self._piece:
            self._piece = memoryview(next(self._pieces, b""))
        n_bytes = min(len(buffer), len(self._piece))
        buffer[:n_bytes] = self._piece[:n_bytes]
        self._piece = self._piece[n_bytes:]
        self._position += n_bytes
        return n_bytes

    def close(self) -> None:
        self._pieces.close()
        super().close()


def _deflate_alone(setting: tuple[Any, int, int], data: memoryview) -> bytes:
    library, level, strategy = setting
    codec = library.compressobj(level, zlib.DEFLATED, _RAW_WBITS, _MEM_LEVEL, strategy)
    deflated: bytes = codec.compress(data) + codec.flush(zlib.Z_SYNC_FLUSH)
    return deflated


def _deflate_block(block: memoryview) -> bytes:
    """Deflate a block, without a look at others, to an end on a byte: so blocks can be joined."""
    sample = block[len(block) // 2 :][:_SAMPLE_BYTES]
    worth_it = _WORTH_IT * len(_deflate_alone(_FOR_TENSORS, sample))
    is_text = len(_deflate_alone(_FOR_TEXT, sample)) < worth_it
    return _deflate_alone(_FOR_TEXT if is_text else _FOR_TENSORS, block)


class Stamp(NamedTuple):
    """What a sub-batch says of itself in its gzip header: traces first to stop - 1 of n_traces.

    original_bytes, original_mtime: size and modification time (whole seconds) of the original.
    """

    first: int
    stop: int
    n_traces: int
    original_bytes: int
    original_mtime: int

    def header(self) -> bytes:
        """Return the header of a gzip member (RFC 1952, 2.3) with MTIME and FCOMMENT."""
        mtime = struct.pack("<I", self.original_mtime & 0xFFFFFFFF)
        comment = (
            f"traces {self.first}-{self.stop - 1} of {self.n_traces}; "
            f"original {self.original_bytes} bytes\0"
        )
        return _GZIP_STAMP_START + mtime + _GZIP_STAMP_SYSTEM + comment.encode("ascii")


_STAMP_BYTES = 160  # more than four numbers of 20 digits take
_STAMP_COMMENT = re.compile(rb"traces (\d+)-(\d+) of (\d+); original (\d+) bytes\0")


def read_stamp(path: Union[str, os.PathLike[str]]) -> Optional[Stamp]:
    """Return what the gzip header of a sub-batch says, without decompressing anything.

    None where the file is not a ``.pkl.gz`` that this script wrote.  Raises OSError.
    """
    if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for its writer
        return None
    with reading(path), open(path, "rb") as file:
        start = file.read(_STAMP_BYTES)
    if not start.startswith(_GZIP_STAMP_START) or start[8:10] != _GZIP_STAMP_SYSTEM:
        return None
    if not (comment := _STAMP_COMMENT.match(start, 10)):
        return None
    first, last, n_traces, original_bytes = map(int, comment.groups())
    return Stamp(first, last + 1, n_traces, original_bytes, int.from_bytes(start[4:8], "little"))


class GzipWriter:
    """Deflate what is written into one gzip member (RFC 1952), on the threads of a pool.

    gzip.open has one thread and one strategy: 47 MB/s of tensors at level 1, where Z_RLE does 123.
    The way of a block: write copies bytes into it, since the pickler's memory may be gone after the
    call; when full it is summed and given to the pool; the writing thread takes the deflated blocks
    back in order and writes them.  At most max_waiting blocks are on their way, so memory is
    bounded.  A worker's error comes out of the write or close that takes its block back.
    header: of the member.  Equal input and header give equal output.
    """

    def __init__(self, sink: Writable, header: bytes, pool: Executor, max_waiting: int) -> None:
        self._sink = sink
        self._pool = pool
        self._max_waiting = max_waiting
        self._waiting: collections.deque[tuple[memoryview, Future[bytes]]] = collections.deque()
        self._block = memoryview(bytearray(BLOCK_BYTES))
        self._filled = 0
        self._crc32 = 0
        self._n_bytes = 0
        sink.write(header)

    def write(self, data: memoryview) -> None:
        """Take bytes of any length; data must be flat."""
        while data:
            space = self._block[self._filled : self._filled + len(data)]
            space[:] = data[: len(space)]
            self._filled += len(space)
            data = data[len(space) :]
            if self._filled == BLOCK_BYTES:
                self._send_block()

    def close(self) -> None:
        """Write what is waiting and the end of the member."""
        if self._filled:
            self._send_block()
        while self._waiting:
            self._write_oldest()
        self._sink.write(_LAST_DEFLATE_BLOCK)
        self._sink.write(struct.pack("<II", self._crc32, self._n_bytes & 0xFFFFFFFF))

    def _send_block(self) -> None:
        block = self._block[: self._filled]
        self._crc32 = deflate_library.crc32(block, self._crc32)
        self._n_bytes += len(block)
        self._waiting.append((self._block, self._pool.submit(_deflate_block, block)))
        # A block that comes back is filled again: fresh memory costs a page fault every 4 KiB.
        full = len(self._waiting) > self._max_waiting
        self._block = self._write_oldest() if full else memoryview(bytearray(BLOCK_BYTES))
        self._filled = 0

    def _write_oldest(self) -> memoryview:
        block, deflated = self._waiting.popleft()
        self._sink.write(deflated.result())
        return block


class _PlainWriter:
    """What GzipWriter is for .pkl.gz, for a file that holds the pickle as it is."""

    def __init__(self, sink: Writable, *_: object) -> None:
        self.write = sink.write

    def close(self) -> None:
        pass


class Codec(NamedTuple):
    """A form of file, and all that depends on it.

    magic: what its bytes begin with, whatever its name.  is_stamped: whether its header can hold a
    Stamp.  memory_ratio: what a loaded batch takes, to its size on disk (tensors deflate by a
    fifth, and 4 % more is overhead).
    """

    suffix: str
    magic: bytes
    inflate: Optional[Callable[[io.BufferedReader[Any]], Generator[bytes, None, None]]]
    writer: Callable[[Writable, bytes, Executor, int], Union[GzipWriter, _PlainWriter]]
    is_stamped: bool
    memory_ratio: float


# Another compression would be added here (its writer is given the gzip header of the Stamp), chosen
# by split_file's compress, and named in the messages that name these suffixes.  The first whose
# magic fits is taken, so PLAIN, which has none, is the last.
GZIP = Codec(".pkl.gz", GZIP_MAGIC, _inflate, GzipWriter, True, 1.3)
PLAIN = Codec(".pkl", b"", None, _PlainWriter, False, 1.1)
CODECS = (GZIP, PLAIN)


def batch_stem(name: str) -> Optional[str]:
    """Return name without .pkl or .pkl.gz, or None where it is not the name of a batch."""
    for codec in CODECS:
        if name.endswith(codec.suffix) and name != codec.suffix:
            return name[: -len(codec.suffix)]
    return None


def codec_of(path: Path) -> Codec:
    """Return the codec that a name of a batch or a sub-batch says."""
    return next(codec for codec in CODECS if path.name.endswith(codec.suffix))


@contextlib.contextmanager
def open_stream(file: TrackedFile) -> Iterator[io.BufferedReader[Any]]:
    """Give the decompressed bytes of file, from its beginning, and close it.

    Read to the end, as only that verifies the last CRC-32.
    """
    # A small buffer: larger reads of the unpickler then go past it, straight to what is below.
    with io.BufferedReader(file, _PICKLE_READ_BYTES) as buffered:
        start = buffered.peek(max(len(codec.magic) for codec in CODECS))
        codec = next(codec for codec in CODECS if start.startswith(codec.magic))
        if codec.inflate is None:
            yield buffered
            return
        pieces = PieceReader(codec.inflate(buffered))
        with io.BufferedReader(pieces, _PICKLE_READ_BYTES) as inflated:
            yield inflated


def open_metered(
    file: Union[Path, int], meter: Meter
) -> contextlib.AbstractContextManager[io.BufferedReader[Any]]:
    """Give the decompressed bytes of file, and count those that are read of it."""
    return open_stream(TrackedFile(file, lambda piece: meter.add(len(piece))))


def absolute(path: Union[str, os.PathLike[str]]) -> Path:
    """Return path as it is meant now: the code of a trace may change the working folder.

    Not os.path.abspath: where a folder is a link, link/../x is another file than x.
    """
    return Path.cwd() / path


class FileIdentity(NamedTuple):
    """What tells whether a path still names the same file with the same content."""

    device: int
    inode: int
    size_bytes: int
    mtime_ns: int
    ctime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> FileIdentity:
        return cls(
            status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns
        )

    def is_original_of(self, stamp: Stamp) -> bool:
        seconds = (self.mtime_ns // 10**9) & 0xFFFFFFFF
        near = abs(stamp.original_mtime - seconds) * 10**9 <= MTIME_TOLERANCE_NS
        return stamp.original_bytes == self.size_bytes and near


class Source:
    """The original: open from the first look to the last, so that it cannot be exchanged unseen."""

    def __init__(self, path: Path, progress: Progress) -> None:
        stem = batch_stem(path.name)
        if stem is None:
            raise LoadError(
                path, "no termina en .pkl ni en .pkl.gz", "cambia el nombre del archivo"
            )
        self.path = path
        self.stem = stem
        self._progress = progress
        self._fd = -1
        try:
            if not stat.S_ISREG(os.stat(path).st_mode):  # opening a FIFO would wait for its writer
                raise LoadError(path, "no es un archivo normal", "indica un archivo .pkl o .pkl.gz")
            self._fd = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
            status = os.fstat(self._fd)
        except OSError as error:
            self.close()
            raise load_error(path, error) from error
        self.identity = FileIdentity.of(status)
        self.mode = status.st_mode

    @contextlib.contextmanager
    def open_stream(self) -> Iterator[io.BufferedReader[Any]]:
        """Give its decompressed bytes, from the start; the first time as progress of the load."""
        meter = Meter(self._progress, Phase.LOAD, self.identity.size_bytes)
        self._progress = ignore_progress
        try:
            with open_metered(self._fd, meter) as stream:
                yield stream
        except StreamError as error:  # the very first read looks for gzip
            raise load_error(self.path, error) from error

    def find_change(self) -> Optional[LoadError]:
        """Return the error that somebody wrote to it, if so: what was read of it may be torn.

        If it was renamed or removed meanwhile, it is still whole for who has it open.
        """
        if self._fd < 0:  # closed to be deleted
            return None
        now = FileIdentity.of(os.fstat(self._fd))
        if (now.size_bytes, now.mtime_ns) == (self.identity.size_bytes, self.identity.mtime_ns):
            return None
        hint = "espera a que nadie lo escriba y repite el comando"
        return LoadError(self.path, "cambió mientras se leía", hint)

    def refuse_changed(self) -> None:
        if error := self.find_change():
            raise error

    def close(self) -> None:
        if self._fd >= 0:
            with contextlib.suppress(OSError):  # nothing was written through it
                os.close(self._fd)
            self._fd = -1


@contextlib.contextmanager
def open_source(path: Path, progress: Progress, *, low_memory: bool) -> Iterator[Source]:
    """Give the original while it is worked on, and the better reason for what goes wrong then.

    Whatever failed, that somebody wrote to it explains it; and want of memory is noticed anywhere.
    The collector is off: it would walk millions of new objects again and again.
    """
    with collector_off(), contextlib.closing(Source(path, progress)) as source:
        try:
            yield source
        except ProgressError as stopped:
            stopped.error.leftovers = stopped.leftovers  # type: ignore[attr-defined]
            raise stopped.error from None
        except Exception as error:
            better: Optional[SplitError] = None
            if isinstance(error, SplitError):
                better = source.find_change()
            elif lacks_memory(error):
                problem, hint = NO_MEMORY
                if low_memory:
                    hint = "cierra otros programas o hazlo en una máquina con más memoria"
                better = SplitError(path, problem, hint)
            if better is None:
                raise
            better.leftovers = getattr(error, "leftovers", ())
            raise better from error


def flat_view(data: Any) -> memoryview:
    """Return flat what a pickler writes: PickleBuffer has no len, and may be in Fortran order."""
    return data.raw() if isinstance(data, pickle.PickleBuffer) else memoryview(data)


class PickleSink:
    """Where a pickler writes: counts the bytes of the pickle and hands them to the file."""

    def __init__(self, sink: Writable, meter: Meter) -> None:
        self._sink = sink
        self._meter = meter
        self.n_bytes = 0

    def write(self, data: Any) -> int:
        view = flat_view(data)
        self._sink.write(view)
        self.n_bytes += view.nbytes
        self._meter.add(view.nbytes)
        return view.nbytes


# ---------------------------------------------------------------------------------------------
# What else a file may be: told by its first bytes, with the command that opens it.


class _Format(NamedTuple):
    """A kind of file that is no pickle of a list: start is a pattern of its first bytes.

    No pickle of a list begins like any of them.  hint: {file} is its path, {plain} and {folder}
    are for what is in it, all quoted for a shell.  is_lost: the file holds nothing to be opened.
    """

    start: bytes
    problem: str
    hint: str
    is_lost: bool = False


def _compressed(start: bytes, by: str, command: str) -> _Format:
    hint = f"descomprímelo con «{command} < {{file}} > {{plain}}» y divide el archivo que resulte"
    return _Format(start, f"está comprimido {by}", hint)


def _archive(start: bytes, what: str, command: str) -> _Format:
    hint = f"extráelo con «{command}» y divide los pickles que contenga"
    return _Format(start, f"es {what}, no un pickle", hint)


_ZIP_ENTRY = (
    rb"PK\x03\x04.{26}[^\x00]{0,200}?"  # PKZIP APPNOTE, 4.3.7: then the name of the first file
)
_BOM_SPACE = rb"(?:\xef\xbb\xbf)?\s*"
_NUMPY_LOAD = "numpy.load (y allow_pickle=True, si contiene objetos)"
_FORMATS = (
    _Format(  # torch.save since PyTorch 1.6
        _ZIP_ENTRY + rb"/data\.pkl", "es un zip de torch.save, no un pickle", read_by("torch.load")
    ),
    _Format(  # before: a pickle of torch.serialization.MAGIC_NUMBER, and others after it
        rb"\x80.(?:\x95.{8})?\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19\.",
        "lo escribió torch.save en su formato antiguo, no pickle.dump",
        read_by("torch.load"),
    ),
    _Format(_ZIP_ENTRY + rb"\.npy", "es un .npz de numpy, no un pickle", read_by(_NUMPY_LOAD)),
    _archive(rb"PK(\x03\x04|\x05\x06)", "un zip", "unzip {file} -d {folder}"),
    _archive(rb"7z\xbc\xaf\x27\x1c", "un 7z", "7z x {file} -o{folder}"),
    _archive(  # POSIX: magic of the first header
        rb"[^\x80(\]].{256}ustar", "un tar", "mkdir {folder} && tar xf {file} -C {folder}"
    ),
    _compressed(rb"BZh[1-9]1AY&SY", "con bzip2", "bzip2 -dc"),
    _compressed(rb"\xfd7zXZ\x00", "con xz", "xz -dc"),
    _compressed(rb"\]\x00\x00", "con lzma", "xz --format=lzma -dc"),
    _compressed(rb"\x28\xb5\x2f\xfd", "con zstd", "zstd -dc"),
    _compressed(rb"\x04\x22\x4d\x18", "con lz4", "lz4 -dc"),
    _compressed(GZIP_MAGIC, "dos veces con gzip", "gzip -dc"),
    _Format(  # RFC 1950
        rb"x[\x01\x5e\x9c\xda]",
        "está comprimido con zlib, como hace joblib.dump con compress",
        read_by("joblib.load"),
    ),
    _Format(rb"\x93NUMPY", "es un .npy de numpy, no un pickle", read_by(_NUMPY_LOAD)),
    _Format(rb"\x89HDF\r\n\x1a\n", "es un HDF5, no un pickle", read_by("h5py")),
    _Format(
        rb"PAR1|ARROW1|FEA1", "es un Parquet o un Arrow, no un pickle", read_by("pyarrow o pandas")
    ),
    _Format(rb'.{4}\x00{4}\{"', "es un safetensors, no un pickle", read_by("safetensors")),
    _Format(rb"SQLite format 3", "es una base de datos SQLite, no un pickle", read_by("sqlite3")),
    _Format(
        rb"(\.\./)*(\.git)?/annex/objects",
        "es un puntero de git-annex: los datos no se han descargado",
        "descárgalos con «git annex get» en su repositorio",
        is_lost=True,
    ),
    _Format(
        rb"version https://git-lfs",
        "es un puntero de git-lfs: los datos no se han descargado",
        "descárgalos con «git lfs pull» en su repositorio",
        is_lost=True,
    ),
    _Format(
        _BOM_SPACE + rb"<[!?A-Za-z]",
        "es HTML o XML, no un pickle: quizá el aviso de una descarga que falló",
        "descarga el archivo otra vez",
        is_lost=True,
    ),
    _Format(_BOM_SPACE + rb"[\[{]\s*[\[{\"\]}\dtfn-]", "es JSON, no un pickle", read_by("json")),
    _Format(rb"\x00{16}", "empieza con ceros: la copia quedó a medias", COPY_HINT, is_lost=True),
)
_START_BYTES = 512


def refuse_other_formats(stream: io.BufferedReader[Any], path: Path) -> None:
    """Raise LoadError, with the way to open it, for an empty file or one of another kind."""
    start = stream.peek(_START_BYTES)[:_START_BYTES]
    if not start:
        raise LoadError(path, "está vacío", COPY_HINT)
    for kind in _FORMATS:
        if re.match(kind.start, start, re.DOTALL):
            raise LoadError(path, kind.problem, _fill_hint(kind, stream, path))


def _fill_hint(kind: _Format, stream: io.BufferedReader[Any], path: Path) -> str:
    stem = batch_stem(path.name) or path.name
    file, first = path, ""
    is_inflated = isinstance(stream.raw, PieceReader) and kind.start != GZIP_MAGIC
    if is_inflated and not kind.is_lost:  # what opens it would not see through the gzip
        file = path.with_name(f"{stem}_sin_gzip")
        gunzip = f"gzip -dc < {shlex.quote(str(path))} > {shlex.quote(str(file))}"
        first = f"quítale el gzip con «{gunzip}» y luego "
    plain, folder = f"{stem}_descomprimido.pkl", f"{stem}_extraido"
    names = {"file": file, "plain": path.with_name(plain), "folder": path.with_name(folder)}
    return first + kind.hint.format(**{k: shlex.quote(str(v)) for k, v in names.items()})


# ---------------------------------------------------------------------------------------------
# Loading and dumping: a stream becomes a list of traces, and the list becomes sub-batches.


OpenStream = Callable[[], contextlib.AbstractContextManager["io.BufferedReader[Any]"]]


class _Unpickler(pickle.Unpickler):
    def __init__(self, stream: BinaryIO, path: Path) -> None:
        super().__init__(stream)
        self._path = path

    def find_class(self, module: str, name: str) -> Any:
        # The __main__ that wrote the batch is not the __main__ that reads it: what this process
        # would find under the name is another class, or a part of this script.
        if module == "__main__":
            problem = f"necesita «{name}», definido en el script que creó el archivo (__main__)"
            raise LoadError(self._path, problem, LOW_MEMORY_HINT)
        if module in ("builtins", "__builtin__") and name == "__main__":  # dill's word for it
            raise LoadError(self._path, *BY_VALUE.about("dill"))
        if module.endswith("joblib.numpy_pickle"):  # raw bytes of an array follow
            raise LoadError(self._path, *JOBLIB)
        return super().find_class(module, name)


# Frames of their own, which are not to be inlined: _origin_of knows the calls of pickle by them.


def _run_unpickler(unpickler: _Unpickler) -> Any:
    return unpickler.load()


def _run_pickler(pickler: Any, value: object) -> None:
    pickler.dump(value)


CALLS_OF_PICKLE = {
    _run_unpickler.__code__: Origin.PICKLE,
    _run_pickler.__code__: Origin.PICKLE,
    _Unpickler.find_class.__code__: Origin.LOOKUP,
}


def _describe(value: object) -> str:
    try:
        return f"{type(value).__name__} de longitud {len(value)}"  # type: ignore[arg-type]
    except Exception:  # no length, or one that fails: the type alone says enough
        return type(value).__name__


def _find_damage(stream: io.BufferedReader[Any]) -> Optional[StreamError]:
    """Read on to the end, which verifies a gzip; return what is wrong with it."""
    rest = bytearray(BLOCK_BYTES)
    try:
        while isinstance(stream.raw, PieceReader) and stream.readinto(rest):
            pass
    except StreamError as error:
        return error
    return None


def load_traces(stream: io.BufferedReader[Any], path: Path) -> list[Any]:
    """Unpickle the one list of traces that stream holds, and read it to its end.

    Raises LoadError, naming path, for anything else: damaged or truncated data, a second pickle,
    code that is missing or fails, too little memory, a top object of another type, an empty list.
    What the progress raises, or a fault of this file, comes out as it is.
    """
    try:
        refuse_other_formats(stream, path)
        traces = _run_unpickler(_Unpickler(stream, path))
        more = stream.read(1)  # also what makes gzip verify its CRC-32
    except SplitError:
        raise
    except BaseException as error:  # a pickle runs code, which may raise anything
        if not is_explained(error):
            raise
        damage = _find_damage(stream) if may_come_of_damage(error, path) else None
        raise load_error(path, damage or error) from error
    if more:
        raise more_data(path, first_is_list=type(traces) is list, byte=more)
    if type(traces) is not list:
        raise not_a_list(path, _describe(traces))
    if not traces:
        raise LoadError(path, *NO_TRACES)
    return traces


_LARGE_COPY_BYTES = 64 << 10  # what the pickler hands on at once (its frame), not copied again


class _StorageReducer:
    """Pickle the storages of torch without keeping a copy of each until the dump is done.

    torch reduces a storage to a call with a copy of its bytes, fresh each time.  The memo of the
    pickler keeps that copy alive although nothing can refer to it again: 800 MB of tensors in one
    sub-batch took 2.9 GB.  A PickleBuffer in its place is written as the same opcodes, and can be
    released once they are written, which is when the next storage comes.
    comparable: leave out the address of the storage, by which torch names it, so that equal tensors
    give equal bytes, which are never to be loaded.
    """

    def __init__(self, *, comparable: bool = False) -> None:
        self._last: Optional[pickle.PickleBuffer] = None
        self._comparable = comparable

    def table(self) -> dict[Any, Any]:
        """Return a dispatch table with this for the storages of torch, where traces brought it."""
        module = sys.modules.get("torch.storage")
        kinds = (getattr(module, name, None) for name in ("TypedStorage", "UntypedStorage"))
        return {**copyreg.dispatch_table, **dict.fromkeys(filter(None, kinds), self._reduce)}

    def _reduce(self, storage: Any) -> Any:
        if self._last is not None:
            self._last.release()
        reduced = storage.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
        if len(reduced) == 2 and len(reduced[1]) == 1:  # else torch has changed: it only costs
            copy = reduced[1][0]
            if self._comparable and type(copy) is bytes:
                address = str(getattr(storage, "_cdata", None)).encode("ascii")
                copy = copy.replace(struct.pack("<I", len(address)) + address, b"")
                reduced = (reduced[0], (copy,))
            if type(copy) is bytes and len(copy) >= _LARGE_COPY_BYTES:
                self._last = pickle.PickleBuffer(copy)
                return reduced[0], (self._last,)
        return reduced


def _dump_traces(traces: list[Any], sink: Writable, path: Path) -> None:
    """Pickle a list of traces of the batch path into sink.

    Raises SaveError where the traces cannot be pickled; what sink raises, as it is.
    """
    pickler = pickle.Pickler(sink, pickle.HIGHEST_PROTOCOL)
    pickler.dispatch_table = _StorageReducer().table()
    try:
        _run_pickler(pickler, traces)
    except BaseException as error:  # __reduce__ of a trace is foreign code
        if (reason := explain_dump(error)) is None:
            raise
        raise SaveError(path, f"No se pudo guardar: {reason.problem}", reason.hint) from error


class _Enough(Exception):
    """A digest has all that it was to be of."""


class _Digest:
    """A sink that keeps a digest of what a pickler writes, which may be larger than the memory.

    tick: called with every write, so that even a long comparison can be cancelled.
    """

    def __init__(self, tick: Callable[[], object], most_bytes: int = sys.maxsize) -> None:
        self._hash = hashlib.blake2b()
        self.tick = tick
        self._bytes_left = most_bytes

    def write(self, data: Any) -> int:
        self.tick()
        view = flat_view(data)
        self._hash.update(view[: self._bytes_left])
        self._bytes_left -= view.nbytes
        if self._bytes_left <= 0:
            raise _Enough
        return view.nbytes

    def of(self, value: object, make_pickler: Callable[..., Any]) -> bytes:
        """Return the digest of the pickle of a value; raises whatever its code raises."""
        pickler = make_pickler(self, pickle.HIGHEST_PROTOCOL)
        pickler.dispatch_table = _StorageReducer(comparable=True).table()
        with contextlib.suppress(_Enough):
            _run_pickler(pickler, value)
        return self._hash.digest()


_PythonPickler: Any = pickle._Pickler
_KEY_BYTES = 64 << 10  # of what an item of a set refers to: all of it might be all of the batch


class _SortingPickler(_PythonPickler):  # type: ignore[misc]
    """Writes the items of sets in one order, and equal texts and dtypes as one.

    Neither says what they are.  The order of a set depends on how it came to be, and on hashes,
    which for texts are others in each process.  Whether equal texts are one object depends on the
    interpreter, which interns attribute names while it loads: the first load of a process shares
    fewer than the second.  And numpy makes a dtype anew, or not, as it likes.
    The pickler in C cannot be told.
    """

    dispatch: ClassVar[dict[Any, Any]] = dict(_PythonPickler.dispatch)

    def __init__(self, sink: _Digest, protocol: int, *, for_key: bool = False) -> None:
        super().__init__(sink, protocol)
        self._for_key = for_key  # leave sets empty: they may lead back to the item, or far away
        self._tick = sink.tick
        self._keys: dict[int, bytes] = {}  # of sets within sets, so that each is gone through once
        self._alike: dict[object, object] = {}
        self._dtype: Any = getattr(sys.modules.get("numpy"), "dtype", ())

    def save(self, value: Any, *args: Any, **options: Any) -> None:
        if type(value) is str:
            value = self._alike.setdefault(value, value)
        elif isinstance(value, self._dtype):  # equal ones may yet differ in their metadata
            value = self._alike.setdefault((value, repr(value.metadata)), value)
        super().save(value, *args, **options)

    def _save_set(self, items: set[Any]) -> None:
        self.write(pickle.EMPTY_SET)
        self.memoize(items)
        self._save_items(items)
        self.write(pickle.ADDITEMS)

    def _save_frozenset(self, items: frozenset[Any]) -> None:
        self._save_items(items)
        if id(items) in self.memo:  # it has come to itself, see pickle._Pickler
            self.write(pickle.POP_MARK + self.get(self.memo[id(items)][0]))
            return
        self.write(pickle.FROZENSET)
        self.memoize(items)

    def _save_items(self, items: Iterable[Any]) -> None:
        self.write(pickle.MARK)
        for item in self._sorted(items):
            self.save(item)

    def reducer_override(self, value: Any) -> Any:
        """Sort also what a subclass of set is made from, where it iterates as a set does.

        One that keeps an order of its own iterates in that: there the order is part of it.
        """
        kind: Any = type(value)
        base = next((base for base in (set, frozenset) if isinstance(value, base)), None)
        if base and (kind.__reduce__, kind.__iter__) == (base.__reduce__, base.__iter__):
            reduced: Any = value.__reduce_ex__(pickle.HIGHEST_PROTOCOL)
            function, args, *more = reduced
            if len(args) == 1 and type(args[0]) is list:
                return (function, (self._sorted(args[0]),), *more)
        return NotImplemented

    def _sorted(self, items: Iterable[Any]) -> list[Any]:
        if self._for_key:
            return []
        # Equal items count for themselves where they stand elsewhere, too: then they have numbers.
        known = (-1, None)
        return sorted(items, key=lambda i: (self._key(i), self.memo.get(id(i), known)[0]))

    def _key(self, item: Any) -> bytes:
        if type(item) not in (tuple, frozenset):
            alone = functools.partial(_SortingPickler, for_key=True)
            most_bytes = sys.maxsize if isinstance(item, (str, bytes)) else _KEY_BYTES
            return _Digest(self._tick, most_bytes).of(item, alone)
        if id(item) not in self._keys:
            keys = [self._key(each) for each in item]
            if type(item) is frozenset:
                keys.sort()
            self._keys[id(item)] = hashlib.blake2b(b"".join(keys)).digest()
        return self._keys[id(item)]

    dispatch[set] = _save_set
    dispatch[frozenset] = _save_frozenset


# An error that comes through these is still one of the traces.
for _method in vars(_SortingPickler).values():
    if isinstance(_method, FunctionType):
        CALLS_OF_PICKLE[_method.__code__] = Origin.PICKLE
CALLS_OF_PICKLE[_Digest.of.__code__] = Origin.PICKLE


def are_alike(traces: list[Any], loaded: list[Any], tick: Callable[[], object]) -> bool:
    """Return whether loaded, from a sub-batch, is the same as traces.

    Alike is what the same pickler writes byte for byte the same; where the one in C does not, the
    one that sorts is asked, which is slower.  (Taking the traces through dump and load once more,
    to have their texts shared alike, would hide what a class loses each time it is dumped.)  What a
    class does not dump at all, nobody can compare.
    tick: called again and again.  Raises whatever tick or the traces' code raises.
    """
    if len(traces) != len(loaded):
        return False
    with contextlib.suppress(RecursionError):  # the one in Python goes less deep: nothing is proved
        for make_pickler in (pickle.Pickler, _SortingPickler):
            one, other = _Digest(tick), _Digest(tick)
            if one.of(traces, make_pickler) == other.of(loaded, make_pickler):
                return True
    return False


def count_loaded(stream: io.BufferedReader[Any], path: Path) -> int:
    """Return how many traces stream holds, by loading all of them; raises as load_traces."""
    return len(load_traces(stream, path))


class LoadedBatch:
    """A batch in memory that gives its traces away from the front, so that what is saved is freed.

    n_traces: how many there were.  pickled_bytes: the length of the pickle they came from.
    Raises as load_traces.
    """

    def __init__(self, open_stream: OpenStream, path: Path) -> None:
        with open_stream() as stream:
            traces = load_traces(stream, path)
            self.pickled_bytes = stream.tell()
        self.n_traces = len(traces)
        self._path = path
        # A list of our own: a trace that refers to the whole list must still find it whole.
        self._waiting = list(traces)

    def begin(self, sizes: Sequence[int], scratch_dir: Path) -> None:
        """Get ready to dump sub-batches of these numbers of traces; scratch_dir is not needed."""
        self._sizes = iter(sizes)

    def dump_next(self, sink: Writable) -> int:
        """Pickle the next sub-batch; return its number of traces."""
        size = next(self._sizes)
        chunk = self._waiting[:size]
        del self._waiting[:size]
        _dump_traces(chunk, sink, self._path)
        return len(chunk)

    def close(self) -> None:
        self._waiting.clear()


# ---------------------------------------------------------------------------------------------
# Walking pickles (--low-memory; below, only PickleIndex, count_walked and IndexedBatch are used): a
# pickled list is split by copying its opcodes, and nothing of it is ever loaded.
#
# A pickle is a program for a stack machine; pickletools explains every opcode.  The bytes that make
# one object are contiguous, its *span*, and all that ties one span to another are fetches from the
# memo.  So a sub-batch is a slice of the program: first a *prelude*, the spans of what its traces
# fetch from other sub-batches and of all that those depend on, each thrown away by POP, since only
# the memo is to keep it; then the list, with the bytes of its own traces.  Everything stays in the
# order of the source, so every object goes through the states it went through there.  This is the
# proof that a slice is right, and why recursion is no special case.
#
# For it to hold, the span of an object must have all that may change it, and all that is changed
# together must share a span.  PickleIndex sees to that, and refuses what it cannot prove.


_CODES = {op.name: ord(op.code) for op in pickletools.opcodes}


def _codes(names: str) -> tuple[int, ...]:
    return tuple(_CODES[name] for name in names.split())


_STOP, _FRAME, _POP, _MEMOIZE, _BUILD = _codes("STOP FRAME POP MEMOIZE BUILD")
_LIST, _STACK_GLOBAL, _INST, _OBJ, _NEWOBJ_EX = _codes("LIST STACK_GLOBAL INST OBJ NEWOBJ_EX")
_LIST_MAKERS = _codes("EMPTY_LIST LIST")
_APPENDING = _codes("APPEND APPENDS")
_SETITEMS, _DICT = _codes("SETITEMS DICT")
_TUPLES = _codes("TUPLE TUPLE1 TUPLE2 TUPLE3")
_CALLS_OF_TUPLE = _codes("REDUCE NEWOBJ")
_POPS = _codes("POP POP_MARK")
_GETS = _codes("GET BINGET LONG_BINGET")
_PERSISTENT = _codes("PERSID BINPERSID")
_CALLS = (*_CALLS_OF_TUPLE, _NEWOBJ_EX, _OBJ, _INST)
_LOOKAHEAD_BYTES = 32  # more than any opcode of fixed width, or FRAME and a fetch, takes

# How long an opcode is: of a fixed width, or with a length before its payload, or lines of text.
_WIDTHS = [0] * 256
_LENGTH_BYTES = {}
_N_LINES = {}
_LENGTH_ARGUMENTS = {
    pickletools.TAKEN_FROM_ARGUMENT1: 1,
    pickletools.TAKEN_FROM_ARGUMENT4: 4,
    pickletools.TAKEN_FROM_ARGUMENT4U: 4,
    pickletools.TAKEN_FROM_ARGUMENT8U: 8,
}
for _op in pickletools.opcodes:
    if _op.arg is None or _op.arg.n >= 0:
        _WIDTHS[ord(_op.code)] = 1 + (_op.arg.n if _op.arg else 0)
    elif _op.arg.n == pickletools.UP_TO_NEWLINE:
        _N_LINES[ord(_op.code)] = 2 if _op.arg.name.endswith("_pair") else 1
    else:
        _LENGTH_BYTES[ord(_op.code)] = _LENGTH_ARGUMENTS[_op.arg.n]

# Of an opcode with a short argument all is shown; of the rest, and after POP, what comes next.
_REACHES = [0 if code in _POPS else width for code, width in enumerate(_WIDTHS)]

# What an opcode does to the stack: the method of PickleIndex that knows.  All others push.
_ACTIONS = {
    "_push_scalars": "NONE NEWTRUE NEWFALSE BININT BININT1 BININT2 BINFLOAT",
    "_push_text": "SHORT_BINUNICODE",
    "_push_global": "GLOBAL",
    "_mark": "MARK",
    "_combine": "TUPLE1 TUPLE2 TUPLE3 STACK_GLOBAL REDUCE NEWOBJ NEWOBJ_EX",
    "_gather": "TUPLE LIST DICT FROZENSET OBJ INST",
    "_amend": "APPEND SETITEM BUILD",
    "_amend_marked": "APPENDS SETITEMS ADDITEMS",
    "_put": "PUT BINPUT LONG_BINPUT MEMOIZE",
    "_get": "GET BINGET LONG_BINGET",
    "_pop": "POP POP_MARK",
    "_refuse_outside": "PERSID BINPERSID NEXT_BUFFER READONLY_BUFFER",
    "_refuse_dup": "DUP",
    "_proto": "PROTO",
    "_stop": "STOP",
    "_frame": "FRAME",
}
_HANDLER_NAMES = {code: do for do, names in _ACTIONS.items() for code in _codes(names)}
_N_CONSUMED = {ord(op.code): len(op.stack_before) for op in pickletools.opcodes}

# None, booleans, BININT*, BINFLOAT: never memoized, and most of what stands in lists of numbers; so
# a run of them is found at once.  Bounded, because a regular expression remembers each step.
_SCALARS = frozenset(_codes(_ACTIONS["_push_scalars"]))
_ANY_SCALAR = b"|".join(re.escape(b"%c" % code) + b"." * (_WIDTHS[code] - 1) for code in _SCALARS)
_SCALAR = re.compile(_ANY_SCALAR, re.DOTALL)
_SCALAR_RUN = re.compile(b"(?:%s){1,1000}" % _ANY_SCALAR, re.DOTALL)

# What kind of object an opcode makes.  Of a call's RESULT nothing is known, but that it is FIXED if
# the MAKER is numpy.dtype, or makes the bytes of protocol 2, and BUILTIN if it is a CONTAINER of
# Python; a ROW is no object.  Up to BUILTIN an object can be changed, or is a FULL tuple, of what
# was made in it and can be changed; a TUPLE has only fetched such; a VALUE (a class, or a tuple of
# atoms) leads to nothing that can be changed; from ATOM on it fetches nothing.
_ROW, _RESULT, _FULL, _BUILTIN, _TUPLE, _VALUE, _FIXED, _FIXED_MAKER, _CONTAINER, _ATOM = range(10)
_NUMPY_TEXT, _DTYPE_TEXT, _COLLECTIONS_TEXT, _CONTAINER_TEXT, _JOBLIB_TEXT = range(10, 15)  # atoms
_ATOM_KIND = bytes([_ATOM])
_JOBLIB_NAME = b"joblib.numpy_pickle"  # raw bytes of an array follow its objects
_CONTAINER_NAMES = (b"OrderedDict", b"defaultdict", b"deque", b"Counter")
_TEXT_KINDS = {
    b"numpy": _NUMPY_TEXT,
    b"dtype": _DTYPE_TEXT,
    b"collections": _COLLECTIONS_TEXT,
    **dict.fromkeys(_CONTAINER_NAMES, _CONTAINER_TEXT),
    _JOBLIB_NAME: _JOBLIB_TEXT,
}
_MAKERS_OF_TEXTS = {
    bytes([_NUMPY_TEXT, _DTYPE_TEXT]): _FIXED_MAKER,
    bytes([_COLLECTIONS_TEXT, _CONTAINER_TEXT]): _CONTAINER,
}
_FIXED_GLOBALS = (b"numpy\ndtype\n", b"_codecs\nencode\n")
_CONTAINER_GLOBALS = tuple(b"collections\n%s\n" % name for name in _CONTAINER_NAMES)
_CONTAINER_GLOBALS += (b"builtins\nset\n", b"__builtin__\nset\n")
_KINDS_OF_RESULTS = {_FIXED_MAKER: _FIXED, _CONTAINER: _BUILTIN}
_MADE_KINDS = dict.fromkeys(_CODES.values(), _ATOM)
for _kind, _names in {
    _BUILTIN: "EMPTY_LIST LIST EMPTY_DICT DICT EMPTY_SET BYTEARRAY8",
    _VALUE: "STACK_GLOBAL",
    _RESULT: "FROZENSET REDUCE NEWOBJ NEWOBJ_EX OBJ INST",
}.items():
    _MADE_KINDS.update(dict.fromkeys(_codes(_names), _kind))
_TYPE_NAMES = {
    ord(op.code): op.stack_after[0].name.replace("int_or_bool", "int")
    for op in pickletools.opcodes
    if op.stack_after
}

_GROUP_TRACES = 1000  # as many objects as a pickler writes between MARK and APPENDS
_COPY_BUFFER_BYTES = 64 << 10
_SPOOL_BYTES = 16 << 20  # what a sub-batch shares with others stays in memory up to here
_SPOOL_READ_BYTES = 32 << 10  # at a time: small shared objects lie apart, far less than 1 MiB each
_NOT_COPYABLE = "usa códigos de pickle que no se pueden copiar"
_UNUSUAL_LIST = "la lista no está escrita como la escribe pickle.dump"


class _Window:
    """The bytes of a pickle from front to back: data[offset:] come next, data[0] is at base.

    read: gives the next bytes, at most as many as it is asked for, and none at the end.
    """

    def __init__(self, read: Callable[[int], bytes]) -> None:
        self._read = read
        self.data = b""
        self.offset = 0
        self.base = 0

    @property
    def position(self) -> int:
        return self.base + self.offset

    def peek(self, n_bytes: int) -> bytes:
        """Return the next n_bytes without passing them; fewer where the pickle ends before."""
        if len(self.data) - self.offset < n_bytes:
            self.base += self.offset
            self.data = self.data[self.offset :] + self._read(BLOCK_BYTES)
            self.offset = 0
        return self.data[self.offset : self.offset + n_bytes]

    def take(self, n_bytes: int) -> Iterable[bytes]:
        """Give the next n_bytes in pieces; raise EOFError if they are not there."""
        end = self.offset + n_bytes
        if end > len(self.data):
            return self._take_pieces(n_bytes)
        piece = self.data[self.offset : end]
        self.offset = end
        return (piece,)

    def _take_pieces(self, n_bytes: int) -> Iterator[bytes]:
        while n_bytes > 0:
            piece = self.peek(1) and self.data[self.offset : self.offset + n_bytes]
            if not piece:
                raise EOFError("the pickle is cut off")
            self.offset += len(piece)
            n_bytes -= len(piece)
            yield piece

    def skip(self, n_bytes: int) -> None:
        """Pass over n_bytes, however many; raise EOFError if they are not there."""
        if self.offset + n_bytes <= len(self.data):
            self.offset += n_bytes
        else:
            collections.deque(self.take(n_bytes), maxlen=0)

    def skip_line(self) -> None:
        """Pass over the rest of a line, of any length; raise EOFError if it has no end."""
        while (end := self.data.find(b"\n", self.offset)) < 0:
            self.offset = len(self.data)
            if not self.peek(1):
                raise EOFError("the pickle is cut off")
        self.offset = end + 1


def _read_opcodes(window: _Window) -> Iterator[tuple[int, int, int, bytes]]:
    """Yield code, start, end and argument of each opcode up to STOP.

    The argument is whole where it is a number.  A run of scalars comes as its first code, with all
    of the run as argument; POP and POP_MARK come with the bytes that follow them.
    No length is believed before its bytes have come.
    pickletools.genops would decode the texts, which pickle.load takes, and is four times slower.
    Raises EOFError, or UnpicklingError for what is no opcode or does not fit its FRAME (PEP 3154).
    """
    code = 0
    frame_end = 0
    offset = 0
    safe_until = -1  # beyond this offset an opcode may reach past its frame, or the window's data
    while code != _STOP:
        if offset > safe_until:
            if not window.peek(_LOOKAHEAD_BYTES):
                raise EOFError("the pickle has no end")
            data, base, offset = window.data, window.base, window.offset
            limit = len(data)
            safe_until = limit - _LOOKAHEAD_BYTES
            if base + offset < frame_end < base + limit:
                limit = frame_end - base
                safe_until = min(safe_until, limit - 1)
        code = data[offset]
        width = _WIDTHS[code]
        if code in _SCALARS and (run := _SCALAR_RUN.match(data, offset, limit)):
            argument = run[0]
            width = len(argument)
        else:
            argument = data[offset + 1 : offset + (_REACHES[code] or _LOOKAHEAD_BYTES)]
            if not width and code in _LENGTH_BYTES:
                length_bytes = _LENGTH_BYTES[code]
                width = 1 + length_bytes + int.from_bytes(argument[:length_bytes], "little")
        start, stop = base + offset, offset + width
        if width and stop <= limit and code != _FRAME:
            window.offset = offset = stop
            yield code, start, base + stop, argument
            continue
        _skip_slowly(window, code, width)
        end = window.position
        if start < frame_end and (end > frame_end or code == _FRAME):
            raise pickle.UnpicklingError(f"el FRAME que acaba en {frame_end} no encaja")
        if code == _FRAME:
            frame_end = end + int.from_bytes(argument, "little")
        yield code, start, end, argument
        offset, safe_until = 0, -1  # the window has moved on
    if frame_end > window.position:
        raise EOFError("the last frame is cut off")


def _skip_slowly(window: _Window, code: int, width: int) -> None:
    """Pass over an opcode that ends with a line, or where the data of the window does."""
    if width:
        window.skip(width)
    elif code in _N_LINES:
        window.offset += 1
        for _ in range(_N_LINES[code]):
            window.skip_line()
    else:
        raise pickle.UnpicklingError(f"código {code} desconocido en la posición {window.position}")


def _read_memo_id(code: int, argument: bytes) -> int:
    if code in _N_LINES:
        return int(argument.partition(b"\n")[0])
    return int.from_bytes(argument, "little")


_FETCHED = 1 << 62  # larger than any memo id: see PickleIndex
_MAX_NAMES = 1 << 32  # what LONG_BINPUT can say; the unpickler in C makes a table as long as that
_NO_IDS = array.array("q")
_FRAME_BYTE = b"%c" % _FRAME


class _Call(NamedTuple):
    """A call: its end (or that of the FRAME that follows), its function, what it was given.

    fetched: ids of what it has fetched as arguments; the events, among which these are; or None,
    where they are not known.  recursive_tuple: id of the tuple of its arguments, if this leads back
    to the call.
    """

    end: int
    function: int
    fetched: Union[array.array[int], slice, None]
    recursive_tuple: int = -1


class PickleIndex:
    """Pass 1: where the traces of a pickled list begin and end, and what ties them to each other.

    Positions are byte offsets in the decompressed pickle.  Memo ids count the PUTs from 0, with the
    *rows* between them: ids of spans that nobody memoizes, but that others belong to or are changed
    by.  Of an id: starts and ends of its span, defined where, kind.  An end below 0 is ~id of the
    id whose span is also this one's (see unit_of).  Of a fetch, and of a FRAME (id -1): position
    and id.  Arrays, because there may be millions: 25 bytes an id, 29 while it is free, 16 a fetch.

    An entry of the stack is the start of an object's span; ~id once it is memoized; and
    ~(_FETCHED + n) for what event n has fetched:

        opcode      stack, and what is learned     opcode      stack, and what is learned
        0 ]         [0]                            8 h 0       [0] ( [3] [~_FETCHED]
        1 (         [0] (                            (fetch 0 at 8 is of id 0)
        2 N         [0] ( [2]                      10 e        [0]
        3 ]         [0] ( [2] [3]                    (three traces: from 2, 3 and 8)
        4 q 0       [0] ( [2] [~0]                 11 .        the list is all there is
          (id 0: 3 to 6, or as far as appends go)

    Raises LoadError for whatever cannot be split by copying.
    """

    def __init__(self, stream: io.BufferedReader[Any], path: Path) -> None:
        self._path = path
        self.protocol = 0
        self.explicit_puts = False
        self.trace_starts = array.array("q")
        # Traces are contiguous up to the APPENDS that ends their group of 1000 or so.
        self.group_stops = array.array("q")  # how many traces so far
        self.group_ends = array.array("q")
        self.starts = array.array("q")
        self.ends = array.array("q")
        self.defined = array.array("q")
        self.kinds = bytearray()
        self._rows = array.array("q")
        self._puts_before_rows = array.array("q")
        self.event_positions = array.array("q")
        self.event_ids = array.array("q")
        # By id, rows: what changes it elsewhere than where it is made, so belongs to it, too.
        self.amendments: dict[int, list[int]] = {}
        # Of these rows, those of a plain fetch that was added to: a POP of one is understood.
        self._amending: set[int] = set()
        # Memo ids that the pickle names itself, unless they count up from the first (Python 2: 1).
        self._first_name = 0
        self._names: Optional[array.array[int]] = None
        self._stack = array.array("q")
        self._kinds = bytearray()  # of the stack's objects
        self._marks: list[tuple[int, int]] = []  # height of the stack and position
        # Ids of what can be changed and belongs to no call yet, in their order.
        self._free_ids = array.array("I")
        # The tuple that was last: where it begins, and what itself has fetched.
        self._last_tuple: tuple[int, array.array[int]] = (-1, _NO_IDS)
        self._last_call = _Call(-1, 0, None)
        # Where what POP threw away began, if it belongs to the fetch that follows; -1 if not.
        self._popped = -1
        self._popped_starts: dict[int, int] = {}  # by event
        self._begin_object(0)
        try:
            refuse_other_formats(stream, path)
            self._walk(_Window(stream.read))
        except SplitError:
            raise
        except (EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
            raise load_error(path, error) from error

    def _walk(self, window: _Window) -> None:
        handlers = [getattr(self, _HANDLER_NAMES.get(code, "_push")) for code in range(256)]
        for code, start, end, argument in _read_opcodes(window):
            handlers[code](code, start, end, argument)
        self.pickled_bytes = window.position
        self._amended = sorted(self.amendments)
        if more := window.peek(1):
            first_is_list = self._bottom in _LIST_MAKERS
            raise more_data(self._path, first_is_list=first_is_list, byte=more)
        self._refuse_other_top()

    @property
    def n_traces(self) -> int:
        return len(self.trace_starts)

    @property
    def memoizes_list(self) -> bool:
        return self._list_id >= 0

    def refuse(self, problem: str) -> NoReturn:
        """Raise LoadError for what only the default mode can split."""
        hint = f"usa el modo normal, sin {LOW_MEMORY}; si tampoco puede, {COPY_HINT}"
        raise LoadError(self._path, problem, hint)

    def _misuse(self, start: int) -> NoReturn:
        raise pickle.UnpicklingError(f"la pila o el memo no cuadran en la posición {start}")

    # The stack.

    def _begin_object(self, code: int, n_objects: int = -1) -> None:
        """Note what makes the lowest object, of how many, and that it may be the list of traces."""
        self._bottom = 0 if self._marks else code
        self._n_objects = n_objects
        self._list_id = -1
        self._list_problem = ""
        del self.trace_starts[:], self.group_stops[:], self.group_ends[:]

    def _is_list(self, height: int) -> bool:
        """Return whether what lies below this height may be the list of the traces."""
        return height == 1 and not self._marks and self._bottom in _LIST_MAKERS

    def _start_of(self, entry: int) -> int:
        if entry >= 0:
            return entry
        if ~entry < _FETCHED:
            return self.starts[~entry]
        event = ~entry - _FETCHED
        return self._popped_starts.get(event, self.event_positions[event])

    def _id_of(self, entry: int) -> int:
        """Return the memo id of an entry, made or fetched; -1 if it has none."""
        if entry >= 0:
            return -1
        return ~entry if ~entry < _FETCHED else self.event_ids[~entry - _FETCHED]

    def _need(self, n_objects: int, start: int) -> None:
        """Check that n_objects lie on the stack above the last MARK."""
        if len(self._stack) - n_objects < (self._marks[-1][0] if self._marks else 0):
            self._misuse(start)

    def _has_objects(self) -> bool:
        """Return whether any lie on the stack above the last MARK."""
        return len(self._stack) > (self._marks[-1][0] if self._marks else 0)

    def _push(self, code: int, start: int, end: int, argument: bytes) -> None:
        if not self._stack:
            self._begin_object(code)
        self._stack.append(start)
        self._kinds.append(_MADE_KINDS[code])

    def _push_text(self, code: int, start: int, end: int, argument: bytes) -> None:
        self._push(code, start, end, argument)
        self._kinds[-1] = _TEXT_KINDS.get(argument[1 : argument[0] + 1], _ATOM)

    def _push_global(self, code: int, start: int, end: int, argument: bytes) -> None:
        self._push(code, start, end, argument)
        if argument.startswith(_FIXED_GLOBALS):
            self._kinds[-1] = _FIXED_MAKER
        elif argument.startswith(_CONTAINER_GLOBALS):
            self._kinds[-1] = _CONTAINER
        elif argument.startswith(_JOBLIB_NAME + b"\n"):
            raise LoadError(self._path, *JOBLIB)

    def _push_scalars(self, code: int, start: int, end: int, argument: bytes) -> None:
        if not self._stack:
            self._begin_object(code)
        if end - start == _WIDTHS[code]:
            self._stack.append(start)
            self._kinds.append(_ATOM)
            return
        starts = [start + scalar.start() for scalar in _SCALAR.finditer(argument)]
        self._stack.extend(starts)
        self._kinds += _ATOM_KIND * len(starts)

    def _mark(self, code: int, start: int, end: int, argument: bytes) -> None:
        self._marks.append((len(self._stack), start))

    def _pop_mark(self, start: int) -> tuple[int, int]:
        """Remove the last MARK; return the height of the stack below it, and where it was."""
        if not self._marks:
            self._misuse(start)
        return self._marks.pop()

    def _combine(self, code: int, start: int, end: int, argument: bytes) -> None:
        """One object from a fixed number of others."""
        self._need(_N_CONSUMED[code], start)
        height = len(self._stack) - _N_CONSUMED[code]
        self._make(code, height, self._start_of(self._stack[height]), end)

    def _gather(self, code: int, start: int, end: int, argument: bytes) -> None:
        """One object from all above the MARK."""
        height, mark_start = self._pop_mark(start)
        n_objects = len(self._stack) - height
        if (code == _DICT and n_objects % 2) or (code == _OBJ and not n_objects):
            self._misuse(start)
        self._make(code, height, mark_start, end)

    def _make(self, code: int, height: int, span_start: int, end: int) -> None:
        """Put one object in the place of all from this height on."""
        entry, kind = span_start, _MADE_KINDS[code]
        n_objects = len(self._stack) - height
        if code in _TUPLES:
            kind = self._note_tuple(height, span_start)
        elif code in _CALLS:
            entry = self._note_call(code, height, span_start, end)
            if code != _INST:
                kind = _KINDS_OF_RESULTS.get(self._kinds[height], kind)
        elif code == _STACK_GLOBAL and self._kinds[height] == _JOBLIB_TEXT:
            raise LoadError(self._path, *JOBLIB)
        elif code == _STACK_GLOBAL:
            kind = _MAKERS_OF_TEXTS.get(bytes(self._kinds[height:]), kind)
        self._drop(height)
        if not self._stack:
            self._begin_object(code, n_objects)
            if code == _LIST and n_objects:
                self._list_problem = _UNUSUAL_LIST
        self._stack.append(entry)
        self._kinds.append(kind)

    def _drop(self, height: int) -> None:
        """Remove all from this height on from the stack."""
        del self._stack[height:], self._kinds[height:]

    def _note_tuple(self, height: int, span_start: int) -> int:
        """Note what a tuple of all from this height on has fetched; return its kind."""
        fetched = self._find_fetched(height)
        self._last_tuple = (span_start, fetched)
        kinds = self._kinds[height:]
        if min(kinds, default=_ATOM) > _TUPLE:
            return _VALUE
        return _FULL if sum(kind <= _BUILTIN for kind in kinds) > len(fetched) else _TUPLE

    # What is changed together shares a span.

    def _new_id(self, start: int, end: int, defined: int, kind: int) -> int:
        self.starts.append(start)
        self.ends.append(end)
        self.defined.append(defined)
        self.kinds.append(kind)
        memo_id = len(self.starts) - 1
        if kind <= _BUILTIN:
            self._free_ids.append(memo_id)
        return memo_id

    def _new_row(self, start: int, end: int) -> int:
        """Return the id of a span that the opcode of now ends, and that no PUT names."""
        self._puts_before_rows.append(self.put_number(len(self.starts)))
        self._rows.append(len(self.starts))
        return self._new_id(start, end, end - 1, _ROW)

    def put_number(self, memo_id: int) -> int:
        """Return how many PUTs stand before an id."""
        return memo_id - bisect_left(self._rows, memo_id) if self._rows else memo_id

    def unit_of(self, memo_id: int) -> int:
        """Return the id whose span has all that belongs to an object; mostly its own."""
        unit = memo_id
        while (end := self.ends[unit]) < 0:
            unit = ~end
        while memo_id != unit:  # shorten the way, so that no long one is gone twice
            parent = ~self.ends[memo_id]
            self.ends[memo_id] = ~unit
            memo_id = parent
        return unit

    def _join(self, memo_ids: Iterable[int], around: int) -> None:
        """Let objects share the span of the one that they were made in."""
        whole = self.unit_of(around)
        for unit in map(self.unit_of, memo_ids):
            if unit != whole:
                self.ends[unit] = ~whole

    def _find_fetched(self, height: int) -> array.array[int]:
        """Return ids of what lies from this height on, can be changed, and was fetched."""
        if min(self._kinds[height:], default=_ATOM) > _BUILTIN:
            return _NO_IDS
        lying = zip(self._stack[height:], self._kinds[height:])
        fetched = (self._id_of(e) for e, kind in lying if ~e >= _FETCHED and kind <= _BUILTIN)
        return array.array("q", fetched)

    def _find_made(self, height: int) -> array.array[int]:
        """Return ids of what lies from this height on, can be changed, and was made there.

        Where a tuple may lead to what was made in it, or one thing fetches what another has made
        inside itself, all that was made there is: whatever else holds that must not be had without
        the change.
        """
        if min(self._kinds[height:], default=_ATOM) > _TUPLE:
            return _NO_IDS
        start = self._start_of(self._stack[height])
        made = array.array("q")
        for entry, kind in zip(self._stack[height:], self._kinds[height:]):
            if kind > _TUPLE:
                continue
            memo_id = self._id_of(entry)
            if ~entry >= _FETCHED:
                leads_inside = self.defined[memo_id] >= start
            else:
                leads_inside = kind in (_FULL, _TUPLE)
                made.append(memo_id)
            if leads_inside:
                return self._take_free(start)
        return array.array("q", [memo_id for memo_id in made if memo_id >= 0])

    def _take_free(self, start: int) -> array.array[int]:
        """Return ids of all that was made since a position, but for what belongs to a call."""
        number = bisect_left(self._free_ids, bisect_left(self.defined, start))
        ids = self._free_ids[number:]
        del self._free_ids[number:]
        return ids

    def _note_call(self, code: int, height: int, span_start: int, end: int) -> int:
        """Return the entry for the result of a call.

        It may change what was made in its arguments, as cloudpickle before 1.3 fills a skeleton;
        so that belongs to the whole call.  Nothing is said of what it only fetches: nearly every
        object refers to others, and those that pickle makes so do not change them.
        """
        first = height if code == _INST else height + 1  # the function comes before
        self._last_call = self._describe_call(code, first, end)
        is_harmless = code != _INST and self._kinds[height] in _KINDS_OF_RESULTS
        if is_harmless or min(self._kinds[first:], default=_ATOM) > _TUPLE:
            return span_start
        if not (made := self._take_free(self._start_of(self._stack[first]))):
            return span_start
        row = self._new_row(span_start, end)
        self._join(made, row)
        return ~row

    def _describe_call(self, code: int, first: int, end: int) -> _Call:
        """Return what is known of a call whose arguments lie from first on."""
        function = self._stack[first - 1] if code != _INST else 0
        if code == _NEWOBJ_EX:  # the arguments by name are in a dict: all that is in it
            among = self._events_between(self._start_of(self._stack[first]), end)
            return _Call(end, function, slice(*among))
        if code not in _CALLS_OF_TUPLE:
            return _Call(end, function, self._find_fetched(first))
        entry = self._stack[first]
        if self._last_tuple[0] == self._start_of(entry):
            return _Call(end, function, self._last_tuple[1])
        if self._kinds[first] >= _ATOM:
            return _Call(end, function, _NO_IDS)
        # Of a tuple that is fetched, or was made long before, nothing is known.
        is_recursive = ~entry - _FETCHED in self._popped_starts
        return _Call(end, function, None, self._id_of(entry) if is_recursive else -1)

    def _amend(self, code: int, start: int, end: int, argument: bytes) -> None:
        """Add a fixed number of objects to the one below them."""
        self._need(_N_CONSUMED[code], start)
        self._extend(code, len(self._stack) - _N_CONSUMED[code] + 1, start, end)

    def _amend_marked(self, code: int, start: int, end: int, argument: bytes) -> None:
        """Add all above the MARK to the object below it."""
        height, _ = self._pop_mark(start)
        if code == _SETITEMS and (len(self._stack) - height) % 2:
            self._misuse(start)
        self._need(len(self._stack) - height + 1, start)
        self._extend(code, height, start, end)

    def _extend(self, code: int, height: int, start: int, end: int) -> None:
        """Add what is from this height on to the object below, whose span grows.

        Where a class of the traces does it (__setstate__, append), what was made for it may be
        changed, so it belongs to the whole object.
        """
        made = _NO_IDS
        if code == _BUILD or self._kinds[height - 1] == _RESULT:
            made = self._find_made(height)
        if height == 1 and self._is_list(height):
            self.trace_starts.extend(map(self._start_of, self._stack[height:]))
            self.group_stops.append(len(self.trace_starts))
            self.group_ends.append(start)
            if code not in _APPENDING:
                self._list_problem = _UNUSUAL_LIST
            del self._free_ids[:]  # no call can begin before them any more
        self._drop(height)
        if not made:
            self._extend_span(end)
            return
        if self._stack[-1] >= 0:
            self._stack[-1] = ~self._new_row(self._stack[-1], end)
        self._extend_span(end)
        self._join(made, ~self._stack[-1])

    def _extend_span(self, end: int) -> None:
        """Let the span of the object on top go on up to here; if it was fetched, it gets a row."""
        entry = self._stack[-1]
        memo_id = -1 if entry >= 0 else self._id_of(entry)
        if ~entry >= _FETCHED:
            row = self._new_row(self._start_of(entry), end)
            self.amendments.setdefault(memo_id, []).append(row)
            if ~entry - _FETCHED not in self._popped_starts:
                self._amending.add(row)
            self._stack[-1] = ~row
        elif memo_id >= 0:
            self.ends[memo_id if self.ends[memo_id] >= 0 else self.unit_of(memo_id)] = end
        if self._kinds[-1] > _BUILTIN and self._kinds[-1] != _FIXED:  # so it can be changed
            self._kinds[-1] = _RESULT
            if memo_id >= 0 and self.kinds[memo_id] != _ROW:
                self.kinds[memo_id] = _RESULT
                insort(self._free_ids, memo_id)

    # The memo.

    def _id_named(self, name: int) -> int:
        """Return the memo id that a fetch means, -1 if none."""
        number = name - self._first_name
        if self._names is not None:
            number = bisect_left(self._names, name)
            if _item(self._names, number, -1) != name:
                return -1
        elif not 0 <= number < len(self.starts) - len(self._rows):
            return -1
        return number + bisect_right(self._puts_before_rows, number) if self._rows else number

    def _name_id(self, name: int) -> None:
        """Note the name that a PUT gives to the next memo id."""
        n_puts = len(self.starts) - len(self._rows)
        if not n_puts:
            self._first_name = name
        if self._names is None and name != n_puts + self._first_name:
            self._names = array.array("q", range(self._first_name, self._first_name + n_puts))
        if self._names is not None:
            if self._id_named(name) >= 0:
                self.refuse("usa dos veces la misma posición del memo")
            if self._names and name < self._names[-1]:  # no pickler counts down
                self.refuse(_NOT_COPYABLE)
            self._names.append(name)

    def _put(self, code: int, start: int, end: int, argument: bytes) -> None:
        self._need(1, start)
        if code != _MEMOIZE:
            self.explicit_puts = True
            name = _read_memo_id(code, argument)
            if not 0 <= name < _MAX_NAMES:
                self._misuse(start)
            self._name_id(name)
        elif self._first_name or self._names is not None:
            self._name_id(len(self.starts) - len(self._rows))
        entry = self._stack[-1]
        if ~entry >= _FETCHED:
            self.refuse(_NOT_COPYABLE)
        is_list = len(self._stack) == 1 and self._is_list(1)
        if is_list and (entry < 0 or self.trace_starts):
            self._list_problem = _UNUSUAL_LIST
        if entry < 0:  # a row, or memoized again
            unit = self.unit_of(~entry)
            self.ends[unit] = end
            self.kinds[unit] = min(self.kinds[unit], self._kinds[-1])  # a call may lie before end
            self._new_id(self.starts[unit], ~unit, start, min(self._kinds[-1], _VALUE))
        else:
            memo_id = self._new_id(entry, end, start, self._kinds[-1])
            self._stack[-1] = ~memo_id
            if is_list:
                self._list_id = memo_id

    def _get(self, code: int, start: int, end: int, argument: bytes) -> None:
        memo_id = self._id_named(_read_memo_id(code, argument))
        if memo_id < 0:
            self._misuse(start)
        if memo_id == self._list_id:
            self._list_problem = "un trace hace referencia a la lista entera"
        event = len(self.event_ids)
        if self._popped >= 0:
            if self.defined[memo_id] < self._popped:
                self.refuse(_NOT_COPYABLE)
            self._popped_starts[event] = self._popped
            self._popped = -1
        self.event_positions.append(start)
        self.event_ids.append(memo_id)
        if not self._stack:
            self._begin_object(code)
        self._stack.append(~(_FETCHED + event))
        self._kinds.append(self.kinds[memo_id])

    # What is thrown away.

    def _pop(self, code: int, start: int, end: int, following: bytes) -> None:
        """Understand why an object is thrown away, or refuse.

        A call was there for its effect, and so was a fetch for what was added to it (dill fills the
        globals of a function that way).  A pickler that comes back to a tuple, a frozenset or a
        result of __reduce__ that it is making finds it made already: it throws away the parts, and
        fetches it.  And the objects of a prelude are thrown away one by one.
        """
        if following.startswith(_FRAME_BYTE):
            following = following[_WIDTHS[_FRAME] :]
        if not following:
            raise EOFError("the pickle has no end")
        next_id = -1
        if following[0] in _GETS:
            argument = following[1 : _WIDTHS[following[0]] or None]
            next_id = self._id_named(_read_memo_id(following[0], argument))
        is_effect = may_be_effect = is_beneath = False
        if self._marks and (code != _POP or self._marks[-1][0] == len(self._stack)):
            height, popped_start = self._marks.pop()
            may_be_effect = min(self._kinds[height:], default=_ATOM) <= _BUILTIN
            self._drop(height)
        else:
            self._need(1 if code == _POP else sys.maxsize, start)
            entry = self._stack[-1]
            popped_start = self._start_of(entry)
            self._drop(len(self._stack) - 1)
            is_beneath = self._has_objects()
            if ~entry in self._amending and is_beneath and self._popped < 0:
                self._amending.remove(~entry)
                self._keep_apart()
                return
            is_effect = self._last_call.end == start and not self._is_made_again(
                popped_start, next_id
            )
            if is_effect and self._take_effect(entry, popped_start, start, end):
                return
        if next_id >= 0 and self.defined[next_id] >= popped_start:
            self._popped = popped_start
        elif not self._stack and not self._marks and not may_be_effect:
            self._popped = -1
            self._begin_object(0)
        elif following[0] in _POPS:
            self._popped = popped_start
        elif is_effect and is_beneath:
            self._keep_apart()
        else:
            self.refuse(_NOT_COPYABLE)

    def _keep_apart(self) -> None:
        """Let what was thrown away be of other objects than the one beneath."""
        self._kinds[-1] = min(self._kinds[-1], _VALUE)  # a PUT would take it into the span
        if self._is_list(len(self._stack)):  # between two traces, no sub-batch would take it
            self._list_problem = _UNUSUAL_LIST

    def _is_made_again(self, popped_start: int, next_id: int) -> bool:
        """Return whether the last call has made once more what the next opcode fetches.

        Then the same function has made that as a part of its own arguments, from all that the last
        call fetches.
        """
        call = self._last_call
        fetched = self._fetched_by_last_call()
        if fetched is None and call.recursive_tuple >= 0:
            fetched = array.array("q", [call.recursive_tuple])
        if fetched is None or next_id < 0 or self.kinds[next_id] > _BUILTIN:
            return False
        start, stop = self.starts[next_id], self.defined[next_id]
        first, last = self._events_between(start, stop)
        if start < popped_start or first == last or self.event_positions[first] != start:
            return False
        inner = self.event_ids[first:last]
        beneath = self._id_of(self._stack[-1]) if self._stack else -1
        return (
            self._are_one(self._id_of(call.function), inner[0])
            and not any(self._are_one(beneath, other) for other in fetched)
            and all(start <= self.defined[other] < stop or other in inner for other in fetched)
        )

    def _fetched_by_last_call(self) -> Optional[array.array[int]]:
        fetched = self._last_call.fetched
        if isinstance(fetched, slice):
            among = self.event_ids[fetched]
            return array.array("q", (i for i in among if i >= 0 and self.kinds[i] <= _BUILTIN))
        return fetched

    def _are_one(self, memo_id: int, other: int) -> bool:
        return min(memo_id, other) >= 0 and self.unit_of(memo_id) == self.unit_of(other)

    def _take_effect(self, entry: int, call_start: int, start: int, end: int) -> bool:
        """The last call was there for its effect, as a state setter is: find what it has changed.

        This is the object beneath, with which the call now shares a span, and what it has fetched
        as arguments.  Return whether there was an object beneath.
        """
        fetched = self._fetched_by_last_call()
        if fetched is None:
            self.refuse(_NOT_COPYABLE)
        is_beneath = self._has_objects() and self._kinds[-1] <= _BUILTIN
        beneath = self._id_of(self._stack[-1]) if is_beneath else -1
        changed = {other for other in fetched if not self._are_one(beneath, other)}
        if changed:
            row = self._new_row(call_start, start) if entry >= 0 else ~entry
            for memo_id in changed:
                self.amendments.setdefault(memo_id, []).append(row)
        if self._is_list(len(self._stack)) and len(changed) == len(set(fetched)):
            return False  # a call that fetches no list cannot change the list of the traces
        if is_beneath:
            self._extend_span(end)
        return is_beneath

    # The rest.

    def _frame(self, code: int, start: int, end: int, argument: bytes) -> None:
        self.event_positions.append(start)
        self.event_ids.append(-1)
        if self._last_call.end == start:
            self._last_call = self._last_call._replace(end=end)

    def _proto(self, code: int, start: int, end: int, argument: bytes) -> None:
        if start:
            self.refuse(_NOT_COPYABLE)
        if argument[0] > pickle.HIGHEST_PROTOCOL:
            raise pickle.UnpicklingError(f"protocolo {argument[0]} desconocido")
        self.protocol = argument[0]

    def _refuse_dup(self, code: int, start: int, end: int, argument: bytes) -> None:
        self.refuse(_NOT_COPYABLE)

    def _refuse_outside(self, code: int, start: int, end: int, argument: bytes) -> None:
        is_persistent = code in _PERSISTENT
        raise LoadError(self._path, *(PERSISTENT_IDS if is_persistent else OUT_OF_BAND))

    def _stop(self, code: int, start: int, end: int, argument: bytes) -> None:
        if len(self._stack) != 1 or self._marks:
            self._misuse(start)
        if self._bottom != _LIST:  # protocol 0 has no such opcode, 1 has no PROTO
            self.protocol = max(self.protocol, 1)

    def _refuse_other_top(self) -> None:
        """Refuse what is no list of traces, or not one that can be copied."""
        if self._bottom not in _LIST_MAKERS:
            type_name = _TYPE_NAMES.get(self._bottom, "any").replace("any", "de otra clase")
            length = f" de longitud {self._n_objects}" if self._bottom in _TUPLES else ""
            raise not_a_list(self._path, type_name + length)
        if self._list_problem:
            self.refuse(self._list_problem)
        if not self.trace_starts:
            raise LoadError(self._path, *NO_TRACES)

    # What pass 2 asks.

    def _events_between(self, start: int, stop: int) -> tuple[int, int]:
        first = bisect_left(self.event_positions, start)
        return first, bisect_left(self.event_positions, stop, first)

    def mark_fetched(self, needed: bytearray, start: int, stop: int) -> None:
        """Mark in needed, a byte an id, what a piece fetches that is defined before it."""
        first_id = bisect_left(self.defined, start)
        for memo_id in self.event_ids[slice(*self._events_between(start, stop))]:
            if 0 <= memo_id < first_id:
                needed[memo_id] = 1

    def mark_dependencies(self, needed: bytearray) -> None:
        """Mark also all that the spans of what is marked fetch, directly or not, or are changed by.

        Each fetch is looked at once, however the spans lie in each other.
        """
        waiting = array.array("q")
        memo_id = -1
        while (memo_id := needed.find(1, memo_id + 1)) >= 0:  # all ids at the speed of memchr
            waiting.append(memo_id)
        if not waiting:
            return
        is_seen = bytearray(len(self.event_ids))
        amended = self._amended
        is_amended_seen = bytearray(len(amended))
        while waiting:
            unit = self.unit_of(waiting.pop())
            if self.kinds[unit] >= _ATOM:
                continue
            start, stop = self.starts[unit], self.ends[unit]
            events = _take_unseen(is_seen, *self._events_between(start, stop))
            found: Iterator[int] = map(self.event_ids.__getitem__, events)
            if amended:
                first = bisect_left(amended, bisect_left(self.defined, start))
                last = bisect_left(amended, bisect_left(self.defined, stop))
                numbers = _take_unseen(is_amended_seen, first, last)
                rows = (row for n in numbers for row in self.amendments[amended[n]])
                found = itertools.chain(found, rows)
            for memo_id in found:
                if memo_id >= 0 and not needed[memo_id]:
                    needed[memo_id] = 1
                    waiting.append(memo_id)

    def outermost_spans(self, needed: bytearray) -> Iterator[tuple[int, int, bool]]:
        """Yield start, end and whether it is atoms of the spans of what is marked, in their order.

        Spans lie in each other, or apart: those in others are left out.  Adjacent atoms (texts and
        the like, of which there may be millions) are one span.
        """
        units = array.array("q")
        stop = -1
        memo_id = -1
        while (memo_id := needed.find(1, memo_id + 1)) >= 0:
            if self.defined[memo_id] >= stop:
                unit = self.unit_of(memo_id)
                while units and self.starts[units[-1]] >= self.starts[unit]:
                    units.pop()
                units.append(unit)
                stop = self.ends[unit]
        start = stop = -1  # of atoms
        for unit in units:
            if self.kinds[unit] >= _ATOM and self.starts[unit] == stop:
                stop = self.ends[unit]
                continue
            if stop >= 0:
                yield start, stop, True
            start, stop = self.starts[unit], self.ends[unit]
            if self.kinds[unit] < _ATOM:
                yield start, stop, False
                start = stop = -1
        if stop >= 0:
            yield start, stop, True

    def contiguous_ranges(self, first: int, stop: int) -> Iterator[tuple[int, int]]:
        """Yield start and end of the bytes of traces first to stop - 1, without APPENDS, MARK."""
        while first < stop:
            group = bisect_right(self.group_stops, first)
            group_stop = self.group_stops[group]
            end = self.group_ends[group] if group_stop <= stop else self.trace_starts[stop]
            yield self.trace_starts[first], end
            first = group_stop


def _take_unseen(is_seen: bytearray, first: int, stop: int) -> Iterator[int]:
    """Yield the numbers from one to another that were not yielded before, and note them."""
    while (first := is_seen.find(0, first, stop)) >= 0:
        is_seen[first] = 1
        yield first


def count_walked(stream: io.BufferedReader[Any], path: Path) -> int:
    """Return how many traces stream holds, without loading any; raises as PickleIndex."""
    return PickleIndex(stream, path).n_traces


class _Preludes:
    """What sub-batches fetch from others: found in the index, kept as pass 2 passes over it.

    cuts: where the sub-batches begin in the source, and where the last one ends.
    The bytes of what is shared are kept once, above 16 MiB in a file that has no name.
    """

    def __init__(self, index: PickleIndex, cuts: Sequence[int], scratch_dir: Path) -> None:
        self._index = index
        self._cuts = cuts
        for memo_id, rows in index.amendments.items():
            homes = {bisect_right(cuts, index.defined[changed]) for changed in (memo_id, *rows)}
            if len(homes) > 1:
                index.refuse("un trace modifica un objeto de otro sub-batch")
        needed = bytearray(len(index.starts))
        for start, stop in zip(cuts, cuts[1:]):
            index.mark_fetched(needed, start, stop)
        index.mark_dependencies(needed)
        self._starts, self._stops = array.array("q"), array.array("q")
        self._places = array.array("q", [0])  # in the spool
        for start, stop, _ in index.outermost_spans(needed):
            self._starts.append(start)
            self._stops.append(stop)
            self._places.append(self._places[-1] + stop - start)
        self._incomplete = 0
        self._spool = tempfile.SpooledTemporaryFile(_SPOOL_BYTES, dir=os.fspath(scratch_dir))  # noqa: SIM115
        self._window = _Window(self._read)
        self._read_place = 0

    def spans(self, number: int) -> Iterator[tuple[int, int, bool]]:
        """Yield the spans that the prelude of a sub-batch is made of: see outermost_spans."""
        needed = bytearray(len(self._index.starts))
        self._index.mark_fetched(needed, self._cuts[number], self._cuts[number + 1])
        self._index.mark_dependencies(needed)
        return self._index.outermost_spans(needed)

    def record(self, position: int, piece: bytes) -> None:
        """Keep what is needed of a piece of the pickle; pieces come in order."""
        stop = position + len(piece)
        while self._incomplete < len(self._starts) and self._starts[self._incomplete] < stop:
            wanted = self._stops[self._incomplete]
            begin = max(0, self._starts[self._incomplete] - position)
            self._spool.seek(0, os.SEEK_END)
            self._spool.write(piece[begin : wanted - position])
            if wanted > stop:
                break
            self._incomplete += 1

    def open_span(self, start: int) -> _Window:
        """Return a window that begins at a position of the source that was recorded."""
        number = bisect_right(self._starts, start) - 1
        place = self._places[number] + start - self._starts[number]
        window = self._window
        offset = place - (self._read_place - len(window.data))
        if not 0 <= offset <= len(window.data):
            self._read_place, window.data, offset = place, b"", 0
        window.offset, window.base = offset, start - offset
        return window

    def _read(self, n_bytes: int) -> bytes:
        self._spool.seek(self._read_place)
        piece: bytes = self._spool.read(min(n_bytes, _SPOOL_READ_BYTES))
        self._read_place += len(piece)
        return piece

    def close(self) -> None:
        self._spool.close()


class _Copier:
    """Pass 2, for one sub-batch: copy spans, with the memo numbers of its own pickle.

    These count its PUTs.  So the ids of a contiguous piece have the number of PUTs before them in
    the source plus an offset, which changes where the source has PUTs that are not copied.
    """

    def __init__(self, index: PickleIndex, sink: Writable) -> None:
        self._index = index
        self._sink = sink
        self._buffer = bytearray()
        self._n_puts = 0
        self._offsets_from = array.array("q")  # by id
        # Where each piece ends: so that a fetch of what was not copied is an error, and no number.
        self._offsets_until = array.array("q")
        self._offsets = array.array("q")

    def write(self, data: bytes) -> None:
        if len(data) >= _COPY_BUFFER_BYTES:  # a payload: not copied once more
            self.flush()
            self._sink.write(data)
            return
        self._buffer += data
        if len(self._buffer) >= _COPY_BUFFER_BYTES:
            self.flush()

    def flush(self) -> None:
        self._sink.write(self._buffer)
        self._buffer = bytearray()

    def copy(self, window: _Window, stop: int) -> None:
        """Copy window up to stop: fetches and PUTs get new numbers, FRAMEs are dropped."""
        index = self._index
        memo_id = bisect_left(index.defined, window.position)
        self._number_from(memo_id, bisect_left(index.defined, stop, memo_id))
        event = bisect_left(index.event_positions, window.position)
        if not index.explicit_puts:
            memo_id = sys.maxsize  # MEMOIZE names no number
        while True:
            at_event = _item(index.event_positions, event, stop)
            at_put = _item(index.defined, memo_id, stop)
            next_stop = min(at_event, at_put, stop)
            if window.position < next_stop:
                for piece in window.take(next_stop - window.position):
                    self.write(piece)
            if next_stop == stop:
                break
            if at_put < at_event:
                if index.kinds[memo_id] != _ROW:
                    _skip_memo_opcode(window)
                    self._write_put(self._number(memo_id))
                memo_id += 1
            else:
                self._copy_event(window, index.event_ids[event])
                event += 1

    def _number_from(self, memo_id: int, stop_id: int) -> None:
        """Give the next numbers to the ids from one to another."""
        first, stop = self._index.put_number(memo_id), self._index.put_number(stop_id)
        if not self._offsets or self._offsets[-1] != self._n_puts - first:
            self._offsets_from.append(memo_id)
            self._offsets_until.append(stop_id)
            self._offsets.append(self._n_puts - first)
        self._offsets_until[-1] = stop_id
        self._n_puts += stop - first

    def _number(self, memo_id: int) -> int:
        piece = bisect_right(self._offsets_from, memo_id) - 1
        if piece < 0 or memo_id >= self._offsets_until[piece]:
            raise AssertionError(f"memo id {memo_id} is fetched, but it was not copied")
        return self._index.put_number(memo_id) + self._offsets[piece]

    def _write_put(self, number: int) -> None:
        """Write what a pickler of this protocol writes to memoize number, the next one."""
        if self._index.protocol >= 4:
            self.write(b"\x94")
        elif self._index.protocol == 0:
            self.write(b"p%d\n" % number)
        else:
            self.write(b"q%c" % number if number < 256 else b"r" + struct.pack("<I", number))

    def _copy_event(self, window: _Window, memo_id: int) -> None:
        if memo_id < 0:
            window.skip(_WIDTHS[_FRAME])
            return
        _skip_memo_opcode(window)
        number = self._number(memo_id)
        if self._index.protocol == 0:
            self.write(b"g%d\n" % number)
        else:
            self.write(b"h%c" % number if number < 256 else b"j" + struct.pack("<I", number))


def _item(items: Sequence[int], number: int, default: int) -> int:
    return items[number] if number < len(items) else default


def _skip_memo_opcode(window: _Window) -> None:
    opcode = window.peek(_LOOKAHEAD_BYTES)
    width = opcode and (_WIDTHS[opcode[0]] or opcode.find(b"\n") + 1)
    if not width:  # the file is not what was indexed
        raise EOFError("no memo opcode where there was one")
    window.skip(width)


class IndexedBatch:
    """A batch on disk, of which only an index is in memory; gives its traces from the front.

    The same calls as LoadedBatch.  Sub-batches keep the opcodes of the source, but for FRAMEs.
    """

    def __init__(self, open_stream: OpenStream, path: Path) -> None:
        with open_stream() as stream:
            self._index = PickleIndex(stream, path)
        self.n_traces = self._index.n_traces
        self.pickled_bytes = self._index.pickled_bytes
        self._path = path
        self._open_stream = open_stream
        self._files = contextlib.ExitStack()

    def begin(self, sizes: Sequence[int], scratch_dir: Path) -> None:
        """Get ready to dump sub-batches of these numbers of traces, which add up to n_traces.

        scratch_dir: where what they share is kept.  Raises LoadError if a trace of one changes an
        object of another.
        """
        firsts = [0, *itertools.accumulate(sizes)]
        cuts = array.array("q", [self._index.trace_starts[first] for first in firsts[:-1]])
        cuts.append(self.pickled_bytes)
        self._slices = enumerate(zip(firsts, firsts[1:]))
        self._preludes = _Preludes(self._index, cuts, scratch_dir)
        self._files.callback(self._preludes.close)
        self._stream = self._files.enter_context(self._open_stream())
        self._window = _Window(self._read)

    def _read(self, n_bytes: int) -> bytes:
        """Read on in the source, keeping what is shared as it passes.

        Raises LoadError where it cannot be read: other errors of a save are of its target.
        """
        position = self._stream.tell()
        try:
            piece = self._stream.read(n_bytes)
        except StreamError as error:
            raise load_error(self._path, error) from error
        self._preludes.record(position, piece)
        return piece

    def dump_next(self, sink: Writable) -> int:
        """Write the pickle of the next sub-batch; return its number of traces."""
        number, (first, stop) = next(self._slices)
        copier = _Copier(self._index, sink)
        try:
            self._copy_slice(copier, number, first, stop)
        except EOFError as error:  # it ends before its index does
            raise load_error(self._path, error) from error
        copier.flush()
        return stop - first

    def _copy_slice(self, copier: _Copier, number: int, first: int, stop: int) -> None:
        index = self._index
        # All that the prelude needs is recorded once the traces before have been passed.
        self._window.skip(index.trace_starts[first] - self._window.position)
        if index.protocol >= 2:
            copier.write(b"\x80%c" % index.protocol)
        for start, end, are_atoms in self._preludes.spans(number):
            copier.write(b"(" if are_atoms else b"")
            copier.copy(self._preludes.open_span(start), end)
            copier.write(b"1" if are_atoms else b"0")
        copier.write(b"]" if index.protocol else b"(l")
        # Protocol 0 appends one by one, and so does every pickler with a single trace.
        marked = index.protocol > 0 and stop - first > 1
        group_traces = _GROUP_TRACES if marked else 1
        for group in range(first, stop, group_traces):
            copier.write(b"(" if marked else b"")
            for start, end in index.contiguous_ranges(group, min(group + group_traces, stop)):
                self._window.skip(start - self._window.position)
                copier.copy(self._window, end)
            copier.write(b"e" if marked else b"a")
        copier.write(b".")

    def close(self) -> None:
        self._files.close()


# ---------------------------------------------------------------------------------------------
# The set of sub-batches: names, lock, parts, publication.  All of a set appears, or nothing.
#
#     what is on disk                           what the next run sees (SetState)
#     nothing, or x_sub000*.part                ABSENT: removes the parts
#       | rename 1, 2, ...; sync the folder
#     x_sub0001, ..., x_sub0000.part            HALF_PUBLISHED: removes all, part 0 last
#       | rename 0; sync the folder
#     x_sub0000, x_sub0001, ...                 WHOLE, or MISFIT if it is not all of this source
#
# A power cut may lose renames since the last sync, in any order; with number 0 last, and a sync
# before it, the folder never shows a 0 without the others.  Whatever else is there is BROKEN: no
# run of this script left it, so none removes it.

PART_SUFFIX = ".part"
SPACE_HINT = "comprueba el espacio (df -h) y los permisos de la carpeta de salida, o elige otra"
_OTHERS_HINT = "mira qué otro programa usa la carpeta de salida y repite el comando"
_SAVE_HINTS = {
    errno.ENOENT: _OTHERS_HINT,
    errno.EEXIST: _OTHERS_HINT,
    errno.EISDIR: _OTHERS_HINT,
    errno.ENAMETOOLONG: "acorta el nombre del original",
}


_ANY_SUFFIX = "|".join(re.escape(codec.suffix) for codec in CODECS)
SUB_BATCH_NAME = re.compile(
    rf"(?P<stem>.+)_sub(?P<number>[0-9]+)(?:{_ANY_SUFFIX})(?P<part>\.part)?", re.DOTALL
)


def sub_batch_names(stem: str, count: int, suffix: str) -> list[str]:
    """Return the names of count sub-batches; sorted order is trace order, whatever the count."""
    width = max(4, len(str(count - 1)))
    return [f"{stem}_sub{index:0{width}d}{suffix}" for index in range(count)]


class SetState(enum.Enum):
    """What the output folder holds of one source."""

    ABSENT = "nothing but, perhaps, parts of a run that was killed"
    WHOLE = "all sub-batches, and made from this original, as far as they tell"
    MISFIT = "number 0 and others, but not all, or of another original: see _FoundSet.problem"
    HALF_PUBLISHED = "a publish of this source that was killed before its last rename"
    BROKEN = "anything else: sub-batches that no run of this script leaves"


class _FoundSet(NamedTuple):
    """The files of one set, each kind sorted by name; problem: Spanish, what does not fit."""

    state: SetState
    finals: list[Path]
    parts: list[Path]
    problem: str = ""


def _same_mtime(path: Path, mtime_ns: int) -> bool:
    found_ns = path.stat().st_mtime_ns
    has_whole_seconds = not (found_ns % 10**9 and mtime_ns % 10**9)
    tolerance_ns = MTIME_TOLERANCE_NS if has_whole_seconds else 10**6  # SMB keeps 100 ns
    return abs(found_ns - mtime_ns) <= tolerance_ns


def _is_of(path: Path, original: FileIdentity) -> bool:
    """Return whether a sub-batch, or a part of one, says that it is of this original."""
    stamp = read_stamp(path)
    return original.is_original_of(stamp) if stamp else _same_mtime(path, original.mtime_ns)


def _find_problem(finals: Sequence[Path], original: FileIdentity) -> str:
    """Return what is wrong with a set, whose numbers have no gap, as the set of this original."""
    for path in finals:
        if not path.stat().st_size:
            return f"{path.name} está vacío"
    if not codec_of(finals[0]).is_stamped:  # the date is all that tells
        if not _same_mtime(finals[0], original.mtime_ns):
            return f"{finals[0].name} procede de un original con otra fecha de modificación"
        return ""
    expected = n_traces = 0
    for path in finals:
        stamp = read_stamp(path)
        if stamp is None:
            return f"{path.name} no lleva el sello de este programa"
        if not original.is_original_of(stamp):
            return f"{path.name} procede de otro original (otro tamaño u otra fecha)"
        if stamp.first != expected:
            return f"{path.name} no sigue al anterior: sus traces empiezan en el {stamp.first}"
        expected, n_traces = stamp.stop, stamp.n_traces
    if expected != n_traces:
        return f"falta el último sub-batch: hay {expected} traces de {n_traces}"
    return ""


def _number(path: Path) -> int:
    return int(path.name.rpartition("_sub")[2].partition(".")[0])


def find_set(output_dir: Path, stem: str, original: FileIdentity) -> _FoundSet:
    """Look for the set of a source by its stem, size and modification time; touch nothing."""
    finals: list[Path] = []
    parts: list[Path] = []
    for name in os.listdir(output_dir) if output_dir.is_dir() else ():
        # Not glob: a stem may hold *, ? or [, and a_sub0000_sub0000 is not of a.
        if (match := SUB_BATCH_NAME.fullmatch(name)) and match["stem"] == stem:
            (parts if match["part"] else finals).append(output_dir / name)
    finals.sort()
    parts.sort()
    problem = ""
    if not finals:
        state = SetState.ABSENT
    elif _number(finals[0]) != 0:
        has_first_part = bool(parts) and _number(parts[0]) == 0
        ours = has_first_part and all(_is_of(p, original) for p in [parts[0], *finals])
        state = SetState.HALF_PUBLISHED if ours else SetState.BROKEN
    elif (
        list(map(_number, finals)) != list(range(len(finals)))
        or len(set(map(codec_of, finals))) > 1
    ):
        state = SetState.BROKEN
    else:
        problem = _find_problem(finals, original)
        # After a power cut where folders cannot be synced; stamps would tell that one is missing.
        if parts and not codec_of(finals[0]).is_stamped:
            problem = problem or f"junto a él queda {parts[0].name}, sin terminar"
        state = SetState.MISFIT if problem else SetState.WHOLE
    return _FoundSet(state, finals, parts, problem)


def refuse_or_skip(source: Path, found: _FoundSet, *, skip_existing: bool) -> bool:
    """Return whether source is to be skipped; raise OutputError where its set forbids to begin."""
    if found.state is SetState.BROKEN:
        names = ", ".join(path.name for path in found.finals[:3])
        raise OutputError(
            source,
            f"la salida contiene un conjunto incompleto o mezclado ({names}…)",
            "compruébalo y apártalo, o elige otra carpeta de salida",
        )
    if found.state is SetState.MISFIT and skip_existing:
        raise OutputError(
            source,
            f"lo que hay en la salida no es su conjunto completo: {found.problem}",
            "mira si el original cambió o se copió sin su fecha; aparta esos sub-batches o elige "
            "otra carpeta de salida",
        )
    if found.state in (SetState.MISFIT, SetState.WHOLE) and not skip_existing:
        raise OutputError(
            source,
            f"sus sub-batches ya existen ({found.finals[0].name}…)",
            ("" if found.problem else "usa --skip-existing para omitirlo, ")
            + "apártalos o elige otra carpeta de salida",
        )
    return found.state is SetState.WHOLE


@contextlib.contextmanager
def saving(path: Path) -> Iterator[None]:
    """Turn whatever the system refuses into one SaveError, about path or what the error names."""
    try:
        yield
    except OSError as error:
        problem = f"No se pudo guardar: {explain_os_error(error)}"
        named = Path(error.filename) if isinstance(error.filename, (str, Path)) else path
        raise SaveError(named, problem, _SAVE_HINTS.get(error.errno or 0, SPACE_HINT)) from error


def _make_folder(path: Path) -> bool:
    """Make a folder and its parents; return whether the names of the new ones are on disk."""
    if path.is_dir():
        return True
    durable = _make_folder(path.parent)
    with contextlib.suppress(FileExistsError):  # another process was faster; a file fails later
        path.mkdir()
        try:
            durable = sync_folder(path.parent) and durable
        except OSError:
            path.rmdir()  # so that the next source makes it, and syncs its name, again
            raise
    return durable


def _names_open_file(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


class Fingerprint(NamedTuple):
    """What tells that a name still has the file that was put there, whatever it was renamed from.

    The inode alone would not do: the system gives that of a removed file to the next one.
    """

    inode: int
    size_bytes: int
    mtime_ns: int

    @classmethod
    def of(cls, status: os.stat_result) -> Fingerprint:
        return cls(status.st_ino, status.st_size, status.st_mtime_ns)


@dataclasses.dataclass(frozen=True)
class SubBatch:
    """One written sub-batch: where it is, where it goes, and what must be read back from it.

    crc32, fingerprint: of the file as written.  pickled_bytes: before compression.
    """

    part: Path
    final: Path
    n_traces: int
    pickled_bytes: int
    crc32: int
    fingerprint: Fingerprint

    @property
    def size_bytes(self) -> int:
        return self.fingerprint.size_bytes


class _PartFile:
    """A new file, never an existing one, that sums what is written to it.

    mode: permission bits, from which the system takes the umask.
    """

    def __init__(self, path: Path, mode: int) -> None:
        self.path = path
        self.crc32 = 0
        self._size_bytes = 0
        flags = os.O_WRONLY | os.O_CREAT | os.O_EXCL | getattr(os, "O_BINARY", 0)
        self._file = open(os.open(path, flags, mode), "wb")  # noqa: SIM115  finish or close do
        self.inode = os.fstat(self._file.fileno()).st_ino

    def write(self, data: Union[bytes, memoryview]) -> None:
        self.crc32 = deflate_library.crc32(data, self.crc32)
        self._size_bytes += len(data)
        self._file.write(data)

    def finish(self, mtime_ns: Optional[int]) -> tuple[Fingerprint, Optional[OSError]]:
        """Put the file on disk, with this modification time if any, and close it.

        Returns also why the time could not be set: it costs --skip-existing, not a trace.
        """
        self._file.flush()
        refused = None
        try:
            target = self._file.fileno() if os.utime in os.supports_fd else self.path
            if mtime_ns is not None:
                os.utime(target, ns=(time.time_ns(), mtime_ns))
        except OSError as error:
            refused = error
        sync_file(self._file.fileno())
        found = Fingerprint.of(os.fstat(self._file.fileno()))
        drop_page_cache(self._file.fileno())
        self._file.close()
        return found._replace(size_bytes=self._size_bytes), refused

    def close(self) -> None:
        with contextlib.suppress(OSError):  # only after a failure, which is already being told
            self._file.close()


def _remove(paths: Sequence[Path]) -> list[Path]:
    """Remove files, in this order, and return those that could not be removed."""
    stuck = []
    for path in paths:
        try:
            os.unlink(path)
        except FileNotFoundError:
            pass  # somebody else was faster
        except OSError:
            stuck.append(path)
    return stuck


class StemLock:
    """Keeps the runs of other processes away from the set of one source; makes its folder.

    is_held: not so where locks do not work; parts are still created exclusively.
    is_folder_durable: whether the names of the folders that it made are on disk.
    """

    def __init__(self, source: Source, folder: Path) -> None:
        self.folder = folder
        self.is_held = False
        self.is_folder_durable = False
        self.warnings: list[str] = []
        self._source = source.path
        # .part, so that no loader's glob takes it for a sub-batch.
        self._path = folder / f"{source.stem}.lock{PART_SUFFIX}"
        self._fd = -1

    def __enter__(self) -> StemLock:
        """Raise OutputError where another process has the lock."""
        with saving(self.folder):
            self.is_folder_durable = _make_folder(self.folder)
            self._take()
        return self

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        """Remove the file, if it is still ours: where it stays, the next run locks it again."""
        with contextlib.ExitStack() as lock:
            lock.callback(os.close, self._fd)
            is_ours = self.owns_stem()
            if os.name == "nt":  # where no open file can be removed
                lock.close()
            stuck = _remove([self._path]) if is_ours else []
        self.warnings += [f"no se pudo quitar {path.name}" for path in stuck]
        if error is not None:
            error.leftovers = (*getattr(error, "leftovers", ()), *stuck)  # type: ignore[attr-defined]

    def _take(self) -> None:
        for _ in range(2):  # its owner may remove it between our open and our lock
            self._fd = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o666)
            is_locked = lock_file(self._fd)
            if is_locked is None:
                return
            # The last owner removes the file before it lets go: what is locked may have no name.
            if is_locked and _names_open_file(self._path, self._fd):
                self.is_held = True
                return
            os.close(self._fd)
        raise OutputError(
            self._source,
            "otro proceso lo está dividiendo en la misma carpeta de salida",
            "espera a que termine y repite el comando con --skip-existing",
        )

    def owns_stem(self) -> bool:
        """Return whether the lock has still its name: who took it away may run in our place."""
        try:
            return _names_open_file(self._path, self._fd)
        except OSError:  # who cannot tell removes nothing of others
            return False


class OutputSet:
    """The set of one source, being made under its lock: on an error nothing of it remains.

    1. ``resolve`` looks at what is there and clears what a killed run left.
    2. ``create_part`` makes the parts.
    3. ``publish`` gives them their names; after it, leaving with an error removes nothing.
    """

    def __init__(self, source: Source, lock: StemLock, codec: Codec) -> None:
        self.stem = source.stem
        self.folder = lock.folder
        self.codec = codec
        self.warnings = lock.warnings  # one list: what either has to say
        self._lock = lock
        self._source = source.path
        self._original = source.identity
        self._mode = stat.S_IMODE(source.mode)  # what is private stays so
        # The parts of this run, by inode; None while they are written.
        self._made: dict[int, Optional[Fingerprint]] = {}
        self._armed = False  # whether an error removes them

    def __enter__(self) -> OutputSet:
        return self

    def __exit__(self, kind: object, error: Optional[BaseException], trace: object) -> None:
        leftovers = self._roll_back()
        if error is not None:
            error.leftovers = tuple(leftovers)  # type: ignore[attr-defined]

    def resolve(self, *, skip_existing: bool) -> bool:
        """Return whether the source is to be skipped; if not, leave nothing of its set.

        Raises OutputError where a set is there, or something that this script did not leave.
        """
        with saving(self.folder):
            found = find_set(self.folder, self.stem, self._original)
            if refuse_or_skip(self._source, found, skip_existing=skip_existing):
                return True
            if not self._lock.is_held and (found.parts or found.finals):
                names = ", ".join(path.name for path in found.finals + found.parts)
                raise OutputError(
                    self._source,
                    f"hay restos de otra ejecución y aquí no se pueden bloquear archivos: {names}",
                    "si ningún otro proceso los está escribiendo, bórralos y repite el comando",
                )
            # Part 0 is what marks the rest as ours to clear, so it is the last to go, on disk, too.
            for path in found.finals + found.parts[:0:-1]:
                os.unlink(path)
            if found.finals:
                sync_folder(self.folder)
            for path in found.parts[:1]:
                os.unlink(path)
        self._armed = True
        return False

    def stamp(self, first: int, stop: int, n_traces: int) -> Stamp:
        """Return what the sub-batch of traces first to stop - 1 is to say of itself."""
        original = self._original
        return Stamp(first, stop, n_traces, original.size_bytes, original.mtime_ns // 10**9)

    def create_part(self, final_name: str) -> _PartFile:
        """Create the part of one sub-batch; raises FileExistsError if there is one."""
        part = _PartFile(self.folder / (final_name + PART_SUFFIX), self._mode)
        self._made[part.inode] = None
        return part

    def finish_part(self, part: _PartFile, n_traces: int, pickled_bytes: int) -> SubBatch:
        """Put a written part on disk and return what is known of it."""
        with saving(part.path):
            # What has a stamp keeps today's date: scratch disks delete by age.
            mtime_ns = None if self.codec.is_stamped else self._original.mtime_ns
            fingerprint, refused = part.finish(mtime_ns)
        self._made[part.inode] = fingerprint
        if refused is not None:
            self.warnings.append(
                f"{part.path.name} no lleva la fecha del original ({explain_os_error(refused)}): "
                "--skip-existing no lo reconocerá"
            )
        final = part.path.with_suffix("")
        return SubBatch(part.path, final, n_traces, pickled_bytes, part.crc32, fingerprint)

    def publish(self, sub_batches: Sequence[SubBatch]) -> bool:
        """Rename all parts, the first one last; return whether their names are surely on disk.

        After an error, or a kill, the next run can tell that the set is not whole.
        """
        first, *others = sub_batches
        with saving(self.folder):
            for sub_batch in others:
                self._rename(sub_batch)
            sync_folder(self.folder)  # all names but the first are on disk before it gets its own
            self._rename(first)
            durable = sync_folder(self.folder) and self._lock.is_folder_durable
        self._armed = False
        if not durable:
            self.warnings.append(
                "este sistema de archivos no garantiza los nombres tras un corte de luz"
            )
        return durable

    def _rename(self, sub_batch: SubBatch) -> None:
        if os.path.lexists(sub_batch.final):  # rename would replace it
            raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(sub_batch.final))
        if not self._is_ours(sub_batch.part):
            raise OutputError(
                sub_batch.part,
                "No se pudo guardar: otro proceso lo ha quitado o cambiado",
                _OTHERS_HINT,
            )
        os.rename(sub_batch.part, sub_batch.final)

    def _is_ours(self, path: Path) -> bool:
        """Return whether a name is of a file of this run: another's may have taken it."""
        with contextlib.suppress(OSError):
            now = Fingerprint.of(os.lstat(path))
            return now.inode in self._made and self._made[now.inode] in (None, now)
        return False

    def _roll_back(self) -> list[Path]:
        """Remove what this run made, in the order that lets a next run go on after a kill.

        It asks the disk, not a list, since an exception may have come between any two statements;
        and never touches what another run has made, should the lock have been taken away.
        Returns what could not be removed.  If number 0 keeps its name, so does the whole set.
        """
        if not self._armed:
            return []
        try:
            found = find_set(self.folder, self.stem, self._original)
        except OSError:  # the first error is told; the next run clears what is left
            return []
        owns_stem = self._lock.is_held and self._lock.owns_stem()
        finals = [path for path in found.finals if self._is_ours(path)]
        # While the lock is ours, so is every part: one may have been made, but not noted.
        parts = [path for path in found.parts if owns_stem or self._is_ours(path)]
        if finals and _number(finals[0]) == 0:
            first = finals.pop(0)
            part = first.with_name(first.name + PART_SUFFIX)
            try:
                if os.path.lexists(part):  # somebody has made one meanwhile
                    os.unlink(first)
                else:
                    os.rename(first, part)
                    parts.insert(0, part)
                sync_folder(self.folder)  # or a power cut might keep number 0 alone
            except OSError:
                return [first if os.path.lexists(first) else part, *finals]
        first_part, other_parts = parts[:1], parts[1:]
        leftovers = _remove(finals) + _remove(other_parts[::-1])
        # Part 0 tells the next run that it may clear the rest, so it stays as long as a final does.
        if any(map(self._is_ours, finals)):
            return leftovers + first_part
        with contextlib.suppress(OSError):  # the first error is told
            sync_folder(self.folder)
        return leftovers + _remove(first_part)


def delete_source(
    source: Source, finals: Mapping[Path, Fingerprint], durable: bool
) -> Optional[str]:
    """Delete it if it and its set are exactly as this run left them; else return why not."""
    if not durable:
        return "el sistema de archivos no garantiza que los sub-batches estén en el disco"
    source.close()  # Windows deletes no open file
    try:
        for final, fingerprint in finals.items():
            status = os.lstat(final)
            if not stat.S_ISREG(status.st_mode) or os.path.samestat(status, os.lstat(source.path)):
                return f"{final.name} es un enlace, quizá al propio original"
            if Fingerprint.of(status) != fingerprint:
                return f"{final.name} ya no es el archivo que se escribió"
        if source.path.is_symlink():
            return "es un enlace simbólico"
        if FileIdentity.of(os.lstat(source.path)) != source.identity:
            return "cambió durante la ejecución"
        os.unlink(source.path)
    except OSError as error:
        return f"{explain_os_error(error)} ({error.filename})"
    return None


# ---------------------------------------------------------------------------------------------
# Validation: every part is read back from disk before anything depends on it.

_CountTraces = Callable[["io.BufferedReader[Any]", Path], int]


REPORT_HINT = "es un fallo de este programa: informa de él con el archivo que lo provoca"
_DISK_HINT = "repite el comando; si vuelve a fallar, el disco de salida no es fiable: elige otro"


def _validate_part(
    sub_batch: SubBatch, count_traces: _CountTraces, meter: Meter
) -> Optional[LoadError]:
    """Return why a part does not load although its bytes are those that were written, if so.

    Raises ValidationError where they are not, or hold another number of traces.
    """
    n_traces = size_bytes = crc32 = 0
    failed: Optional[LoadError] = None

    def check(piece: memoryview) -> None:
        nonlocal size_bytes, crc32
        size_bytes += len(piece)
        crc32 = deflate_library.crc32(piece, crc32)
        meter.add(len(piece))

    try:
        file = TrackedFile(sub_batch.part, check)
        with open_stream(file) as stream:
            try:
                n_traces = count_traces(stream, sub_batch.part)
            except LoadError as error:
                failed = error
                rest = bytearray(BLOCK_BYTES)
                while file.readinto(rest):  # what it did not come to: are those the bytes written?
                    pass
    except OSError as error:
        problem, hint = os_problem_of(error)
        if error.errno not in (errno.ENOENT, errno.EACCES):
            hint = _DISK_HINT
        problem = f"la validación no pudo releerlo: {problem}"
        raise ValidationError(sub_batch.part, problem, hint) from error
    if (size_bytes, crc32) != (sub_batch.size_bytes, sub_batch.crc32):
        problem = "la validación falló: el disco no devuelve los bytes que se escribieron"
        raise ValidationError(sub_batch.part, problem, _DISK_HINT)
    if failed is None and n_traces != sub_batch.n_traces:
        problem = f"la validación falló: {n_traces} traces en vez de {sub_batch.n_traces}"
        raise ValidationError(sub_batch.part, problem, REPORT_HINT)
    return failed


def validate_parts(
    sub_batches: Sequence[SubBatch],
    n_traces: int,
    count_traces: _CountTraces,
    *,
    jobs: int,
    progress: Progress,
) -> None:
    """Read every part back: it loads, its count, CRC-32 and length are right, the counts add up.

    Raises ValidationError, naming the part.
    """
    meter = Meter(progress, Phase.VALIDATE, sum(part.size_bytes for part in sub_batches))
    with ThreadPoolExecutor(jobs) as pool:
        check = functools.partial(_validate_part, count_traces=count_traces, meter=meter)
        failed = [s for s, error in zip(sub_batches, pool.map(check, sub_batches)) if error]
    for sub_batch in failed:  # some objects load in the main thread only
        if error := check(sub_batch):
            problem = f"la validación falló: está bien escrito, pero no se carga: {error.problem}"
            hint = error.hint if lacks_memory(error) else LOW_MEMORY_HINT
            if count_traces is count_walked:
                hint = REPORT_HINT
            raise ValidationError(sub_batch.part, problem, hint) from error
    meter.add(0)  # a last chance to cancel
    total = sum(part.n_traces for part in sub_batches)
    if total != n_traces:
        raise ValidationError(
            sub_batches[0].part,
            f"la validación falló: {total} traces en los sub-batches y {n_traces} en el original",
            REPORT_HINT,
        )


# ---------------------------------------------------------------------------------------------
# Verifying one file: is the set that is there what its original holds?

_SET_HINT = (
    "no borres el original; aparta ese conjunto y divide otra vez (con --low-memory, si se repite)"
)


@dataclasses.dataclass(frozen=True)
class _Report:
    """What both reports tell of one source: see SplitReport."""

    source: Path
    source_bytes: int
    n_traces: int = 0
    files: tuple[Path, ...] = ()
    deleted: bool = False
    kept_because: Optional[str] = None
    warnings: tuple[str, ...] = ()


@dataclasses.dataclass(frozen=True)
class VerifyReport(_Report):
    """What verify_file found: the set of source is equal, or, with unjudged, cannot be compared.

    The other fields are as in SplitReport.
    """

    unjudged: bool = False


class _Comparison:
    """A sink that compares what is written with what a stream holds."""

    def __init__(self, stream: io.BufferedReader[Any]) -> None:
        self._stream = stream
        self.is_equal = True

    def write(self, data: Any) -> None:
        if self.is_equal:
            self.is_equal = self._stream.read(len(data)) == data


def _compare_loaded(traces: list[Any], final: Path, first: int, meter: Meter) -> int:
    """Compare a sub-batch with the traces from first on; return how many it holds.

    Raises VerificationError.
    """
    with open_metered(final, meter) as stream:
        found = load_traces(stream, final)
    expected = traces[first : first + len(found)]
    tick = functools.partial(meter.add, 0)
    try:
        if are_alike(expected, found, tick):
            return len(found)
        pairs = enumerate(zip(expected, found), start=first)
        number = next((n for n, (a, b) in pairs if not are_alike([a], [b], tick)), None)
    except BaseException as error:  # __reduce__ of a trace is foreign code
        if (reason := explain_dump(error)) is None:
            raise
        problem = f"{final.name} no se puede comparar: {reason.problem}"
        raise VerificationError(final, problem, reason.hint) from error
    where = "" if number is None else f"; el primero que difiere es el trace {number}"
    raise VerificationError(final, f"{final.name} no es igual al original{where}", _SET_HINT)


def _refuse_other_count(source: Source, n_found: int, n_traces: int) -> None:
    if n_found != n_traces:
        problem = f"su conjunto tiene {n_found} traces y el original {n_traces}"
        raise VerificationError(source.path, problem, _SET_HINT)


def _verify_loaded(source: Source, finals: Iterable[Path], meter: Meter) -> int:
    with source.open_stream() as stream:
        traces = load_traces(stream, source.path)
    first = 0
    for final in finals:
        first += _compare_loaded(traces, final, first, meter)
        gc.collect()
    _refuse_other_count(source, first, len(traces))
    return first


def _verify_walked(
    source: Source, finals: Collection[Path], scratch_dir: Path, meter: Meter
) -> Optional[int]:
    """Compare what --low-memory would write with what is there; return how many traces.

    Returns None for a set of the default mode: its bytes are others, whatever it holds.
    """
    sizes = []
    for final in finals:
        with open_metered(final, meter) as stream:
            index = PickleIndex(stream, final)
        if index.memoizes_list:  # which --low-memory never does
            return None
        sizes.append(index.n_traces)
    with contextlib.closing(IndexedBatch(source.open_stream, source.path)) as batch:
        _refuse_other_count(source, sum(sizes), batch.n_traces)
        batch.begin(sizes, scratch_dir)
        for final in finals:
            with open_metered(final, meter) as stream:
                comparison = _Comparison(stream)
                batch.dump_next(comparison)
                if not comparison.is_equal or stream.read(1):
                    problem = f"{final.name} no es igual al original"
                    raise VerificationError(final, problem, _SET_HINT)
    return sum(sizes)


def _find_finals(source: Source, folder: Path) -> dict[Path, Fingerprint]:
    """Return the files of a set, whole as far as names tell, and what must be so of them later."""
    found = find_set(folder, source.stem, source.identity)
    if found.state not in (SetState.WHOLE, SetState.MISFIT):
        problem = "no tiene un conjunto completo en la salida"
        hint = "divídelo con el mismo comando sin --verify"
        if found.state is SetState.BROKEN:
            hint = "aparta lo que hay de él en la salida y divídelo otra vez"
        raise VerificationError(source.path, problem, hint)
    for path in found.finals:
        problem = ""
        if not path.is_file():  # opening a FIFO would wait for its writer
            problem = f"{path.name} no es un archivo normal"
        elif FileIdentity.of(os.stat(path))[:2] == source.identity[:2]:  # device, inode
            problem = f"{path.name} es el propio original, o un enlace a él"
        if problem:
            raise VerificationError(source.path, problem, _SET_HINT)
    return {path: Fingerprint.of(os.lstat(path)) for path in found.finals}


@contextlib.contextmanager
def _explaining_unreadable_set(source: Source) -> Iterator[None]:
    try:
        yield
    except LoadError as error:
        if error.path == source.path:
            hint = error.hint.replace(LOW_MEMORY, f"{LOW_MEMORY} (si así se dividió)")
            raise LoadError(error.path, error.problem, hint) from error
        if lacks_memory(error):  # says nothing of the set
            raise LoadError(source.path, *NO_MEMORY) from error
        problem = f"{error.path.name} no se puede leer: {error.problem}"
        raise VerificationError(error.path, problem, _SET_HINT) from error
    except OSError as error:  # of the disk: what a progress raises is a ProgressError here
        problem, hint = os_problem_of(error)
        if error.errno in (None, errno.EIO):
            hint = _SET_HINT
        where = f" ({error.filename})" if error.filename else ""
        problem = f"no se puede leer su conjunto: {problem}{where}"
        raise VerificationError(source.path, problem, hint) from error


@contextlib.contextmanager
def _locked(source: Source, folder: Path) -> Iterator[StemLock]:
    """Keep other runs away from a set that may lose its source: they may yet undo it."""
    with contextlib.ExitStack() as stack:
        try:
            lock = stack.enter_context(StemLock(source, folder))
        except OutputError as error:  # its own hint is of splitting
            raise VerificationError(error.path, error.problem, "espera a que termine") from error
        except SaveError as error:
            problem = f"no se puede bloquear su conjunto: {error.problem}"
            raise VerificationError(source.path, problem, error.hint) from error
        yield lock


def _delete_verified(
    source: Source, finals: Mapping[Path, Fingerprint], folder: Path
) -> Optional[str]:
    """Delete an original whose set is equal; return why not, if so."""
    try:
        for final in finals:  # another run, or a copy, has written it
            sync_path(final)
        durable = sync_folder(folder)
    except OSError as error:
        return f"no se pudo asegurar que su conjunto esté en el disco: {explain_os_error(error)}"
    return delete_source(source, finals, durable)


def verify_file(
    source: Union[str, os.PathLike[str]],
    output_dir: Union[str, os.PathLike[str]],
    *,
    delete_original: bool = False,
    low_memory: bool = False,
    progress: Progress = ignore_progress,
) -> VerifyReport:
    """Compare the set of a batch in output_dir with the batch itself, and write nothing.

    Loads the batch and one sub-batch at a time; with low_memory nothing, and then only a set that
    this mode wrote can be judged.  With delete_original the source goes if its set is equal, of
    files of its own, and neither has changed since; the stem is locked meanwhile.  Raises
    SplitError as split_file, and VerificationError where a set is missing or differs: it names the
    sub-batch, and the first such trace where it is known.
    """
    path, folder = absolute(source), absolute(output_dir)
    warnings: list[str] = []
    with contextlib.ExitStack() as stack:
        opened = stack.enter_context(open_source(path, progress, low_memory=low_memory))
        stack.enter_context(_explaining_unreadable_set(opened))
        if delete_original and folder.is_dir():
            warnings = stack.enter_context(_locked(opened, folder)).warnings
        finals = _find_finals(opened, folder)
        n_bytes = sum(fingerprint.size_bytes for fingerprint in finals.values())
        meter = Meter(progress, Phase.VERIFY, n_bytes * (2 if low_memory else 1))
        if low_memory:
            n_traces = _verify_walked(opened, finals, folder, meter)
        else:
            n_traces = _verify_loaded(opened, finals, meter)
            gc.collect()  # cycles of this batch, or they would be there beside the next
        opened.refuse_changed()
        kept_because = None
        if delete_original:
            kept_because = "--low-memory no puede juzgar un conjunto del modo normal"
            if n_traces is not None:
                kept_because = _delete_verified(opened, finals, folder)
    return VerifyReport(
        source=path,
        source_bytes=opened.identity.size_bytes,
        n_traces=n_traces or 0,
        files=tuple(finals),
        unjudged=n_traces is None,
        deleted=delete_original and kept_because is None,
        kept_because=kept_because,
        warnings=tuple(warnings),
    )


# ---------------------------------------------------------------------------------------------
# Splitting one file: the steps above in their order.
#
#     thread of the caller                     pool (jobs threads)         syncer (1 thread)
#     pickles, copies into a block of 1 MiB -> deflates it
#     writes it, in order                   <-
#     begins the next part                  --------------------------->   fsyncs the last one
#
# More threads than that would gain nothing: one pickler fills the pool, one disk takes the bytes.


@dataclasses.dataclass(frozen=True)
class SplitReport(_Report):
    """What split_file did with one source.

    skipped: its set was there already, and little else is filled in.
    Sizes in bytes; pickled_bytes is before compression, one number a sub-batch; times in seconds.
    peak_memory_bytes: of the whole process up to now, None where the system does not tell.
    kept_because: why an original that should have been deleted was not; warnings: Spanish, too.
    """

    skipped: bool = False
    output_bytes: int = 0
    pickled_bytes: tuple[int, ...] = ()
    load_seconds: float = 0.0
    save_seconds: float = 0.0
    validate_seconds: Optional[float] = None
    peak_memory_bytes: Optional[int] = None


_Batch = Union[LoadedBatch, IndexedBatch]  # the same calls: all but their making is one path


def _save_parts(
    batch: _Batch,
    output: OutputSet,
    traces_per_batch: int,
    *,
    jobs: int,
    progress: Progress,
) -> list[SubBatch]:
    """Write all traces of batch, in order, as parts of output: N traces, ceil(N / n) parts on disk.

    A finished part is put on disk in the background while the next one is deflated.
    Raises SaveError; the parts written so far are removed by output.
    """
    meter = Meter(progress, Phase.SAVE, batch.pickled_bytes)
    firsts = range(0, batch.n_traces, traces_per_batch)
    sizes = [min(traces_per_batch, batch.n_traces - first) for first in firsts]
    names = sub_batch_names(output.stem, len(sizes), output.codec.suffix)
    with saving(output.folder):
        batch.begin(sizes, output.folder)
    finished: list[Future[SubBatch]] = []
    # The files are closed last: a thread may still be at work on one when an error comes.
    with contextlib.ExitStack() as files:
        with ThreadPoolExecutor(jobs) as pool, ThreadPoolExecutor(1) as syncer:
            for name, first, size in zip(names, firsts, sizes):
                with saving(output.folder / name):
                    part = output.create_part(name)
                    files.callback(part.close)
                    header = output.stamp(first, first + size, batch.n_traces).header()
                    file = output.codec.writer(part, header, pool, 2 * jobs)
                    sink = PickleSink(file, meter)
                    n_traces = batch.dump_next(sink)
                    file.close()
                if finished:
                    finished[-1].result()  # at most one part is being synced
                finished.append(syncer.submit(output.finish_part, part, n_traces, sink.n_bytes))
            sub_batches = [future.result() for future in finished]
    meter.add(0)  # a last chance to cancel
    return sub_batches


def split_file(
    source: Union[str, os.PathLike[str]],
    output_dir: Union[str, os.PathLike[str]],
    *,
    traces_per_batch: int = DEFAULT_TRACES_PER_BATCH,
    compress: bool = True,
    validate: bool = True,
    delete_original: bool = False,
    skip_existing: bool = False,
    low_memory: bool = False,
    jobs: Optional[int] = None,
    trim: bool = True,
    progress: Progress = ignore_progress,
) -> SplitReport:
    """Split one batch of N traces into ceil(N / traces_per_batch) files in output_dir, order kept.

    Prints nothing, asks nothing, and may run in many processes at once: a second one on the same
    source fails at once.  The folder is made if missing.  With delete_original the source goes
    when its whole set is validated and on disk, and only if it has not changed.

    Of the process it touches two things: the collector of cycles is off until it returns (it runs
    by hand between the phases), and with trim, freed memory goes back to the system (glibc) before
    the parts are read back, or the threads that do it might need as much again.

    Raises TypeError or ValueError for arguments that cannot be meant, and SplitError (LoadError,
    OutputError, SaveError, ValidationError) when the file was not split: then the source is
    untouched, and nothing of this call is left but what error.leftovers names.
    """
    if operator.index(traces_per_batch) < 1:
        raise ValueError(f"traces_per_batch must be at least 1, not {traces_per_batch}")
    if jobs is not None and operator.index(jobs) < 1:
        raise ValueError(f"jobs must be at least 1, not {jobs}")
    if delete_original and not validate:
        raise ValueError("delete_original needs validate")
    path, folder = absolute(source), absolute(output_dir)
    with open_source(path, progress, low_memory=low_memory) as opened:
        size_bytes = opened.identity.size_bytes
        codec = GZIP if compress else PLAIN
        with StemLock(opened, folder) as lock, OutputSet(opened, lock, codec) as output:
            if output.resolve(skip_existing=skip_existing):
                report = SplitReport(path, size_bytes, skipped=True)
            else:
                jobs = jobs or default_jobs(low_memory=low_memory)
                started = time.perf_counter()
                # The mode decides how traces are read and counted; all else is the same for both.
                make_batch = IndexedBatch if low_memory else LoadedBatch
                batch: _Batch = make_batch(opened.open_stream, path)
                loaded = time.perf_counter()
                with contextlib.closing(batch):
                    sub_batches = _save_parts(
                        batch, output, traces_per_batch, jobs=jobs, progress=progress
                    )
                n_traces = batch.n_traces
                del batch  # its memory is that of the traces which are read back
                gc.collect()
                if trim:
                    trim_memory()
                saved = time.perf_counter()
                if validate:
                    count_traces = count_walked if low_memory else count_loaded
                    validate_parts(
                        sub_batches, n_traces, count_traces, jobs=jobs, progress=progress
                    )
                    gc.collect()
                validated = time.perf_counter()
                opened.refuse_changed()
                durable = output.publish(sub_batches)
                kept_because = None
                if delete_original:
                    finals = {each.final: each.fingerprint for each in sub_batches}
                    kept_because = delete_source(opened, finals, durable)
                report = SplitReport(
                    source=path,
                    source_bytes=size_bytes,
                    n_traces=n_traces,
                    files=tuple(sub_batch.final for sub_batch in sub_batches),
                    output_bytes=sum(sub_batch.size_bytes for sub_batch in sub_batches),
                    pickled_bytes=tuple(sub_batch.pickled_bytes for sub_batch in sub_batches),
                    load_seconds=loaded - started,
                    save_seconds=saved - loaded,
                    validate_seconds=validated - saved if validate else None,
                    peak_memory_bytes=peak_memory_bytes(),
                    deleted=delete_original and kept_because is None,
                    kept_because=kept_because,
                )
    # Last, as the lock that could not be removed is a warning, too.
    return dataclasses.replace(report, warnings=tuple(output.warnings))


# ---------------------------------------------------------------------------------------------
# Planning a run: which files, what is in their way, and what is likely to go wrong.


@dataclasses.dataclass(frozen=True)
class PlannedFile:
    """One source of a run.  skip: its set is there.  refusal: why it cannot even begin."""

    source: Path
    size_bytes: int
    skip: bool = False
    refusal: Optional[SplitError] = None

    @property
    def is_due(self) -> bool:
        return not self.skip and self.refusal is None

    @property
    def may_be_deleted(self) -> bool:
        return self.is_due and not self.source.is_symlink()


def find_batches(path: Path, pattern: str) -> list[Path]:
    """Return path itself, or the batches directly in the folder path that match pattern, sorted.

    Names that start with a dot are not batches: macOS leaves ``._x.pkl.gz`` beside ``x.pkl.gz``.
    Raises LoadError for a folder that cannot be listed.
    """
    if not path.is_dir():
        return [path]
    try:
        return [
            path / name
            for name in sorted(os.listdir(path))
            if fnmatch.fnmatchcase(name, pattern)
            and batch_stem(name) is not None
            and not name.startswith(".")
            and not (path / name).is_dir()
        ]
    except OSError as error:
        raise load_error(path, error) from error


_OTHER_ENDINGS = re.compile(
    r"(.+)\.(?:pkl|pickle|pck)(?:\.(?:gz|bz2|xz|lzma|zst|lz4|zip))?", re.IGNORECASE | re.DOTALL
)


def find_left_aside(folder: Path, pattern: str) -> list[str]:
    """Return what pattern would have taken in folder, but for how the name ends: x.PKL, x.pickle.

    That it is not split should be said: a user may take the run for all of the data.
    """
    aside = []
    with contextlib.suppress(OSError):  # find_batches tells why it cannot be listed
        for name in sorted(os.listdir(folder)):
            match = _OTHER_ENDINGS.fullmatch(name)
            if match and batch_stem(name) is None and not name.startswith("."):
                as_batch = [name, *(match[1] + codec.suffix for codec in CODECS)]
                taken = any(fnmatch.fnmatchcase(each, pattern) for each in as_batch)
                if taken and not (folder / name).is_dir():
                    aside.append(name)
    return aside


def find_subfolders(folder: Path, pattern: str) -> list[Path]:
    """Return the folders directly in folder that hold batches which match pattern."""
    found = []
    with contextlib.suppress(OSError):
        for path in sorted(path for path in folder.iterdir() if path.is_dir()):
            with contextlib.suppress(LoadError):  # this one cannot be listed
                found += [path] * bool(find_batches(path, pattern))
    return found


def size_of(path: Path) -> int:
    with contextlib.suppress(OSError):  # who opens it tells why
        return path.stat().st_size
    return 0


def _foresee_skip(
    source: Path, output_dir: Path, *, skip_existing: bool, look_inside: bool
) -> bool:
    """Return whether it will be skipped; raise the SplitError that it will fail with."""
    try:
        identity = FileIdentity.of(os.stat(source))
    except OSError as error:
        raise load_error(source, error) from error
    try:
        found = find_set(output_dir, batch_stem(source.name) or source.name, identity)
        skip = refuse_or_skip(source, found, skip_existing=skip_existing)
    except OSError as error:
        problem, hint = os_problem_of(error)
        problem = f"no se puede leer la salida: {problem} ({error.filename})"
        raise OutputError(source, problem, hint) from error
    if not skip:
        with contextlib.closing(Source(source, ignore_progress)) as opened:
            if look_inside:  # as the split will begin
                with opened.open_stream() as stream:
                    refuse_other_formats(stream, source)
    return skip


def plan_run(
    sources: Sequence[Path], output_dir: Path, *, skip_existing: bool, look_inside: bool
) -> list[PlannedFile]:
    """Foresee, without touching anything, what split_file will do with each of the sources.

    look_inside: read the first bytes of each, too, and refuse what is no pickle by them.
    """
    same_stem = collections.defaultdict(list)
    for source in sources:
        same_stem[batch_stem(source.name)].append(source)
    plan = []
    for source in sources:
        skip, refusal = False, None
        try:
            for twin in same_stem[batch_stem(source.name)]:
                if twin != source:
                    raise OutputError(
                        source,
                        f"sus sub-batches se llamarían igual que los de {twin.name}",
                        "divide cada uno por separado en su propia carpeta de salida",
                    )
            skip = _foresee_skip(
                source, output_dir, skip_existing=skip_existing, look_inside=look_inside
            )
        except SplitError as error:
            refusal = error
        plan.append(PlannedFile(source, size_of(source), skip, refusal))
    return plan


def find_sub_batches_among(plan: Sequence[PlannedFile]) -> list[str]:
    """Return which sources, by their names, are sub-batches of others: their traces come twice."""
    stems = {batch_stem(planned.source.name) for planned in plan}
    names = [planned.source.name for planned in plan]
    return [n for n in names if (m := SUB_BATCH_NAME.fullmatch(n)) and m["stem"] in stems]


def needed_disk_bytes(plan: Sequence[PlannedFile], folder: Path, *, delete_original: bool) -> int:
    """Return about how much a run will write before anything is freed: as much as it reads.

    An original that is deleted on the same disk makes room for the set of the next.
    """
    sizes = [planned.size_bytes for planned in plan if planned.is_due]
    with contextlib.suppress(OSError):
        device = os.stat(nearest_folder(folder)).st_dev
        if delete_original and all(
            planned.may_be_deleted and os.stat(planned.source).st_dev == device
            for planned in plan
            if planned.is_due
        ):
            return max(sizes, default=0)
    return sum(sizes)


_NO_UNNAMED_FILES = (errno.EISDIR, errno.EOPNOTSUPP, errno.EINVAL, errno.ENOENT)  # open(2)


def explain_unwritable(folder: Path) -> Optional[str]:
    """Return why nothing can be written to folder, or made in its nearest parent, or None.

    A file without a name (O_TMPFILE) asks the file system itself, and leaves no trace; where there
    is none of that, access(2) is asked.
    """
    if folder.is_symlink() and not folder.exists():  # the disk behind it may not be there
        return OS_PROBLEMS[errno.ENOENT].problem
    folder = nearest_folder(folder)
    try:
        os.close(os.open(folder, os.O_TMPFILE | os.O_WRONLY, 0o600))
    except AttributeError:  # not Linux
        pass
    except OSError as error:
        if error.errno not in _NO_UNNAMED_FILES:
            return explain_os_error(error)
    return None if os.access(folder, os.W_OK | os.X_OK) else OS_PROBLEMS[errno.EACCES].problem


# ---------------------------------------------------------------------------------------------
# Reporting: everything the user reads. No failure to show something may harm the work.


def format_size(n_bytes: float) -> str:
    """Return 3.5 GB for 3500000000: decimal units, a point, a space, at most three digits."""
    text = tqdm.format_sizeof(n_bytes, "B", 1000)
    number = text.rstrip("BkMGTPEZY")
    return f"{float(number):g} {text[len(number) :]}"


def _format_time(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours} h {minutes} min" if hours else f"{minutes} min {seconds} s"


def _printable(text: str) -> str:
    """Escape what a file name may hold that would garble a terminal, or forge another line."""
    return "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in text)


def foresee_lack_of_memory(planned: PlannedFile) -> list[str]:
    """Return a warning (Spanish) where loading it will hardly fit: a guess, never a refusal."""
    memory = available_memory_bytes()
    expected = int(planned.size_bytes * codec_of(planned.source).memory_ratio)
    if memory is None or expected <= memory:
        return []
    return [
        f"cargado ocupará al menos {format_size(expected)} y solo hay {format_size(memory)} "
        "de memoria disponible: es probable que no quepa; --low-memory lo divide sin cargarlo"
    ]


def foresee_full_disk(needed_bytes: int, output_dir: Path) -> list[str]:
    """Return a warning (Spanish) where the output will hardly fit on its disk."""
    with contextlib.suppress(OSError):  # without a figure there is nothing to warn of
        free = free_disk_bytes(output_dir)
        if needed_bytes > free:
            return [
                f"harán falta unos {format_size(needed_bytes)} de disco y en la salida solo hay "
                f"{format_size(free)} libres: puede que no quepa"
            ]
    return []


def some_names(names: Sequence[str]) -> str:
    return ", ".join(names[:3]) + ("…" if len(names) > 3 else "")


def describe_left_aside(names: Sequence[str]) -> str:
    """Return what is not taken for how its name ends, and how it can be (Spanish)."""
    files = _count(len(names), "archivo queda fuera", "archivos quedan fuera")
    return (
        f"{files} por no terminar en .pkl ni en .pkl.gz ({some_names(names)}): renombra los que "
        "sean pickles y descomprime los que estén comprimidos de otra forma"
    )


def describe_nothing_found(folder: Path, pattern: str) -> list[str]:
    """Return that there is nothing to split in folder (Spanish), and what was probably meant."""
    hints = []
    if "/" in pattern:
        head, _, tail = pattern.rpartition("/")
        hints.append(
            "el patrón se compara con el nombre del archivo, sin carpetas: "
            f"--input {shlex.quote(str(folder / head))} --pattern {shlex.quote(tail)}"
        )
    if aside := find_left_aside(folder, pattern):
        hints.append(describe_left_aside(aside))
    if subfolders := find_subfolders(folder, pattern):
        names = [path.name for path in subfolders]
        hints.append(
            f"las subcarpetas no se miran y aquí sí hay batches en {some_names(names)}: indica "
            f"una con --input {shlex.quote(str(subfolders[0]))}"
        )
    return [
        f"ERROR {folder}: no hay archivos .pkl ni .pkl.gz que cumplan «{pattern}».",
        *(f"  Qué hacer: {hint}." for hint in hints or ["revisa --input y --pattern"]),
    ]


@contextlib.contextmanager
def _shielding(stream: Any) -> Iterator[None]:
    """Let the work go on when nobody reads a stream, its disk is full or it is closed."""
    try:
        yield
    except (OSError, ValueError):
        # Python flushes once more when it exits, and would fail then: let that go nowhere.
        with contextlib.suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, stream.fileno())
            os.close(null)


_COLUMNS, _ROWS = 80, 24  # of a terminal that does not know its own size: 0 x 0, as in containers
_BAR = "{l_bar}{bar}| {sizes} [{elapsed}<{remaining}, {speed}]"
_NARROW_BAR = "{l_bar}{bar}| [{remaining}]"  # where the numbers would leave no bar, or be cut off
_FREE_COLUMNS = 3  # a terminal shows ^C where the bar ends: at the edge it would break the line


class _Bar(tqdm):  # type: ignore[type-arg]  # at run time it takes no arguments in brackets
    """A bar with the numbers of the report, in a line that Ctrl-C cannot break in two."""

    @property
    def format_dict(self) -> dict[str, Any]:
        shown = dict(super().format_dict)
        done, total, elapsed = shown["n"], shown["total"], shown["elapsed"]
        speed = shown["rate"] or (done / elapsed if elapsed else 0)
        columns = self.columns()
        return {
            **shown,
            "bar_format": _BAR if columns >= _COLUMNS else _NARROW_BAR,
            "ncols": max(1, columns - _FREE_COLUMNS),
            "sizes": f"{format_size(done)}/{format_size(total)}",
            "speed": f"{format_size(speed)}/s",
        }

    def refresh(self, *_: object, **__: object) -> None:
        """Do as tqdm does, but let go of its lock, which other threads need, if this fails."""
        with self.get_lock():  # type: ignore[no-untyped-call]
            super().refresh(nolock=True)

    def columns(self) -> int:
        """Return how wide the terminal is now; what tqdm makes of 0 x 0 depends on its version."""
        with contextlib.suppress(OSError, ValueError):
            return os.get_terminal_size(self.fp.fileno()).columns or _COLUMNS
        return _COLUMNS


class Console:
    """The report on stdout; bars, questions, warnings and errors on stderr."""

    def __init__(self) -> None:
        self.quiet = False
        self._has_terminal = sys.stderr is not None and sys.stderr.isatty()
        self._bar: Optional[_Bar] = None
        self._bar_key: object = None
        tqdm.monitor_interval = 0  # its thread would outlive the bars for nothing

    def can_ask(self) -> bool:
        """Return whether a question would be seen and could be answered."""
        return sys.stdin is not None and sys.stdin.isatty() and self._has_terminal

    def report(self, *lines: str) -> None:
        if not self.quiet:
            self._print(sys.stdout, lines)

    def announce(self, line: str) -> None:
        """Report what begins where no bar shows it: the log of a killed job tells where it was."""
        if not self._has_terminal:
            self.report(line)

    def warn(self, path: Path, *texts: str) -> None:
        self._print(sys.stderr, [f"AVISO {path.name}: {text}" for text in texts])

    def error(self, *lines: str) -> None:
        self._print(sys.stderr, lines)

    def refuse(self, path: Path, problem: str, hint: str) -> None:
        self.error(f"ERROR {path}: {problem}", f"  Qué hacer: {hint}.")

    def show_progress(self, label: str, done_bytes: int, expected_bytes: int) -> None:
        """Show one bar for label, if there is a terminal to show it on."""
        if self.quiet or not self._has_terminal:
            return
        with _shielding(sys.stderr):
            if self._bar is None or label != self._bar_key:
                self.close_bar()
                self._bar_key = label
                self._bar = _Bar(
                    total=expected_bytes,
                    desc=label,
                    ncols=_COLUMNS,
                    nrows=_ROWS,
                    leave=False,
                    file=sys.stderr,
                )
            # What a sub-batch takes when pickled again is an estimate: never show more than all.
            self._bar.total = max(done_bytes, expected_bytes)
            self._bar.update(done_bytes - self._bar.n)

    def close_bar(self) -> None:
        bar, self._bar = self._bar, None
        if bar is None:
            return
        with _shielding(sys.stderr):
            if not bar.disable:  # by TQDM_DISABLE=1
                # tqdm will blank its own line, not the ^C that a terminal shows behind it.
                sys.stderr.write(f"\r{' ' * (bar.columns() - 1)}\r")
            bar.close()

    def _print(self, stream: Optional[TextIO], lines: Iterable[str]) -> None:
        self.close_bar()
        if stream is not None:  # Python's own sign of a descriptor that was closed at the start
            with _shielding(stream):
                stream.write("".join(_printable(line) + "\n" for line in lines))
                stream.flush()


_CACHED_FILES = 2  # sub-batches that a loader keeps while it loads one more: the guide's example
_NAME_COLUMNS = 16  # of a file in a bar: in 80 columns no more is left beside the numbers
_PHASE_LABELS = {
    Phase.LOAD: "Cargando",
    Phase.SAVE: "Guardando",
    Phase.VALIDATE: "Validando",
    Phase.VERIFY: "Comparando",
}


def _count(number: int, one: str, more: str) -> str:
    return f"{number} {one if number == 1 else more}"


def _count_results(n_traces: int, n_files: int) -> tuple[str, str]:
    return _count(n_traces, "trace", "traces"), _count(n_files, "sub-batch", "sub-batches")


def count_sources(plan: Sequence[PlannedFile]) -> tuple[str, str]:
    total = format_size(sum(planned.size_bytes for planned in plan))
    return _count(len(plan), "original", "originales"), total


def label_progress(where: str, phase: Phase, source: Path) -> str:
    """Return what a bar is about; of a long name the end, which numbers the batches."""
    name = _printable(batch_stem(source.name) or source.name)
    if len(name) > _NAME_COLUMNS:
        name = f"…{name[1 - _NAME_COLUMNS :]}"
    return f"{where} {_PHASE_LABELS[phase]} {name}"


Report = Union[SplitReport, VerifyReport]


def describe_report(report: Report, seconds: float) -> str:
    """Return the line (Spanish) that tells what became of one file, in how many seconds."""
    if isinstance(report, SplitReport):
        what = "omitido, ya tiene sus sub-batches (ni releídos ni comparados con -n)"
        if not report.skipped:
            what = _describe_split(report, seconds)
    elif report.unjudged:
        what = "sin comparar; lo escribió el modo normal, quita --low-memory"
    else:
        results = " en ".join(_count_results(report.n_traces, len(report.files)))
        what = f"igual: {results}; {_format_time(seconds)}"
    return f"{report.source.name}: {what}{'; original eliminado' * report.deleted}"


def _describe_split(report: SplitReport, seconds: float) -> str:
    validation = "sin validar"
    if report.validate_seconds is not None:
        validation = f"validación {_format_time(report.validate_seconds)}"
    text = (
        f"{' → '.join(_count_results(report.n_traces, len(report.files)))}, "
        f"{format_size(report.source_bytes)} → {format_size(report.output_bytes)}; "
        f"{_format_time(seconds)} (carga {_format_time(report.load_seconds)}, "
        f"guardado {_format_time(report.save_seconds)}, {validation})"
    )
    if report.peak_memory_bytes is not None:
        text += f"; memoria máxima hasta ahora {format_size(report.peak_memory_bytes)}"
    return text


def _describe_originals(reports: Sequence[Report], n_files: int) -> str:
    """Return how many of all originals are gone, what that freed, and how many are left."""
    deleted = [report for report in reports if report.deleted]
    told = []
    if deleted:
        freed = format_size(sum(report.source_bytes for report in deleted))
        told.append(f"{_count(len(deleted), 'eliminado', 'eliminados')}, {freed} liberados")
    if n_kept := n_files - len(deleted):
        told.append(_count(n_kept, "conservado", "conservados"))
    return f"  Originales: {'; '.join(told)}."


def describe_error(error: SplitError, source: Path, output_dir: Path) -> list[str]:
    """Return what failed, what was left alone and what to do next (Spanish lines)."""
    where = "" if error.path == source else f" ({error.path})"
    lines = [f"ERROR {source}: {error.problem}{where}"]
    is_there = os.path.lexists(source)
    intact = "El original sigue intacto" if is_there else "El original ya no está en su sitio"
    if error.leftovers:
        names = ", ".join(path.name for path in error.leftovers)
        lines.append(f"  {intact}. No se pudo quitar de la salida: {names}")
    elif isinstance(error, VerificationError):
        lines.append(f"  {intact}; en la salida no se ha tocado nada.")
    else:
        lines.append(f"  {intact} y en la salida no queda nada de este intento.")
    if isinstance(error, SaveError):
        lines += [f"  {line}" for line in _describe_residual_parts(output_dir)]
    lines.append(f"  Qué hacer: {error.hint}.")
    return lines


def _describe_residual_parts(output_dir: Path) -> list[str]:
    """Return what killed runs have left there, or others are writing."""
    sizes = []
    with contextlib.suppress(OSError):
        for entry in os.scandir(output_dir):
            if entry.name.endswith(PART_SUFFIX):
                with contextlib.suppress(OSError):  # it went meanwhile
                    sizes.append(entry.stat().st_size)
    total = format_size(sum(sizes))
    return [f"Archivos .part residuales en la salida: {len(sizes)} ({total})."] if sizes else []


def _describe_loader(reports: Sequence[SplitReport]) -> list[str]:
    """Return what a loader takes that keeps some sub-batches while it loads one more."""
    n_loaded = _CACHED_FILES + 1
    sizes = sorted(n_bytes for report in reports for n_bytes in report.pickled_bytes)[-n_loaded:]
    if len(sizes) < n_loaded:
        return []
    return [
        f"  Un cargador con {_CACHED_FILES} sub-batches en caché y otro cargándose necesitará unos "
        f"{format_size(sum(sizes))} de memoria (más, si sus traces son muchos objetos pequeños)."
    ]


def describe_interruption(
    interrupted: Interrupted, current: Optional[Path], n_left: int, *, verify: bool
) -> list[str]:
    """Return what a signal has left (Spanish lines) of the file it met, and how to go on."""
    if current is None:
        head = "Interrumpido entre dos archivos: no ha quedado nada a medias."
    elif verify:
        head = f"Interrumpido al comparar {current.name}: no se ha escrito ni borrado nada de él."
    else:
        head = f"Interrumpido al dividir {current.name}: su original sigue intacto"
        names = ", ".join(path.name for path in interrupted.leftovers)
        head += (
            f"; no se pudo quitar de la salida: {names}"
            if names
            else " y en la salida no queda nada de él."
        )
    again = "repite el comando" + (" con --skip-existing para continuar" * (not verify))
    left = _count(n_left, "archivo queda", "archivos quedan")
    return [head, f"  {left} sin {'comparar' if verify else 'dividir'}. Qué hacer: {again}."]


class Outcome(NamedTuple):
    """What became of the files of a run; failures: the names of those that failed."""

    reports: Sequence[Report]
    failures: Sequence[str]
    seconds: float


def describe_summary(
    outcome: Outcome, output_dir: Path, *, verify: bool, delete_original: bool
) -> list[str]:
    """Return how many files ended how (Spanish), where they are and what a loader will need.

    What is zero is left out, and of a single file what its own line has told.  Why one failed was
    told at the time.
    """
    reports, failures, seconds = outcome
    n_files = len(reports) + len(failures)
    done = [each for each in reports if isinstance(each, SplitReport) and not each.skipped]
    verified = [each for each in reports if isinstance(each, VerifyReport)]
    n_unjudged = sum(each.unjudged for each in verified)
    unequal = ("distinto o con error", "distintos o con error")
    counts = (
        (len(done), "dividido", "divididos"),
        (len(reports) - len(done) - len(verified), "omitido", "omitidos"),
        (len(verified) - n_unjudged, "igual", "iguales"),
        (len(failures), *(unequal if verify else ("con error", "con error"))),
        (n_unjudged, "sin comparar", "sin comparar"),
    )
    told = [", ".join(_count(*each) for each in counts if each[0])]
    if len(done) > 1:
        n_traces, n_sub_batches = sum(x.n_traces for x in done), sum(len(x.files) for x in done)
        before = format_size(sum(each.source_bytes for each in done))
        after = format_size(sum(each.output_bytes for each in done))
        results = " en ".join(_count_results(n_traces, n_sub_batches))
        told.append(f"{results}, {before} → {after}")
    if n_files > 1:
        told.append(_format_time(seconds))
    lines = [f"Resumen: {'; '.join(told)}."]
    if done:
        lines.append(f"  Los sub-batches están en {output_dir}")
    if delete_original:
        lines.append(_describe_originals(reports, n_files))
    lines += _describe_loader(done)
    return lines + [f"  Con error: {name}" for name in failures if n_files > 1]


def describe_plan(
    plan: Sequence[PlannedFile],
    output_dir: Path,
    traces_per_batch: int,
    *,
    compress: bool,
    delete_original: bool,
) -> list[str]:
    """Return what a run would do (Spanish, one line a file), and the space that it would need."""
    suffix = (GZIP if compress else PLAIN).suffix
    lines = ["Simulación: no se crea, cambia ni borra nada."]
    for planned in plan:
        if planned.refusal is not None:
            what = f"fallaría: {planned.refusal.problem}. Qué hacer: {planned.refusal.hint}"
        elif planned.skip:
            what = "se omitiría: ya tiene sus sub-batches"
        else:
            stem = batch_stem(planned.source.name)
            what = f"se dividiría en {stem}_sub0000{suffix}…, de hasta {traces_per_batch} traces"
        size = f" ({format_size(planned.size_bytes)})" if planned.size_bytes else ""
        lines.append(f"{planned.source}{size}: {what}")
    doomed = [planned for planned in plan if planned.may_be_deleted]
    if delete_original and doomed:
        originals, total = count_sources(doomed)
        lines.append(f"A eliminar, ya validados: {originals} ({total}).")
    needed = needed_disk_bytes(plan, output_dir, delete_original=delete_original)
    if needed:
        about = "unos" if compress else "al menos"  # what gzip has saved so far is not known
        with contextlib.suppress(OSError):  # the disk does not tell
            free = format_size(free_disk_bytes(output_dir))
            lines.append(f"Espacio: {free} libres; harán falta {about} {format_size(needed)}.")
    gzip = "sin isal; con él va más rápido (pip install isal)"
    if deflate_library is not zlib:
        gzip = "con isal"
    return [*lines, *_describe_residual_parts(output_dir), f"Gzip: {gzip}."]


# ---------------------------------------------------------------------------------------------
# Command line


_SIGNALS = [signal.SIGINT, signal.SIGTERM]
if hasattr(signal, "SIGHUP"):  # not on Windows
    _SIGNALS.append(signal.SIGHUP)


class _Signals:
    """SIGINT, SIGTERM and SIGHUP (the terminal is gone): kept, so that they hit no half-done step.

    They are noticed where check is called; between raise_at_once and defer at once, as a question
    to the user needs it.
    at_the_end: the process ends with this block, and what comes after it is of no use any more.
    """

    def __init__(self, *, at_the_end: bool) -> None:
        self.caught: Optional[int] = None
        self._at_the_end = at_the_end
        self._deferred = True
        self._previous: dict[int, Any] = {}

    def __enter__(self) -> _Signals:
        for number in _SIGNALS:
            # Ignored by whoever started us (nohup, a shell's background job): leave it so.
            if signal.getsignal(number) is not signal.SIG_IGN:
                self._previous[number] = signal.signal(number, self._catch)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for number, handler in self._previous.items():
            # Python would show a traceback for a Ctrl-C that comes while it shuts down.
            signal.signal(number, signal.SIG_IGN if self._at_the_end else handler)

    def _catch(self, number: int, frame: Optional[FrameType]) -> None:
        self.caught = self.caught or number
        if not self._deferred:
            self._deferred = True  # once is enough: a second one finds the first being told
            raise Interrupted

    def raise_at_once(self) -> None:
        self._deferred = False
        self.check()

    def defer(self) -> None:
        self._deferred = True

    def check(self) -> None:
        if self.caught:
            raise Interrupted

    def exit_code(self) -> int:
        """Return that of a shell for the first signal (128 and its number), 0 if there was none."""
        return 128 + self.caught if self.caught else 0


class _SpanishParser(argparse.ArgumentParser):
    _WORDS = (
        ("the following arguments are required:", "faltan argumentos obligatorios:"),
        ("expected one argument", "necesita un valor"),
        ("ignored explicit argument", "no admite el valor"),
        ("argument ", "argumento "),
    )

    given: Sequence[str] = ()  # all arguments, as typed

    def error(self, message: str) -> NoReturn:
        for english, spanish in self._WORDS:
            message = message.replace(english, spanish)
        super().error(message + self._hint_at_misspelt())

    def _hint_at_misspelt(self) -> str:
        """Return what was probably meant by the first option that does not exist."""
        known = list(self._option_string_actions)
        for word in (word.partition("=")[0] for word in self.given):
            if not word.startswith("-") or word in known or word.strip("-") == "":
                continue
            close = [option for option in known if option in (f"-{word}", word.replace("_", "-"))]
            if word.startswith("--"):
                close += [option for option in known if option.startswith(word)]
                close += difflib.get_close_matches(word, known, 1)
            if close:
                return f". ¿Querías decir {close[0]}? Las opciones se escriben enteras"
        return ""

    def refuse_unknown(self, words: Sequence[str]) -> NoReturn:
        """End for arguments that no option takes; where they are files, a shell made them."""
        shown = " ".join(words[:3]) + (f"… (y {len(words) - 3} más)" if len(words) > 3 else "")
        message = f"argumentos desconocidos: {shown}"
        files = [word for word in words if os.path.isfile(word)]
        if files and not self._hint_at_misspelt():
            folder, name = os.path.split(files[0])
            suffix = name[len(batch_stem(name) or name) :]
            where = "" if "--pattern" in self.given else f"--input {shlex.quote(folder or '.')} "
            message += (
                ". Son archivos que existen: el shell ha desplegado un comodín sin comillas. Usa "
                f"{where}--pattern '*{suffix}', con comillas"
            )
        self.error(message)


def _named_path(text: str) -> Path:
    if not text:  # an unset variable: Path would take it for the current folder
        raise argparse.ArgumentTypeError("está vacío")
    return Path(text)


def _at_least_one(text: str) -> int:
    if not re.fullmatch("0*[1-9][0-9]{0,17}", text):
        raise argparse.ArgumentTypeError(f"debe ser un entero de 1 o más, no «{text}»")
    return int(text)


def _make_parser() -> _SpanishParser:
    parser = _SpanishParser(
        description="Divide batches grandes de traces en batches más pequeños, sin perder ninguno.",
        epilog="ejemplos:\n"
        "  %(prog)s --input traces_data/ --output traces_data_split/\n"
        "  %(prog)s -i traces_data/ -o traces_data_split/ -n 100 --low-memory",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        add_help=False,
        allow_abbrev=False,  # --del must not delete
    )
    # Those of the guide.  Paths are lists, so that a second one is seen, and not passed over.
    add = parser.add_argument_group("argumentos").add_argument
    add_path = functools.partial(add, action="append", type=_named_path, required=True)
    add_path("--input", "-i", help="archivo o carpeta de entrada (requerido)")
    add_path("--output", "-o", help="carpeta de salida (requerido)")
    add(
        "--traces-per-batch",
        "-n",
        type=_at_least_one,
        default=DEFAULT_TRACES_PER_BATCH,
        metavar="N",
        help="traces por batch (default: %(default)s)",
    )
    switch = functools.partial(add, action="store_true")
    switch("--no-compress", help="no comprimir la salida con gzip")
    switch(
        "--delete-original",
        help="eliminar cada original ya dividido y validado (¡CUIDADO!); antes pregunta",
    )
    switch("--no-validate", help="no validar la división")
    pattern_help = "patrón de archivos de una carpeta (default: %(default)s)"
    add("--pattern", default="*.pkl*", help=pattern_help)
    switch("--quiet", "-q", help="modo silencioso: solo errores y avisos")

    add = parser.add_argument_group("más opciones").add_argument
    switch = functools.partial(add, action="store_true")
    switch("--low-memory", help="dividir sin cargar el archivo")
    switch("--skip-existing", help="omitir los batches que ya tienen sus sub-batches")
    switch(
        "--verify",
        help="comparar los sub-batches que ya hay con sus originales, sin escribir nada",
    )
    switch("--dry-run", help="mostrar lo que se haría, sin tocar nada")
    switch("--yes", "-y", help="no preguntar antes de eliminar")
    jobs_help = (
        "hilos para comprimir y validar (default: los procesadores disponibles; "
        "con --low-memory, 4 como mucho)"
    )
    add("--jobs", "-j", type=_at_least_one, metavar="N", help=jobs_help)
    library = "sin isal" if deflate_library is zlib else "con isal"
    version = f"%(prog)s {__version__} (Python {platform.python_version()}, {library})"
    add("--version", action="version", version=version, help="mostrar la versión")
    add("--help", "-h", action="help", help="mostrar esta ayuda")
    return parser


def _parse_args(argv: Optional[Sequence[str]]) -> argparse.Namespace:
    """Parse, and refuse (exit code 2) what cannot be meant."""
    parser = _make_parser()
    parser.given = sys.argv[1:] if argv is None else argv
    args, unknown = parser.parse_known_args(argv)
    if unknown:
        parser.refuse_unknown(unknown)
    for flag, paths in (("--input/-i", args.input), ("--output/-o", args.output)):
        if len(paths) > 1:
            parser.error(
                f"argumento {flag}: se ha indicado dos veces ({paths[0]} y {paths[1]}) y solo "
                "puede ser una: para varios archivos, su carpeta y --pattern"
            )
    args.input, args.output = args.input[0], args.output[0]
    for name, path in (("entrada", args.input), ("salida", args.output)):
        try:
            os.stat(path)
        except FileNotFoundError:
            if path is args.input:
                what = "es un enlace simbólico roto" if path.is_symlink() else "no existe"
                parser.error(f"la entrada {what}: {path}")
        except OSError as error:
            parser.error(f"la {name} no se puede usar ({explain_os_error(error)}): {path}")
    if not args.input.is_dir() and batch_stem(args.input.name) is None:
        parser.error(
            f"la entrada no termina en .pkl ni en .pkl.gz: {args.input}. Si es un pickle, "
            "renómbrala; si está comprimida de otra forma, descomprímela"
        )
    if args.output.exists() and not args.output.is_dir():
        parser.error(f"la salida es un archivo, no una carpeta: {args.output}")
    if args.output.exists() and args.input.samefile(args.output):
        parser.error("la entrada y la salida son la misma carpeta")
    if args.delete_original and args.no_validate:
        parser.error(
            "--delete-original no se puede usar con --no-validate: sin validar no se elimina nada"
        )
    for flag in ("no_validate", "skip_existing", "no_compress", "dry_run"):
        if args.verify and getattr(args, flag):
            parser.error(f"--verify no se puede usar con --{flag.replace('_', '-')}")
    args.input, args.output = absolute(args.input), absolute(args.output)
    return args


def _open_standard_streams() -> None:
    """Make descriptors 0 to 2 exist, or a data file gets one of them and is printed into."""
    for fd in range(3):
        try:
            os.fstat(fd)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest free number: fd
    for stream in (sys.stdin, sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a locale without ñ must not stop the work
            stream.reconfigure(errors="backslashreplace")


def _may_delete(plan: Sequence[PlannedFile], args: argparse.Namespace, console: Console) -> bool:
    """Ask once, where originals are to go and --yes is missing; all but a clear yes is a no."""
    doomed = [planned for planned in plan if planned.may_be_deleted]
    if not (args.delete_original and doomed) or args.yes:
        return True
    if not console.can_ask():
        console.error(
            "ERROR --delete-original necesita confirmación y aquí no hay terminal para pedirla.",
            "  No se ha hecho nada. Qué hacer: añade --yes si quieres eliminar los originales.",
        )
        return False
    for planned in doomed:
        console.error(f"  {planned.source} ({format_size(planned.size_bytes)})")
    originals, total = count_sources(doomed)
    when = "cuando sus sub-batches estén validados"
    if args.verify:
        when = "si sus sub-batches son iguales"
    console.error(
        f"A eliminar: {originals} ({total}), cada uno {when} y en "
        "disco. ¿Tienes copia de seguridad y quieres continuar? [s/N]"
    )
    if sys.stdin.readline().strip().lower() in ("s", "si", "sí", "y", "yes"):
        return True
    console.error("Sin una «s» no se borra ni se divide: no se ha hecho nada.")
    return False


def _warn_of_run(plan: Sequence[PlannedFile], args: argparse.Namespace, console: Console) -> None:
    """Say before any work what the whole run may come to regret."""
    if args.input.is_dir():
        if aside := find_left_aside(args.input, args.pattern):
            console.warn(args.input, describe_left_aside(aside))
        if subs := find_sub_batches_among(plan):
            console.warn(
                args.input,
                f"contiene batches y también sub-batches suyos ({some_names(subs)}): se dividirán "
                "unos y otros, y cada uno de esos traces saldrá dos veces; sepáralos o usa "
                "--pattern",
            )
    elif (
        not args.delete_original
        and not args.verify
        and args.output.exists()
        and args.output.samefile(args.input.parent)
    ):
        console.warn(
            args.output,
            "la salida es la carpeta del original: un cargador que lea ahí *.pkl.gz verá cada "
            "trace dos veces; elige otra, o aparta después el original",
        )
    if not args.verify:
        needed = needed_disk_bytes(plan, args.output, delete_original=args.delete_original)
        console.warn(args.output, *foresee_full_disk(needed, args.output))


class _Run:
    """The planned files, one after the other: a failure of one does not stop the others."""

    def __init__(self, args: argparse.Namespace, console: Console, signals: _Signals) -> None:
        self._args = args
        self._console = console
        self._signals = signals
        self._reports: list[Report] = []
        self._failures: list[str] = []
        self._exit_code = 0
        self._work_on: Callable[..., Report] = functools.partial(
            verify_file, low_memory=args.low_memory
        )
        if not args.verify:
            self._work_on = functools.partial(
                split_file,
                traces_per_batch=args.traces_per_batch,
                compress=not args.no_compress,
                validate=not args.no_validate,
                skip_existing=args.skip_existing,
                low_memory=args.low_memory,
                jobs=args.jobs,
                trim=False,  # see tune_malloc
            )

    def do_all(self, plan: Sequence[PlannedFile]) -> int:
        """Do all files, or as many as come before a signal; return the exit code."""
        started = time.perf_counter()
        n_begun = 0
        gc.freeze()  # the modules and the plan: not to be walked again with every file
        try:
            for planned in plan:
                self._signals.check()
                n_begun += 1
                self._do(planned, f"{n_begun}/{len(plan)}", disk_was_told=len(plan) == 1)
                self._console.close_bar()
                gc.collect()
                trim_memory()  # what is kept would not count as available to the next
        except Interrupted as interrupted:
            n_done = len(self._reports) + len(self._failures)
            current = plan[n_done].source if n_done < n_begun else None
            lines = describe_interruption(
                interrupted, current, len(plan) - n_done, verify=self._args.verify
            )
            self._console.error(*lines)
            self._exit_code = 1  # should it not have been a signal
        else:
            if self._signals.caught:
                self._console.error("Interrumpido cuando ya no quedaba ningún archivo por hacer.")
        gc.unfreeze()
        if self._reports or self._failures:
            outcome = Outcome(self._reports, self._failures, time.perf_counter() - started)
            verify, delete_original = self._args.verify, self._args.delete_original
            self._console.report(
                *describe_summary(
                    outcome, self._args.output, verify=verify, delete_original=delete_original
                )
            )
        return self._signals.exit_code() or self._exit_code

    def _do(self, planned: PlannedFile, where: str, *, disk_was_told: bool) -> None:
        """Split or verify one file, and tell what became of it; raise Interrupted."""
        args = self._args
        label = functools.partial(label_progress, where, source=planned.source)

        def progress(phase: Phase, done: int, expected: int) -> None:
            self._signals.check()
            self._console.show_progress(label(phase), done, expected)

        started = time.perf_counter()
        try:
            if planned.is_due:
                self._announce(planned, where, disk_was_told=disk_was_told)
            if planned.refusal is not None:
                raise planned.refusal
            report = self._work_on(
                planned.source,
                args.output,
                delete_original=args.delete_original and not planned.skip,  # what was confirmed
                progress=progress,
            )
        except SplitError as error:
            self._fail(planned, describe_error(error, planned.source, args.output))
        except Interrupted:
            raise
        except BaseException as error:  # a fault of this script: show it, and go on with the others
            trace = traceback.format_exc().splitlines()
            fault = SplitError(planned.source, "fallo inesperado", REPORT_HINT)
            fault.leftovers = getattr(error, "leftovers", ())
            self._fail(planned, describe_error(fault, planned.source, args.output) + trace)
        else:
            self._tell(planned, report, time.perf_counter() - started)

    def _announce(self, planned: PlannedFile, where: str, *, disk_was_told: bool) -> None:
        """Say which file is begun, and what it may come to regret; the disk may be told already."""
        args = self._args
        warnings = []
        if not args.verify and not args.low_memory:
            warnings += foresee_lack_of_memory(planned)
        if not args.verify and not disk_was_told:
            warnings += foresee_full_disk(planned.size_bytes, args.output)
        self._console.warn(planned.source, *warnings)
        what = "Comparando" if args.verify else "Dividiendo"
        size = format_size(planned.size_bytes)
        self._console.announce(f"{what} {where}: {planned.source.name} ({size})")

    def _tell(self, planned: PlannedFile, report: Report, seconds: float) -> None:
        self._reports.append(report)
        self._console.report(describe_report(report, seconds))
        self._console.warn(report.source, *report.warnings)
        because = report.kept_because
        if isinstance(report, VerifyReport):
            if report.unjudged:  # exit 0 is to mean that all are equal: somebody may delete by it
                self._exit_code = 1
        elif self._args.delete_original and report.skipped:
            because = "ya estaba dividido; para comprobarlo y eliminarlo, usa --verify"
        elif self._args.delete_original and planned.skip:
            because = "no estaba entre los que se iban a eliminar"
        if because is not None:
            self._console.warn(report.source, f"original conservado: {because}")
            if not planned.skip:  # else it was in no list, so nobody expects it to go
                self._exit_code = 1

    def _fail(self, planned: PlannedFile, lines: Sequence[str]) -> None:
        self._failures.append(planned.source.name)
        self._console.error(*lines)
        self._exit_code = 1


def _simulate(plan: Sequence[PlannedFile], args: argparse.Namespace, console: Console) -> int:
    """Show what the run would do; under --quiet, only what would fail."""
    lines = describe_plan(
        plan,
        args.output,
        args.traces_per_batch,
        compress=not args.no_compress,
        delete_original=args.delete_original,
    )
    console.report(*lines)
    for planned in plan:
        if planned.is_due and not args.low_memory:
            console.warn(planned.source, *foresee_lack_of_memory(planned))
        if console.quiet and planned.refusal is not None:
            problem = f"fallaría: {planned.refusal.problem}"
            console.refuse(planned.source, problem, planned.refusal.hint)
    unwritable = explain_unwritable(args.output)
    if unwritable is not None:
        problem = f"no se puede escribir en la carpeta de salida ({unwritable})"
        console.refuse(args.output, problem, SPACE_HINT)
    will_fail = any(planned.refusal is not None for planned in plan)
    return 1 if will_fail or unwritable is not None else 0


def _make_plan(args: argparse.Namespace, console: Console) -> list[PlannedFile]:
    """Return what is to be done with which files; nothing, and say why, where there are none."""
    try:
        sources = find_batches(args.input, args.pattern)
    except LoadError as error:
        console.error(*describe_error(error, args.input, args.output))
        return []
    if not sources:
        console.error(*describe_nothing_found(args.input, args.pattern))
        return []
    if args.verify:
        return [PlannedFile(source, size_of(source)) for source in sources]
    return plan_run(
        sources, args.output, skip_existing=args.skip_existing, look_inside=args.dry_run
    )


def main(argv: Optional[Sequence[str]] = None) -> int:
    """Run the command line; return the exit code (usage errors leave by SystemExit, with 2).

    0: all split, skipped, or equal.  1: a file failed, an original that was to go was kept, a set
    could not be judged, nothing was found, or the deletion was not confirmed.  129, 130, 143:
    SIGHUP, Ctrl-C, SIGTERM.  argv: the process goes on after it; without it, it is to end.
    """
    with _Signals(at_the_end=argv is None) as signals:
        _open_standard_streams()
        console = Console()
        try:
            signals.raise_at_once()
            args = _parse_args(argv)
            console.quiet = args.quiet
            plan = _make_plan(args, console)
            if not plan:
                return 1
            _warn_of_run(plan, args, console)
            if args.dry_run:
                return _simulate(plan, args, console)
            if not _may_delete(plan, args, console):
                return 1
            signals.defer()
            tune_malloc(low_memory=args.low_memory)
            return _Run(args, console, signals).do_all(plan)
        except Interrupted:
            console.error("Interrumpido: no se ha hecho nada.")
            return signals.exit_code()


if __name__ == "__main__":
    sys.exit(main())
