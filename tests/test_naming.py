"""Names: what are sub-batches called, whatever their original is called?"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from helpers import (
    Folders,
    Mode,
    assert_fails,
    environment,
    load,
    load_set,
    modes,
    mounted_tmpfs,
    names,
    split,
    sub_names,
    write_batch,
)


def test_more_than_10000_sub_batches_get_5_digits(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl", list(range(10_001)))
    with mounted_tmpfs(folders.output, "80m"):  # a disk takes 10 s for so many fsyncs
        done = split(*folders.args("-n", 1, "--no-compress", "--no-validate"))
        assert done.returncode == 0
        assert names(folders.output) == [f"a_sub{index:05d}.pkl" for index in range(10_001)]
        for index in (0, 9_999, 10_000):
            assert load(folders.output / f"a_sub{index:05d}.pkl") == [index]


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


@pytest.mark.parametrize("length", [240, 250], ids=["part", "lock"])
def test_name_too_long_for_what_is_made_of_it_is_to_be_shortened(
    folders: Folders, length: int
) -> None:
    write_batch(folders.source / f"{'x' * length}.pkl", [1])
    done = split(*folders.args())
    assert_fails(done, "nombre de archivo demasiado largo", "Qué hacer: acorta el nombre del")
    assert names(folders.output) == []


@modes
def test_names_that_differ_only_in_case_are_two_batches(tmp_path: Path, mode: Mode) -> None:
    write_batch(tmp_path / "in" / "batch.pkl", ["a", "b"])
    write_batch(tmp_path / "in" / "BATCH.pkl", ["c", "d"])
    if len(names(tmp_path / "in")) < 2:
        pytest.skip("this file system does not tell upper case from lower")
    done = split("-i", tmp_path / "in", "-o", tmp_path / "out", "--delete-original", "--yes", *mode)
    assert (done.returncode, done.stderr) == (0, "")
    assert load_set(tmp_path / "out", "batch") == [["a", "b"]]
    assert load_set(tmp_path / "out", "BATCH") == [["c", "d"]]
    assert names(tmp_path / "in") == []


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
