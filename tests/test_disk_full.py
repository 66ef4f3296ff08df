"""A full disk: what is said before, what is left, and what becomes of the other files?"""

from __future__ import annotations

import os
import re
import resource
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
from bad_files import GOOD_TRACES, errors_of
from faults import Box
from helpers import Mode, limit, load_set, modes, names, small_disk, snapshot, split, write_batch

# Said before the run


@pytest.mark.parametrize("more", [(), ("--quiet",), ("--dry-run", "--quiet")], ids=" ".join)
def test_a_disk_too_small_for_the_run_is_said_first(tmp_path: Path, more: Mode) -> None:
    for name in ("a", "b"):
        write_batch(tmp_path / "in" / f"{name}.pkl", [os.urandom(700_000)])
    with small_disk(tmp_path / "out", "1m"):
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
    with small_disk(tmp_path / "out", "1m"):
        done = split("-i", source, "-o", tmp_path / "out")
    assert done.stderr.count("puede que no quepa") == 1


def test_originals_that_go_make_room_for_the_next(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", "1m"):
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


# A disk that fills up


@pytest.mark.parametrize("more", [(), ("--no-compress",)], ids=["gzip", "plain"])
def test_full_disk_keeps_original_and_counts_residual_parts(tmp_path: Path, more: Mode) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "bad.pkl", [os.urandom(300_000) for _ in range(6)])
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    before = snapshot(source)["bad.pkl"]
    with small_disk(output, "1m"):
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


FILLER = "filler"


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Path]:
    """Return the folder of a disk of 4 MiB."""
    with small_disk(tmp_path / "disk", "4m"):
        yield tmp_path / "disk"


def fill_disk(disk: Path, room: int) -> None:
    """Leave room bytes: tmpfs gives and counts whole pages of 4 KiB."""
    with (disk / FILLER).open("wb") as file:
        free = shutil.disk_usage(disk).free
        file.write(bytes(free - room))
    assert shutil.disk_usage(disk).free == room


class Fullness(NamedTuple):
    """Where a disk, or a limit on one file, ends: after these bytes of a set of 3 parts."""

    of_part: float  # how many parts fit
    less_bytes: int = 0


FULLNESS = [
    pytest.param(Fullness(0), id="at_the_first_byte"),
    pytest.param(Fullness(0.5), id="in_the_first_part"),
    pytest.param(Fullness(1.5), id="in_the_second_part"),
    pytest.param(Fullness(2.5), id="in_the_last_part"),
    pytest.param(Fullness(3, 8192), id="a_few_KiB_too_early"),
]
PAGE_BYTES = 4096
PART_TRACE_BYTES = 200_000


@pytest.mark.sampled
@modes
@pytest.mark.parametrize("compress", [pytest.param(True, id="gz"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("fullness", FULLNESS)
def test_full_disk_keeps_the_original_and_leaves_nothing(
    tmp_path: Path, disk: Path, fullness: Fullness, compress: bool, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, compress, PART_TRACE_BYTES).make()
    box.output.parent.mkdir()
    box.output.symlink_to(disk)
    room = int(fullness.of_part * 2 * PART_TRACE_BYTES) - fullness.less_bytes
    fill_disk(disk, room // PAGE_BYTES * PAGE_BYTES)
    done = split(*box.arguments())
    assert done.returncode == 1
    assert done.stderr.count("No se pudo guardar") == 1
    assert "no queda espacio" in done.stderr
    assert "Traceback" not in done.stderr
    assert box.source_is_whole()
    assert names(box.output) == [FILLER]


@modes
def test_a_disk_with_just_enough_room_is_enough(tmp_path: Path, disk: Path, mode: Mode) -> None:
    box = Box(tmp_path / "box", mode, False, PART_TRACE_BYTES).make()
    box.output.parent.mkdir()
    box.output.symlink_to(disk / "set")
    (disk / "set").mkdir()
    fill_disk(disk, 3 * (2 * PART_TRACE_BYTES // PAGE_BYTES + 1) * PAGE_BYTES)
    done = split(*box.arguments())
    assert (done.returncode, done.stderr) == (0, "")
    assert box.set_is_complete() and not box.source.exists()


# A limit on the size of one file


@pytest.mark.parametrize("more", [(), ("--no-compress",)], ids=["gzip", "plain"])
def test_limit_of_file_size_keeps_original(tmp_path: Path, more: Mode) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    write_batch(source / "bad.pkl", [1, 2, os.urandom(300_000)])
    write_batch(source / "good.pkl.gz", GOOD_TRACES)
    before = snapshot(source)["bad.pkl"]
    done = split(
        *("-i", source, "-o", output, "-n", 2, "--delete-original", "--yes", *more),
        preexec_fn=limit(resource.RLIMIT_FSIZE, 100_000),
    )
    assert done.returncode == 1
    (error,) = errors_of(done.stderr)
    assert re.search(
        r"bad\.pkl: No se pudo guardar: .+ tamaño permitido \(.*bad_sub0001\.pkl", error
    )
    assert "residuales" not in error
    assert names(output) == [f"good_sub000{i}.pkl{'' if more else '.gz'}" for i in range(3)]
    assert snapshot(source) == {"bad.pkl": before}


@pytest.mark.sampled
@modes
@pytest.mark.parametrize("limit_bytes", [0, 1, 4_096, 2 * PART_TRACE_BYTES - 100])
def test_file_size_limit_keeps_the_original_and_leaves_nothing(
    tmp_path: Path, limit_bytes: int, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, True, PART_TRACE_BYTES).make()
    done = split(*box.arguments(), preexec_fn=limit(resource.RLIMIT_FSIZE, limit_bytes))
    assert done.returncode == 1
    assert done.stderr.count("No se pudo guardar") == 1
    assert "Traceback" not in done.stderr
    assert box.source_is_whole()
    assert names(box.output) == []
