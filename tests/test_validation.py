"""Validation: is all found that differs from what was written, before it is published?

Some traces here are of classes whose code does the damage while they are saved: that is real code
in a real run, and comes at the very moment that the test is about.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import (
    Box,
    Fault,
    append_byte,
    append_gzip_member,
    assert_honest_end,
    cut_half,
    empty_file,
    flip_byte,
    needs_strace,
    stopped,
    under_strace,
)
from helpers import (
    Mode,
    assert_fails,
    load,
    low_memory_or_not,
    modes,
    names,
    note_output,
    pickled_call,
    pickled_list,
    pickled_value,
    split,
    write_batch,
    write_module,
)

from divide_conquer import IndexedBatch, Phase, ValidationError, split_file

MODULE = """
import gc


made = []


def make(what):
    made.append(what)
    if what == "load once" and len(made) > 1:
        raise ValueError
    trace = Trace()
    trace.what = what
    return trace


class Trace:
    def __reduce__(self):
        if self.what == "drop others when saved":
            for owner in gc.get_referrers(self):
                if type(owner) is list:
                    del owner[:-1]
        elif self.what == "drop the first when saved":
            for owner in gc.get_referrers(self):
                if type(owner) is list:
                    del owner[0]
        return make, (self.what,)

"""


def run(tmp_path: Path, items: list[bytes], n: int, *more: object) -> Any:
    source = tmp_path / "a.pkl"
    source.write_bytes(pickled_list(*items))
    env = write_module(tmp_path / "modules", "odd_traces", MODULE)
    return split("-i", source, "-o", tmp_path / "out", "-n", n, *more, env=env)


def trace(what: str) -> bytes:
    return pickled_call("odd_traces", "make", what)


NUMBERS = [b"K%c" % number for number in range(3)]


def test_sub_batch_with_another_number_of_traces_is_found(tmp_path: Path) -> None:
    """Its last trace takes the others out of the list once they are written."""
    done = run(tmp_path, [*NUMBERS, trace("drop others when saved")], 4)
    assert_fails(done, "a_sub0000.pkl.gz.part", "la validación falló: 4 traces en vez de 1")
    assert names(tmp_path / "out") == []
    assert (tmp_path / "a.pkl").exists()


def test_trace_that_no_sub_batch_has_is_found(tmp_path: Path) -> None:
    """The second trace takes out the first as it is saved, so that the third is passed over."""
    done = run(tmp_path, [b"K\x07", trace("drop the first when saved"), *NUMBERS], 9)
    assert_fails(done, "la validación falló: 4 traces en los sub-batches y 5 en el original")
    assert names(tmp_path / "out") == []
    assert (tmp_path / "a.pkl").exists()


def test_part_that_does_not_load_is_not_taken_for_one_that_changed_on_disk(tmp_path: Path) -> None:
    """What loading it did not come to is compared with what was written, too."""
    items = [trace("load once"), pickled_value(os.urandom(1 << 20))]
    done = run(tmp_path, items, 2, "--no-compress")
    assert_fails(done, "la validación falló: está bien escrito, pero no se carga", "--low-memory")
    assert names(tmp_path / "out") == []


def test_part_that_low_memory_cannot_walk_is_a_fault_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    source = write_batch(tmp_path / "a.pkl", [1])
    monkeypatch.setattr(IndexedBatch, "dump_next", lambda self, sink: sink.write(b"junk"))
    with pytest.raises(ValidationError, match="está bien escrito, pero no se carga") as raised:
        split_file(source, tmp_path / "out", low_memory=True)
    assert "es un fallo de este programa" in raised.value.hint


@low_memory_or_not
def test_byte_that_changed_on_disk_is_found_although_it_loads(
    tmp_path: Path, low_memory: bool
) -> None:
    source, output = write_batch(tmp_path / "a.pkl", ["sound", 1, 2]), tmp_path / "out"

    def progress(phase: Phase, done: int, expected: int) -> None:
        part = output / "a_sub0000.pkl.part"
        if phase is Phase.VALIDATE and done == 0:
            assert b"sound" in part.read_bytes()
            part.write_bytes(part.read_bytes().replace(b"sound", b"sOund"))

    with pytest.raises(ValidationError, match="no devuelve los bytes que se escribieron") as raised:
        split_file(
            source,
            output,
            traces_per_batch=2,
            compress=False,
            low_memory=low_memory,
            progress=progress,
        )
    note_output(str(raised.value))
    assert names(output) == []
    assert load(source) == ["sound", 1, 2]


@low_memory_or_not
def test_part_that_somebody_removes_is_no_fault_of_the_disk(
    tmp_path: Path, low_memory: bool
) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"

    def progress(phase: Phase, done: int, expected: int) -> None:
        if phase is Phase.VALIDATE and done == 0:
            (output / "a_sub0000.pkl.gz.part").unlink()

    with pytest.raises(ValidationError, match="no pudo releerlo: el archivo no existe") as raised:
        split_file(source, output, low_memory=low_memory, progress=progress)
    assert raised.value.hint == "comprueba si alguien lo ha movido o borrado"
    assert names(output) == []


DAMAGES = [
    pytest.param(flip_byte(0), id="magic_number"),
    pytest.param(flip_byte(3), id="gzip_flags"),
    pytest.param(flip_byte(5), id="gzip_time_that_nobody_reads"),
    pytest.param(flip_byte(200), id="content"),
    pytest.param(flip_byte(-6), id="gzip_crc"),
    pytest.param(flip_byte(-1), id="gzip_length"),
    pytest.param(cut_half, id="cut"),
    pytest.param(empty_file, id="emptied"),
    pytest.param(append_byte, id="appended"),
    pytest.param(append_gzip_member, id="appended_empty_member"),
    pytest.param(os.unlink, id="removed"),
]


@needs_strace
@pytest.mark.sampled
@modes
@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("compress", [pytest.param(True, id="gz"), pytest.param(False, id="plain")])
@pytest.mark.parametrize("index", [0, 2], ids=["first_part", "last_part"])
def test_a_part_damaged_before_validation_is_refused(
    tmp_path: Path, index: int, compress: bool, damage: Callable[[Path], None], mode: Mode
) -> None:
    box = Box(tmp_path / "box", mode, compress).make()
    last = os.path.relpath(box.parts[-1], box.root)
    with stopped(box, Fault("fsync", last, 1, "signal=SIGSTOP")) as runs:
        damage(box.parts[index])
    run = runs[0]
    assert run.code == 1, run.err
    assert "la validación" in run.err
    assert_honest_end(box, run.code, run.err)
    assert box.source_is_whole()
    assert names(box.output) == []


def test_part_that_cannot_be_read_back_is_refused(tmp_path: Path) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"
    prefix = under_strace("read:error=EIO", output / "a_sub0000.pkl.gz.part")
    done = split("-i", source, "-o", output, prefix=prefix)
    assert_fails(done, "la validación no pudo releerlo")
    assert names(output) == []
    assert load(source) == [1, 2, 3]
