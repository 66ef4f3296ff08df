"""Packaging: do the module and pyproject.toml say the same of what they need and offer?"""

from __future__ import annotations

import re
from typing import Any

import pytest
from helpers import ROOT, SOURCE

import divide_conquer


def read_pyproject() -> Any:
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11
    return tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))


def test_script_metadata_agrees_with_pyproject() -> None:
    """`uv run` reads the comment of PEP 723, pip reads pyproject.toml."""
    tomllib = pytest.importorskip("tomllib")
    block = re.search(
        r"^# /// script\n((?:#.*\n)+?)# ///$", SOURCE.read_text("utf-8"), re.MULTILINE
    )
    assert block is not None
    script = tomllib.loads(re.sub(r"^# ?", "", block[1], flags=re.MULTILINE))
    project = read_pyproject()["project"]
    assert script == {key: project[key] for key in ("requires-python", "dependencies")}
    assert project["dependencies"] == ["tqdm"]


def test_oldest_python_is_that_of_the_classifiers() -> None:
    project = read_pyproject()["project"]
    versions = re.findall(r":: (3\.\d+)", " ".join(project["classifiers"]))
    assert project["requires-python"] == f">={versions[0]}"


def test_what_is_offered_is_there_and_documented() -> None:
    assert sorted(divide_conquer.__all__) == divide_conquer.__all__
    for name in divide_conquer.__all__:
        assert getattr(divide_conquer, name).__doc__, name
