"""--verify: is a set that differs from its original in anything found out, and only that?"""

from __future__ import annotations

import contextlib
import fcntl
import gzip
import os
import pickle
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from faults import cut_half, exchange_with_next, under_strace
from helpers import (
    Mode,
    assert_fails,
    environment,
    load,
    modes,
    names,
    pickled_call,
    pickled_list,
    snapshot,
    split,
    split_on_terminal,
    write_batch,
    write_module,
)

from divide_conquer import Interrupted, Phase, are_alike, verify_file


def make_set(tmp_path: Path, mode: Mode = (), *more: object) -> tuple[Path, Path]:
    """Split a batch of 7 traces in threes; return the source and the output folder."""
    shared = {"name": ["shared"]}
    traces = [{"id": i, "shared": shared, "text": f"t{i % 2}"} for i in range(7)]
    source, output = write_batch(tmp_path / "in" / "a.pkl.gz", traces), tmp_path / "out"
    assert split("-i", source, "-o", output, "-n", 3, *mode, *more).returncode == 0
    return source, output


def verify(source: Path, output: Path, mode: Mode, *more: object, **options: Any) -> Any:
    return split("-i", source, "-o", output, "--verify", *mode, *more, **options)


@modes
@pytest.mark.parametrize("suffix", ["", "--no-compress"], ids=["gz", "plain"])
def test_equal_set_is_said_and_nothing_is_written(tmp_path: Path, mode: Mode, suffix: str) -> None:
    source, output = make_set(tmp_path, mode, *filter(None, [suffix]))
    before = snapshot(tmp_path)
    done = verify(source, output, mode, "-n", 250)  # the set itself tells its sizes
    assert (done.returncode, done.stderr) == (0, "")
    assert re.search(r"^a\.pkl\.gz: igual: 7 traces en 3 sub-batches; [\d.]+ s$", done.stdout, re.M)
    assert done.stdout.endswith("\nResumen: 1 igual.\n")
    assert snapshot(tmp_path) == before


@modes
def test_original_of_an_equal_set_is_deleted(tmp_path: Path, mode: Mode) -> None:
    source, output = make_set(tmp_path, mode)
    other = write_batch(tmp_path / "in" / "b.pkl", [1, 2])
    (tmp_path / "in" / "c.pkl").symlink_to("nowhere")
    before = snapshot(output)
    done = verify(source.parent, output, mode, "--delete-original", "--yes")
    assert done.returncode == 1
    assert re.search("igual: 7 traces en 3 sub-batches; .+ s; original eliminado", done.stdout)
    assert "b.pkl: no tiene un conjunto completo en la salida" in done.stderr
    assert "c.pkl: es un enlace simbólico roto" in done.stderr
    assert names(source.parent) == [other.name, "c.pkl"]
    assert snapshot(output) == before


def rewrite(path: Path, change: Callable[[list[Any]], object]) -> None:
    traces = pickle.loads(gzip.decompress(path.read_bytes()))
    change(traces)
    path.write_bytes(gzip.compress(pickle.dumps(traces, 5)))


DIFFERENCES = [
    pytest.param(lambda traces: traces[1].update(text="changed"), 1, "el trace 4", id="value"),
    pytest.param(lambda traces: traces[1].update(shared={"name": ["shared"]}), 1, "", id="sharing"),
    pytest.param(list.pop, 2, "", id="trace-gone"),
    pytest.param(list.reverse, 1, "", id="order"),
    pytest.param(lambda traces: traces.append(1), 1, "", id="extra-trace"),
]


@pytest.mark.parametrize(("change", "index", "where"), DIFFERENCES)
def test_difference_names_the_sub_batch_and_keeps_the_original(
    tmp_path: Path, change: Callable[[list[Any]], object], index: int, where: str
) -> None:
    source, output = make_set(tmp_path)
    rewrite(output / "a_sub0001.pkl.gz", change)
    before = snapshot(tmp_path)
    done = verify(source, output, (), "--delete-original", "--yes")
    assert done.returncode == 1
    assert re.search(f"a_sub000{index}.pkl.gz no es igual al original.*{where}", done.stderr)
    assert "El original sigue intacto" in done.stderr
    assert snapshot(tmp_path) == before


