"""What holds for any list of traces and any N; split_file is called in this process."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import load, names
from hypothesis import given, settings
from hypothesis import strategies as st

from divide_conquer import (
    LoadError,
    OutputError,
    Phase,
    SaveError,
    SplitError,
    ValidationError,
    split_file,
)

bounded = settings(derandomize=True, deadline=None, max_examples=25, database=None)
few = settings(bounded, max_examples=10)

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(2**63, 2**80),
    st.floats(allow_nan=False),
    st.text(max_size=8),
    st.binary(max_size=8),
    st.complex_numbers(allow_nan=False),
)
big_bytes = st.builds(
    lambda size, fill: bytes([fill]) * size, st.integers(65_000, 140_000), st.integers(0, 255)
)
arrays = st.builds(
    lambda shape, dtype, order: np.asarray(
        np.arange(np.prod(shape)).reshape(shape), dtype=dtype, order=order
    ),
    st.sampled_from([(0,), (3,), (2, 3), (4, 1, 5), (200, 90)]),
    st.sampled_from(["float16", "int64", "float32"]),
    st.sampled_from(["C", "F"]),
)
nested = st.recursive(
    scalars,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.tuples(inner, inner),
        st.dictionaries(st.text(max_size=3), inner, max_size=3),
        st.builds(lambda value: [value, value], inner),
        st.frozensets(st.integers(), max_size=3),
    ),
    max_leaves=6,
)
traces_of_all_kinds = st.lists(st.one_of(nested, arrays, big_bytes), min_size=1, max_size=12)


def same(left: Any, right: Any) -> bool:
    """Compare deeply: types too, and arrays with their dtype and memory order."""
    if type(left) is not type(right):
        return False
    if isinstance(left, np.ndarray):
        return (
            left.dtype == right.dtype
            and left.flags.f_contiguous == right.flags.f_contiguous
            and np.array_equal(left, right)
        )
    if isinstance(left, dict):
        return list(left) == list(right) and all(same(left[key], right[key]) for key in left)
    if isinstance(left, (list, tuple)):
        return len(left) == len(right) and all(map(same, left, right))
    return bool(left == right)


def write(folder: Path, traces: object, protocol: int = 4, *, zipped: bool = False) -> Path:
    data = pickle.dumps(traces, protocol)
    path = folder / "a.pkl"
    path.write_bytes(gzip.compress(data, 1) if zipped else data)
    return path


modes = pytest.mark.parametrize("low_memory", [False, True], ids=["default", "low_memory"])


@modes
@bounded
@given(
    traces=traces_of_all_kinds,
    n=st.integers(1, 14),
    protocol=st.integers(0, 5),
    zipped=st.booleans(),
    compress=st.booleans(),
)
def test_sub_batches_concatenate_to_the_batch(
    tmp_path_factory: pytest.TempPathFactory,
    traces: list[Any],
    n: int,
    protocol: int,
    zipped: bool,
    compress: bool,
    low_memory: bool,
) -> None:
    folder = tmp_path_factory.mktemp("case")
    source, output = write(folder, traces, protocol, zipped=zipped), folder / "out"
    before = source.read_bytes()
    report = split_file(
        source, output, traces_per_batch=n, compress=compress, low_memory=low_memory
    )
    paths = [output / name for name in names(output)]
    subs = [load(path) for path in paths]
    assert source.read_bytes() == before
    suffix = ".pkl.gz" if compress else ".pkl"
    count = -(-len(traces) // n)
    assert [path.name for path in paths] == [f"a_sub{i:04d}{suffix}" for i in range(count)]
    assert list(report.files) == paths
    assert [len(sub) for sub in subs[:-1]] == [n] * (count - 1)
    assert 1 <= len(subs[-1]) <= n
    assert {type(sub) for sub in subs} == {list}
    assert same([trace for sub in subs for trace in sub], traces)
    assert (report.n_traces, report.source_bytes) == (len(traces), len(before))
    assert not (report.skipped or report.deleted or report.warnings)


@modes
@few
@given(owners=st.lists(st.integers(0, 3), min_size=1, max_size=12), n=st.integers(1, 6))
def test_objects_shared_within_a_sub_batch_stay_shared(
    tmp_path_factory: pytest.TempPathFactory, owners: list[int], n: int, low_memory: bool
) -> None:
    shared = [{"object": number} for number in range(4)]
    folder = tmp_path_factory.mktemp("case")
    source = write(folder, [[shared[owner]] for owner in owners])
    report = split_file(source, folder / "out", traces_per_batch=n, low_memory=low_memory)
    subs = [load(path) for path in report.files]
    for index, sub in enumerate(subs):
        of_this = owners[index * n : index * n + n]
        assert [trace[0]["object"] for trace in sub] == of_this
        assert len({id(trace[0]) for trace in sub}) == len(set(of_this))


@modes
@few
@given(
    sizes=st.lists(st.integers(0, 1_500_000), min_size=1, max_size=5),
    n=st.integers(1, 5),
    compress=st.booleans(),
)
def test_progress_never_goes_back_within_a_phase(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    n: int,
    compress: bool,
    low_memory: bool,
) -> None:
    calls: list[tuple[Phase, int, int]] = []
    folder = tmp_path_factory.mktemp("case")
    source = write(folder, [bytes(size) for size in sizes])
    report = split_file(
        source,
        folder / "out",
        traces_per_batch=n,
        compress=compress,
        low_memory=low_memory,
        progress=lambda *call: calls.append(call),
    )
    size_bytes = source.stat().st_size
    phases = [phase for phase, _, _ in calls]
    assert list(dict.fromkeys(phases)) == [Phase.LOAD, Phase.SAVE, Phase.VALIDATE]
    assert phases == sorted(phases, key=[Phase.LOAD, Phase.SAVE, Phase.VALIDATE].index)
    for phase, total in (
        (Phase.LOAD, size_bytes),
        (Phase.SAVE, sum(report.pickled_bytes)),
        (Phase.VALIDATE, report.output_bytes),
    ):
        done = [done for of, done, _ in calls if of is phase]
        assert done[0] == 0
        assert done == sorted(done)
        assert done[-1] == total
        assert len({expected for of, _, expected in calls if of is phase}) == 1


class CountedCancel:
    """A progress callback that raises at its k-th call."""

    def __init__(self, k: int) -> None:
        self.left = k
        self.phases: list[Phase] = []

    def __call__(self, phase: Phase, done_bytes: int, expected_bytes: int) -> None:
        self.left -= 1
        self.phases.append(phase)
        if self.left == 0:
            raise KeyboardInterrupt


@modes
@pytest.mark.parametrize("compress", [True, False], ids=["gzip", "plain"])
def test_cancel_at_any_callback_leaves_nothing(
    tmp_path: Path, compress: bool, low_memory: bool
) -> None:
    traces = [bytes([i]) * 300_000 for i in range(5)]
    source, output = write(tmp_path, traces, zipped=True), tmp_path / "out"
    before = source.read_bytes()
    cancelled_in: list[Phase] = []
    for k in range(1, 500):
        cancel = CountedCancel(k)
        try:
            split_file(
                source,
                output,
                traces_per_batch=2,
                compress=compress,
                low_memory=low_memory,
                progress=cancel,
            )
        except KeyboardInterrupt:
            cancelled_in.append(cancel.phases[-1])
            assert names(output) == []
            assert source.read_bytes() == before
        else:
            break
    assert set(cancelled_in) == {Phase.LOAD, Phase.SAVE, Phase.VALIDATE}
    assert len(cancel.phases) == len(cancelled_in)
    assert [trace for path in sorted(output.iterdir()) for trace in load(path)] == traces


@pytest.mark.parametrize("class_", [SplitError, LoadError, OutputError, SaveError, ValidationError])
def test_errors_survive_pickling(class_: type[SplitError]) -> None:
    error = class_(Path("in/año.pkl"), "está vacío", "cópialo otra vez")
    error.leftovers = (Path("out/a_sub0000.pkl.gz"),)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is class_
    assert str(copy) == str(error) == "in/año.pkl: está vacío"
    assert (copy.path, copy.problem, copy.hint) == (error.path, error.problem, error.hint)
    assert copy.leftovers == error.leftovers


def test_split_file_and_its_report_are_picklable(tmp_path: Path) -> None:
    call = pickle.loads(pickle.dumps(split_file))
    assert call is split_file
    report = call(write(tmp_path, [1, 2]), tmp_path / "out")
    assert pickle.loads(pickle.dumps(report)) == report


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        pytest.param({"traces_per_batch": 0}, "traces_per_batch", id="n-0"),
        pytest.param({"traces_per_batch": -3}, "traces_per_batch", id="n-negative"),
        pytest.param({"traces_per_batch": 2.5}, "float", id="n-float"),
        pytest.param({"jobs": 0}, "jobs", id="jobs-0"),
        pytest.param({"jobs": 1.0}, "float", id="jobs-float"),
        pytest.param(
            {"delete_original": True, "validate": False}, "validate", id="delete-unvalidated"
        ),
    ],
)
def test_contradictory_arguments_raise_and_touch_nothing(
    tmp_path: Path, options: dict[str, Any], expected: str
) -> None:
    source = write(tmp_path, [1, 2])
    with pytest.raises((ValueError, TypeError), match=expected):
        split_file(source, tmp_path / "out", **options)
    assert names(tmp_path) == ["a.pkl"]


def test_failure_prints_nothing_and_leaves_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    source = write(tmp_path, "no list")
    with pytest.raises(LoadError, match="un objeto str") as caught:
        split_file(source, tmp_path / "out")
    assert (caught.value.path, caught.value.leftovers) == (source, ())
    assert names(tmp_path / "out") == []
    assert capfd.readouterr() == ("", "")
