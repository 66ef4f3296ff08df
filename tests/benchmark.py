"""Time the script against the plain way to do its work; run by hand, not collected by pytest.

    python tests/benchmark.py [--data tensors|numbers] [--traces 24] [--rounds 3]

tensors: traces of 17 MB as models give them.  numbers: traces of 100,000 Python floats and ints,
one opcode of the pickle each.  The variants with .pkl read and write without gzip.

Each round runs every variant once, as a whole process, one after the other, so that a noisy machine
is noisy to all; the table shows medians.  Peak memory is that of each process alone (VmHWM).
"""

from __future__ import annotations

import argparse
import gzip
import importlib.util
import os
import pickle
import random
import re
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any, NamedTuple

SCRIPT = Path(__file__).parent.parent / "divide_conquer.py"
WITHOUT_ISAL = (
    "import runpy, sys; sys.modules['isal'] = None; "
    f"sys.argv[0] = {str(SCRIPT)!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
)


class Result(NamedTuple):
    """Seconds of the whole process and of its phases; sizes in bytes."""

    total: float
    load: float
    save: float
    validate: float
    peak_bytes: float
    output_bytes: int


def run_plain(source: Path, out: Path, n: int) -> None:
    """Do what the guide says with the standard library's defaults, and print the seconds."""
    times = [time.perf_counter()]
    with gzip.open(source, "rb") as file:
        traces = pickle.load(file)
    times.append(time.perf_counter())
    out.mkdir()
    for start in range(0, len(traces), n):
        with gzip.open(out / f"batch_sub{start // n:04d}.pkl.gz", "wb") as file:
            pickle.dump(traces[start : start + n], file)
    times.append(time.perf_counter())
    del traces
    with gzip.open(source, "rb") as file:
        expected = len(pickle.load(file))
    found = 0
    for path in sorted(out.iterdir()):
        with gzip.open(path, "rb") as file:
            found += len(pickle.load(file))
    assert found == expected
    times.append(time.perf_counter())
    seconds = [f"{b - a:.1f} s" for a, b in zip(times, times[1:])]
    status = Path("/proc/self/status").read_text()
    peak_bytes = int(status.split("VmHWM:")[1].split()[0]) * 1024
    phases = f"carga {seconds[0]}, guardado {seconds[1]}, validación {seconds[2]}"
    print(f"({phases}); memoria máxima hasta ahora {peak_bytes / 1e6:.0f} MB")


def measure(command: list[str], out: Path) -> Result:
    """Run one variant as a process; its phases and its peak come from its report line."""
    started = time.perf_counter()
    env = {**os.environ, "PYTHONIOENCODING": "utf-8"}
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, env=env, encoding="utf-8")
    total = time.perf_counter() - started
    seconds = r"(?:(\d+) min )?([\d.]+) s"
    phases = re.search(rf"carga {seconds}, guardado {seconds}, validación {seconds}", done.stdout)
    peak = re.search(r"memoria máxima hasta ahora ([\d.]+) ([MG])B$", done.stdout, re.MULTILINE)
    assert phases and peak, done.stdout
    found = [float(number or 0) for number in phases.groups()]
    load, save, validate = (60 * found[i] + found[i + 1] for i in (0, 2, 4))
    peak_bytes = float(peak[1]) * {"M": 1e6, "G": 1e9}[peak[2]]
    sizes = [path.stat().st_size for path in out.iterdir()]
    for path in out.iterdir():
        path.unlink()
    out.rmdir()
    return Result(total, load, save, validate, peak_bytes, sum(sizes))


def make_tensors(n_traces: int) -> list[Any]:
    """Return full-sized traces: 32 layers, hidden 4096, 32 heads, 50 tokens."""
    import numpy as np  # here, as the plain script is to import no more than it needs
    from make_traces import make_trace

    rng = np.random.default_rng(0)
    shape = {"layers": 32, "hidden": 4096, "heads": 32, "tokens": 50}
    return [make_trace(rng, f"q_{i}", **shape) for i in range(n_traces)]


def make_numbers(n_traces: int) -> list[Any]:
    """Return traces of 50,000 floats and 50,000 ints, which a pickle holds one by one."""
    rng = random.Random(0)
    return [
        {
            "losses": [rng.random() for _ in range(50_000)],
            "tokens": [rng.randrange(32_000) for _ in range(50_000)],
        }
        for _ in range(n_traces)
    ]


MAKERS = {"tensors": make_tensors, "numbers": make_numbers}


def make_variants(folder: Path, out: Path, n: int) -> dict[str, list[str]]:
    """Return the command of each way to split batch.pkl.gz, or batch.pkl, of folder."""
    zipped = str(folder / "batch.pkl.gz")
    options = ["--output", str(out), "-n", str(n), "--input", zipped]
    plain_options = [*options[:-1], str(folder / "batch.pkl"), "--no-compress"]
    run = [sys.executable, "-c", WITHOUT_ISAL]
    variants = {
        "plain": [sys.executable, __file__, "--plain", zipped, str(out), str(n)],
        "default": [*run, *options],
        "default -j 1": [*run, *options, "--jobs", "1"],
        "low memory": [*run, *options, "--low-memory"],
        "default, .pkl": [*run, *plain_options],
        "low mem., .pkl": [*run, *plain_options, "--low-memory"],
    }
    if importlib.util.find_spec("isal"):
        variants["default, isal"] = [sys.executable, str(SCRIPT), *options]
    return variants


def show(results: dict[str, list[Result]]) -> None:
    """Print the median of each figure, a line a variant."""
    medians = {
        name: Result(*(statistics.median(column) for column in zip(*rows)))
        for name, rows in results.items()
    }
    plain = medians["plain"]
    print(f"{os.cpu_count()} processors, Python {sys.version.split()[0]}, medians")
    print("variant          total  ratio   load   save  valid.   peak MB  output against plain")
    for name, row in medians.items():
        print(
            f"{name:15} {row.total:6.2f} {plain.total / row.total:6.2f} {row.load:6.1f} "
            f"{row.save:6.1f} {row.validate:7.1f} {row.peak_bytes / 1e6:9.0f} "
            f"{100 * (row.output_bytes / plain.output_bytes - 1):+11.2f} %"
        )


def main() -> None:
    if sys.argv[1:2] == ["--plain"]:
        return run_plain(Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4]))
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", choices=MAKERS, default="tensors")
    parser.add_argument("--traces", type=int, default=24)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder, out = Path(name), Path(name, "out")
        traces = MAKERS[args.data](args.traces)
        with gzip.open(folder / "batch.pkl.gz", "wb", compresslevel=6) as zipped:
            pickle.dump(traces, zipped)
        with (folder / "batch.pkl").open("wb") as plain:
            pickle.dump(traces, plain)
        del traces
        variants = make_variants(folder, out, -(-args.traces // 4))
        results: dict[str, list[Result]] = {name: [] for name in variants}
        for _ in range(args.rounds):
            for name, command in variants.items():
                results[name].append(measure(command, out))
        sizes = [f"{path.name} {path.stat().st_size / 1e6:.0f} MB" for path in folder.iterdir()]
        print(f"{args.traces} traces of {args.data}: {', '.join(sizes)}")
        show(results)
    return None


if __name__ == "__main__":
    main()
