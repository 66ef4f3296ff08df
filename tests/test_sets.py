"""Sets: what becomes of sub-batches that are there, or that appear during the run?"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import empty_file, exchange_with_next
from helpers import (
    Folders,
    Mode,
    assert_fails,
    load_set,
    names,
    pickled_call,
    pickled_list,
    snapshot,
    split,
    sub_names,
    write_batch,
    write_module,
)

from divide_conquer import OutputError, split_file

# Whole sets: refused, or skipped where they are of this original


@pytest.mark.parametrize("suffix", [".pkl.gz", ".pkl"])
def test_existing_set_is_refused_untouched(folders: Folders, suffix: str) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    write_batch(folders.source / "b.pkl.gz", [4])
    os.utime(write_batch(folders.output / f"a_sub0000{suffix}", ["someone's"]), (1, 1))
    before = snapshot(folders.output)
    done = split(*folders.args())
    assert done.returncode == 1
    assert f"sus sub-batches ya existen (a_sub0000{suffix}" in done.stderr
    assert "apártalos o elige otra carpeta de salida" in done.stderr
    assert "--skip-existing" not in done.stderr  # where they are no set of it, that is an error
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
def test_the_same_set_is_refused_or_with_skip_existing_passed_over(
    folders: Folders, made_with: Mode, again_with: Mode
) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    assert split(*folders.args("-n", 2, *made_with)).returncode == 0
    before = snapshot(folders.output)
    done = split(*folders.args("-n", 1, *again_with))
    assert_fails(done, "usa --skip-existing para omitirlo, apártalos o elige otra carpeta")
    done = split(*folders.args("-n", 1, "--skip-existing", *again_with))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.pkl.gz: omitido" in done.stdout
    assert "ni releídos ni comparados con -n" in done.stdout
    assert done.stdout.endswith("\nResumen: 1 omitido.\n")
    assert snapshot(folders.output) == before


def test_copy_of_a_set_without_its_dates_is_known(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    assert split(*folders.args("-n", 2)).returncode == 0
    (folders.output / "a_sub0002.pkl.gz.part").touch()  # the stamps say that none is missing
    for path in folders.output.iterdir():
        os.utime(path, (5, 5))
    done = split(*folders.args("-n", 2, "--skip-existing"))
    assert (done.returncode, done.stderr) == (0, "")
    assert "a.pkl.gz: omitido" in done.stdout


def test_set_of_another_original_of_the_same_date_is_not_skipped(folders: Folders) -> None:
    source = write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    os.utime(source, (1_700_000_000, 1_700_000_000))
    assert split(*folders.args("-n", 2)).returncode == 0
    write_batch(source, ["another", "list"])
    os.utime(source, (1_700_000_000, 1_700_000_000))
    done = split(*folders.args("-n", 2, "--skip-existing"))
    assert done.returncode == 1
    assert "a_sub0000.pkl.gz procede de otro original" in done.stderr


@pytest.mark.parametrize(
    ("compress", "was_ns", "now_ns", "is_known"),
    [
        pytest.param(False, 0, 2 * 10**9, True, id="FAT"),
        pytest.param(False, 0, 2 * 10**9 + 1, False, id="more-than-FAT"),
        pytest.param(False, 1, 2 * 10**9, True, id="copied-to-FAT"),
        pytest.param(False, 0, 10**9 + 1, True, id="copied-from-FAT"),
        pytest.param(False, 1, 10**6 + 1, True, id="SMB"),
        pytest.param(False, 1, 10**6 + 2, False, id="more-than-SMB"),
        pytest.param(True, 1, 2 * 10**9, True, id="stamp"),
        pytest.param(True, 0, 3 * 10**9, False, id="more-than-stamp"),
        pytest.param(True, -1, -1, True, id="before-1970"),
    ],
)
def test_original_is_known_by_its_date_as_far_as_file_systems_keep_it(
    tmp_path: Path, compress: bool, was_ns: int, now_ns: int, is_known: bool
) -> None:
    source = write_batch(tmp_path / "a.pkl", [1, 2, 3])
    for time_ns in (was_ns, now_ns):
        os.utime(source, ns=(time_ns, time_ns))
        with contextlib.suppress(OutputError):
            report = split_file(source, tmp_path / "out", compress=compress, skip_existing=True)
    assert report.skipped == is_known


# Sets that are mixed or not whole


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
    "interrupted-publish-without-part-0": (
        ["_sub0001.pkl", "_sub0002.pkl.part"],
        0,
        "incompleto o mezclado",
    ),
    "part-beside-a-set-without-stamps": (
        ["_sub0000.pkl", "_sub0001.pkl.part"],
        0,
        "junto a él queda part-beside-a-set-without-stamps_sub0001.pkl.part, sin terminar",
    ),
}
"""Stem: (names that are there, how much older than the source, expected words)."""


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry-run"])
def test_other_or_incomplete_sets_are_refused_untouched(folders: Folders, more: Mode) -> None:
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


@pytest.mark.parametrize("more", [(), ("--dry-run",)], ids=["run", "dry-run"])
@pytest.mark.parametrize(
    ("index", "damage", "problem"),
    [
        pytest.param(2, os.unlink, "falta el último sub-batch: hay 4 traces de 5", id="last-gone"),
        pytest.param(1, empty_file, "a_sub0001.pkl.gz está vacío", id="empty"),
        pytest.param(0, exchange_with_next, "a_sub0000.pkl.gz no sigue al ant", id="exchanged"),
    ],
)
def test_set_that_is_not_whole_is_not_skipped(
    folders: Folders, index: int, damage: Callable[[Path], None], problem: str, more: Mode
) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3, 4, 5])
    assert split(*folders.args("-n", 2)).returncode == 0
    damage(folders.output / f"a_sub000{index}.pkl.gz")
    before = snapshot(folders.output)
    done = split(*folders.args("-n", 2, "--skip-existing", *more))
    assert done.returncode == 1
    assert problem in done.stdout + done.stderr
    assert snapshot(folders.output) == before


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
def test_interrupted_publish_is_cleared_and_redone(folders: Folders, more: Mode) -> None:
    mtime_ns = write_batch(folders.source / "a.pkl.gz", [1, 2, 3, 4, 5]).stat().st_mtime_ns
    folders.output.mkdir()
    for name in ("a_sub0000.pkl.gz.part", "a_sub0003.pkl.gz.part", *sub_names("a", 3)[1:]):
        (folders.output / name).write_bytes(b"of the run that was killed")
        os.utime(folders.output / name, ns=(mtime_ns, mtime_ns))
    done = split(*folders.args("-n", 3, *more))
    assert (done.returncode, done.stderr) == (0, "")
    assert names(folders.output) == sub_names("a", 2)
    assert load_set(folders.output, "a") == [[1, 2, 3], [4, 5]]


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
    assert f"No se pudo guardar: el archivo ya existe ({intruder})\n" in done.stderr
    assert "Qué hacer: mira qué otro programa usa la carpeta de salida y repite" in done.stderr
    assert names(folders.source) == ["a.pkl"]
    assert names(folders.output) == [intruder.name]
    assert intruder.read_bytes() == b"theirs"
