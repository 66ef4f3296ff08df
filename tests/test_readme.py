"""README.md: do its commands run, is its table of options that of the script?

Its table of messages is compared with all that the suite made the script print: conftest.py.
"""

from __future__ import annotations

import itertools
import re
import shutil
from pathlib import Path

import pytest
from helpers import ROOT, environment, load_set, names, snapshot
from readme import README, block_with, blocks, code_spans, project_copy, run_block, table

import divide_conquer

TEXT = README.read_text(encoding="utf-8")
CI = ROOT / ".ci" / "run"


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """Return a copy of the project with two batches of 300 traces in traces_data/."""
    return project_copy(tmp_path / "project", n_batches=2, n_traces=300)


# Commands


USAGE = [b.text for b in blocks("bash") if b.marker is None and "parallel" not in b.text]


def test_the_examples_of_use_work_one_after_the_other(project: Path) -> None:
    """As typed by a user who begins with the guide's command, in the environment that is there."""
    (own,) = [b.text for b in blocks("bash") if b.marker == "own"]
    install, first = own.splitlines(keepends=True)
    assert install == "pip install tqdm\n"
    before = snapshot(project / "traces_data")
    for command in (first, *itertools.chain(*(text.splitlines(True) for text in USAGE))):
        assert re.fullmatch(r"python divide_conquer\.py [^\n]*\n", command)
        done = run_block(command, project)
        (folder,) = re.findall(r"--output (\S+)/", command)
        subs = load_set(project / folder, "batch_0000")
        assert snapshot(project / "traces_data") == before
        if "--dry-run" in command:
            assert (done.returncode, done.stderr, subs) == (0, "", [])
        elif "--delete-original" in command:  # asks, and there is no terminal here
            assert (done.returncode, not subs) == (1, "--verify" not in command)
            assert "necesita confirmación y aquí no hay terminal para pedirla" in done.stderr
        else:
            assert (done.returncode, done.stderr) == (0, ""), command
            sizes = [100] * 3 if "--traces-per-batch 100" in command else [250, 50]
            assert [len(sub) for sub in subs] == sizes
    assert "Resumen: 2 omitidos" in (project / "dividir.log").read_text(encoding="utf-8")
    if shutil.which("gzip"):
        (check,) = re.findall(r"`(gzip -t [^`]+)`", TEXT)[:1]
        assert run_block(check, project).returncode == 0


def test_every_shell_command_is_run_by_a_test_or_by_ci() -> None:
    by_ci = set(re.findall(r"\$\(readme_command (\w+)\)", CI.read_text(encoding="utf-8")))
    marked = [b.marker for b in blocks("bash") if b.marker]
    assert sorted(by_ci) == sorted(marked)
    by_cluster = [b for b in blocks("bash") if b.marker is None and "parallel" in b.text]
    assert len(by_cluster) == 2  # tests/test_cluster.py
    assert len(blocks("slurm")) == 1
    assert len(USAGE) == len({text.split("--output")[1] for text in USAGE}) == 11
    assert len(re.findall(r"^```\w", TEXT, re.MULTILINE)) == sum(
        len(blocks(name)) for name in ("bash", "slurm", "python", "console", "text", "mermaid")
    )


def test_the_loader_reads_every_trace_in_order(project: Path) -> None:
    (project / "traces_data_split").mkdir()
    run_block("python divide_conquer.py -i traces_data -o traces_data_split -n 70", project)
    check = """
expected = [f"{number}:{i}" for number in range(2) for i in range(300)]
assert [traces[i]["question_id"] for i in range(len(traces))] == expected
assert [trace["question_id"] for trace in traces] == expected
assert cargar.cache_info().currsize == 2
"""
    (project / "loader.py").write_text(block_with("class Traces", "python") + check, "utf-8")
    done = run_block("python loader.py", project)
    assert (done.returncode, done.stderr, done.stdout) == (0, "", "600 0:0\n")


