"""What is said before any work: of the disk, the folders, what was typed and what is missing."""

from __future__ import annotations

import ast
import bz2
import glob
import gzip
import os
import pickle
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Optional

import pytest
from helpers import (
    LIMIT_SECONDS,
    ROOT,
    SCRIPT,
    environment,
    load_set,
    mounted_tmpfs,
    names,
    snapshot,
    split,
    split_without,
    write_batch,
)

import divide_conquer

pytestmark = pytest.mark.timeout(LIMIT_SECONDS)


# The disk


@pytest.mark.parametrize("more", [(), ("--quiet",), ("--dry-run", "--quiet")], ids=" ".join)
def test_a_disk_too_small_for_the_run_is_said_first(tmp_path: Path, more: tuple[str, ...]) -> None:
    for name in ("a", "b"):
        write_batch(tmp_path / "in" / f"{name}.pkl", [os.urandom(700_000)])
    with mounted_tmpfs(tmp_path / "out", "1m") as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        args = ("-i", tmp_path / "in", "-o", tmp_path / "out", *more)
        done = split(*args, stderr=subprocess.STDOUT)
    assert re.match(
        r"AVISO out: harán falta unos 1\.4 MB de disco y en la salida solo hay 1\.05 MB libres: "
        "puede que no quepa\n",
        done.stdout,
    )
    assert done.returncode == (0 if "--dry-run" in more else 1)
    assert ("AVISO b.pkl: harán falta unos 700 kB" in done.stdout) == ("--dry-run" not in more)


def test_a_single_file_is_warned_of_once(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [os.urandom(2_000_000)])
    with mounted_tmpfs(tmp_path / "out", "1m") as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        done = split("-i", source, "-o", tmp_path / "out")
    assert done.stderr.count("puede que no quepa") == 1


def test_originals_that_go_make_room_for_the_next(tmp_path: Path) -> None:
    with mounted_tmpfs(tmp_path / "disk", "1m") as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        source, output = tmp_path / "disk" / "in", tmp_path / "disk" / "out"
        for name in ("a", "b"):
            write_batch(source / f"{name}.pkl", [os.urandom(300_000)])
        args = ("-i", source, "-o", output)
        dry = split(*args, "--dry-run")
        assert "AVISO out: harán falta unos 600 kB" in dry.stderr
        dry = split(*args, "--dry-run", "--delete-original")
        assert (dry.returncode, dry.stderr) == (0, "")
        assert "harán falta unos 300 kB" in dry.stdout
        done = split(*args, "--delete-original", "--yes")
        assert (done.returncode, done.stderr) == (0, "")
        assert names(output) == ["a_sub0000.pkl.gz", "b_sub0000.pkl.gz"]


# --dry-run


OTHERS = {
    "empty.pkl": (b"", "está vacío"),
    "npy.pkl": (b"\x93NUMPY\x01\x00" + bytes(200), "es un .npy de numpy, no un pickle"),
    "bz2.pkl.gz": (bz2.compress(pickle.dumps([1])), "está comprimido con bzip2"),
    "twice.pkl.gz": (gzip.compress(gzip.compress(b"x")), "está comprimido dos veces con gzip"),
    "cut.pkl.gz": (gzip.compress(pickle.dumps([1]))[:5], "está truncado: termina antes de tiempo"),
}


def write_others(folder: Path) -> None:
    write_batch(folder / "good.pkl.gz", [1])
    for name, (content, _) in OTHERS.items():
        (folder / name).write_bytes(content)


def test_a_dry_run_reads_the_first_bytes_of_every_file(tmp_path: Path) -> None:
    write_others(tmp_path / "in")
    before = snapshot(tmp_path)
    dry = split("-i", tmp_path / "in", "-o", tmp_path / "out", "--dry-run")
    assert (dry.returncode, dry.stderr) == (1, "")
    for name, (_, problem) in OTHERS.items():
        (line,) = [line for line in dry.stdout.splitlines() if f"/{name}" in line]
        assert f": fallaría: {problem}" in line and ". Qué hacer: " in line
    assert dry.stdout.count("se dividiría en") == 1
    assert snapshot(tmp_path) == before
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out")  # and the run says the same
    for name, (_, problem) in OTHERS.items():
        assert f"{name}: {problem}" in done.stderr


