"""numpy 1: is what it wrote still readable by it after --low-memory, split where numpy 2 is?

.ci/run makes the environment and names its Python in DIVIDE_CONQUER_NUMPY1.
"""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
from helpers import names, split

NUMPY_1 = os.environ.get("DIVIDE_CONQUER_NUMPY1", "")

pytestmark = pytest.mark.skipif(
    not NUMPY_1, reason="DIVIDE_CONQUER_NUMPY1 names no Python with numpy 1"
)

WRITE = """
import gzip, pickle, sys, numpy as np
def trace(i):
    kv = np.full((3, 4), i, "float16")
    return {"kv": kv, "token": np.int64(i), "dtype": np.dtype("float32"),
            "rng": np.random.RandomState(i)}
with gzip.open(sys.argv[1], "wb") as file:
    pickle.dump([trace(i) for i in range(5)], file)
"""
READ = """
import glob, gzip, pickle, sys
traces = []
for name in sorted(glob.glob(sys.argv[1])):
    with gzip.open(name) as file:
        traces += pickle.load(file)
print([(t["token"].item(), float(t["kv"].sum()), str(t["dtype"])) for t in traces])
"""


def run_numpy_1(code: str, *args: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [NUMPY_1, "-c", code, *map(str, args)], capture_output=True, text=True, check=False
    )


def test_low_memory_keeps_a_batch_of_numpy_1_readable_by_it(tmp_path: Path) -> None:
    assert np.__version__ >= "2"
    version = run_numpy_1("import numpy; print(numpy.__version__)").stdout
    assert version.startswith("1.")
    written = run_numpy_1(WRITE, tmp_path / "a.pkl.gz")
    assert (written.returncode, written.stderr) == (0, "")
    expected = str([(i, 12.0 * i, "float32") for i in range(5)])
    for folder, mode in (("low", ["--low-memory"]), ("default", [])):
        done = split("-i", tmp_path / "a.pkl.gz", "-o", tmp_path / folder, "-n", 2, *mode)
        assert (done.returncode, done.stderr) == (0, "")
        assert len(names(tmp_path / folder)) == 3
    read = run_numpy_1(READ, tmp_path / "low" / "*")
    assert (read.returncode, read.stderr, read.stdout) == (0, "", f"{expected}\n")
    # What README.md warns of.  Should this ever be read, it can say less.
    read = run_numpy_1(READ, tmp_path / "default" / "*")
    assert "No module named 'numpy._core'" in read.stderr
