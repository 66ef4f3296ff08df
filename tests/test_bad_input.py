"""One clear Spanish error for each bad input: nothing of it is left, and the others are done."""

from __future__ import annotations

import collections
import gzip
import os
import pickle
import re
import resource
import stat
import urllib.parse
import zipfile
from pathlib import Path
from typing import Callable

import numpy as np
import pytest
from helpers import (
    LIMIT_SECONDS,
    load_set,
    mounted_tmpfs,
    names,
    pickled_call,
    pickled_list,
    pickled_value,
    snapshot,
    split,
    write_batch,
    write_module,
)

MODULE = """
class ListOfTraces(list):
    pass


class OddError(Exception):
    pass


def raise_odd():
    raise OddError("from inside a trace")


def raise_cuda():
    raise RuntimeError(
        "Attempting to deserialize object on a CUDA device but torch.cuda.is_available() is False."
    )


def load_and_refuse_to_save():
    return Unsavable()


class Unsavable:
    def __reduce__(self):
        raise OddError("not to be saved")
"""

GOOD_TRACES = [{"question_id": f"q{i}"} for i in range(5)]
GOOD_NAMES = ["good_sub0000.pkl.gz", "good_sub0001.pkl.gz"]

Make = Callable[[Path], object]


def content(data: bytes) -> Make:
    return lambda path: path.write_bytes(data)


def pickled(value: object) -> Make:
    return content(pickle.dumps(value))


def zipped_pickle() -> bytes:
    return gzip.compress(pickle.dumps([os.urandom(4000), 2]), mtime=0)


def damaged_crc() -> bytes:
    data = bytearray(zipped_pickle())
    data[-8] ^= 1  # RFC 1952, 2.3.1: CRC32 is the first of the last two words
    return bytes(data)


def damaged_length() -> bytes:
    data = bytearray(zipped_pickle())
    data[-1] ^= 1
    return bytes(data)


def damaged_deflate() -> bytes:
    data = bytearray(zipped_pickle())
    data[10] |= 0b110  # RFC 1951, 3.2.3: a block of the reserved type
    return bytes(data)


def make_torch_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("archive/data.pkl", pickle.dumps([1, 2]))
        archive.writestr("archive/version", "3\n")


def nested_too_deep() -> bytes:
    return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."


EMPTY = "está vacío"
TRUNCATED = "está truncado"
NO_PICKLE = "no es un pickle o está dañado"
BAD_GZIP = "el gzip está dañado"
MORE = "hay más datos después del primer pickle"
CODE_FAILS = "el código de sus traces falla al cargarlos"
NO_CODE = "falta código que sus traces necesitan"

