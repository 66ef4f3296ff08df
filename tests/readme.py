"""README.md: its code blocks, a place to run them in, and its tables."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Optional

from helpers import ROOT, SOURCE, environment, run, write_batch

README = ROOT / "README.md"
BLOCK_SECONDS = 60


class Block(NamedTuple):
    """One fenced block; marker is NAME of a comment <!-- ci: NAME --> on the line before it."""

    language: str
    text: str
    marker: Optional[str]


def blocks(language: str) -> list[Block]:
    """Return the blocks of one language, in their order."""
    pattern = r"(?:^<!-- ci: (\w+) -->\n)?^```(\w+)\n(.*?)^```$"
    found = re.findall(pattern, README.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL)
    return [Block(name, text, marker or None) for marker, name, text in found if name == language]


def block_with(words: str, language: str) -> str:
    """Return the text of the one block of a language that has these words."""
    (block,) = [block for block in blocks(language) if words in block.text]
    return block.text


def project_copy(folder: Path, n_batches: int, n_traces: int) -> Path:
    """Make a folder where README.md's commands can be run: the script, and python as in .venv.

    In traces_data/ there are batches of traces whose question_id is "{batch}:{trace}".
    """
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(SOURCE, folder)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    for number in range(n_batches):
        traces = [{"question_id": f"{number}:{i}"} for i in range(n_traces)]
        write_batch(folder / "traces_data" / f"batch_{number:04d}.pkl.gz", traces)
    return folder


def run_block(
    text: str, folder: Path, env: Optional[dict[str, str]] = None
) -> subprocess.CompletedProcess[str]:
    """Run a block as a shell script in folder, where python is that of .venv, as if activated."""
    env = env or environment()
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{env['PATH']}"
    line = ["bash", "-euo", "pipefail", "-c", text]
    return run(line, timeout=BLOCK_SECONDS, cwd=folder, env={**env, "PATH": path})


def table(heading: str) -> list[list[str]]:
    """Return the rows of the first table below a heading, without those that name columns."""
    text = README.read_text(encoding="utf-8")
    section = text.split(f"\n## {heading}\n", 1)[1].split("\n## ", 1)[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split(" | ")]
        for line in section.splitlines()
        if line.startswith("|")
    ]
    return rows[2:]


def code_spans(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


def contradictions(printed: str) -> list[str]:
    """Return what the table of messages and all that the script printed do not agree on."""
    rows = table("Problemas")
    quoted = [s for row in rows for s in code_spans(row[0]) if not s.startswith((".", "-"))]
    assert len(quoted) > 40
    told = [span for row in rows for cell in row for span in code_spans(cell)]
    wrong = [f"no run printed: {span}" for span in quoted if span not in printed]
    for line in sorted(set(re.findall(r"^(?:ERROR|AVISO) .+", printed, re.MULTILINE))):
        if not any(span in line for span in told):
            wrong.append(f"not in README.md: {line}")
    return wrong
