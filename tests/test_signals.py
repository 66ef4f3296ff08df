"""Signals: does a Ctrl-C, SIGTERM, SIGHUP or kill, whenever it comes, lose nothing?"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple, Optional

import pytest
from faults import (
    Box,
    assert_honest_end,
    assert_nothing_lost,
    finish_after_kill,
    print_past_capture,
    under_strace,
)
from helpers import (
    ALL_FAULTS,
    LIMIT_SECONDS,
    ROOT,
    Mode,
    Script,
    assert_fails,
    environment,
    load,
    load_set,
    modes,
    names,
    pickled_call,
    pickled_list,
    pickled_value,
    run,
    snapshot,
    split,
    split_on_terminal,
    start,
    sub_names,
    wait_until,
    write_batch,
    write_module,
)

from divide_conquer import Interrupted, _Signals

# A trace that is loaded once from the source, saved once and loaded again for validation; in the
# phase that its state names it creates the file "reached" and waits for the file "go".
MODULE = """
import pathlib, time

loads = 0


def rebuild(folder, phase):
    global loads
    loads += 1
    if phase == {1: "load", 2: "validate"}.get(loads):
        wait(folder)
    return Waiting(folder, phase)


def wait(folder):
    pathlib.Path(folder, "reached").touch()
    deadline = time.monotonic() + 30
    while not pathlib.Path(folder, "go").exists() and time.monotonic() < deadline:
        time.sleep(0.005)


class Waiting:
    def __init__(self, folder, phase):
        self.state = folder, phase

    def __reduce__(self):
        if self.state[1] == "save":
            wait(self.state[0])
        return rebuild, self.state
