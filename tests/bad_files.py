"""Files that cannot be split, and what is said of each."""

from __future__ import annotations

import collections
import gzip
import io
import os
import pickle
import re
import urllib.parse
import zipfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from helpers import pickled_call, pickled_list

BAD_MODULE = """
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


def damaged(place: int, change: Callable[[int], int]) -> Make:
    """Make a gzip file in which one byte was changed."""
    data = bytearray(zipped_pickle())
    data[place] = change(data[place])
    return content(bytes(data))


def calling(module: str, function: str, *args: object) -> Make:
    """Make a list whose only trace is what this call returns."""
    return content(pickled_list(pickled_call(module, function, *args)))


def nested_too_deep() -> bytes:
    return b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b"."


def zipped(*entries: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for entry in entries:
            archive.writestr(entry, pickle.dumps([1]))
    return buffer.getvalue()


TORCH_ZIP = zipped("archive/data.pkl", "archive/version")
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
    # RFC 1952, 2.3.1: a CRC-32 and the length are the end; RFC 1951, 3.2.3: a reserved block type.
    pytest.param("gz", damaged(-8, lambda byte: byte ^ 1), BAD_GZIP, id="wrong-gzip-crc"),
    pytest.param("gz", damaged(-1, lambda byte: byte ^ 1), BAD_GZIP, id="wrong-gzip-length"),
    pytest.param("gz", damaged(10, lambda byte: byte | 0b110), BAD_GZIP, id="damaged-deflate"),
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
        calling("no_such_module", "Trace"),
        f"{NO_CODE} (ModuleNotFoundError: No module named 'no_such_module')",
        id="missing-module",
    ),
    pytest.param(
        "plain",
        calling("collections", "NoSuchTrace"),
        f"{NO_CODE} (AttributeError",
        id="missing-class",
    ),
    pytest.param(
        "plain",
        calling("__main__", "Trace"),
        "necesita «Trace», definido en el script que creó el archivo",
        id="class-of-main",
    ),
    pytest.param(
        "plain",
        calling("__main__", "_Reason", (), "", ""),
        "necesita «_Reason»",
        id="class-of-main-that-the-script-has-too",
    ),
    pytest.param("plain", content(TORCH_ZIP), "es un zip de torch.save", id="torch-zip"),
    pytest.param(
        "plain",
        content(nested_too_deep()),
        "No se pudo guardar: sus traces están anidados a demasiada profundidad",
        id="nested-too-deep-to-save",
    ),
    pytest.param(
        "plain",
        calling("bad_traces", "raise_odd"),
        f"{CODE_FAILS} (OddError: from inside a trace)",
        id="trace-that-raises-on-load",
    ),
    pytest.param(
        "plain",
        calling("bad_traces", "load_and_refuse_to_save"),
        "sus traces no se pueden volver a guardar con pickle (OddError: not to be saved)",
        id="trace-that-raises-on-save",
    ),
    pytest.param(
        "plain",
        calling("bad_traces", "raise_cuda"),
        "contiene tensores de una GPU que aquí no se puede usar",
        id="cuda-tensor",
    ),
    pytest.param("plain", lambda path: path.symlink_to("nowhere"), "no existe", id="dangling-link"),
    pytest.param("plain", os.mkfifo, "no es un archivo normal", id="fifo"),
    pytest.param("plain", calling("sys", "exit", 0), CODE_FAILS, id="trace-that-exits"),
]


def errors_of(stderr: str) -> list[str]:
    """Return the error messages, each with its indented lines; nothing else may be there."""
    messages = re.split(r"^(?=ERROR )", stderr, flags=re.MULTILINE)
    assert messages[0] == ""
    return messages[1:]
