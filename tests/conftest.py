"""Fixtures that many files use, and what is set up before all tests; helpers are in helpers.py."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
from pathlib import Path

import pytest
from helpers import Folders

sys.path.insert(0, str(Path(__file__).parent.parent))  # the module, also where it is not installed

# Where the suite itself runs in the background (CI, nohup), these come ignored, and a child would
# inherit that: the script rightly leaves it so, and the tests would send them in vain.
signal.signal(signal.SIGINT, signal.default_int_handler)
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


ALL_FAULTS = os.environ.get("DIVIDE_CONQUER_ALL_FAULTS") == "1"
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
