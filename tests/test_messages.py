"""Messages: do they name the true cause, and does the way out work, when followed to its end?

All bad files lie in one folder, which is split once in each mode: a run tells one error a file.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import io
import json
import lzma
import os
import pickle
import re
import shutil
import subprocess
import sys
import tarfile
import zlib
from pathlib import Path
from typing import NamedTuple, Optional

import cloudpickle
import joblib
import numpy as np
import pytest
from bad_files import BAD_FILES, BAD_MODULE, TORCH_ZIP, zipped
from helpers import (
    environment,
    load_set,
    names,
    pickled_call,
    pickled_list,
    run,
    snapshot,
    split,
    write_module,
)

from divide_conquer import LoadError, load_error, split_file

MODULE = """
import asyncio, builtins, pickle, signal


class NoText(Exception):
    def __str__(self):
        raise ValueError("no text")


class Panic(BaseException):
    pass


class OldVersion:
    def __new__(cls, a):
        return object.__new__(cls)


def rebuild(*args):
    return OldVersion(*args)


def fail_without_text():
    raise NoText


def panic():
    raise Panic("index out of bounds")


def cancel():
    raise asyncio.CancelledError


def fail(kind, text):
    raise getattr(builtins, kind, pickle.UnpicklingError)(text)


def fail_for_want_of_memory():
    try:
        raise MemoryError
    except MemoryError:
        raise ValueError("cannot make the tensor")


class MainThreadOnly:
    def __reduce__(self):
        return make_in_main_thread, ()


def make_in_main_thread():
    signal.signal(signal.SIGUSR1, signal.SIG_DFL)  # a ValueError in any other thread
    return MainThreadOnly()


class LoadsOnce:
    made = 0

    def __reduce__(self):
        return load_once, ()


def load_once():
    LoadsOnce.made += 1
    if LoadsOnce.made > 1:
        raise RuntimeError("only once")
    return LoadsOnce()


class PanicsWhenSaved:
    def __reduce__(self):
        panic()


class FailsToDump:
    def __reduce__(self):
        raise FileNotFoundError(2, "No such file", "/models/weights")


def make_what_fails_to_dump():
    return FailsToDump()


def __getattr__(name):
    if name == "OldName":
        raise AttributeError("OldName is gone")
    raise AttributeError(name)
