"""Fixtures that many files use, and what is set up before all tests; helpers are in helpers.py."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import tempfile
from pathlib import Path

import pytest
from helpers import ALL_FAULTS, OUTPUTS, Folders
from readme import contradictions

sys.path.insert(0, str(Path(__file__).parent.parent))  # the module, also where it is not installed

# Where the suite itself runs in the background (CI, nohup), these come ignored, and a child would
# inherit that: the script rightly leaves it so, and the tests would send them in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)
if sys.platform != "win32":
    signal.signal(signal.SIGHUP, signal.SIG_DFL)


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    """Return an input folder that is there and an output folder that is not."""
    (tmp_path / "in").mkdir()
    return Folders(tmp_path / "in", tmp_path / "out")


@pytest.fixture
def unprivileged() -> tuple[str, ...]:
    """Return the prefix that makes permissions count, also for root."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv: no permission is ever denied")
    return ("setpriv", "--inh-caps=-all", "--bounding-set=-all")


SAMPLED_CASES = 2  # of each test that is marked as sampled, where the mark tells no other number


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Run a seeded sample of the many faults, unless all of them are asked for (.ci/run does)."""
    cases: dict[str, list[pytest.Item]] = {}
    for item in items:
        if item.get_closest_marker("sampled"):
            cases.setdefault(item.nodeid.split("[")[0], []).append(item)
            if ALL_FAULTS:
                item.add_marker(pytest.mark.timeout(600))
    left_out = set()
    for test, members in cases.items():
        mark = members[0].get_closest_marker("sampled")
        count = mark.args[0] if mark and mark.args else SAMPLED_CASES
        count = len(members) if ALL_FAULTS else min(count, len(members))
        sample = random.Random(test).sample(members, count)
        left_out.update(set(members) - set(sample))
    config.hook.pytest_deselected(items=list(left_out))
    items[:] = [item for item in items if item not in left_out]


# README.md's table of messages and the messages of all runs of the script, when all tests ran

OF_ALL_RUNS = pytest.StashKey[list[str]]()


def pytest_configure(config: pytest.Config) -> None:
    """Make the folder where this process and the workers of xdist note what the script prints."""
    if not hasattr(config, "workerinput"):
        os.environ[OUTPUTS] = tempfile.mkdtemp(prefix="divide_conquer_outputs_")


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Fail a session of all tests where README.md and the script's output do not agree."""
    config = session.config
    if hasattr(config, "workerinput"):
        return
    folder = Path(os.environ.pop(OUTPUTS))
    printed = "\n".join(path.read_text(encoding="utf-8") for path in folder.iterdir())
    shutil.rmtree(folder)
    chosen = ("keyword", "markexpr", "ignore", "ignore_glob", "deselect", "collectonly")
    is_whole = config.args_source is pytest.Config.ArgsSource.TESTPATHS
    if not is_whole or any(config.getoption(name) for name in chosen) or session.testsfailed:
        return
    config.stash[OF_ALL_RUNS] = contradictions(printed)
    if config.stash[OF_ALL_RUNS]:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(
    terminalreporter: pytest.TerminalReporter, config: pytest.Config
) -> None:
    if wrong := config.stash.get(OF_ALL_RUNS, []):
        terminalreporter.section("README.md's table of messages, and what the script printed")
        terminalreporter.line("\n".join(wrong))
