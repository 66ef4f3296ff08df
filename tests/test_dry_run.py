"""--dry-run: does it foresee what the run would do, and touch nothing?"""

from __future__ import annotations

import bz2
import gzip
import os
import pickle
import re
import shutil
import subprocess
from pathlib import Path

import pytest
from faults import under_strace
from helpers import (
    Folders,
    Mode,
    assert_fails,
    names,
    small_disk,
    snapshot,
    split,
    split_without,
    write_batch,
)


def test_dry_run_touches_nothing(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    before = snapshot(folders.source.parent)
    done = split(*folders.args("--dry-run", "--delete-original"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.pkl.gz" in done.stdout
    assert re.search(r"^A eliminar, ya validados: 1 original \(\d+ B\)\.$", done.stdout, re.M)
    assert re.search(r"^Espacio: \S+ .B libres; harán falta unos \S+ B\.$", done.stdout, re.M)
    assert "se dividiría en a_sub0000.pkl.gz…, de hasta 250 traces" in done.stdout
    assert "residuales" not in done.stdout
    assert snapshot(folders.source.parent) == before


def test_dry_run_leaves_stale_parts_and_tells_what_would_be_skipped(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl.gz", [4])
    assert split("-i", folders.source / "a.pkl.gz", "-o", folders.output).returncode == 0
    (folders.output / "b_sub0000.pkl.gz.part").write_bytes(b"x" * 100)
    (folders.output / "c_sub0000.pkl.gz.part").symlink_to("gone")
    before = snapshot(folders.source.parent)
    done = split(*folders.args("--dry-run", "--skip-existing", "--yes"))
    assert done.returncode == 0
    assert re.search(r"a\.pkl\.gz \(.+\): se omitiría", done.stdout)
    assert re.search(r"b\.pkl\.gz \(.+\): se dividiría", done.stdout)
    assert ".part residuales en la salida: 1 (100 B)" in done.stdout
    assert snapshot(folders.source.parent) == before


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


def test_dry_run_foresees_what_cannot_be_opened(folders: Folders) -> None:
    os.mkfifo(folders.source / "a.pkl")
    (folders.source / "b.pkl").symlink_to("nowhere")
    done = split(*folders.args("--dry-run"))
    assert done.returncode == 1
    assert "a.pkl: fallaría: no es un archivo normal" in done.stdout
    assert "b.pkl: fallaría: es un enlace simbólico roto" in done.stdout


@pytest.mark.parametrize("more", [("--dry-run",), ()], ids=["dry-run", "run"])
def test_too_little_memory_and_disk_are_said_first(folders: Folders, more: Mode) -> None:
    with (folders.source / "a.pkl").open("wb") as file:
        file.write(pickle.dumps([1]))
        file.truncate(1 << 42)  # sparse
    done = split(*folders.args(*more))
    assert done.returncode == (0 if more else 1)
    assert re.search(r"harán falta unos 4\.4 TB", done.stdout + done.stderr)
    assert re.search(
        r"^AVISO a\.pkl: cargado ocupará al menos 4\.84 TB .*--low-memory", done.stderr, re.M
    )


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


FSTAT_FAILS = """
fstat = os.fstat
def failing(fd):
    if os.readlink(f"/proc/self/fd/{fd}").endswith("bad.pkl"): raise OSError(errno.ESTALE, "Stale")
    return fstat(fd)
os.fstat = failing
"""


def test_what_fails_as_it_is_opened_does_not_stop_the_others(folders: Folders) -> None:
    write_batch(folders.source / "bad.pkl", [1])
    write_batch(folders.source / "good.pkl", [2])
    done = split_without(FSTAT_FAILS, *folders.args())
    assert_fails(done, "bad.pkl: no se puede leer (el servidor de archivos ya no lo encuentra)")
    assert names(folders.output) == ["good_sub0000.pkl.gz"]


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


# The output folder is tried


@pytest.mark.parametrize("made", [True, False], ids=["there", "to-be-made"])
@pytest.mark.parametrize("quiet", [(), ("--quiet",)], ids=["loud", "quiet"])
def test_a_dry_run_tries_the_output_folder(
    tmp_path: Path, unprivileged: tuple[str, ...], quiet: Mode, made: bool
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


def test_a_disk_that_does_not_tell_its_space_is_no_failure(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    prefix = under_strace("statfs:error=EIO", tmp_path)
    dry = split("-i", source, "-o", tmp_path / "out", "--dry-run", prefix=prefix)
    assert (dry.returncode, dry.stderr) == (0, "")
    assert "Espacio" not in dry.stdout


def test_a_dry_run_finds_that_the_disk_behind_a_link_is_not_there(tmp_path: Path) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    (tmp_path / "out").symlink_to("nowhere")
    dry = split("-i", source, "-o", tmp_path / "out", "--dry-run")
    assert_fails(dry, "no se puede escribir en la carpeta de salida (el archivo no existe)")


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
    with small_disk(tmp_path / "out", "1m"):
        subprocess.run(["mount", "-o", "remount,ro", str(tmp_path / "out")], check=True)
        dry = split("-i", source, "-o", tmp_path / "out", "--dry-run")
    assert dry.returncode == 1
    assert (
        "no se puede escribir en la carpeta de salida (el disco es de solo lectura)" in dry.stderr
    )
