"""Properties: what holds for any list of traces and any N?

split_file is called in this process.
"""

from __future__ import annotations

import gzip
import pickle
import random
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers import load, low_memory_or_not, names
from hypothesis import given, settings
from hypothesis import strategies as st

from divide_conquer import Phase, split_file

NOISE = random.Random(0).randbytes(1_500_000)
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


@low_memory_or_not
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


@low_memory_or_not
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


@low_memory_or_not
@few
@given(
    sizes=st.lists(st.integers(0, 1_500_000), min_size=1, max_size=5),
    n=st.integers(1, 5),
    compress=st.booleans(),
)
def test_progress_comes_one_at_a_time_and_adds_up(
    tmp_path_factory: pytest.TempPathFactory,
    sizes: list[int],
    n: int,
    compress: bool,
    low_memory: bool,
) -> None:
    calls: list[tuple[Phase, int, int]] = []
    busy = threading.Lock()

    def progress(phase: Phase, done: int, expected: int) -> None:
        assert busy.acquire(blocking=False), "two calls at once"
        time.sleep(0.0005)  # lets another thread come, if nothing holds it back
        calls.append((phase, done, expected))
        busy.release()

    folder = tmp_path_factory.mktemp("case")
    source = write(folder, [NOISE[:size] for size in sizes])
    report = split_file(
        source,
        folder / "out",
        traces_per_batch=n,
        compress=compress,
        low_memory=low_memory,
        jobs=4,
        progress=progress,
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
