"""The command line: which options are there, what is wrong usage, which files are taken?"""

from __future__ import annotations

import io
import re
import sys
from pathlib import Path
from typing import Optional, Union

import pytest
from helpers import (
    SCRIPT,
    SOURCE,
    Folders,
    Mode,
    assert_fails,
    environment,
    load_set,
    modes,
    names,
    run,
    snapshot,
    split,
    sub_names,
    write_batch,
)

import divide_conquer


def test_version() -> None:
    done = split("--version")
    assert (done.returncode, done.stderr) == (0, "")
    source = SOURCE.read_text(encoding="utf-8")
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


def test_jobs_are_the_usable_processors_by_default() -> None:
    assert 1 <= divide_conquer.default_jobs(low_memory=False) <= 10_000
    help_text = io.StringIO()
    divide_conquer._make_parser().print_help(help_text)
    assert re.search(r"--jobs.*\s+hilos", help_text.getvalue())


# Wrong usage


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        pytest.param("-i in -o out --fast", "argumentos desconocidos: --fast", id="unknown-flag"),
        pytest.param("-i in -o out --del", "argumentos desconocidos: --del", id="abbreviated-flag"),
        pytest.param("-i in -o out extra", "argumentos desconocidos: extra", id="stray-argument"),
        pytest.param("-i none -o out", "la entrada no existe: none", id="missing-input"),
        pytest.param("-i none.pkl -o out", "la entrada no existe: none.pkl", id="missing-file"),
        pytest.param(
            "-i dangling.pkl -o out",
            "la entrada es un enlace simbólico roto: dangling.pkl",
            id="dangling-symlink",
        ),
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
        pytest.param(
            "-i in -o link --delete-original --yes --low-memory",
            "son la misma carpeta",
            id="same-that-would-delete",
        ),
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
        pytest.param(f"-i {'x' * 300}.pkl -o out", "la entrada", id="input-name-too-long"),
        pytest.param(f"-i in -o {'x' * 300}", "la salida", id="output-name-too-long"),
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
        pytest.param("-i . x.pickle -o out", "Usa --input . --pattern '*'", id="other-file"),
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
    env = environment(PYTHONUTF8="1")
    done = run(["sh", "-c", f'"{sys.executable}" "{SCRIPT}" {typed}'], cwd=tmp_path, env=env)
    assert (done.returncode, done.stdout) == (2, "")
    assert expected in done.stderr
    assert snapshot(tmp_path) == before


def test_what_resembles_nothing_gets_no_hint(tmp_path: Path) -> None:
    write_batch(tmp_path / "a.pkl", [1])
    done = split("-i", tmp_path, "-o", tmp_path / "out", "-qy", "--xyzzy", "-Q", "stray")
    assert done.returncode == 2
    assert done.stderr.splitlines()[-1].endswith("argumentos desconocidos: --xyzzy -Q stray")


# Which files a folder gives


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


def test_a_folder_that_only_holds_folders_names_those_with_batches(
    tmp_path: Path, unprivileged: tuple[str, ...]
) -> None:
    for name in ("one", "two", "zero"):
        write_batch(tmp_path / "in" / name / "a.pkl.gz", [1])
    (tmp_path / "in" / "empty").mkdir()
    (tmp_path / "in" / "notes.txt").touch()
    (tmp_path / "in" / "locked").mkdir(mode=0)
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out", prefix=unprivileged)
    assert done.returncode == 1
    assert (
        "Qué hacer: las subcarpetas no se miran y aquí sí hay batches en one, two, zero: indica "
        f"una con --input {tmp_path / 'in' / 'one'}.\n"
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


def test_folder_whose_files_cannot_be_looked_at_is_only_asked_for(
    tmp_path: Path, unprivileged: tuple[str, ...]
) -> None:
    write_batch(tmp_path / "in" / "x.pickle", [1])
    (tmp_path / "in").chmod(0o400)
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out", prefix=unprivileged)
    (tmp_path / "in").chmod(0o700)
    assert_fails(done, "no hay archivos .pkl ni .pkl.gz", "revisa --input y --pattern")


def test_folder_with_the_name_of_a_batch_is_no_input(tmp_path: Path) -> None:
    (tmp_path / "in" / "x.pkl").mkdir(parents=True)
    write_batch(tmp_path / "in" / "good.pkl.gz", [1])
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out")
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "out") == sub_names("good", 1)


# An output folder that is the input folder


@pytest.mark.parametrize("more", [(), ("--dry-run",), ("--quiet",)], ids=["run", "dry", "quiet"])
def test_the_folder_of_the_original_as_output_is_warned_of(tmp_path: Path, more: Mode) -> None:
    source = write_batch(tmp_path / "in" / "a.pkl.gz", [1])
    (tmp_path / "link").symlink_to("in")
    done = split("-i", source, "-o", tmp_path / "link", *more)
    assert done.returncode == 0
    assert "un cargador que lea ahí *.pkl.gz verá cada trace dos veces" in done.stderr


@modes
def test_the_folder_of_an_original_that_goes_is_not_warned_of(tmp_path: Path, mode: Mode) -> None:
    source = write_batch(tmp_path / "in" / "a.pkl.gz", [1])
    done = split("-i", source, "-o", tmp_path / "in", "--delete-original", "--yes", *mode)
    assert (done.returncode, done.stderr) == (0, "")
    assert names(tmp_path / "in") == ["a_sub0000.pkl.gz"]


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
