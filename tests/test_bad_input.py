"""Bad input: is it one clear error, with nothing left of it, and are the other files done?"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path

import pytest
from bad_files import BAD_FILES, BAD_MODULE, GOOD_NAMES, GOOD_TRACES, Make, errors_of
from helpers import assert_fails, load_set, names, snapshot, split, write_batch, write_module


@pytest.mark.parametrize(("kind", "make", "expected"), BAD_FILES)
def test_bad_file_is_one_error_and_the_others_are_done(
    tmp_path: Path, kind: str, make: Make, expected: str
) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    bad = source / ("bad.pkl.gz" if kind == "gz" else "bad.pkl")
    make(bad)
    env = write_module(tmp_path / "modules", "bad_traces", BAD_MODULE)
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


def test_single_fifo_does_not_hang(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.pkl")
    done = split("-i", tmp_path / "x.pkl", "-o", tmp_path / "out")
    assert_fails(done, "x.pkl: no es un archivo normal")
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