def test_a_quiet_dry_run_tells_failures(tmp_path: Path) -> None:
    write_others(tmp_path / "in")
    dry = split("-i", tmp_path / "in", "-o", tmp_path / "out", "--dry-run", "--quiet")
    assert (dry.returncode, dry.stdout) == (1, "")
    for name, (_, problem) in OTHERS.items():
        assert f"ERROR {tmp_path / 'in' / name}: fallaría: {problem}" in dry.stderr
    assert dry.stderr.count("  Qué hacer: ") == len(OTHERS)
    (tmp_path / "fine").mkdir()
    shutil.copy(tmp_path / "in" / "good.pkl.gz", tmp_path / "fine")
    dry = split("-i", tmp_path / "fine", "-o", tmp_path / "out", "--dry-run", "--quiet")
    assert (dry.returncode, dry.stdout, dry.stderr) == (0, "", "")


@pytest.mark.parametrize("made", [True, False], ids=["there", "to-be-made"])
@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=["loud", "quiet"])
def test_a_dry_run_tries_the_output_folder(
    tmp_path: Path, unprivileged: tuple[str, ...], quiet: tuple[str, ...], made: bool
) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    locked = tmp_path / "locked"
    locked.mkdir(mode=0o555)
    output = locked if made else locked / "new" / "deeper"
    before = snapshot(tmp_path)
    dry = split("-i", source, "-o", output, "--dry-run", *quiet, prefix=unprivileged)
    assert dry.returncode == 1
    problem = f"ERROR {output}: no se puede escribir en la carpeta de salida (permiso denegado)\n"
    assert dry.stderr.startswith(problem)
    assert "  Qué hacer: comprueba el espacio (df -h) y los permisos" in dry.stderr
    assert snapshot(tmp_path) == before


@pytest.mark.parametrize(
    "lacking",
    [
        pytest.param("", id="unnamed-file"),
        pytest.param("del os.O_TMPFILE", id="not-linux"),
        pytest.param(
            "old = os.open\n"
            "def refuse(path, flags, *more):\n"
            "    if flags & os.O_TMPFILE == os.O_TMPFILE: raise OSError(errno.EOPNOTSUPP, 'no')\n"
            "    return old(path, flags, *more)\n"
            "os.open = refuse",
            id="not-this-file-system",
        ),
    ],
)
def test_a_dry_run_leaves_no_trace_in_the_output(tmp_path: Path, lacking: str) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    (tmp_path / "out").mkdir()
    before = snapshot(tmp_path), os.stat(tmp_path / "out").st_mtime_ns
    for output in (tmp_path / "out", tmp_path / "out" / "new"):
        dry = split_without(lacking, "-i", source, "-o", output, "--dry-run")
        assert (dry.returncode, dry.stderr) == (0, "")
    assert (snapshot(tmp_path), os.stat(tmp_path / "out").st_mtime_ns) == before


def test_a_disk_that_is_read_only_is_found(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    with mounted_tmpfs(tmp_path / "out", "1m") as mounted:
        if not mounted:
            pytest.skip("mounting a small disk needs root")
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "out")], check=True)
        dry = split("-i", source, "-o", tmp_path / "out", "--dry-run")
    assert dry.returncode == 1
    assert (
        "no se puede escribir en la carpeta de salida (el disco es de solo lectura)" in dry.stderr
    )