BAD_FILES = [
    pytest.param("gz", content(zipped_pickle()[:-2000]), TRUNCATED, id="truncated-gzip"),
    pytest.param("gz", content(zipped_pickle()[:-4]), TRUNCATED, id="truncated-gzip-trailer"),
    pytest.param("gz", content(zipped_pickle()[:5]), TRUNCATED, id="truncated-gzip-header"),
    pytest.param("gz", content(damaged_crc()), BAD_GZIP, id="wrong-gzip-crc"),
    pytest.param("gz", content(damaged_length()), BAD_GZIP, id="wrong-gzip-length"),
    pytest.param("gz", content(damaged_deflate()), BAD_GZIP, id="damaged-deflate"),
    pytest.param("gz", content(zipped_pickle() + b"junk"), BAD_GZIP, id="junk-after-gzip"),
    pytest.param("plain", content(pickle.dumps([1], 2)[:-1]), TRUNCATED, id="pickle-without-stop"),
    pytest.param("plain", content(pickle.dumps(["x" * 99])[:50]), TRUNCATED, id="truncated-pickle"),
    pytest.param("plain", content(b"\x80\x04\xff\xff."), NO_PICKLE, id="damaged-pickle"),
    pytest.param("plain", content(b"\x80\x63]."), NO_PICKLE, id="unknown-protocol"),
    pytest.param("plain", content(b""), EMPTY, id="empty-file"),
    pytest.param("gz", content(gzip.compress(b"")), EMPTY, id="empty-gzip"),
    pytest.param("plain", content(b"pregunta;respuesta\n"), NO_PICKLE, id="text"),
    pytest.param("plain", content(pickle.dumps([1]) * 2), MORE, id="two-pickles"),
    pytest.param(
        "gz", content(gzip.compress(pickle.dumps([1])) * 2), MORE, id="two-pickles-as-gzip-members"
    ),
    pytest.param("gz", pickled({"a": 1}), "un objeto dict de longitud 1", id="dict"),
    pytest.param("gz", pickled("traces"), "un objeto str de longitud 6", id="str"),
    pytest.param("gz", pickled(7), "un objeto int,", id="int"),
    pytest.param("gz", pickled(None), "un objeto NoneType,", id="none"),
    pytest.param("gz", pickled({1, 2}), "un objeto set de longitud 2", id="set"),
    pytest.param("gz", pickled(np.zeros(3)), "un objeto ndarray de longitud 3", id="ndarray"),
    pytest.param("gz", pickled(np.zeros(())), "un objeto ndarray,", id="ndarray-without-length"),
    pytest.param(
        "gz", pickled(collections.deque([1])), "un objeto deque de longitud 1", id="deque"
    ),
    pytest.param(
        "gz",
        pickled(urllib.parse.urlsplit("http://example.org")),
        "un objeto SplitResult de longitud 5",
        id="named-tuple",
    ),
    pytest.param(
        "plain",
        content(b"\x80\x02" + pickled_call("bad_traces", "ListOfTraces", [1, 2]) + b"."),
        "un objeto ListOfTraces de longitud 2",
        id="list-subclass",
    ),
    pytest.param("gz", pickled([]), "la lista de traces está vacía", id="empty-list"),
    pytest.param("gz", pickled(([1, 2], [0, 1])), "un objeto tuple de longitud 2", id="tuple"),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("no_such_module", "Trace"))),
        f"{NO_CODE} (ModuleNotFoundError: No module named 'no_such_module')",
        id="missing-module",
    ),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("collections", "NoSuchTrace"))),
        f"{NO_CODE} (AttributeError",
        id="missing-class",
    ),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("__main__", "Trace"))),
        "necesita «Trace», definido en el script que creó el archivo",
        id="class-of-main",
    ),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("__main__", "_Reason", (), "", ""))),
        "necesita «_Reason»",
        id="class-of-main-that-the-script-has-too",
    ),
    pytest.param("plain", make_torch_zip, "es un zip de torch.save", id="torch-zip"),
    pytest.param(
        "plain",
        content(nested_too_deep()),
        "No se pudo guardar: sus traces están anidados a demasiada profundidad",
        id="nested-too-deep-to-save",
    ),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("bad_traces", "raise_odd"))),
        f"{CODE_FAILS} (OddError: from inside a trace)",
        id="trace-that-raises-on-load",
    ),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("bad_traces", "load_and_refuse_to_save"))),
        "sus traces no se pueden volver a guardar con pickle (OddError: not to be saved)",
        id="trace-that-raises-on-save",
    ),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("bad_traces", "raise_cuda"))),
        "contiene tensores de una GPU que aquí no se puede usar",
        id="cuda-tensor",
    ),
    pytest.param("plain", lambda path: path.symlink_to("nowhere"), "no existe", id="dangling-link"),
    pytest.param("plain", os.mkfifo, "no es un archivo normal", id="fifo"),
    pytest.param(
        "plain",
        content(pickled_list(pickled_call("sys", "exit", 0))),
        CODE_FAILS,
        id="trace-that-exits",
    ),
]


def errors_of(stderr: str) -> list[str]:
    """Return the error messages, each with its indented lines; nothing else may be there."""
    messages = re.split(r"^(?=ERROR )", stderr, flags=re.MULTILINE)
    assert messages[0] == ""
    return messages[1:]


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize(("kind", "make", "expected"), BAD_FILES)
def test_bad_file_is_one_error_and_the_others_are_done(
    tmp_path: Path, kind: str, make: Make, expected: str
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    bad = source / ("bad.pkl.gz" if kind == "gz" else "bad.pkl")
    make(bad)
    env = write_module(tmp_path / "modules", "bad_traces", MODULE)
    before = snapshot(source)
    done = split("-i", source, "-o", output, "-n", 3, "--delete-original", "--yes", env=env)
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    (error,) = errors_of(done.stderr)
    assert "bad" in error.splitlines()[0]
    assert expected in error.splitlines()[0]
    assert "El original sigue intacto y en la salida no queda nada de este intento." in error
    assert re.search(r"^  Qué hacer: \S.+\.$", error, re.MULTILINE)
    assert names(output) == GOOD_NAMES
    assert load_set(output, "good") == [GOOD_TRACES[:3], GOOD_TRACES[3:]]
    del before["good.pkl.gz"]
    assert snapshot(source) == before
    assert "1 dividido, 1 con error" in done.stdout


def test_folder_with_the_name_of_a_batch_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "in" / "x.pkl").mkdir(parents=True)
    write_batch(tmp_path / "in" / "good.pkl.gz", GOOD_TRACES)
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out", "-n", 3)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == GOOD_NAMES


