"""Deletion: when does an original go, when is it kept, and what is asked before?"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from faults import Box, Fault, append_byte, cut_half, needs_strace, rewrite_in_place, stopped
from helpers import (
    Folders,
    Mode,
    environment,
    load,
    load_set,
    modes,
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


def test_skipped_source_is_never_deleted(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2])
    assert split(*folders.args()).returncode == 0
    write_batch(folders.source / "b.pkl.gz", [3])
    done = split(*folders.args("--skip-existing", "--delete-original", "--yes"))
    assert done.returncode == 0
    assert "AVISO a.pkl.gz: original conservado: ya estaba dividido" in done.stderr
    assert names(folders.source) == ["a.pkl.gz"]
    assert names(folders.output) == sub_names("a", 1) + sub_names("b", 1)
    # Where nothing is to go, nothing is asked.
    assert split(*folders.args("--skip-existing", "--delete-original")).returncode == 0


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


# The question


@pytest.mark.parametrize("more", [(), ("--quiet",)], ids=["plain", "quiet"])
def test_delete_without_a_terminal_and_without_yes_does_nothing(
    folders: Folders, more: Mode
) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    (folders.source.parent / "answer").write_text("s\n")
    before = snapshot(folders.source.parent)
    with (folders.source.parent / "answer").open() as answer:
        done = split(*folders.args("--delete-original", *more), stdin=answer)
    assert (done.returncode, done.stdout) == (1, "")
    assert "--yes" in done.stderr
    assert snapshot(folders.source.parent) == before


def test_terminal_on_stderr_alone_asks_nothing(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    master, slave = os.openpty()
    try:
        done = split(*folders.args("--delete-original"), stderr=slave)
        shown = os.read(master, 65536).decode()
    finally:
        os.close(master)
        os.close(slave)
    assert done.returncode == 1
    assert "--yes" in shown
    assert not folders.output.exists()
    assert names(folders.source) == ["a.pkl.gz"]


@pytest.mark.parametrize(
    "answer",
    [b"s\n", b"S\n", " sí \n".encode(), b"y\n", b"yes\n"],
    ids=["s", "S", "sí", "y", "yes"],
)
def test_yes_to_the_question_deletes(folders: Folders, answer: bytes) -> None:
    write_batch(folders.source / "a.pkl.gz", [1, 2, 3])
    env = environment(PYTHONIOENCODING="utf-8:strict")  # as in es_ES.UTF-8
    done = split_on_terminal(*folders.args("--delete-original"), answer=answer, env=env)
    assert done.returncode == 0
    assert names(folders.source) == []
    assert load_set(folders.output, "a") == [[1, 2, 3]]


@pytest.mark.parametrize(
    "answer",
    [
        pytest.param(b"\n", id="enter"),
        pytest.param(b"n\n", id="n"),
        pytest.param(b"yep\n", id="no-yes"),
        pytest.param(b"\x04", id="end-of-input"),
        pytest.param(b"s\xed\n", id="latin-1"),
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
    assert "cada uno cuando sus sub-batches estén validados" in question
    assert "done.pkl" not in question


def test_yes_needs_no_question_on_a_terminal(folders: Folders) -> None:
    write_batch(folders.source / "a.pkl.gz", [1])
    done = split_on_terminal(*folders.args("--delete-original", "-y"))
    assert done.returncode == 0
    assert "[s/N]" not in done.terminal
    assert names(folders.source) == []


# Links


@pytest.mark.parametrize(
    "more", [(), ("--quiet",), ("--low-memory",)], ids=["default", "quiet", "low_memory"]
)
def test_symlinked_original_is_kept(folders: Folders, more: Mode) -> None:
    target = write_batch(folders.source.parent / "elsewhere" / "real.pkl", [1, 2])
    (folders.source / "a.pkl").symlink_to(target)
    done = split(*folders.args("--delete-original", "--yes", *more))
    assert done.returncode == 1
    assert "original conservado: es un enlace simbólico" in done.stderr
    assert "eliminado" not in done.stdout
    assert (folders.source / "a.pkl").is_symlink()
    assert target.exists()
    assert load_set(folders.output, "a") == [[1, 2]]


@modes
def test_a_hard_link_is_split_and_its_other_name_stays(tmp_path: Path, mode: Mode) -> None:
    box = Box(tmp_path / "box", mode).make()
    other = tmp_path / "other.gz"
    os.link(box.source, other)
    before = other.read_bytes()
    done = split(*box.arguments())
    assert (done.returncode, done.stderr) == (0, "")
    assert not box.source.exists() and other.read_bytes() == before
    assert box.set_is_complete()


# Originals that change during the run


@pytest.mark.parametrize(
    "action",
    [
        pytest.param("os.chmod(path, 0o600)", id="status-changed"),
        pytest.param(
            "pathlib.Path(path + '.new').write_bytes(b'newer'); os.replace(path + '.new', path)",
            id="replaced",
        ),
    ],
)
def test_original_that_changed_meanwhile_is_kept(folders: Folders, action: str) -> None:
    source = folders.source / "a.pkl"
    env = write_module(
        folders.source.parent / "modules",
        "meddling",
        f"import os, pathlib\ndef act(path):\n    {action}\n    return 'trace'\n",
    )
    source.write_bytes(pickled_list(pickled_call("meddling", "act", str(source))))
    done = split(*folders.args("--delete-original", "--yes"), env=env)
    assert done.returncode == 1
    assert "original conservado: cambió durante la ejecución" in done.stderr
    assert names(folders.source) == ["a.pkl"]
    assert load_set(folders.output, "a") == [["trace"]]


@needs_strace
@pytest.mark.sampled
@modes
@pytest.mark.parametrize("replaced", [True, False], ids=["replaced", "removed"])
@pytest.mark.parametrize(
    "at",
    [
        pytest.param(("read", "in/batch.pkl.gz"), id="while_it_is_read"),
        pytest.param(("fsync", "out/split/batch_sub0000.pkl.gz.part"), id="while_it_is_saved"),
        pytest.param(("fsync", "out/split"), id="while_it_is_published"),
    ],
)
def test_a_source_replaced_or_removed_after_opening_is_split_and_its_successor_kept(
    tmp_path: Path, at: tuple[str, str], replaced: bool, mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, True, 600_000).make()
    with stopped(box, Fault(*at, 1, "signal=SIGSTOP")) as runs:
        if replaced:
            new = write_batch(box.source.with_name("new.pkl.gz"), ["new"])
            os.replace(new, box.source)
        else:
            box.source.unlink()
    run = runs[0]
    assert run.code == 1, run.err
    assert box.set_is_complete() and box.rest() == []
    assert box.source.exists() == replaced
    assert not replaced or load(box.source) == ["new"]
    assert "original conservado" in run.err


@needs_strace
@modes
def test_a_source_rewritten_with_its_old_time_is_kept(tmp_path: Path, mode: Mode) -> None:
    box = Box(tmp_path / "box", mode).make()
    times = box.source.stat()
    with stopped(box, Fault("fsync", "out/split", 1, "signal=SIGSTOP")) as runs:
        rewrite_in_place(box.source)
        os.utime(box.source, ns=(times.st_atime_ns, times.st_mtime_ns))
    assert box.source.exists()
    assert "original conservado: cambió durante la ejecución" in runs[0].err


# Sub-batches that change before the original goes


def replace_by_copy(path: Path) -> None:
    copy = path.with_name("copy")
    shutil.copy2(path, copy)
    os.replace(copy, path)


@needs_strace
@pytest.mark.sampled
@modes
@pytest.mark.parametrize("index", [0, 1, 2])
@pytest.mark.parametrize("change", [cut_half, append_byte, os.unlink, replace_by_copy])
def test_a_final_file_changed_before_the_deletion_keeps_the_original(
    tmp_path: Path, index: int, change: Callable[[Path], None], mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode).make()
    with stopped(box, Fault("fsync", "out/split", 2, "signal=SIGSTOP")) as runs:
        change(box.finals[index])
    run = runs[0]
    assert box.source_is_whole()
    assert "original conservado" in run.err
    assert box.finals[index].name in run.err
    assert "Traceback" not in run.err and box.rest() == []