# What was typed


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        pytest.param(
            "-i *.pkl.gz -o out",
            "argumentos desconocidos: b.pkl.gz c.pkl.gz d.pkl.gz… (y 1 más). Son archivos que "
            "existen: el shell ha desplegado un comodín sin comillas. Usa --input . --pattern "
            "'*.pkl.gz', con comillas",
            id="glob",
        ),
        pytest.param(
            "-i sub/*.pkl -o out", "Usa --input sub --pattern '*.pkl', con comillas", id="glob-in"
        ),
        pytest.param("-i . -o out --pattern *.pkl.gz", "Usa --pattern '*.pkl.gz'", id="pattern"),
        pytest.param("-i . -o out --skip-exsting", "¿Querías decir --skip-existing?", id="typo"),
        pytest.param("-i . -o out --no_compress", "¿Querías decir --no-compress?", id="underscore"),
        pytest.param("-i . -o out --low", "¿Querías decir --low-memory?", id="abbreviated"),
        pytest.param("-i . -o out --jbs=2", "¿Querías decir --jobs?", id="with-a-value"),
        pytest.param("--imput . -o out", "¿Querías decir --input?", id="required"),
        pytest.param("-input . -output out", "¿Querías decir --input?", id="one-dash"),
        pytest.param(
            "-i a.pkl.gz -i b.pkl.gz -o out",
            "--input/-i: se ha indicado dos veces (a.pkl.gz y b.pkl.gz) y solo puede ser una: para "
            "varios archivos, su carpeta y --pattern",
            id="input-twice",
        ),
        pytest.param("-i . -o out -o out2", "--output/-o: se ha indicado dos veces", id="two-outs"),
        pytest.param("-i x.pickle -o out", "Si es un pickle, renómbrala", id="other-ending"),
    ],
)
def test_a_slip_of_the_hand_is_answered_with_what_was_meant(
    tmp_path: Path, typed: str, expected: str
) -> None:
    for name in "abcde":
        write_batch(tmp_path / f"{name}.pkl.gz", [1])
    for name in "xy":
        write_batch(tmp_path / "sub" / f"{name}.pkl", [1])
    write_batch(tmp_path / "x.pickle", [1])
    before = snapshot(tmp_path)
    done = subprocess.run(
        ["sh", "-c", f'"{sys.executable}" "{SCRIPT}" {typed}'],
        cwd=tmp_path,
        capture_output=True,
        encoding="utf-8",
        env=environment(PYTHONUTF8="1"),
        timeout=LIMIT_SECONDS,
    )
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert snapshot(tmp_path) == before


def test_what_resembles_nothing_gets_no_hint(tmp_path: Path) -> None:
    write_batch(tmp_path / "a.pkl", [1])
    done = split("-i", tmp_path, "-o", tmp_path / "out", "--xyzzy", "-Q", "stray")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("argumentos desconocidos: --xyzzy -Q stray")


def test_a_pattern_with_a_folder_is_told_how_to_be_two_options(tmp_path: Path) -> None:
    write_batch(tmp_path / "in" / "sub" / "a.pkl", [1])
    args = ("-o", tmp_path / "out", "--pattern")
    done = split("-i", tmp_path / "in", *args, "sub/*.pkl")
    assert done.returncode == 1
    assert "no hay archivos .pkl ni .pkl.gz que cumplan «sub/*.pkl»" in done.stderr
    hint = f"--input {tmp_path / 'in' / 'sub'} --pattern '*.pkl'"
    assert f"Qué hacer: el patrón se compara con el nombre del archivo, sin carpetas: {hint}." in (
        done.stderr
    )
    assert split("-i", tmp_path / "in" / "sub", *args, "*.pkl").returncode == 0


def test_a_folder_that_only_holds_folders_names_those_with_batches(tmp_path: Path) -> None:
    for name in ("one", "two"):
        write_batch(tmp_path / "in" / name / "a.pkl.gz", [1])
    (tmp_path / "in" / "empty").mkdir()
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert (
        "Qué hacer: las subcarpetas no se miran y aquí sí hay batches en one, two: indica una con "
        f"--input {tmp_path / 'in' / 'one'}.\n"
    ) in done.stderr


ASIDE = ["a.PKL", "b.pickle", "c.pkl.bz2", "d.Pkl.Gz", "e.pickle.gz"]


@pytest.mark.parametrize("with_batch", [True, False], ids=["some", "nothing-else"])
def test_files_of_other_endings_are_counted(tmp_path: Path, with_batch: bool) -> None:
    for name in [*ASIDE, ".hidden.pickle", "notes.txt", "x.pkl.bak"]:
        (tmp_path / "in").mkdir(exist_ok=True)
        (tmp_path / "in" / name).write_bytes(b"x")
    (tmp_path / "in" / "folder.pickle").mkdir()
    if with_batch:
        write_batch(tmp_path / "in" / "z.pkl", [1])
    told = (
        "5 archivos quedan fuera por no terminar en .pkl ni en .pkl.gz (a.PKL, b.pickle, "
        "c.pkl.bz2…): renombra los que sean pickles y descomprime los que estén comprimidos de "
        "otra forma"
    )
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out")
    start = f"AVISO in: {told}\n" if with_batch else f"  Qué hacer: {told}.\n"
    assert start in done.stderr
    assert done.returncode == (0 if with_batch else 1)
    chosen = split("-i", tmp_path / "in", "-o", tmp_path / "new", "--pattern", "z*")
    assert "quedan fuera" not in chosen.stderr  # by the pattern, as was meant


