"""Every option of the command line, through real processes."""

from __future__ import annotations

import ctypes
import fcntl
import gzip
import os
import pickle
import pickletools
import re
import shutil
import struct
import subprocess
import sys
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, Optional, Union

import pytest
from helpers import (
    LIMIT_SECONDS,
    SCRIPT,
    Folders,
    command,
    environment,
    load,
    load_set,
    mounted_tmpfs,
    names,
    pickled_call,
    pickled_list,
    snapshot,
    split,
    split_on_terminal,
    sub_names,
    write_batch,
    write_module,
)

import divide_conquer

IN_MOVED_TO = 0x80  # sys/inotify.h

CONTROL_CHARACTERS = re.compile(r"[\x00-\x09\x0b-\x1f\x7f\x80-\x9f]")


# Names and order


def test_example_of_the_guide(folders: Folders) -> None:
    for number in (0, 1):
        traces = [f"{number}:{i}" for i in range(1000)]
        write_batch(folders.source / f"batch_000{number}.pkl.gz", traces)
    before = snapshot(folders.source)
    done = split(*folders.args())
    assert (done.returncode, done.stderr) == (0, "")
    assert names(folders.output) == sub_names("batch_0000", 4) + sub_names("batch_0001", 4)
    for number in (0, 1):
        subs = load_set(folders.output, f"batch_000{number}")
        assert subs == [
            [f"{number}:{i}" for i in range(start, start + 250)] for start in (0, 250, 500, 750)
        ]
    assert snapshot(folders.source) == before