def replace_by_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def remove_whole_set(path: Path) -> None:
    for each in path.parent.iterdir():
        each.unlink()


@modes
@pytest.mark.parametrize(
    ("index", "damage", "problem"),
    [
        pytest.param(2, os.unlink, "su conjunto tiene 6 traces y el original 7", id="last-gone"),
        pytest.param(1, os.unlink, "aparta lo que hay de él en la salida", id="gap"),
        pytest.param(1, cut_half, "a_sub0001.pkl.gz no se puede leer", id="cut-off"),
        pytest.param(1, replace_by_pipe, "sub0001.pkl.gz no es un archivo normal", id="pipe"),
        pytest.param(0, exchange_with_next, "a_sub0000.pkl.gz no es igual al", id="exchanged"),
        pytest.param(0, remove_whole_set, "no tiene un conjunto completo", id="none"),
    ],
)
def test_damaged_set_is_an_error(
    tmp_path: Path, mode: Mode, index: int, damage: Callable[[Path], None], problem: str
) -> None:
    source, output = make_set(tmp_path, mode)
    damage(output / f"a_sub000{index}.pkl.gz")
    before = snapshot(tmp_path)
    done = verify(source, output, mode, "--delete-original", "--yes")
    assert_fails(done, problem)
    assert snapshot(tmp_path) == before


def test_low_memory_finds_a_changed_byte(tmp_path: Path) -> None:
    source, output = make_set(tmp_path, ("--low-memory", "--no-compress"))
    path = output / "a_sub0001.pkl"
    path.write_bytes(path.read_bytes().replace(b"shared", b"sharEd"))
    done = verify(source, output, ("--low-memory",), "--delete-original", "--yes")
    assert_fails(done, "a_sub0001.pkl no es igual al original")
    assert source.exists()


def test_low_memory_does_not_judge_a_set_of_the_default_mode(tmp_path: Path) -> None:
    source, output = make_set(tmp_path)
    done = verify(source, output, ("--low-memory",))
    assert done.returncode == 1  # only what is equal ends with 0: somebody may delete by it
    assert "sin comparar" in done.stdout
    done = verify(source, output, ("--low-memory",), "--delete-original", "--yes")
    assert_fails(done, "original conservado")
    assert source.exists()


def test_low_memory_knows_a_set_of_the_default_mode_whatever_it_begins_with(
    tmp_path: Path,
) -> None:
    """Large bytes stand before any FRAME."""
    source, output = write_batch(tmp_path / "a.pkl", [b"x" * 100_000]), tmp_path / "out"
    assert split("-i", source, "-o", output).returncode == 0
    done = verify(source, output, ("--low-memory",))
    assert (done.returncode, done.stderr) == (1, "")
    assert "sin comparar" in done.stdout


def test_default_mode_judges_a_set_of_low_memory(tmp_path: Path) -> None:
    source, output = make_set(tmp_path, ("--low-memory",))
    done = verify(source, output, ())
    assert (done.returncode, done.stderr) == (0, "")
    assert "igual: 7 traces en 3 sub-batches" in done.stdout


@modes
@pytest.mark.parametrize("touched", ["original", "sub-batch"])
def test_what_changes_while_it_is_compared_keeps_the_original(
    tmp_path: Path, mode: Mode, touched: str
) -> None:
    source, output = make_set(tmp_path, mode)
    target = source if touched == "original" else output / "a_sub0002.pkl.gz"

    def progress(phase: Phase, done: int, expected: int) -> None:
        if phase is Phase.VERIFY and done == expected:
            copy = target.with_name("copy")
            copy.write_bytes(target.read_bytes())
            os.replace(copy, target)

    report = verify_file(
        source, output, delete_original=True, low_memory=bool(mode), progress=progress
    )
    assert not report.deleted
    assert report.kept_because is not None
    assert ("cambió" if touched == "original" else "ya no es el archivo") in report.kept_because
    assert source.exists()