"""
BROKEN_MODULE = "raise RuntimeError('this library needs another one')\n"


def call(function: str, *args: object) -> bytes:
    return pickled_list(pickled_call("odd", function, *args))


def extension_code() -> bytes:
    return b"\x80\x02]\x82\x05a."


def cloudpickle_function() -> bytes:
    return bytes(cloudpickle.dumps([lambda x: x + 1]))


def exception_with_keywords() -> bytes:
    return pickle.dumps([subprocess.CalledProcessError(1, cmd="serve")])


def out_of_band() -> bytes:
    return pickle.dumps([np.zeros(9)], 5, buffer_callback=lambda buffer: None)


def damaged_where_code_fails_first() -> bytes:
    data = bytearray(gzip.compress(call("rebuild", 1, 2)))
    data[-8] ^= 1  # RFC 1952, 2.3.1: its CRC-32
    return bytes(data)


LOW = "usa --low-memory"


class Kind(NamedTuple):
    """One bad file: its bytes, what the default mode says of it, and what --low-memory does.

    low: words of its error; "" where it splits the file.
    """

    data: bytes
    problem: str
    hint: str = LOW
    low: str = ""


SOUND = pickle.dumps([1, 2, 3])
ONE_TRACE = pickle.dumps({"question_id": "q"})
COPY_AGAIN = "vuelve a copiar"
CODE = "el código de sus traces falla al cargarlos"
MEMORY = "no hay memoria suficiente para cargarlo entero"
NO_GPU = "contiene tensores de una GPU que aquí no se puede usar"
NOT_A_LIST = "hay más datos después del primer pickle, que no es una lista"
NO_OTHER = "hay datos después del pickle que no son otro pickle"
NOT_AGAIN = "No se pudo guardar: sus traces no se pueden volver a guardar con pickle"
CAUSES = {
    "python2_text": Kind(b"\x80\x02](U\x02\xc3\xa9K\x01e.", "textos de Python 2"),
    "extension_code": Kind(extension_code(), "códigos de copyreg que aquí no están"),
    "lambda_of_main": Kind(
        pickled_list(b"c__main__\n<lambda>\n"), "necesita «<lambda>», definido en"
    ),
    "dill_main": Kind(pickled_list(b"c__builtin__\n__main__\n"), "guardadas con dill"),
    "missing_name": Kind(
        pickled_list(b"codd\nOldName\n"),
        "falta código que sus traces necesitan (AttributeError: Can't get attribute 'OldName'",
        "el entorno de Python que creó el archivo, o usa --low-memory",
        "",
    ),
    "broken_module": Kind(
        pickled_list(b"cbroken\nX\n"), f"{CODE} (RuntimeError: this library needs another one)"
    ),
    "another_version": Kind(call("rebuild", 1, 2), f"{CODE} (TypeError"),
    "keywords": Kind(exception_with_keywords(), f"{CODE} (TypeError"),
    "no_text": Kind(call("fail_without_text"), f"{CODE} (NoText)"),
    "panic": Kind(call("panic"), f"{CODE} (Panic: index out of bounds)"),
    "cancelled": Kind(call("cancel"), f"{CODE} (CancelledError)"),
    "other_file": Kind(
        pickled_list(pickled_call("io", "open", "/no/such/file")),
        f"{CODE} (FileNotFoundError: el archivo no existe, /no/such/file)",
    ),
    "os_error": Kind(call("fail", "OSError", "x"), f"{CODE} (OSError: x)"),
    "eof_error": Kind(call("fail", "EOFError", "x"), f"{CODE} (EOFError: x)"),
    "zlib_error": Kind(pickled_list(pickled_call("zlib", "decompress", "")), f"{CODE} (TypeError"),
    "inner_pickle": Kind(call("fail", "UnpicklingError", "weights"), f"{CODE} (UnpicklingError: w"),
    "long_text": Kind(
        call("fail", "OSError", "x" * 500 + "\nmore"), f"{CODE} (OSError: {'x' * 160}…)"
    ),
    "torch_memory": Kind(
        call("fail", "RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried to"),
        MEMORY,
    ),
    "memory_in_the_context": Kind(call("fail_for_want_of_memory"), MEMORY),
    "no_gpu": Kind(call("fail", "AssertionError", "Torch not compiled with CUDA enabled"), NO_GPU),
    "full_gpu": Kind(
        call("fail", "RuntimeError", "CUDA out of memory. Tried to allocate 20.00 MiB"),
        "no hay memoria suficiente en la GPU",
    ),
    "persistent_ids": Kind(
        b"\x80\x02](K\x01QK\x02Qe.",
        "fuera del archivo (persistent_id)",
        "programa que lo",
        "fuera del archivo",
    ),
    "out_of_band": Kind(
        out_of_band(), "fuera del archivo (búferes de PEP 574)", "sin buffer_callback", "búferes"
    ),
    "cloudpickle_function": Kind(cloudpickle_function(), f"{NOT_AGAIN} ("),
    "loads_once": Kind(
        call("load_once"), "la validación falló: está bien escrito, pero no se carga"
    ),
    "fails_to_dump": Kind(
        call("make_what_fails_to_dump"), f"{NOT_AGAIN} (FileNotFoundError: el archivo"
    ),
    "panics_when_saved": Kind(call("PanicsWhenSaved"), f"{NOT_AGAIN} (Panic: index out of bounds)"),
    "crc_after_code": Kind(
        damaged_where_code_fails_first(), "el gzip está dañado", COPY_AGAIN, "el gzip está dañado"
    ),
    "class_that_is_a_function_now": Kind(
        b"\x80\x02](K\x01\x8c\x09functools\x8c\x05cache\x93)\x81e.",
        f"{CODE} (UnpicklingError: NEWOBJ",
    ),
    "two_lists": Kind(SOUND * 2, "del primer pickle", "cada lista en su propio", "primer pickle"),
    "one_by_one": Kind(ONE_TRACE * 2, NOT_A_LIST, "todos en una lista", NOT_A_LIST),
    "members": Kind(gzip.compress(ONE_TRACE) * 2, NOT_A_LIST, "todos en una lista", NOT_A_LIST),
    "newline_after": Kind(SOUND + b"\n", NO_OTHER, COPY_AGAIN, NO_OTHER),
    "zeros_after": Kind(SOUND + bytes(512), NO_OTHER, COPY_AGAIN, NO_OTHER),
    "text_after": Kind(SOUND + b"junk", NO_OTHER, COPY_AGAIN, NO_OTHER),
    "tuple": Kind(
        pickle.dumps(([1], [2])),
        "un objeto tuple de longitud 2, no una lista",
        "aparte",
        "longitud 2",
    ),
}


def joblib_bytes(compress: object = 0, protocol: Optional[int] = None) -> bytes:
    buffer = io.BytesIO()
    joblib.dump([{"h": np.arange(500.0)}], buffer, compress=compress, protocol=protocol)
    return buffer.getvalue()


def saved_array(save: str) -> bytes:
    buffer = io.BytesIO()
    getattr(np, save)(buffer, np.zeros(3))
    return buffer.getvalue()


def tarred() -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        entry = tarfile.TarInfo("traces.pkl")
        entry.size = len(SOUND)
        archive.addfile(entry, io.BytesIO(SOUND))
    return buffer.getvalue()


TORCH_MAGIC = 0x1950A86A20F9469CFC6C  # torch.serialization.MAGIC_NUMBER
GUNZIP = "quítale el gzip con «gzip -dc < "
LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 15032385536\n"
FORMATS = {
    "torch_zip": (TORCH_ZIP, "torch.save", "torch.load"),
    **{
        f"torch_legacy_{protocol}": (
            pickle.dumps(TORCH_MAGIC, protocol) + SOUND,
            "torch.save en su formato antiguo",
            "torch.load",
        )
        for protocol in range(2, 6)
    },
    "zip": (zipped("a/traces.pkl"), "es un zip,", "«unzip "),
    "npz": (saved_array("savez"), "un .npz de numpy", "numpy.load"),
    "npy": (saved_array("save"), "un .npy de numpy", "numpy.load"),
    "bz2": (bz2.compress(SOUND), "comprimido con bzip2", "«bzip2 -dc < "),
    "xz": (lzma.compress(SOUND), "comprimido con xz", "«xz -dc < "),
    "lzma": (lzma.compress(SOUND, lzma.FORMAT_ALONE), "comprimido con lzma", "«xz --format=lzma"),
    "zstd": (b"\x28\xb5\x2f\xfd\x04\0", "comprimido con zstd", "«zstd -dc < "),
    "lz4": (b"\x04\x22\x4d\x18\x64\x40", "comprimido con lz4", "«lz4 -dc < "),
    "7z": (b"7z\xbc\xaf\x27\x1c\0\4", "es un 7z", "/in/7z.pkl -o/"),
    "tar": (tarred(), "es un tar", "«mkdir "),
    "gzip_twice": (gzip.compress(gzip.compress(SOUND)), "dos veces con gzip", "«gzip -dc < "),
    "gzip_xz": (gzip.compress(lzma.compress(SOUND)), "comprimido con xz", GUNZIP),
    "gzip_zip": (gzip.compress(zipped("traces.pkl")), "es un zip,", GUNZIP),
    "gzip_npy": (gzip.compress(saved_array("save")), "un .npy de numpy", GUNZIP),
    "hdf5": (b"\x89HDF\r\n\x1a\n\0", "es un HDF5", "h5py"),
    "parquet": (b"PAR1\x15\x04", "es un Parquet o un Arrow", "pandas"),
    "arrow": (b"ARROW1\0\0", "es un Parquet o un Arrow", "pyarrow"),
    "feather": (b"FEA1\0\0\0\0", "es un Parquet o un Arrow", "pyarrow"),
    "safetensors": (
        b'\x40\0\0\0\0\0\0\0{"h":{"dtype":"F16"',
        "es un safetensors",
        "con safetensors",
    ),
    "sqlite": (b"SQLite format 3\0\x10\0", "una base de datos SQLite", "con sqlite3"),
    "joblib": (joblib_bytes(), "lo escribió joblib.dump", "joblib.load"),
    "joblib_protocol_2": (joblib_bytes(protocol=2), "lo escribió joblib.dump", "joblib.load"),
    "joblib_zlib": (joblib_bytes(3), "comprimido con zlib", "joblib.load"),
    "joblib_gzip": (joblib_bytes(("gzip", 3)), "lo escribió joblib.dump", "joblib.load"),
    "joblib_bz2": (joblib_bytes(("bz2", 3)), "comprimido con bzip2", "«bzip2 -dc < "),
    "json": (json.dumps([{"a": 1}], indent=1).encode(), "es JSON", "con json"),
    "json_true": (b"[true]", "es JSON", "con json"),
    "json_null": (b"[null]", "es JSON", "con json"),
    "json_lines": (b'\xef\xbb\xbf{"a": 1}\n{"a": 2}\n', "es JSON", "con json"),
    "html": (b"\n<!DOCTYPE html><html><title>Sign in</title>", "es HTML o XML", "otra vez"),
    "gzip_html": (gzip.compress(b"<html>Sign in</html>"), "es HTML o XML", "otra vez"),
    "xml": (b"<Error><Code>AccessDenied</Code>", "es HTML o XML", "otra vez"),
    "annex": (b"/annex/objects/MD5E-s9--4d7a.pkl\n", "un puntero de git-annex", "git annex get"),
    "annex_link": (b"../.git/annex/objects/q/MD5E-s9", "un puntero de git-annex", "git annex get"),
    "git_lfs": (LFS, "un puntero de git-lfs", "git lfs pull"),
    "zeros": (bytes(5000), "empieza con ceros", COPY_AGAIN),
}


class Outcome(NamedTuple):
    """What one mode said of one file."""

    problem: str
    hint: str


Outcomes = dict[str, dict[str, Optional[Outcome]]]


def outcomes_of(folder: Path, env: dict[str, str], *mode: str) -> dict[str, Optional[Outcome]]:
    """Split all of folder; return what is said of each stem, None for what was split."""
    output = folder.parent / "-".join(("out", *mode))
    done = split("-i", folder, "-o", output, *mode, env=env)
    assert "Traceback" not in done.stderr
    found: dict[str, Optional[Outcome]] = {}
    for error in re.split(r"^(?=ERROR )", done.stderr, flags=re.MULTILINE):
        if match := re.match(r"ERROR (.+?\.pkl(?:\.gz)?): (.+)", error):
            hint = re.search(r"^  Qué hacer: (.+)\.$", error, re.MULTILINE)
            assert hint is not None
            found[Path(match[1]).name.split(".")[0]] = Outcome(match[2], hint[1])
    for path in folder.iterdir():
        stem = path.name.split(".")[0]
        made = bool(load_names(output, stem))
        assert made == (stem not in found), stem
        found.setdefault(stem, None)
    assert not [name for name in names(output) if name.endswith(".part")]
    return found


def load_names(output: Path, stem: str) -> list[str]:
    return [name for name in names(output) if re.fullmatch(rf"{stem}_sub\d+\.pkl\.gz", name)]


def write_modules(folder: Path) -> dict[str, str]:
    write_module(folder, "bad_traces", BAD_MODULE)
    write_module(folder, "broken", BROKEN_MODULE)
    return write_module(folder, "odd", MODULE)


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory: pytest.TempPathFactory) -> Outcomes:
    """Return, for each mode, what it says of every bad file that the tests know."""
    root = tmp_path_factory.mktemp("bad")
    folder = root / "in"
    folder.mkdir()
    env = write_modules(root / "modules")
    for name, kind in CAUSES.items():
        (folder / f"{name}.pkl").write_bytes(kind.data)
    for name, (data, _, _) in FORMATS.items():
        (folder / f"{name}.pkl").write_bytes(data)
    for number, case in enumerate(BAD_FILES):
        suffix, make, _ = case.values
        assert callable(make)
        make(folder / f"bad{number}.pkl{'.gz' if suffix == 'gz' else ''}")
    (folder / "link_loop.pkl").symlink_to("link_loop.pkl")
    (folder / "link_broken.pkl").symlink_to("{error}")
    (folder / "main_thread.pkl").write_bytes(call("make_in_main_thread"))
    before = snapshot(folder)
    told = {mode: outcomes_of(folder, env, *mode.split()) for mode in ("", "--low-memory")}
    assert snapshot(folder) == before
    return told


@pytest.mark.parametrize("name", CAUSES)
def test_the_cause_is_named_with_a_way_out(outcomes: Outcomes, name: str) -> None:
    kind = CAUSES[name]
    default, low = outcomes[""][name], outcomes["--low-memory"][name]
    assert default is not None
    assert kind.problem in default.problem
    assert kind.hint in default.hint
    assert (COPY_AGAIN in default.hint) == (kind.hint == COPY_AGAIN)
    assert (low is None) == (not kind.low), low
    assert low is None or kind.low in low.problem


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("mode", ["", "--low-memory"])
def test_another_format_is_named_with_what_opens_it(
    outcomes: Outcomes, mode: str, name: str
) -> None:
    _, problem, hint = FORMATS[name]
    outcome = outcomes[mode][name]
    assert outcome is not None
    assert problem in outcome.problem
    assert hint in outcome.hint
    assert ("quítale" in outcome.hint) == (hint == GUNZIP)


def test_links_that_lead_nowhere(outcomes: Outcomes) -> None:
    mend = "corrige el enlace o quítalo de la carpeta"
    for mode in outcomes.values():
        loop = "no se puede leer (el enlace simbólico da vueltas en círculo)"
        assert mode["link_loop"] == Outcome(loop, mend)
        broken = "es un enlace simbólico roto: «{error}» no existe"
        assert mode["link_broken"] == Outcome(broken, mend)


def test_object_that_loads_in_the_main_thread_only_is_validated_there(outcomes: Outcomes) -> None:
    assert outcomes[""]["main_thread"] is None


def test_the_modes_agree_or_one_points_to_the_other(outcomes: Outcomes) -> None:
    """So no way out leads in a circle, and a hint to use --low-memory is never in vain."""
    for name, default in outcomes[""].items():
        low = outcomes["--low-memory"][name]
        if default is None:
            assert low is None or "sin --low-memory" in low.hint, name
        elif "--low-memory" in default.hint:
            assert low is None, name
        else:
            assert low is not None, name
            assert "--low-memory" not in low.hint.replace("sin --low-memory", ""), name


BEYOND_COMMANDS = ("zstd", "lz4", "joblib_bz2", "gzip_npy")  # no more than a header, or no list
COMMANDS = [name for name, (_, _, hint) in FORMATS.items() if "«" in hint]


@pytest.mark.parametrize("name", [name for name in COMMANDS if name not in BEYOND_COMMANDS])
def test_the_commands_of_a_hint_give_what_can_be_split(tmp_path: Path, name: str) -> None:
    folder = tmp_path / "in it's"  # a name that a shell would not take as it is
    folder.mkdir()
    (folder / "a b.pkl").write_bytes(FORMATS[name][0])
    (outcome,) = outcomes_of(folder, environment()).values()
    assert outcome is not None
    for command in re.findall("«(.+?)»", outcome.hint):
        if shutil.which(command.split()[0]) is None:
            pytest.skip(f"no {command.split()[0]} here")
        subprocess.run(["sh", "-ec", command], check=True, cwd=tmp_path)
    (folder / "a b.pkl").unlink()
    (inner,) = folder.rglob("*.pkl")
    assert split("-i", inner, "-o", tmp_path / "inner").returncode == 0


BEGINNINGS = ["x", '{"a": 1}', "ab{", "\x01", "<html>", "PK\x03\x04", "version https://git-lfs"]
BEGINNINGS += ["ARROW1", "<Error>", "[true]", "/annex/objects", '\0\0{"']


def test_no_sound_pickle_is_taken_for_another_format(tmp_path: Path) -> None:
    data = [pickle.dumps([text], protocol) for protocol in range(6) for text in BEGINNINGS]
    (tmp_path / "in").mkdir()
    for number, pickled in enumerate(data):
        (tmp_path / "in" / f"{number}.pkl").write_bytes(pickled)
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    for number, pickled in enumerate(data):
        assert load_set(tmp_path / "out", str(number)) == [pickle.loads(pickled)]


def test_no_position_in_a_text_makes_a_tar(tmp_path: Path) -> None:
    """A dry run looks at the first bytes as the run does."""
    for protocol in range(6):
        for length in range(235, 262):
            data = pickle.dumps(["x" * length + "ustar" * 3], protocol)
            (tmp_path / f"{protocol}-{length}.pkl").write_bytes(data)
    dry = split("-i", tmp_path, "-o", tmp_path / "out", "--dry-run")
    assert (dry.returncode, dry.stderr) == (0, "")
    assert dry.stdout.count("se dividiría") == 6 * 27


# Modules that are missing, errors of the system, faults of the script


@pytest.mark.parametrize("module", ["cloudpickle", "dill"])
def test_missing_module_that_pickles_by_value_points_to_low_memory_alone(
    tmp_path: Path, module: str
) -> None:
    missing = f"raise ModuleNotFoundError('No module named {module}', name='{module}')"
    env = write_module(tmp_path / "modules", module, missing)
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pkl").write_bytes(pickled_list(pickled_call(f"{module}.sub", "f")))
    (outcome,) = outcomes_of(tmp_path / "in", env).values()
    assert outcome == Outcome(
        f"contiene funciones o clases guardadas con {module}",
        "usa --low-memory, que copia los traces sin cargarlos",
    )
    assert list(outcomes_of(tmp_path / "in", env, "--low-memory").values()) == [None]


@pytest.mark.parametrize(
    ("number", "problem", "hint"),
    [
        (errno.ESTALE, "el servidor de archivos ya no lo encuentra", "sigue en el servidor"),
        (errno.EIO, "error de entrada/salida del disco", "copia el archivo desde su origen"),
        (errno.ENOTCONN, "la carpeta de red está desconectada", "vuelve a montar"),
        (errno.EACCES, "permiso denegado", "comprueba los permisos"),
        (errno.ENXIO, "No such device or address", "comprueba los permisos y el disco"),
    ],
)
def test_errors_of_the_system_are_told_in_spanish(number: int, problem: str, hint: str) -> None:
    error = load_error(Path("a.pkl"), OSError(number, os.strerror(number)))
    assert error.problem == f"no se puede leer ({problem})"
    assert hint in error.hint


def test_fault_of_the_copier_is_not_told_as_one_of_the_traces(tmp_path: Path) -> None:
    (tmp_path / "a.pkl").write_bytes(SOUND)
    code = f"""