def test_an_empty_folder_is_only_asked_for(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.endswith("\n  Qué hacer: revisa --input y --pattern.\n")


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--quiet",)], ids=["run", "dry", "quiet"])
def test_the_folder_of_the_original_as_output_is_warned_of(
    tmp_path: Path, more: tuple[str, ...]
) -> None:
    source = write_batch(tmp_path / "in" / "a.pkl.gz", [1])
    (tmp_path / "link").symlink_to("in")
    done = split("-i", source, "-o", tmp_path / "link", *more)
    assert done.returncode == 0
    assert "un cargador que lea ahí *.pkl.gz verá cada trace dos veces" in done.stderr


def test_the_folder_of_an_original_that_goes_is_not_warned_of(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "in" / "a.pkl.gz", [1])
    done = split("-i", source, "-o", tmp_path / "in", "--delete-original", "--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "in") == ["a_sub0000.pkl.gz"]


# What is missing


def test_without_tqdm_one_line_says_what_to_install() -> None:
    without = [sys.executable, "-I", "-S"]  # no site-packages
    done = subprocess.run(
        [*without, str(SCRIPT), "-i", "x"], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    install = f"instálalo con «{sys.executable} -m pip install tqdm»"
    assert done.stderr == f"divide_conquer.py necesita tqdm: {install}.\n"
    code = f"import sys; sys.path.insert(0, {str(ROOT)!r}); import divide_conquer"
    done = subprocess.run(
        [*without, "-c", code], capture_output=True, encoding="utf-8", check=False
    )
    assert done.returncode == 1
    assert "ImportError: divide_conquer.py necesita tqdm: " in done.stderr  # what callers catch


def find_python38() -> Optional[str]:
    found = glob.glob(os.path.expanduser("~/.pyenv/versions/3.8.*/bin/python"))
    return found[0] if found else shutil.which("python3.8")


def test_python_3_8_says_which_python_to_install() -> None:
    python = find_python38()
    if python is None:
        pytest.skip("no Python 3.8 here")
    done = subprocess.run(
        [python, str(SCRIPT), "--help"], capture_output=True, encoding="utf-8", check=False
    )
    assert (done.returncode, done.stdout) == (1, "")
    needed = r"divide_conquer\.py necesita Python 3\.9 o posterior, y este es 3\.8\.\d+"
    install = r"instala uno más nuevo \(por ejemplo, con «uv python install 3\.12»\)"
    assert re.fullmatch(rf"{needed}: {install} y ejecútalo con él\.\n", done.stderr)


def test_the_script_parses_under_python_3_8() -> None:
    ast.parse(SCRIPT.read_text(encoding="utf-8"), feature_version=(3, 8))


def test_folder_that_holds_batches_and_their_sub_batches(tmp_path: Path) -> None:
    folder = tmp_path / "in"
    for name in ("a.pkl", "a_sub0000.pkl.gz", "a_sub0001.pkl.gz", "b_sub0000.pkl", "c.pkl"):
        write_batch(folder / name, [1, 2])
    done = split("-i", folder, "-o", tmp_path / "out", "--dry-run")
    assert done.returncode == 0
    assert (
        "AVISO in: contiene batches y también sub-batches suyos (a_sub0000.pkl.gz, " in done.stderr
    )
    assert "b_sub0000" not in done.stderr


def test_original_that_is_gone_is_not_called_untouched(tmp_path: Path) -> None:
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.pkl").symlink_to("nowhere")
    link = split("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert "El original sigue intacto" in link.stderr  # the link is
    source = write_batch(tmp_path / "gone.pkl", [1])
    (tmp_path / "gone.pkl").unlink()
    error = divide_conquer.LoadError(source, "no se puede leer", "búscalo")
    assert (
        "El original ya no está en su sitio"
        in divide_conquer.describe_error(error, source, tmp_path)[1]
    )


def test_dots_after_a_link_name_the_file_that_the_system_names(tmp_path: Path) -> None:
    """link/../x is not x, where link leads to another folder."""
    (tmp_path / "real" / "inner").mkdir(parents=True)
    (tmp_path / "link").symlink_to("real/inner")
    named = write_batch(tmp_path / "real" / "a.pkl", ["named"])
    other = write_batch(tmp_path / "a.pkl", ["other"])
    options = ("-i", "link/../a.pkl", "-o", "link/../out", "--delete-original", "--yes")
    done = split(*options, cwd=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_set(tmp_path / "real" / "out", "a") == [["named"]]
    assert other.exists() and not named.exists()