@modes
@pytest.mark.parametrize("more", [(), ("--delete-original", "--yes")], ids=["look", "delete"])
@pytest.mark.parametrize("link", [os.symlink, os.link], ids=["symbolic", "hard"])
def test_sub_batch_that_links_to_its_original_is_no_set(
    tmp_path: Path, mode: Mode, link: Callable[[Path, Path], None], more: Mode
) -> None:
    """A batch of one sub-batch is equal to itself; without it nothing would be left."""
    source, output = make_set(tmp_path, ("--low-memory", "--no-compress"), "-n", 100)
    (only,) = output.iterdir()
    os.replace(only, tmp_path / "in" / "b.pkl")  # what --low-memory would write of itself
    source.unlink()
    source = tmp_path / "in" / "b.pkl"
    link(source, output / "b_sub0000.pkl")
    done = verify(source, output, mode, *more)
    assert_fails(done, "b_sub0000.pkl es el propio original, o un enlace a él")
    assert len(pickle.loads(source.read_bytes())) == 7


@modes
def test_original_whose_set_another_run_is_making_is_kept(tmp_path: Path, mode: Mode) -> None:
    """That run may yet undo the set: it holds the lock until then."""
    source, output = make_set(tmp_path, mode)
    with (output / "a.lock.part").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = verify(source, output, mode, "--delete-original", "--yes")
    assert_fails(done, "otro proceso lo está dividiendo")
    assert (
        "Qué hacer: espera a que termine.\n" in done.stderr
    )  # --skip-existing is wrong usage here
    assert source.exists()


@pytest.mark.parametrize("flag", ["--no-validate", "--skip-existing", "--no-compress", "--dry-run"])
def test_flags_that_say_how_to_write_are_wrong_usage(tmp_path: Path, flag: str) -> None:
    source, output = make_set(tmp_path)
    done = verify(source, output, (), flag)
    assert_fails(done, f"--verify no se puede usar con {flag}", code=2)


def test_deletion_is_asked_once(tmp_path: Path) -> None:
    source, output = make_set(tmp_path)
    options = ("-i", source, "-o", output, "--verify", "--delete-original")
    run = split_on_terminal(*options, answer=b"no\n")
    assert run.returncode == 1
    assert "si sus sub-batches son iguales" in run.terminal
    assert source.exists()
    run = split_on_terminal(*options, answer="sí\n".encode())
    assert run.returncode == 0
    assert not source.exists()


def test_texts_that_the_first_load_does_not_share_are_no_difference(tmp_path: Path) -> None:
    """Attribute names are interned as they are loaded: the first load of a process shares fewer."""
    env = write_module(tmp_path / "modules", "plain_traces", "class Plain: pass\n")
    source = tmp_path / "a.pkl"
    name = pickle.dumps("a_name_that_this_process_has_not_met", 2)[2:-1]
    trace = b"cplain_traces\nPlain\n)\x81}" + name + b"K\x01sb"
    source.write_bytes(b"\x80\x02](" + (name + trace) * 3 + b"e.")
    done = split("-i", source, "-o", tmp_path / "out", "-n", 4, env=env)
    assert done.returncode == 0
    done = verify(source, tmp_path / "out", (), env=env)
    assert (done.returncode, done.stderr) == (0, "")


ODD_TRACES = """
import struct, sys
class Words(set): pass
class Ordered(set):
    def __init__(self, items): super().__init__(items); self.order = list(items)
    def __iter__(self): return iter(self.order)
    def __getstate__(self): return None
class Rounded:
    def __init__(self, value, digits): self.value, self.digits = value, digits
    def __getstate__(self):
        return {"value": round(self.value, self.digits - 1), "digits": self.digits - 1}
class Node:
    def __init__(self, name): self.name = name
def make_nested(number):
    nested = frozenset()
    for i in range(60): nested = frozenset([nested, f"{number} {i}", (i, nested)])
    return nested
def make_graph(number):
    nodes = [Node(f"{number} {i}") for i in range(16)]
    for node in nodes: node.near = {other for other in nodes if other is not node}
    return {"nodes": nodes, "near": set(nodes)}
class TypedStorage:
    def __init__(self, data): self.data, self._cdata = data, id(self)
    def __reduce_ex__(self, protocol):
        address = str(self._cdata).encode()
        return load_from_bytes, (struct.pack("<I", len(address)) + address + self.data,)
def load_from_bytes(data):
    length, = struct.unpack("<I", data[:4])
    return TypedStorage(data[4 + length:])
class Child: pass
class Parent:
    def __init__(self, child): self.child = child
    def __setstate__(self, state):
        vars(self).update(state)
        self.child.name = "known"
class NotAgain:
    def __reduce__(self): raise ValueError("not twice")
def make_not_again(): return NotAgain()
"""