import sys, divide_conquer
def dump_next(self, *args): raise IndexError("a bug")
divide_conquer.IndexedBatch.dump_next = dump_next
sys.exit(divide_conquer.main(["-i", {str(tmp_path / "a.pkl")!r}, "-o", {str(tmp_path / "out")!r},
                              "--low-memory"]))
"""
    env = environment(PYTHONPATH=str(Path(__file__).parent.parent))
    done = run([sys.executable, "-c", code], env=env)
    assert done.returncode == 1
    assert "a.pkl: fallo inesperado\n  El original sigue intacto" in done.stderr
    assert "Qué hacer: es un fallo de este programa" in done.stderr
    assert "IndexError: a bug" in done.stderr
    assert names(tmp_path / "out") == []


def test_zlib_error_of_a_trace_is_not_one_of_the_file(tmp_path: Path) -> None:
    junk = pickled_call("_codecs", "encode", "junk", "latin1")
    data = pickled_list(b"czlib\ndecompress\n(" + junk + b"tR")
    (tmp_path / "a.pkl.gz").write_bytes(gzip.compress(data))
    with pytest.raises(zlib.error):
        pickle.loads(data)
    with pytest.raises(LoadError) as raised:
        split_file(tmp_path / "a.pkl.gz", tmp_path / "out")
    assert raised.value.problem.startswith(f"{CODE} (error: Error -3")