"""


ALL_NAMES = [*sub_names("a", 2), *sub_names("b", 2), *sub_names("c", 1)]
PHASES = ["load", "save", "validate"]
SIGNALS = [
    pytest.param(signal.SIGINT, 130, id="sigint"),
    pytest.param(signal.SIGTERM, 143, id="sigterm"),
    pytest.param(signal.SIGHUP, 129, id="sighup"),
]


class Scene(NamedTuple):
    """Two good batches with one that waits between them, and the environment to load it."""

    folder: Path
    source: Path
    output: Path
    env: dict[str, str]

    def args(self, *more: object) -> tuple[object, ...]:
        return ("-i", self.source, "-o", self.output, "-n", 2, *more)


def make_scene(tmp_path: Path, phase: str) -> Scene:
    source = tmp_path / "in"
    write_batch(source / "a.pkl.gz", [1, 2, 3])
    waiting = pickled_call("waiting", "rebuild", str(tmp_path), phase)
    (source / "b.pkl").write_bytes(pickled_list(*map(pickled_value, (1, 2, 3)), waiting))
    write_batch(source / "c.pkl", [4])
    env = write_module(tmp_path / "modules", "waiting", MODULE)
    return Scene(tmp_path, source, tmp_path / "out", env)


@contextlib.contextmanager
def started(
    scene: Scene, *more: object, ignored: bool = False, prefix: tuple[str, ...] = ()
) -> Iterator[Script]:
    """Start the script and return once it waits in its phase."""
    preexec = ignore_sigint if ignored else None
    process = start(*scene.args(*more), prefix=prefix, env=scene.env, preexec_fn=preexec)
    try:
        wait_until((scene.folder / "reached").exists, process)
        yield process
    finally:
        process.kill()
        process.communicate()


def ignore_sigint() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)


def send_and_let_go(process: Script, scene: Scene, *numbers: signal.Signals) -> tuple[str, str]:
    """Send the signals before the wait ends, so that they arrive within the phase."""
    for number in numbers:
        process.send_signal(number)
    (scene.folder / "go").touch()
    return process.communicate(timeout=LIMIT_SECONDS / 2)


@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize(("number", "returncode"), SIGNALS)
def test_signal_undoes_the_batch_and_a_second_run_finishes(
    tmp_path: Path, phase: str, number: signal.Signals, returncode: int
) -> None:
    scene = make_scene(tmp_path, phase)
    before = snapshot(scene.source)
    with started(scene, "--delete-original", "--yes") as process:
        parts = [name for name in names(scene.output) if name.startswith("b_")]
        stdout, stderr = send_and_let_go(process, scene, number)
    assert parts == ([] if phase == "load" else sub_names("b", 2, ".pkl.gz.part"))
    assert process.returncode == returncode
    assert "Interrumpido al dividir b.pkl: su original sigue intacto y en la salida no" in stderr
    assert "2 archivos quedan sin dividir. Qué hacer: repite el comando con --skip" in stderr
    assert "Traceback" not in stderr
    assert "a.pkl.gz: 3 traces" in stdout
    assert "Resumen: 1 dividido" in stdout
    assert names(scene.output) == ["a_sub0000.pkl.gz", "a_sub0001.pkl.gz"]
    del before["a.pkl.gz"]
    assert snapshot(scene.source) == before

    again = split(*scene.args("--skip-existing"), env=scene.env)
    assert (again.returncode, again.stderr) == (0, "")
    assert names(scene.output) == ALL_NAMES
    assert load_set(scene.output, "a") == [[1, 2], [3]]
    assert load(scene.output / "b_sub0000.pkl.gz") == [1, 2]
    assert load_set(scene.output, "c") == [[4]]


@pytest.mark.parametrize("phase", PHASES)
def test_sigint_ignored_at_the_start_stays_ignored(tmp_path: Path, phase: str) -> None:
    scene = make_scene(tmp_path, phase)
    with started(scene, ignored=True) as process:
        _, stderr = send_and_let_go(process, scene, signal.SIGINT)
    assert (process.returncode, stderr) == (0, "")
    assert names(scene.output) == ALL_NAMES


def test_sigterm_is_noticed_where_sigint_is_ignored(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, "save")
    with started(scene, ignored=True) as process:
        send_and_let_go(process, scene, signal.SIGINT, signal.SIGTERM)
    assert process.returncode == 143
    assert names(scene.output) == ALL_NAMES[:2]


def test_repeated_signals_do_not_break_the_clean_up(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, "save")
    with started(scene) as process:
        _, stderr = send_and_let_go(process, scene, *[signal.SIGINT] * 5, signal.SIGTERM)
    assert process.returncode in (130, 143)
    assert "Traceback" not in stderr
    assert names(scene.output) == ALL_NAMES[:2]


def test_signals_until_the_very_end_show_no_traceback(tmp_path: Path) -> None:
    """Python shows one for a Ctrl-C that comes while it shuts down."""
    scene = make_scene(tmp_path, "validate")
    with started(scene) as process:
        (scene.folder / "go").touch()
        deadline = time.monotonic() + LIMIT_SECONDS / 2
        while process.poll() is None and time.monotonic() < deadline:
            process.send_signal(signal.SIGINT)
            time.sleep(0.0005)
        _, stderr = process.communicate(timeout=LIMIT_SECONDS / 2)
    assert process.returncode == 130
    assert "Traceback" not in stderr
    assert "Exception ignored" not in stderr
    assert stderr.count("Interrumpido") == 1
    assert names(scene.output) == ALL_NAMES[:2]


SIGINT_IN_UNLINK = "unlink:signal=SIGINT:when=1"


def test_run_that_did_nothing_has_no_summary(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, "load")
    (scene.source / "a.pkl.gz").unlink()
    with started(scene) as process:
        stdout, stderr = send_and_let_go(process, scene, signal.SIGINT)
    assert process.returncode == 130
    assert stderr.startswith("Interrumpido al dividir b.pkl")
    assert "Resumen" not in stdout


def test_signal_during_the_last_deletion_tells_that_all_is_done(tmp_path: Path) -> None:
    source, output = write_batch(tmp_path / "a.pkl.gz", [1, 2, 3]), tmp_path / "out"
    options = ("-i", source, "-o", output, "-n", 2, "--delete-original", "--yes")
    done = split(*options, prefix=under_strace(SIGINT_IN_UNLINK, source))
    assert done.returncode == 130
    assert done.stderr == "Interrumpido cuando ya no quedaba ningún archivo por hacer.\n"
    assert "original eliminado" in done.stdout
    assert not source.exists()
    assert load_set(output, "a") == [[1, 2], [3]]


def test_signal_during_a_deletion_tells_what_was_not_begun(tmp_path: Path) -> None:
    source, output = tmp_path / "in", tmp_path / "out"
    first = write_batch(source / "a.pkl.gz", [1, 2, 3])
    write_batch(source / "b.pkl.gz", [4])
    options = ("-i", source, "-o", output, "--delete-original", "--yes")
    done = split(*options, prefix=under_strace(SIGINT_IN_UNLINK, first))
    assert done.returncode == 130
    assert "Interrumpido entre dos archivos: no ha quedado nada a medias.\n" in done.stderr
    assert "1 archivo queda sin dividir" in done.stderr
    assert names(source) == ["b.pkl.gz"]


def test_interruption_names_what_it_could_not_remove(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, "validate")
    part = scene.output / "b_sub0001.pkl.gz.part"
    with started(scene, prefix=under_strace("unlink:error=EIO:when=1", part)) as strace:
        (pid,) = Path(f"/proc/{strace.pid}/task/{strace.pid}/children").read_text().split()
        os.kill(int(pid), signal.SIGINT)
        _, stderr = send_and_let_go(strace, scene)
    assert strace.returncode == 130
    assert f"no se pudo quitar de la salida: {part.name}" in stderr
    assert names(scene.output) == [*ALL_NAMES[:2], part.name]


FAREWELL = """
import os, signal