def pickle_odd(folder: Path, expression: str) -> tuple[Path, Path, dict[str, str]]:
    """Pickle a list of odd traces in a process of its own.

    Returns the file, an output folder that is not there, and the environment that loads it.
    """
    source = folder / "in" / "a.pkl"
    source.parent.mkdir(parents=True)
    write_module(folder / "torch", "storage", ODD_TRACES)
    env = environment(PYTHONPATH=os.fspath(folder))
    code = "import pickle, sys\nfrom torch.storage import *\n"
    code += f"pickle.dump({expression}, sys.stdout.buffer)"
    with source.open("wb") as file:
        subprocess.run([sys.executable, "-c", code], env=env, stdout=file, check=True)
    return source, folder / "out", env


SETS = "[{*(f'a{i}{j}' for j in range(40)), frozenset(map(str, range(40)))} for i in range(9)]"
SUBCLASSES = "[Words(f'a{i}{j}' for j in range(40)) for i in range(9)]"
NESTED = "[make_nested(i) for i in range(9)]"
GRAPH = "[make_graph(i) for i in range(9)]"
LONG = "[{'A' * 70_000 + str(j) for j in range(30)} for i in range(2)]"
MASKED = "(lambda v: [v] * 9)(__import__('numpy').ma.array([1, 2], mask=[0, 1]))"
STORAGES = "[TypedStorage(bytes([i]) * 70_000) for i in range(9)]"


@pytest.mark.parametrize(
    "expression",
    [
        pytest.param(SETS, id="sets"),
        pytest.param(SUBCLASSES, id="subclasses"),
        pytest.param(NESTED, id="sets-in-sets"),
        pytest.param(GRAPH, id="graph-of-sets"),
        pytest.param(LONG, id="sets-of-long-texts"),
        pytest.param(MASKED, id="masked-arrays"),
        pytest.param(STORAGES, id="torch-storages"),
    ],
)
def test_what_is_never_pickled_alike_twice_is_no_difference(
    tmp_path: Path, expression: str
) -> None:
    source, output, env = pickle_odd(tmp_path, expression)
    for seed in "123":
        shutil.rmtree(output, ignore_errors=True)
        seeded = {**env, "PYTHONHASHSEED": seed}
        assert split("-i", source, "-o", output, "-n", 4, env=seeded).returncode == 0
        done = verify(source, output, (), env={**env, "PYTHONHASHSEED": "4"})
        assert (done.returncode, done.stderr) == (0, "")


def test_item_that_a_set_lacks_is_a_difference(tmp_path: Path) -> None:
    source, output, _ = pickle_odd(tmp_path, SETS)
    assert split("-i", source, "-o", output, "-n", 4).returncode == 0
    rewrite(output / "a_sub0001.pkl.gz", lambda traces: traces[1].remove("a50"))
    done = verify(source, output, ())
    assert done.returncode == 1
    assert "a_sub0001.pkl.gz no es igual al original; el primero que difiere es el trace 5" in (
        done.stderr
    )


def test_class_that_loses_more_with_every_dump_is_a_difference(tmp_path: Path) -> None:
    """What the set holds is what one more dump and load makes of the original: that is not it."""
    source, output, env = pickle_odd(tmp_path, "[Rounded(i / 7, 6) for i in range(9)]")
    assert split("-i", source, "-o", output, "-n", 4, env=env).returncode == 0
    done = verify(source, output, (), "--delete-original", "--yes", env=env)
    assert_fails(done, "no es igual al original; el primero que difiere es el trace 0")
    assert source.exists()