def write_loader(project: Path, check: str) -> None:
    """Write README.md's loader as a module, and a script that uses it."""
    loader = block_with("class Traces", "python")
    (project / "loader.py").write_text(loader, encoding="utf-8")
    (project / "check.py").write_text(check, encoding="utf-8")


def test_the_loader_counts_by_the_stamp_and_goes_to_other_processes(project: Path) -> None:
    args = "divide_conquer.py -i traces_data -n 70 -o"
    run_block(f"python {args} gz && python {args} plain --no-compress", project)
    check = """
import multiprocessing
import loader

if __name__ == "__main__":
    traces = loader.Traces("gz/*.pkl.gz")
    assert (len(traces), loader.cargar.cache_info().misses) == (600, 0)
    assert len(loader.Traces("plain/*.pkl")) == 600
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        found = pool.map(traces.__getitem__, range(0, 600, 50))
    assert found == [traces[i] for i in range(0, 600, 50)]
"""
    write_loader(project, check)
    done = run_block("python check.py", project)
    assert (done.returncode, done.stderr) == (0, "")


def test_the_loader_takes_no_mistyped_pattern_for_an_empty_data_set(project: Path) -> None:
    write_loader(project, 'import loader\nloader.Traces("traces_data_splti/*.pkl.gz")\n')
    done = run_block("python check.py || true", project)
    assert "FileNotFoundError: ningún archivo cumple traces_data_splti/*.pkl.gz" in done.stderr


def test_the_formula_of_the_loader_gives_the_figures_of_the_table() -> None:
    rows = [row for row in TEXT.splitlines() if re.match(r"\| (\d+–\d+|más de \d+) GB \|", row)]
    assert len(rows) == 4
    for row in rows:
        numbers = [float(n) for n in re.findall(r"[\d.]+", row.split("|", 2)[2])]
        for n, gigabytes in zip(numbers[:2], numbers[2:]):
            assert abs(3 * n * 17 / 1000 - gigabytes) < 0.051


def test_the_python_call_works(project: Path) -> None:
    call = block_with("SplitError", "python")
    (project / "call.py").write_text(call, encoding="utf-8")
    env = environment(PYTHONUTF8="1")
    done = run_block("python call.py", project, env)
    assert (done.returncode, done.stderr) == (0, "")
    assert "batch_0000_sub0002.pkl.gz" in done.stdout and "save: 1" in done.stdout
    assert len(names(project / "traces_data_split")) == 3
    assert "ya estaba dividido" in run_block("python call.py", project, env).stdout
    (project / "traces_data" / "batch_0000.pkl.gz").write_bytes(b"damaged")
    done = run_block("rm -r traces_data_split; python call.py", project, env)
    assert "Qué hacer:" in done.stdout


def test_numbers_have_one_form() -> None:
    """Decimal units, a point, a space: 3.5 GB."""
    prose = re.sub(r"```.*?```", "", TEXT, flags=re.DOTALL)
    assert re.findall(r"\d,\d|[KMG]iB|\d[kMG]B", prose) == []
    shown = "".join(b.text for b in blocks("console"))
    assert re.findall(r"\d[kMG]B|[KMG]iB", shown) == []


# Options


def test_the_table_of_options_is_that_of_the_parser() -> None:
    actions = divide_conquer._make_parser()._actions
    listed = [code_spans(row[0]) for row in table("Opciones")]
    assert listed == [list(action.option_strings) for action in actions]


def test_every_option_in_the_text_exists() -> None:
    known = {o for action in divide_conquer._make_parser()._actions for o in action.option_strings}
    lines = [line for b in blocks("bash") for line in b.text.replace("\\\n", " ").splitlines()]
    for line in lines:
        if "divide_conquer.py" in line:
            own = line.split("divide_conquer.py", 1)[1].split(":::")[0]
            assert set(re.findall(r"(?<= )-{1,2}[a-z][\w-]*", own)) <= known


def test_exit_codes_are_told() -> None:
    assert all(f"**{code}**" in TEXT for code in (0, 1, 2, 130, 143))