def test_single_file_into_nested_folder(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in" / "a.pkl.gz", [1, 2, 3])
    write_batch(tmp_path / "in" / "b.pkl.gz", [4])
    output = tmp_path / "new" / "deeper"
    assert split("-i", source, "-o", output).returncode == 0
    assert names(output) == sub_names("a", 1)
    assert load_set(output, "a") == [[1, 2, 3]]


@pytest.mark.parametrize(
    ("flag", "n", "sizes"),
    [
        pytest.param("-n", 3, [3, 3, 1], id="n-that-does-not-divide"),
        pytest.param("--traces-per-batch", 7, [7], id="n-equal-to-the-traces"),
        pytest.param("-n", 100, [7], id="n-above-the-traces"),
        pytest.param("-n", 1, [1] * 7, id="one-trace-each"),
    ],
)
def test_traces_per_batch(folders: Folders, flag: str, n: int, sizes: list[int]) -> None:
    write_batch(folders.source / "a.pkl.gz", list(range(7)))
    assert split(*folders.args(flag, n)).returncode == 0
    subs = load_set(folders.output, "a")
    assert [len(sub) for sub in subs] == sizes
    assert [trace for sub in subs for trace in sub] == list(range(7))


def test_more_than_10000_sub_batches_get_5_digits(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl", list(range(10_001)))
    with mounted_tmpfs(folders.output, "80m"):  # a disk takes 10 s for so many fsyncs
        done = split(*folders.args("-n", 1, "--no-compress", "--no-validate"))
        assert done.returncode == 0
        assert names(folders.output) == [f"a_sub{index:05d}.pkl" for index in range(10_001)]
        for index in (0, 9_999, 10_000):
            assert load(folders.output / f"a_sub{index:05d}.pkl") == [index]


def test_no_compress_writes_plain_pickles(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    assert split(*folders.args("-n", 2, "--no-compress")).returncode == 0
    assert names(folders.output) == sub_names("a", 2, ".pkl")
    assert load_set(folders.output, "a") == [[1, 2], [3]]


def test_no_validate_is_told_in_the_report(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    done = split(*folders.args("-n", 2, "--no-validate"))
    assert done.returncode == 0
    assert "sin validar" in done.stdout
    assert load_set(folders.output, "a") == [[1, 2], [3]]


@pytest.mark.parametrize(
    ("pattern", "taken"),
    [
        pytest.param(None, ["a", "b", "cb"], id="default"),
        pytest.param("*", ["a", "b", "cb"], id="everything-still-means-batches"),
        pytest.param("*b.pkl*", ["b", "cb"], id="part-of-the-name"),
        pytest.param("*.pkl", ["b"], id="suffix"),
        pytest.param("[ac]*", ["a", "cb"], id="class-of-characters"),
    ],
)
def test_pattern_chooses_batches(
    folders: Folders, pattern: Optional[str], taken: list[str]
) -> None:
    for name in ("a.pkl.gz", "b.pkl", "cb.pkl.gz"):
        write_batch(folders.source / name, [name])
    ignored = (
        ".hidden.pkl",
        "._a.pkl.gz",
        ".pkl",
        "x.pkl.part",
        "x_sub0000.pkl.gz.part",
        "x.pkl.bak",
        "x.pklz",
        "x.PKL",
        "notes.txt",
    )
    for name in ignored:
        (folders.source / name).write_bytes(b"not a pickle")
    (folders.source / "folder.pkl").mkdir()
    more = () if pattern is None else ("--pattern", pattern)
    done = split(*folders.args(*more))
    assert done.returncode == 0
    assert re.sub(r"AVISO in: 1 archivo queda fuera .+ \(x\.PKL\): .+\n", "", done.stderr) == ""
    assert names(folders.output) == [f"{stem}_sub0000.pkl.gz" for stem in taken]


@pytest.mark.parametrize("pattern", ["*.pkl*", "z*"])
def test_nothing_found_is_exit_1(folders: Folders, pattern: str) -> None:
    (folders.source / "a.txt").write_text("no")
    done = split(*folders.args("--pattern", pattern))
    assert done.returncode == 1
    assert "no hay archivos .pkl" in done.stderr
    assert pattern in done.stderr
    assert not folders.output.exists()


# What the user reads


def test_report_has_a_line_per_file_and_a_summary(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", list(range(7)))
    write_batch(folders.source / "b.pkl", list(range(2)))
    done = split(*folders.args("-n", 3))
    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert len(lines) == 7
    size = r"[0-9.]+ [kM]?B"
    seconds = r"[0-9.]+ s"
    assert [re.sub(r"\(.+\)", "()", line) for line in lines[:4:2]] == [
        "Dividiendo 1/2: a.pkl.gz ()",
        "Dividiendo 2/2: b.pkl ()",
    ]
    for line, start in zip(
        lines[1:4:2],
        (r"a\.pkl\.gz: 7 traces → 3 sub-batches", r"b\.pkl: 2 traces → 1 sub-batch"),
    ):
        assert re.fullmatch(
            rf"{start}, {size} → {size}; {seconds} "
            rf"\(carga {seconds}, guardado {seconds}, validación {seconds}\)"
            f"(; memoria máxima hasta ahora {size})?",
            line,
        )
    assert re.fullmatch(
        rf"Resumen: 2 divididos; 9 traces en 4 sub-batches, {size} → {size}; {seconds}\.",
        lines[4],
    )
    assert lines[5] == f"  Los sub-batches están en {folders.output}"
    assert lines[6].startswith("  Un cargador con 2 sub-batches en caché y otro cargándose ")


@pytest.mark.parametrize("flag", ["--quiet", "-q"])
def test_quiet_prints_nothing_on_success(folders: Folders, flag: str) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    done = split(*folders.args(flag))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert names(folders.output) == sub_names("a", 1)


def test_quiet_still_prints_errors(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", "not a list")
    done = split(*folders.args("--quiet"))
    assert (done.returncode, done.stdout) == (1, "")
    assert "a.pkl.gz" in done.stderr


@pytest.mark.timeout(LIMIT_SECONDS)
def test_bars_of_every_phase_show_on_a_terminal(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl.gz", [4])
    done = split_on_terminal(*folders.args())
    assert done.returncode == 0
    for number in ("1/2", "2/2"):
        for label in ("Cargando", "Guardando", "Validando"):
            name = "a" if number == "1/2" else "b"
            assert f"{number} {label} {name}: " in done.terminal
    assert not CONTROL_CHARACTERS.search(done.stdout)
    assert len(done.stdout.splitlines()) == 4  # of the files, of the summary, of the folder


@pytest.mark.timeout(LIMIT_SECONDS)
def test_quiet_shows_no_bar_on_a_terminal(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    done = split_on_terminal(*folders.args("--quiet"))
    assert (done.returncode, done.stdout, done.terminal) == (0, "", "")


def test_no_control_characters_without_a_terminal(folders: Folders) -> None:
    write_batch(folders.source / "good \x1b[31m\r\t.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "bad \x1b[31m\r\t\x9b.pkl.gz", "not a list")
    done = split(*folders.args())
    assert done.returncode == 1
    assert "good " in done.stdout
    assert "bad " in done.stderr
    assert not CONTROL_CHARACTERS.search(done.stdout + done.stderr)


def test_version() -> None:
    done = split("--version")
    assert (done.returncode, done.stderr) == (0, "")
    source = SCRIPT.read_text(encoding="utf-8")
    written = re.search(r'^__version__ = "(.+)"$', source, re.MULTILINE)
    assert written is not None
    assert done.stdout.startswith(f"divide_conquer.py {written[1]} (Python ")


@pytest.mark.parametrize("flag", ["--help", "-h"])
def test_help_lists_the_options_of_the_guide_first(flag: str) -> None:
    done = split(flag)
    assert (done.returncode, done.stderr) == (0, "")
    options = re.findall(r"^  (--[a-z-]+)", done.stdout, re.MULTILINE)
    assert options[:8] == [
        "--input",
        "--output",
        "--traces-per-batch",
        "--no-compress",
        "--delete-original",
        "--no-validate",
        "--pattern",
        "--quiet",
    ]
    expected = {"--skip-existing", "--dry-run", "--yes", "--version", "--help"}
    assert expected <= set(options[8:])
    for text in (
        "carpeta de salida (requerido)",
        "(default: 250)",
        "(default: *.pkl*)",
        "¡CUIDADO",
    ):
        assert text in done.stdout


# Wrong usage


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        pytest.param("-i in -o out --fast", "argumentos desconocidos: --fast", id="unknown-flag"),
        pytest.param("-i in -o out --del", "argumentos desconocidos: --del", id="abbreviated-flag"),
        pytest.param("-i in -o out extra", "argumentos desconocidos: extra", id="stray-argument"),
        pytest.param("-i none -o out", "la entrada no existe: none", id="missing-input"),
        pytest.param("-i none.pkl -o out", "la entrada no existe: none.pkl", id="missing-file"),
        pytest.param("-i dangling.pkl -o out", "la entrada no existe", id="dangling-symlink"),
        pytest.param("-i in -o out -n 0", "debe ser un entero de 1 o más", id="n-0"),
        pytest.param("-i in -o out -n -1", "debe ser un entero de 1 o más", id="n-negative"),
        pytest.param("-i in -o out -n x", "debe ser un entero de 1 o más", id="n-text"),
        pytest.param("-i in -o out -n 2.5", "debe ser un entero de 1 o más", id="n-fraction"),
        pytest.param("-i in -o out -n ²", "debe ser un entero de 1 o más", id="n-superscript"),
        pytest.param("-i in -o out -n", "necesita un valor", id="n-without-value"),
        pytest.param("-i in -o out --quiet=1", "no admite el valor", id="value-for-a-switch"),
        pytest.param("-i in -o file", "la salida es un archivo", id="output-is-a-file"),
        pytest.param("-i in -o in", "son la misma carpeta", id="output-is-the-input"),
        pytest.param("-i in -o in/", "son la misma carpeta", id="same-with-trailing-slash"),
        pytest.param("-i in/ -o in/../in", "son la misma carpeta", id="same-with-dots"),
        pytest.param("-i in -o link", "son la misma carpeta", id="same-through-a-symlink"),
        pytest.param("-i link/ -o in", "son la misma carpeta", id="same-from-a-symlink"),
        pytest.param(["-i", "", "-o", "out"], "--input/-i: está vacío", id="empty-input"),
        pytest.param(["-i", "in", "-o", ""], "--output/-o: está vacío", id="empty-output"),
        pytest.param("-o out", "faltan argumentos obligatorios: --input", id="no-input"),
        pytest.param("-i in", "faltan argumentos obligatorios: --output", id="no-output"),
        pytest.param("-i file -o out", "no termina en .pkl ni en .pkl.gz", id="not-a-batch-name"),
        pytest.param("-i x.pkl.part -o out", "no termina en .pkl ni en .pkl.gz", id="a-part"),
        pytest.param(
            "-i in -o out --delete-original --no-validate",
            "--delete-original no se puede usar con --no-validate",
            id="delete-without-validation",
        ),
        pytest.param(
            "-i in -o out --delete-original --no-validate --yes",
            "--delete-original no se puede usar con --no-validate",
            id="delete-without-validation-and-yes",
        ),
        pytest.param(
            f"-i {'x' * 300}.pkl -o out",
            "la entrada",
            id="input-name-too-long",
        ),
        pytest.param(
            f"-i in -o {'x' * 300}",
            "la salida",
            id="output-name-too-long",
        ),
    ],
)
def test_wrong_usage_is_exit_2_and_touches_nothing(
    tmp_path: Path, args: Union[str, list[str]], expected: str
) -> None:
    write_batch(tmp_path / "in" / "a.pkl.gz", [1, 2, 3])
    write_batch(tmp_path / "x.pkl.part", [1, 2, 3])
    (tmp_path / "file").write_text("")
    (tmp_path / "link").symlink_to("in")
    (tmp_path / "dangling.pkl").symlink_to("nowhere")
    before = snapshot(tmp_path)
    done = split(*(args.split() if isinstance(args, str) else args), cwd=tmp_path)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert "Traceback" not in done.stderr
    assert snapshot(tmp_path) == before


# Deleting originals


def test_delete_original_with_yes(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl", [4])
    write_batch(folders.source / "bad.pkl", "not a list")
    done = split(*folders.args("--delete-original", "--yes", "-n", 2))
    assert done.returncode == 1
    assert names(folders.source) == ["bad.pkl"]
    assert load_set(folders.output, "a") == [[1, 2], [3]]
    assert load_set(folders.output, "b") == [[4]]
    assert done.stdout.count("original eliminado") == 2


def test_originals_stay_unless_asked(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    assert split(*folders.args("--yes")).returncode == 0
    assert names(folders.source) == ["a.pkl.gz"]


@pytest.mark.parametrize("more", [(), ("--quiet",)], ids=["plain", "quiet"])
def test_delete_without_a_terminal_and_without_yes_does_nothing(
    folders: Folders, more: tuple[str, ...]
) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    before = snapshot(folders.source.parent)
    done = split(*folders.args("--delete-original", *more), stdin=subprocess.PIPE, input=None)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--yes" in done.stderr
    assert snapshot(folders.source.parent) == before


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("answer", [b"s\n", b"S\n", " sí \n".encode()], ids=["s", "S", "sí"])
def test_yes_to_the_question_deletes(folders: Folders, answer: bytes) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    env = environment(PYTHONIOENCODING="utf-8:strict")  # as in es_ES.UTF-8
    done = split_on_terminal(*folders.args("--delete-original"), answer=answer, env=env)
    assert done.returncode == 0
    assert names(folders.source) == []
    assert load_set(folders.output, "a") == [[1, 2, 3]]


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\n", id="enter"),
        pytest.param(b"n\n", id="n"),
        pytest.param(b"y\n", id="not-a-spanish-yes"),
        pytest.param(b"\x04", id="end-of-input"),
        pytest.param(
            b"s\xed\n",
            id="latin-1",
        ),
    ],
)
def test_anything_else_to_the_question_does_nothing(folders: Folders, answer: bytes) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    before = snapshot(folders.source.parent)
    env = environment(PYTHONIOENCODING="utf-8:strict")  # as in es_ES.UTF-8
    done = split_on_terminal(*folders.args("--delete-original"), answer=answer, env=env)
    assert (done.returncode, done.stdout) == (1, "")
    assert "no se ha hecho nada" in done.terminal
    assert "Traceback" not in done.terminal
    assert snapshot(folders.source.parent) == before


@pytest.mark.timeout(LIMIT_SECONDS)
def test_question_lists_the_files_and_their_total_size(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl", [os.urandom(2000)])
    write_batch(folders.source / "b.pkl", [os.urandom(3000)])
    write_batch(folders.source / "done.pkl", [1])
    assert split("-i", folders.source / "done.pkl", "-o", folders.output).returncode == 0
    sizes = {name: (folders.source / name).stat().st_size for name in ("a.pkl", "b.pkl")}
    done = split_on_terminal(*folders.args("--delete-original", "--skip-existing"), answer=b"n\n")
    question = done.terminal.split("[s/N]")[0]
    for name, size in sizes.items():
        assert f"{name} ({round(size / 1000, 2):g} kB)" in question
    assert f"2 originales ({round(sum(sizes.values()) / 1000, 2):g} kB)" in question
    assert "done.pkl" not in question


@pytest.mark.timeout(LIMIT_SECONDS)
def test_yes_needs_no_question_on_a_terminal(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    done = split_on_terminal(*folders.args("--delete-original", "-y"))
    assert done.returncode == 0
    assert "[s/N]" not in done.terminal
    assert names(folders.source) == []


@pytest.mark.parametrize("more", [(), ("--quiet",)], ids=["loud", "quiet"])
def test_symlinked_original_is_kept(folders: Folders, more: tuple[str, ...]) -> None:
    target = write_batch(folders.source.parent / "elsewhere" / "real.pkl", [1, 2])
    (folders.source / "a.pkl").symlink_to(target)
    done = split(*folders.args("--delete-original", "--yes", *more))
    assert done.returncode == 1
    assert "original conservado: es un enlace simbólico" in done.stderr
    assert "eliminado" not in done.stdout
    assert (folders.source / "a.pkl").is_symlink()
    assert target.exists()
    assert load_set(folders.output, "a") == [[1, 2]]


@pytest.mark.parametrize(
    "action",
    [
        pytest.param("os.chmod(path, 0o600)", id="status-changed"),
        pytest.param(
            "open(path + '.new', 'wb').write(b'newer'); os.replace(path + '.new', path)",
            id="replaced",
        ),
    ],
)
def test_original_that_changed_meanwhile_is_kept(folders: Folders, action: str) -> None:
    source = folders.source / "a.pkl"
    env = write_module(
        folders.source.parent / "modules",
        "meddling",
        f"import os\ndef act(path):\n    {action}\n    return 'trace'\n",
    )
    source.write_bytes(pickled_list(pickled_call("meddling", "act", str(source))))
    done = split(*folders.args("--delete-original", "--yes"), env=env)
    assert done.returncode == 1
    assert "original conservado: cambió durante la ejecución" in done.stderr
    assert names(folders.source) == ["a.pkl"]
    assert load_set(folders.output, "a") == [["trace"]]


def test_skipped_source_is_never_deleted(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2])
    assert split(*folders.args()).returncode == 0
    write_batch(folders.source / "b.pkl.gz", [3])
    done = split(*folders.args("--skip-existing", "--delete-original", "--yes"))
    assert done.returncode == 0
    assert "AVISO a.pkl.gz: original conservado: ya estaba dividido" in done.stderr
    assert names(folders.source) == ["a.pkl.gz"]
    assert names(folders.output) == sub_names("a", 1) + sub_names("b", 1)


def test_only_what_was_to_be_deleted_from_the_start_is_deleted(folders: Folders) -> None:
    """The set of a skipped batch disappears during the run: it is made again, nothing more."""
    write_batch(folders.source / "b.pkl", [1, 2])
    assert split(*folders.args()).returncode == 0
    module = "import os\ndef remove(path):\n    if os.path.exists(path): os.unlink(path)\n"
    env = write_module(folders.source.parent / "modules", "removing", module)
    call = pickled_call("removing", "remove", str(folders.output / "b_sub0000.pkl.gz"))
    (folders.source / "a.pkl").write_bytes(pickled_list(call))
    done = split(*folders.args("--skip-existing", "--delete-original", "--yes"), env=env)
    assert done.returncode == 0
    assert names(folders.source) == ["b.pkl"]
    assert load_set(folders.output, "b") == [[1, 2]]


# Sets that are there already


@pytest.mark.parametrize("suffix", [".pkl.gz", ".pkl"])
def test_existing_set_is_refused_untouched(folders: Folders, suffix: str) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl.gz", [4])
    write_batch(folders.output / f"a_sub0000{suffix}", ["someone's"])
    before = snapshot(folders.output)
    done = split(*folders.args())
    assert done.returncode == 1
    assert f"sus sub-batches ya existen (a_sub0000{suffix}" in done.stderr
    assert "--skip-existing" in done.stderr
    assert names(folders.output) == [f"a_sub0000{suffix}", "b_sub0000.pkl.gz"]
    assert before.items() <= snapshot(folders.output).items()


@pytest.mark.parametrize(
    ("made_with", "again_with"),
    [
        pytest.param((), (), id="same-suffix"),
        pytest.param((), ("--no-compress",), id="gzip-then-plain"),
        pytest.param(("--no-compress",), (), id="plain-then-gzip"),
    ],
)
def test_skip_existing_passes_over_the_same_set(
    folders: Folders, made_with: tuple[str, ...], again_with: tuple[str, ...]
) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    assert split(*folders.args("-n", 2, *made_with)).returncode == 0
    before = snapshot(folders.output)
    done = split(*folders.args("-n", 1, "--skip-existing", *again_with))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.pkl.gz: omitido" in done.stdout
    assert "ni releídos ni comparados con -n" in done.stdout
    assert done.stdout.endswith("\nResumen: 1 omitido.\n")
    assert snapshot(folders.output) == before


REFUSED_SETS = {
    "of-an-older-source": (
        ["_sub0000.pkl", "_sub0001.pkl"],
        5,
        "of-an-older-source_sub0000.pkl procede de un original con otra fecha",
    ),
    "without-a-stamp": (["_sub0000.pkl.gz"], 0, "no lleva el sello de este programa"),
    "no-first": (
        ["_sub0001.pkl.gz", "_sub0002.pkl.gz"],
        0,
        "incompleto o mezclado (no-first_sub0001.pkl.gz",
    ),
    "gap": (["_sub0000.pkl.gz", "_sub0002.pkl.gz"], 0, "incompleto o mezclado"),
    "two-suffixes": (["_sub0000.pkl.gz", "_sub0001.pkl"], 0, "incompleto o mezclado"),
    "number-twice": (["_sub0000.pkl.gz", "_sub0000.pkl"], 0, "incompleto o mezclado"),
    "interrupted-publish-of-an-older-source": (
        ["_sub0001.pkl", "_sub0000.pkl.part"],
        5,
        "incompleto o mezclado",
    ),
}
"""Stem: (names that are there, how much older than the source, expected words)."""


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_other_or_incomplete_sets_are_refused_untouched(
    folders: Folders, more: tuple[str, ...]
) -> None:
    for stem, (existing, age_seconds, _) in REFUSED_SETS.items():
        source = write_batch(folders.source / f"{stem}.pkl.gz", [1, 2, 3])
        mtime = source.stat().st_mtime - age_seconds
        for name in existing:
            os.utime(write_batch(folders.output / (stem + name), [1]), (mtime, mtime))
    before = snapshot(folders.output)
    done = split(*folders.args("--skip-existing", *more))
    assert done.returncode == 1
    told = (done.stdout if more else done.stderr).splitlines()
    for stem, (_, _, expected) in REFUSED_SETS.items():
        (line,) = [line for line in told if f"/{stem}.pkl.gz" in line]
        assert expected in line
    assert snapshot(folders.output) == before


def test_interrupted_publish_of_another_original_is_not_cleared(folders: Folders) -> None:
    """It has the name and the date of this one, but the stamps say another size."""
    source = write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    assert split(*folders.args("-n", 1)).returncode == 0
    first, *_ = sub_names("a", 3)
    (folders.output / first).rename(folders.output / f"{first}.part")
    mtime = source.stat().st_mtime
    write_batch(source, [1, 2, 3, "more"])
    for path in (source, *folders.output.iterdir()):
        os.utime(path, (mtime, mtime))
    before = snapshot(folders.output)
    done = split(*folders.args("--skip-existing"))
    assert done.returncode == 1
    assert "incompleto o mezclado" in done.stderr
    assert snapshot(folders.output) == before


def test_sets_of_similar_stems_do_not_meet(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    others = ("aa_sub0000.pkl", "a_sub0000_sub0000.pkl", "a_subx.pkl", "a_sub.pkl", "A_sub0000.pkl")
    for name in others:
        write_batch(folders.output / name, ["other"])
    assert split(*folders.args()).returncode == 0
    assert names(folders.output) == sorted([*others, "a_sub0000.pkl.gz"])


def test_two_inputs_of_one_stem_both_fail(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl", [1])
    write_batch(folders.source / "a.pkl.gz", [2])
    write_batch(folders.source / "b.pkl", [3])
    done = split(*folders.args())
    assert done.returncode == 1
    assert "a.pkl: sus sub-batches se llamarían igual que los de a.pkl.gz" in done.stderr
    assert "a.pkl.gz: sus sub-batches se llamarían igual que los de a.pkl\n" in done.stderr
    assert names(folders.output) == sub_names("b", 1)
    assert "1 dividido, 2 con error" in done.stdout


# Publishing


def renamed_in_order(descriptor: int) -> list[str]:
    """Return the names that files were renamed to, from the events of inotify(7)."""
    data = os.read(descriptor, 1 << 16)
    renamed = []
    while data:
        _, mask, _, length = struct.unpack_from("iIII", data)
        renamed.append(data[16 : 16 + length].rstrip(b"\0").decode())
        assert mask == IN_MOVED_TO
        data = data[16 + length :]
    return renamed


@pytest.mark.skipif(sys.platform != "linux", reason="inotify is Linux")
@pytest.mark.timeout(LIMIT_SECONDS)
def test_first_sub_batch_is_published_last(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", list(range(5)))
    folders.output.mkdir()
    libc = ctypes.CDLL(None, use_errno=True)
    descriptor = libc.inotify_init1(os.O_NONBLOCK)
    assert descriptor >= 0
    try:
        watch = libc.inotify_add_watch(descriptor, os.fsencode(folders.output), IN_MOVED_TO)
        assert watch >= 0
        assert split(*folders.args("-n", 2)).returncode == 0
        renamed = renamed_in_order(descriptor)
    finally:
        os.close(descriptor)
    assert sorted(renamed) == sub_names("a", 3)
    assert renamed[-1] == "a_sub0000.pkl.gz"


@pytest.mark.parametrize("number", [0, 1, 2])
def test_file_that_appears_meanwhile_is_never_replaced(folders: Folders, number: int) -> None:
    intruder = folders.output / f"a_sub000{number}.pkl.gz"
    env = write_module(
        folders.source.parent / "modules",
        "intruding",
        "import pathlib\ndef write(path):\n    pathlib.Path(path).write_bytes(b'theirs')\n",
    )
    call = pickled_call("intruding", "write", str(intruder))
    (folders.source / "a.pkl").write_bytes(pickled_list(call, call, call))
    done = split(*folders.args("-n", 1, "--delete-original", "--yes"), env=env)
    assert done.returncode == 1
    assert "No se pudo guardar: el archivo ya existe" in done.stderr
    assert names(folders.source) == ["a.pkl"]
    assert names(folders.output) == [intruder.name]
    assert intruder.read_bytes() == b"theirs"


# What killed runs leave


def test_stale_parts_of_the_stem_are_cleared_and_no_others(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2])
    folders.output.mkdir()
    kept = ["aa_sub0000.pkl.gz.part", "a_sub0000_sub0000.pkl.part", "b_sub0001.pkl.part"]
    cleared = ["a_sub0000.pkl.gz.part", "a_sub0007.pkl.part", "a_sub00012.pkl.gz.part"]
    for name in kept + cleared:
        (folders.output / name).write_bytes(b"torn")
    assert split(*folders.args()).returncode == 0
    assert names(folders.output) == sorted([*kept, "a_sub0000.pkl.gz"])
    assert load_set(folders.output, "a") == [[1, 2]]


@pytest.mark.parametrize("more", [(), ("--skip-existing",)], ids=["plain", "skip-existing"])
def test_interrupted_publish_is_cleared_and_redone(folders: Folders, more: tuple[str, ...]) -> None:
    mtime_ns = write_batch(folders.source / "a.pkl.gz", [1, 2, 3, 4, 5]).stat().st_mtime_ns
    folders.output.mkdir()
    for name in ("a_sub0000.pkl.gz.part", "a_sub0003.pkl.gz.part", *sub_names("a", 3)[1:]):
        (folders.output / name).write_bytes(b"of the run that was killed")
        os.utime(folders.output / name, ns=(mtime_ns, mtime_ns))
    done = split(*folders.args("-n", 3, *more))
    assert (done.returncode, done.stderr) == (0, "")
    assert names(folders.output) == sub_names("a", 2)
    assert load_set(folders.output, "a") == [[1, 2, 3], [4, 5]]


@pytest.mark.timeout(LIMIT_SECONDS)
def test_stem_locked_by_another_process_fails_at_once(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    write_batch(folders.source / "b.pkl.gz", [2])
    folders.output.mkdir()
    (folders.output / "a_sub0000.pkl.gz.part").write_bytes(b"being written")
    with (folders.output / "a.lock.part").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = split(*folders.args())
    assert done.returncode == 1
    assert "a.pkl.gz: otro proceso lo está dividiendo" in done.stderr
    assert names(folders.output) == ["a.lock.part", "a_sub0000.pkl.gz.part", "b_sub0000.pkl.gz"]
    assert (folders.output / "a_sub0000.pkl.gz.part").read_bytes() == b"being written"


def test_stale_lock_file_is_no_obstacle(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    folders.output.mkdir()
    (folders.output / "a.lock.part").write_bytes(b"")
    assert split(*folders.args()).returncode == 0
    assert names(folders.output) == sub_names("a", 1)


# Dry run


def test_dry_run_touches_nothing(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    before = snapshot(folders.source.parent)
    done = split(*folders.args("--dry-run", "--delete-original"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.pkl.gz" in done.stdout
    assert re.search(r"^A eliminar, ya validados: 1 original \(\d+ B\)\.$", done.stdout, re.M)
    assert re.search(r"^Espacio: \S+ .B libres; harán falta unos \S+ B\.$", done.stdout, re.M)
    assert "se dividiría en a_sub0000.pkl.gz…, de hasta 250 traces" in done.stdout
    assert snapshot(folders.source.parent) == before


def test_dry_run_leaves_stale_parts_and_tells_what_would_be_skipped(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl.gz", [4])
    assert split("-i", folders.source / "a.pkl.gz", "-o", folders.output).returncode == 0
    (folders.output / "b_sub0000.pkl.gz.part").write_bytes(b"x" * 100)
    before = snapshot(folders.source.parent)
    done = split(*folders.args("--dry-run", "--skip-existing", "--yes"))
    assert done.returncode == 0
    assert re.search(r"a\.pkl\.gz \(.+\): se omitiría", done.stdout)
    assert re.search(r"b\.pkl\.gz \(.+\): se dividiría", done.stdout)
    assert ".part residuales en la salida: 1 (100 B)" in done.stdout
    assert snapshot(folders.source.parent) == before


@pytest.mark.timeout(LIMIT_SECONDS)
def test_dry_run_foresees_what_cannot_be_opened(folders: Folders) -> None:
    os.mkfifo(folders.source / "a.pkl")
    (folders.source / "b.pkl").symlink_to("nowhere")
    done = split(*folders.args("--dry-run"))
    assert done.returncode == 1
    assert "a.pkl: fallaría: no es un archivo normal" in done.stdout
    assert "b.pkl: fallaría: es un enlace simbólico roto" in done.stdout


def test_dry_run_foresees_too_little_memory_and_disk(folders: Folders) -> None:
    with (folders.source / "a.pkl").open("wb") as file:
        file.write(pickle.dumps([1]))
        file.truncate(1 << 42)  # sparse
    done = split(*folders.args("--dry-run"))
    assert done.returncode == 0
    assert re.search(r"harán falta unos 4\.4 TB", done.stdout)
    assert re.search(
        r"^AVISO a\.pkl: cargado ocupará al menos 4\.84 TB .*--low-memory", done.stderr, re.M
    )


def test_dry_run_is_exit_1_where_a_file_would_fail(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    write_batch(folders.source / "b.pkl.gz", [2])
    assert split("-i", folders.source / "a.pkl.gz", "-o", folders.output).returncode == 0
    before = snapshot(folders.source.parent)
    done = split(*folders.args("--dry-run"))
    assert done.returncode == 1
    assert re.search(r"a\.pkl\.gz \(.+\): fallaría: sus sub-batches ya existen", done.stdout)
    assert re.search(r"b\.pkl\.gz \(.+\): se dividiría", done.stdout)
    assert snapshot(folders.source.parent) == before


# What is read and what is written


def test_content_decides_what_is_gzip(folders: Folders) -> None:
    data = pickle.dumps([1, 2])
    contents = {
        "gzip-named-pkl.pkl": gzip.compress(data),
        "plain-named-gz.pkl.gz": data,
        "two-members.pkl.gz": gzip.compress(data[:9]) + gzip.compress(data[9:]),
    }
    for name, content in contents.items():
        (folders.source / name).write_bytes(content)
    done = split(*folders.args())
    assert (done.returncode, done.stderr) == (0, "")
    for stem in ("gzip-named-pkl", "plain-named-gz", "two-members"):
        assert load_set(folders.output, stem) == [[1, 2]]


def test_sub_batches_have_the_highest_protocol(folders: Folders) -> None:
    for protocol in range(5):
        write_batch(folders.source / f"p{protocol}.pkl", [1, 2, 3], protocol)
    assert split(*folders.args("-n", 2, "--no-compress")).returncode == 0
    assert len(names(folders.output)) == 10
    for path in folders.output.iterdir():
        opcode, version, _ = next(pickletools.genops(path.read_bytes()))
        assert (opcode.name, version) == ("PROTO", pickle.HIGHEST_PROTOCOL)


@pytest.mark.parametrize("umask", [0o002, 0o077], ids=oct)
@pytest.mark.parametrize("mode", [0o600, 0o644, 0o666, 0o444], ids=oct)
def test_outputs_are_no_more_open_than_the_original(
    folders: Folders, mode: int, umask: int
) -> None:
    source = write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    source.chmod(mode)
    assert split(*folders.args("-n", 2), umask=umask).returncode == 0
    modes = {(folders.output / name).stat().st_mode & 0o777 for name in sub_names("a", 2)}
    assert modes == {mode & ~umask}


def test_plain_outputs_have_the_time_of_the_original_and_stamped_ones_of_now(
    folders: Folders,
) -> None:
    source = write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    os.utime(source, ns=(1_000_000_000_123_456_789, 1_234_567_890_123_456_789))
    assert split(*folders.args("--no-compress")).returncode == 0
    plain = folders.output / "a_sub0000.pkl"
    assert plain.stat().st_mtime_ns == 1_234_567_890_123_456_789
    plain.unlink()
    before = time.time() - 2  # the clock of a file system is coarse
    assert split(*folders.args()).returncode == 0
    assert (folders.output / "a_sub0000.pkl.gz").stat().st_mtime >= before


def test_stamp_says_what_a_sub_batch_is(folders: Folders) -> None:
    source = write_batch(folders.source / "a.pkl.gz", list(range(7)))
    os.utime(source, (1_700_000_001, 1_700_000_001))
    assert split(*folders.args("-n", 3)).returncode == 0
    size = source.stat().st_size
    ranges = [(0, 3), (3, 6), (6, 7)]
    for name, (first, stop) in zip(sub_names("a", 3), ranges):
        path = folders.output / name
        stamp = divide_conquer.read_stamp(path)
        assert stamp == (first, stop, 7, size, 1_700_000_001)
        data = path.read_bytes()
        comment = f"traces {first}-{stop - 1} of 7; original {size} bytes".encode() + bytes(1)
        assert data[:4] == bytes([0x1F, 0x8B, 8, 16])  # deflate, FCOMMENT: RFC 1952, 2.3
        assert data[10 : 10 + len(comment)] == comment
        assert gzip.decompress(data) == zlib.decompress(data, 31)
        for tool in ("gzip", "pigz"):
            if shutil.which(tool):
                subprocess.run([tool, "-t", path], check=True)
    assert divide_conquer.read_stamp(source) is None
    assert divide_conquer.read_stamp(write_batch(folders.source / "b.pkl", [1])) is None


def damage_last(out: Path) -> None:
    (out / "a_sub0002.pkl.gz").unlink()


def damage_empty(out: Path) -> None:
    (out / "a_sub0001.pkl.gz").write_bytes(b"")


def damage_order(out: Path) -> None:
    one, other = (out / name for name in ("a_sub0000.pkl.gz", "a_sub0001.pkl.gz"))
    data = one.read_bytes()
    one.write_bytes(other.read_bytes())
    other.write_bytes(data)


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry-run"])
@pytest.mark.parametrize(
    ("damage", "problem"),
    [
        pytest.param(damage_last, "falta el último sub-batch: hay 4 traces de 5", id="last-gone"),
        pytest.param(damage_empty, "a_sub0001.pkl.gz está vacío", id="empty"),
        pytest.param(damage_order, "a_sub0000.pkl.gz no sigue al anterior", id="exchanged"),
    ],
)
def test_set_that_is_not_whole_is_not_skipped(
    folders: Folders, damage: Callable[[Path], None], problem: str, more: tuple[str, ...]
) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3, 4, 5])
    assert split(*folders.args("-n", 2)).returncode == 0
    damage(folders.output)
    before = snapshot(folders.output)
    done = split(*folders.args("-n", 2, "--skip-existing", *more))
    assert done.returncode == 1
    assert problem in done.stdout + done.stderr
    assert snapshot(folders.output) == before


def test_set_of_another_original_of_the_same_date_is_not_skipped(folders: Folders) -> None:
    source = write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    os.utime(source, (1_700_000_000, 1_700_000_000))
    assert split(*folders.args("-n", 2)).returncode == 0
    write_batch(source, ["another", "list"])
    os.utime(source, (1_700_000_000, 1_700_000_000))
    done = split(*folders.args("-n", 2, "--skip-existing"))
    assert done.returncode == 1
    assert "a_sub0000.pkl.gz procede de otro original" in done.stderr


def test_copy_of_a_set_without_its_dates_is_known(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    assert split(*folders.args("-n", 2)).returncode == 0
    for path in folders.output.iterdir():
        os.utime(path, (5, 5))
    done = split(*folders.args("-n", 2, "--skip-existing"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.pkl.gz: omitido" in done.stdout


def test_trace_that_refers_to_the_whole_list_still_sees_it(folders: Folders) -> None:
    traces: list[Any] = [{"number": i} for i in range(5)]
    for trace in traces:
        trace["all"] = traces
    write_batch(folders.source / "a.pkl.gz", traces)
    assert split(*folders.args("-n", 2)).returncode == 0
    subs = load_set(folders.output, "a")
    assert [[trace["number"] for trace in sub] for sub in subs] == [[0, 1], [2, 3], [4]]
    for trace in (trace for sub in subs for trace in sub):
        assert [other["number"] for other in trace["all"]] == [0, 1, 2, 3, 4]
        assert trace["all"][trace["number"]] is trace


@pytest.mark.parametrize(
    "env",
    [
        pytest.param({}, id="utf-8"),
        pytest.param({"PYTHONIOENCODING": "ascii"}, id="ascii-streams"),
        pytest.param(
            {"LC_ALL": "C", "LANG": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}, id="lang-c"
        ),
    ],
)
def test_strange_names_in_any_locale(folders: Folders, env: dict[str, str]) -> None:
    stems = [
        b"with  spaces ",
        b"two\nlines",
        b"latin-1 a\xf1o",
        "año ñandú".encode(),
        b"a[1]*+",
        b"-n",
        b"%s{0}\\d$",
        b"a.pkl",
    ]
    for stem in stems:
        write_batch(folders.source / os.fsdecode(stem + b".pkl"), [stem])
    write_batch(folders.source / "a1*.pkl", [b"looks like a[1]*+ to a glob"])
    write_batch(folders.source / os.fsdecode(b"bad \xf1\n.pkl"), "not a list")
    done = split(*folders.args(), env=environment(**env))
    assert done.returncode == 1
    assert done.stderr.count("ERROR") == 1
    assert "Traceback" not in done.stderr
    assert f"{len(stems) + 1} divididos, 1 con error" in done.stdout
    outputs = [stem + b"_sub0000.pkl.gz" for stem in [*stems, b"a1*"]]
    assert sorted(os.listdir(os.fsencode(folders.output))) == sorted(outputs)
    for stem in stems:
        assert load(folders.output / os.fsdecode(stem + b"_sub0000.pkl.gz")) == [stem]
    again = split(*folders.args("--skip-existing"), env=environment(**env))
    assert f"{len(stems) + 1} omitidos" in again.stdout


def test_newline_in_a_name_breaks_no_line_of_the_report(folders: Folders) -> None:
    write_batch(folders.source / "a\nResumen: 9 divididos.pkl", [1])
    done = split(*folders.args())
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 4  # start, report, summary, folder


# Streams that fail


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize(
    "redirection",
    [
        pytest.param(">&-", id="stdout-closed"),
        pytest.param("2>&-", id="stderr-closed"),
        pytest.param(">&- 2>&-", id="stdout-and-stderr-closed"),
        pytest.param("<&- >&- 2>&-", id="all-closed"),
        pytest.param(">/dev/full", id="stdout-full"),
        pytest.param(">/dev/full 2>&1", id="both-full"),
    ],
)
def test_streams_that_fail_do_not_harm_the_work(folders: Folders, redirection: str) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl", [4])
    target = write_batch(folders.source.parent / "elsewhere" / "c.pkl", [5])
    (folders.source / "c.pkl").symlink_to(target)
    shell = ("sh", "-c", f'exec "$@" {redirection}', "sh")
    done = split(*folders.args("-n", 2, "--delete-original", "--yes"), prefix=shell)
    assert done.returncode == 1
    assert "Exception ignored" not in done.stderr
    assert names(folders.output) == sub_names("a", 2) + sub_names("b", 1) + sub_names("c", 1)
    assert load_set(folders.output, "a") == [[1, 2], [3]]
    assert load_set(folders.output, "b") == [[4]]
    assert names(folders.source) == ["c.pkl"]


@pytest.mark.timeout(LIMIT_SECONDS)
@pytest.mark.parametrize("streams", [("stdout",), ("stderr",), ("stdout", "stderr")], ids="+".join)
def test_reader_that_left_does_not_harm_the_work(
    folders: Folders, streams: tuple[str, ...]
) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl", "not a list")
    write_batch(folders.source / "c.pkl", [4])
    reader, writer = os.pipe()
    os.close(reader)
    try:
        options: dict[str, Any] = dict.fromkeys(streams, writer)
        done = split(*folders.args(), **options)
    finally:
        os.close(writer)
    assert done.returncode == 1
    assert "Exception ignored" not in (done.stderr or "")
    assert names(folders.output) == sub_names("a", 1) + sub_names("c", 1)


@pytest.mark.timeout(LIMIT_SECONDS)
def test_terminal_on_stderr_alone_asks_nothing(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    master, slave = os.openpty()
    try:
        done = subprocess.run(
            command(*folders.args("--delete-original")),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=slave,
            timeout=LIMIT_SECONDS,
            check=False,
        )
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 1
    assert "--yes" in shown
    assert not folders.output.exists()
    assert names(folders.source) == ["a.pkl.gz"]