def test_order_that_a_class_of_sets_keeps_is_part_of_it(tmp_path: Path) -> None:
    source, output, env = pickle_odd(tmp_path, "[Ordered('abc'), Ordered('abcdef')]")
    other, _, _ = pickle_odd(tmp_path / "other", "[Ordered('abc'), Ordered('abcfed')]")
    output.mkdir()
    (output / "a_sub0000.pkl").write_bytes(other.read_bytes())
    done = verify(source, output, (), env=env)
    assert_fails(done, "no es igual al original; el primero que difiere es el trace 1")


def test_what_low_memory_cannot_see_that_a_class_does_is_a_difference(tmp_path: Path) -> None:
    """No opcode says that __setstate__ changes what is in the dict that it is given."""
    source, output, env = pickle_odd(tmp_path, "(lambda child: [Parent(child), child])(Child())")
    options = ("-n", 1, "--low-memory", "--no-compress")
    assert split("-i", source, "-o", output, *options, env=env).returncode == 0
    done = verify(source, output, (), "--delete-original", "--yes", env=env)
    assert_fails(done, "no es igual al original; el primero que difiere es el trace 1")
    assert source.exists()


def test_storage_with_another_byte_is_a_difference(tmp_path: Path) -> None:
    source, output, env = pickle_odd(tmp_path, STORAGES)
    options = ("-i", source, "-o", output, "-n", 4, "--no-compress")
    assert split(*options, env=env).returncode == 0
    path = output / "a_sub0001.pkl"
    path.write_bytes(path.read_bytes().replace(b"\x06" * 70_000, b"\x06" * 69_999 + b"\x07"))
    done = verify(source, output, (), env=env)
    assert_fails(done, "el primero que difiere es el trace 6")


def test_comparison_of_sets_can_be_interrupted(tmp_path: Path) -> None:
    source, output, env = pickle_odd(tmp_path, GRAPH)
    assert split("-i", source, "-o", output, env=env).returncode == 0
    ticks = 0

    def tick() -> None:
        nonlocal ticks
        ticks += 1
        if ticks == 100:
            raise Interrupted

    sys.path.insert(0, os.fspath(tmp_path))
    try:
        traces = load(source)
        with pytest.raises(Interrupted):
            are_alike(traces, load(output / "a_sub0000.pkl.gz"), tick)
    finally:
        sys.path.remove(os.fspath(tmp_path))
        del sys.modules["torch.storage"], sys.modules["torch"]


class Refused(OSError):
    """As of a closed stream that a progress writes to: not taken for one of the files."""


@modes
@pytest.mark.parametrize("error", [Interrupted, Refused])
def test_cancel_at_any_callback_comes_out_as_it_is(
    tmp_path: Path, mode: Mode, error: type[BaseException]
) -> None:
    source, output = make_set(tmp_path, mode)
    n_cancelled, left = 0, 1
    while left == 0 or not n_cancelled:
        n_cancelled += 1
        left = n_cancelled

        def progress(phase: Phase, done: int, expected: int) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise error

        with contextlib.suppress(error):
            verify_file(source, output, low_memory=bool(mode), progress=progress)
    assert n_cancelled > 9


def test_sub_batch_that_does_not_fit_in_memory_says_nothing_of_the_set(tmp_path: Path) -> None:
    module = "loads = []\ndef load():\n    loads.append(1)\n    if loads[1:]: raise MemoryError\n"
    env = write_module(tmp_path / "modules", "scarce", module)
    source, output = tmp_path / "a.pkl", tmp_path / "out"
    source.write_bytes(pickled_list(pickled_call("scarce", "load")))
    assert split("-i", source, "-o", output, "--low-memory", env=env).returncode == 0
    done = verify(source, output, (), env=env)
    assert_fails(done, "a.pkl: no hay memoria suficiente\n", "cierra otros programas")


def test_low_memory_is_named_as_a_way_out_only_for_its_own_sets(tmp_path: Path) -> None:
    source, output = tmp_path / "a.pkl", tmp_path / "out"
    source.write_bytes(pickled_list(pickled_call("no_such_module", "Trace")))
    write_batch(output / "a_sub0000.pkl.gz", [1])
    done = verify(source, output, ())
    assert_fails(done, "usa --low-memory (si así se dividió)")


