"""The code blocks of README.md, and a place to run them in."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple, Optional

from helpers import ROOT, SCRIPT, environment

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


def project_copy(folder: Path) -> Path:
    """Make a folder where README.md's commands can be run: the script, and python as in .venv."""
    (folder / ".venv" / "bin").mkdir(parents=True)
    shutil.copy(SCRIPT, folder)
    python = folder / ".venv" / "bin" / "python"
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    return folder


def run_block(
    text: str, folder: Path, env: Optional[dict[str, str]] = None
) -> subprocess.CompletedProcess[str]:
    """Run a block as a shell script in folder, where python is that of .venv, as if activated."""
    env = env or environment()
    path = f"{folder / '.venv' / 'bin'}{os.pathsep}{env['PATH']}"
    return subprocess.run(
        ["bash", "-euo", "pipefail", "-c", text],
        cwd=folder,
        env={**env, "PATH": path},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        encoding="utf-8",
        timeout=BLOCK_SECONDS,
        check=False,
    )