made = 0


class Farewell:
    def __init__(self):
        global made
        made += 1
        self.number = made

    def __del__(self):
        if self.number == 2:  # 1 was of the source, 2 of the sub-batch that is validated
            os.kill(os.getpid(), signal.SIGINT)

    def __reduce__(self):
        return Farewell, ()
"""


def test_signal_after_the_last_byte_was_validated_cancels(tmp_path: Path) -> None:
    """It comes when the traces that were read back are freed: nothing is published yet."""
    source, output = tmp_path / "a.pkl", tmp_path / "out"
    source.write_bytes(pickled_list(pickled_call("leaving", "Farewell")))
    env = write_module(tmp_path / "modules", "leaving", FAREWELL)
    done = split("-i", source, "-o", output, "--delete-original", "--yes", env=env)
    assert done.returncode == 130
    assert "Interrumpido al dividir a.pkl" in done.stderr
    assert names(output) == []
    assert source.exists()


@modes
def test_signal_during_the_last_fsync_cancels(tmp_path: Path, mode: Mode) -> None:
    source, output = write_batch(tmp_path / "a.pkl", [1, 2, 3]), tmp_path / "out"
    prefix = under_strace("fsync:signal=SIGINT", output / "a_sub0001.pkl.gz.part")
    done = split("-i", source, "-o", output, "-n", 2, "--no-validate", *mode, prefix=prefix)
    assert done.returncode == 130
    assert "Interrumpido al dividir a.pkl" in done.stderr
    assert names(output) == []


@pytest.mark.parametrize("phase", PHASES)
def test_killed_run_is_cleared_by_the_next(tmp_path: Path, phase: str) -> None:
    scene = make_scene(tmp_path, phase)
    before = snapshot(scene.source)
    with started(scene) as process:
        process.kill()
        process.wait(LIMIT_SECONDS)
        assert "b.lock.part" in names(scene.output)
    (scene.folder / "go").touch()
    assert snapshot(scene.source) == before
    again = split(*scene.args("--skip-existing"), env=scene.env)
    assert (again.returncode, again.stderr) == (0, "")
    assert names(scene.output) == ALL_NAMES
    assert snapshot(scene.source) == before


def test_a_second_signal_does_not_disturb_what_the_first_one_began() -> None:
    with _Signals(at_the_end=False) as signals:
        signals.raise_at_once()
        with pytest.raises(Interrupted):
            signal.raise_signal(signal.SIGINT)
        signal.raise_signal(signal.SIGTERM)
        assert signals.exit_code() == 130


def test_interruption_without_a_signal_is_no_success(tmp_path: Path) -> None:
    module = "import divide_conquer\ndef stop(): raise divide_conquer.Interrupted\n"
    write_module(tmp_path, "stopping", module)
    (tmp_path / "a.pkl").write_bytes(pickled_list(pickled_call("stopping", "stop")))
    code = "import sys, divide_conquer; sys.exit(divide_conquer.main(sys.argv[1:]))"
    env = environment(PYTHONPATH=f"{ROOT}{os.pathsep}{tmp_path}")
    options = ("-i", str(tmp_path / "a.pkl"), "-o", str(tmp_path / "out"))
    assert_fails(run([sys.executable, "-c", code, *options], env=env), "Interrumpido al dividir")


def test_ctrl_c_at_the_question_does_nothing(tmp_path: Path) -> None:
    scene = make_scene(tmp_path, "none")
    before = snapshot(tmp_path)
    done = split_on_terminal(
        *scene.args("--delete-original"), answer=b"\x03", env=scene.env, controlling=True
    )
    assert (done.returncode, done.stdout) == (130, "")
    assert "Interrumpido: no se ha hecho nada." in done.terminal
    assert "Traceback" not in done.terminal
    assert snapshot(tmp_path) == before


# At random moments


N_MOMENTS = 35 if ALL_FAULTS else 10  # of each signal and mode: 210 in all, or 20 of the sample
RUN_TRACE_BYTES = 1_000_000  # so that a part is of two blocks
MOMENTS: Counter[str] = Counter()


@pytest.fixture(scope="module", autouse=True)
def tell_counts(request: pytest.FixtureRequest) -> Iterator[None]:
    """Print at the end how the runs that were hit by a signal ended."""
    yield
    ends = ", ".join(f"{end} {count}" for end, count in sorted(MOMENTS.items()))
    print_past_capture(request, f"runs hit by a signal at a random moment: {ends or 'none'}")


class Hit(NamedTuple):
    """after_seconds: since the lock was taken, or, from_start, since the process was made."""

    number: signal.Signals
    after_seconds: float
    from_start: bool


def hit_one(template: Box, root: Path, hit: Hit) -> Optional[str]:
    """Send one signal to a run at one moment; return what does not hold then, or None."""
    box = template.copy_to(root)
    process = start(*box.arguments(), stdout=subprocess.DEVNULL)
    if not hit.from_start:
        wait_until(box.lock.exists, process)
    time.sleep(hit.after_seconds)
    process.send_signal(hit.number)
    _, err = process.communicate(timeout=LIMIT_SECONDS)
    code = process.returncode
    MOMENTS[f"{hit.number.name} -> {code}"] += 1
    try:
        assert_nothing_lost(box)
        # Before main has begun and after it has ended the interpreter itself answers: it dies of
        # the signal, or shows a KeyboardInterrupt (with exit code 1 while it imports site).
        outside = names(box.output) == [] or box.set_is_complete()
        # (With exit code 0, even, while it looks what argv[0] is: pymain_get_importer.)
        codes = (-2, 0, 1) if "Failed checking if argv[0]" in err else (-2, 1)
        by_python = hit.number == signal.SIGINT and "KeyboardInterrupt" in err and code in codes
        if code == -hit.number or by_python:
            assert hit.number == signal.SIGKILL or outside, names(box.output)
        else:
            assert code in (0, 128 + hit.number), err
            assert_honest_end(box, code, err)
        finish_after_kill(box)
    except AssertionError as error:
        return f"{hit}: {str(error)[:600]}"
    shutil.rmtree(root)
    return None


@pytest.mark.sampled
@modes
@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_signal_at_any_moment_loses_nothing(
    tmp_path: Path, number: signal.Signals, mode: Mode
) -> None:
    template = Box(tmp_path / "template", mode, True, RUN_TRACE_BYTES).make()
    clean = template.copy_to(tmp_path / "clean")
    began = time.perf_counter()
    process = start(*clean.arguments(), stdout=subprocess.DEVNULL)
    wait_until(clean.lock.exists, process)
    locked = time.perf_counter()
    process.communicate(timeout=LIMIT_SECONDS)
    assert process.returncode == 0
    lengths = {True: locked - began, False: time.perf_counter() - locked}
    moments = random.Random(f"{number}{mode}")
    early = [i % 6 == 0 for i in range(N_MOMENTS)]
    hits = [Hit(number, moments.uniform(0, lengths[e]), e) for e in early]
    roots = [tmp_path / f"run{i}" for i in range(len(hits))]
    with ThreadPoolExecutor(2) as pool:
        wrong = [w for w in pool.map(hit_one, [template] * len(hits), roots, hits) if w]
    assert not wrong, f"{len(wrong)} of {len(hits)}:\n" + "\n".join(wrong)