def test_difference_that_the_pickler_in_python_cannot_reach_is_a_difference(
    tmp_path: Path,
) -> None:
    def nested(leaf: int) -> list[Any]:
        trace: list[Any] = [leaf]
        for _ in range(400):
            trace = [trace]
        return trace

    source, output = write_batch(tmp_path / "a.pkl", [nested(1)]), tmp_path / "out"
    write_batch(output / "a_sub0000.pkl.gz", [nested(2)])
    done = verify(source, output, ())
    assert_fails(done, "no es igual al original; el primero que difiere es el trace 0")


def test_traces_that_cannot_be_pickled_again_are_told_as_that(tmp_path: Path) -> None:
    source = tmp_path / "a.pkl"
    env = write_module(tmp_path / "modules", "odd_traces", ODD_TRACES)
    source.write_bytes(b"\x80\x02](codd_traces\nmake_not_again\n)Re.")
    options = ("-i", source, "-o", tmp_path / "out", "--low-memory")
    assert split(*options, env=env).returncode == 0
    done = verify(source, tmp_path / "out", (), env=env)
    assert_fails(
        done,
        "no se puede comparar: sus traces no se pueden volver a guardar",
        "Qué hacer: usa --low-memory",
    )
    assert split(*options, "--verify", env=env).returncode == 0  # the hint is a way out


def test_original_is_kept_where_the_set_cannot_be_synced(tmp_path: Path) -> None:
    """Another program may have copied it there: only what is on disk lets the original go."""
    source, output = make_set(tmp_path)
    log = tmp_path / "log"
    strace = under_strace("fsync:error=EIO", output / "a_sub0001.pkl.gz", log)
    done = verify(source, output, (), "--delete-original", "--yes", prefix=strace)
    assert "INJECTED" in log.read_text()
    assert_fails(done, "original conservado: no se pudo asegurar que su conjunto")
    assert source.exists()


@pytest.mark.parametrize("flag", ["--verify", "--skip-existing"])
def test_sub_batch_that_may_not_be_read_is_named(
    tmp_path: Path, unprivileged: tuple[str, ...], flag: str
) -> None:
    source, output = make_set(tmp_path)
    path = output / "a_sub0001.pkl.gz"
    path.chmod(0)
    done = split("-i", source, "-o", output, flag, prefix=unprivileged)
    assert_fails(done, f": permiso denegado ({path})\n", "comprueba los permisos del archivo")


def test_folder_that_takes_no_scratch_file_is_a_clear_error(
    tmp_path: Path, unprivileged: tuple[str, ...]
) -> None:
    """What sub-batches share is kept there, beyond 16 MiB, while --low-memory compares."""
    shared = os.urandom(17 << 20)
    source = write_batch(tmp_path / "in" / "a.pkl", [[shared], [shared]])
    args = ("-i", source, "-o", tmp_path / "out", "--low-memory")
    assert split(*args, "-n", 1, "--no-compress").returncode == 0
    (tmp_path / "out").chmod(0o555)
    done = split(*args, "--verify", prefix=unprivileged)
    (tmp_path / "out").chmod(0o755)
    assert_fails(done, f"no se puede leer su conjunto: permiso denegado ({tmp_path / 'out'}")


@pytest.mark.parametrize("flag", ["--verify", "--skip-existing"])
def test_sub_batch_that_the_disk_does_not_give_is_named(tmp_path: Path, flag: str) -> None:
    source, output = make_set(tmp_path)
    path = output / "a_sub0001.pkl.gz"
    done = split("-i", source, "-o", output, flag, prefix=under_strace("read:error=EIO", path))
    assert_fails(done, f": error de entrada/salida del disco ({path})\n")


def test_original_is_kept_where_the_output_folder_takes_no_lock(
    tmp_path: Path, unprivileged: tuple[str, ...]
) -> None:
    source, output = make_set(tmp_path)
    output.chmod(0o555)
    done = verify(source, output, (), "--delete-original", "--yes", prefix=unprivileged)
    output.chmod(0o755)
    assert_fails(done, "no se puede bloquear su conjunto")
    assert source.exists()