@pytest.mark.timeout(LIMIT_SECONDS)
def test_single_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pkl")
    done = split("-i", tmp_path / "x.pkl", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert "x.pkl: no es un archivo normal" in done.stderr
    assert names(tmp_path / "out") == []


# Permissions


def test_file_without_read_permission(tmp_path: Path, unprivileged: tuple[str, ...]) -> None:
    write_batch(tmp_path / "in" / "good.pkl.gz", GOOD_TRACES)
    bad = write_batch(tmp_path / "in" / "bad.pkl", [1])
    content_before = bad.read_bytes()
    bad.chmod(0)
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out", "-n", 3, prefix=unprivileged)
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "bad.pkl: no se puede leer (permiso denegado)" in error
    assert "Qué hacer: comprueba los permisos" in error
    assert names(tmp_path / "out") == GOOD_NAMES
    assert stat.S_IMODE(bad.stat().st_mode) == 0
    bad.chmod(0o600)
    assert bad.read_bytes() == content_before


def test_output_folder_without_write_permission(
    tmp_path: Path, unprivileged: tuple[str, ...]
) -> None:
    for name in ("a.pkl.gz", "b.pkl"):
        write_batch(tmp_path / "in" / name, GOOD_TRACES)
    (tmp_path / "out").mkdir(0o555)
    before = snapshot(tmp_path / "in")
    done = split(
        *("-i", tmp_path / "in", "-o", tmp_path / "out", "--delete-original", "--yes"),
        prefix=unprivileged,
    )
    assert done.returncode == 1
    errors = errors_of(done.stderr)
    assert len(errors) == 2
    for error in errors:
        assert "No se pudo guardar: permiso denegado" in error
        assert "Qué hacer: comprueba el espacio (df -h) y los permisos" in error
    assert names(tmp_path / "out") == []
    assert snapshot(tmp_path / "in") == before


@pytest.mark.parametrize(
    "mode", [0o000, 0o300, 0o400], ids=["closed", "no-listing", "listing-only"]
)
def test_input_folder_that_cannot_be_listed(
    tmp_path: Path, unprivileged: tuple[str, ...], mode: int
) -> None:
    write_batch(tmp_path / "in" / "a.pkl", GOOD_TRACES)
    (tmp_path / "in").chmod(mode)
    try:
        done = split("-i", tmp_path / "in", "-o", tmp_path / "out", prefix=unprivileged)
    finally:
        (tmp_path / "in").chmod(0o700)
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "in: no se puede leer (permiso denegado)" in error
    assert not (tmp_path / "out").exists()


def test_input_below_a_closed_folder_shows_no_traceback(
    tmp_path: Path, unprivileged: tuple[str, ...]
) -> None:
    write_batch(tmp_path / "closed" / "a.pkl", GOOD_TRACES)
    (tmp_path / "closed").chmod(0)
    try:
        done = split("-i", tmp_path / "closed/a.pkl", "-o", tmp_path / "out", prefix=unprivileged)
    finally:
        (tmp_path / "closed").chmod(0o700)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists()


# Memory and disk


def test_batch_larger_than_the_memory(tmp_path: Path) -> None:
    size = 600 << 20
    write_batch(tmp_path / "in" / "good.pkl.gz", GOOD_TRACES)
    bad = tmp_path / "in" / "bad.pkl"
    with bad.open("wb") as file:  # one bytes object, its zeros a hole in the file
        file.write(b"\x80\x04]\x8e" + size.to_bytes(8, "little"))
        file.seek(size, os.SEEK_CUR)
        file.write(b"a.")
    before = bad.stat()
    done = split(
        *("-i", tmp_path / "in", "-o", tmp_path / "out", "-n", 3),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_AS, (size // 2, size // 2)),
    )
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "bad.pkl: no hay memoria suficiente para cargarlo entero" in error
    assert "Qué hacer: usa --low-memory" in error
    assert "Traceback" not in done.stderr
    assert names(tmp_path / "out") == GOOD_NAMES
    after = bad.stat()
    assert (after.st_size, after.st_mtime_ns) == (before.st_size, before.st_mtime_ns)


def test_no_memory_for_a_thread_is_told_as_that(tmp_path: Path) -> None:
    write_batch(tmp_path / "a.pkl", [1, 2])
    huge = 1 << 46  # bytes of stack for each new thread
    done = split(
        *("-i", tmp_path / "a.pkl", "-o", tmp_path / "out"),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_STACK, (huge, huge)),
    )
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert "no hay memoria suficiente" in error
    assert names(tmp_path / "out") == []


def test_too_little_memory_to_validate_is_not_told_as_a_bad_disk(tmp_path: Path) -> None:
    module = """
def rebuild(loads=[]):
    loads.append(1)
    if len(loads) > 1:
        raise MemoryError
    return Trace()

class Trace:
    def __reduce__(self):
        return rebuild, ()
"""
    env = write_module(tmp_path / "modules", "greedy", module)
    (tmp_path / "a.pkl").write_bytes(pickled_list(pickled_call("greedy", "rebuild")))
    done = split("-i", tmp_path / "a.pkl", "-o", tmp_path / "out", env=env)
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert (
        "la validación falló: está bien escrito, pero no se carga: no hay memoria suficiente"
        in error
    )
    assert "Qué hacer: usa --low-memory" in error
    assert names(tmp_path / "out") == []


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("more", [(), ("--no-compress",)], ids=["gzip", "plain"])
def test_full_disk_keeps_original_and_counts_residual_parts(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "bad.pkl", [os.urandom(300_000) for _ in range(6)])
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    before = snapshot(source)["bad.pkl"]
    with mounted_tmpfs(output, "1m") as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        (output / "other_sub0000.pkl.gz.part").write_bytes(b"x" * 100)
        done = split(*("-i", source, "-o", output, "-n", 2, "--delete-original", "--yes", *more))
        left = names(output)
        good = load_set(output, "good")
    assert done.returncode == 1
    of_run, of_file, rest = done.stderr.split("\n", 2)
    assert of_run.startswith("AVISO out: harán falta unos 1.8 MB de disco y en la salida solo hay ")
    assert of_file.startswith("AVISO bad.pkl: harán falta unos 1.8 MB de disco y en la salida ")
    (error,) = errors_of(rest)
    assert "No se pudo guardar: no queda espacio en el disco" in error
    assert "El original sigue intacto y en la salida no queda nada de este intento." in error
    assert "Archivos .part residuales en la salida: 1 (100 B)." in error
    assert "Qué hacer: comprueba el espacio (df -h)" in error
    suffix = ".pkl" if more else ".pkl.gz"
    assert left == [*(f"good_sub000{i}{suffix}" for i in range(3)), "other_sub0000.pkl.gz.part"]
    assert good == [GOOD_TRACES[:2], GOOD_TRACES[2:4], GOOD_TRACES[4:]]
    assert snapshot(source) == {"bad.pkl": before}


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("more", [(), ("--no-compress",)], ids=["gzip", "plain"])
def test_limit_of_file_size_keeps_original(tmp_path: Path, more: tuple[str, ...]) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "bad.pkl", [1, 2, os.urandom(300_000)])
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    before = snapshot(source)["bad.pkl"]
    done = split(
        *("-i", source, "-o", output, "-n", 2, "--delete-original", "--yes", *more),
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000)),
    )
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert re.search(
        r"bad\.pkl: No se pudo guardar: .+ tamaño permitido \(.*bad_sub0001\.pkl", error
    )
    assert "residuales" not in error
    assert names(output) == [f"good_sub000{i}.pkl{'' if more else '.gz'}" for i in range(3)]
    assert snapshot(source) == {"bad.pkl": before}


# Sources that move under the reader

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
