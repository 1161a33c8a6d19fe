# SPDX-License-Identifier: Apache-2.0
"""The wheel of this checkout, installed as a user does, but without a network.

Dependencies come from the test node's own environment by a .pth file.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

SOURCE = Path(__file__).parents[2]


def build(directory: Path) -> Path:
    """Build the wheel into `directory` from a copy: the checkout stays as it is."""
    copy = directory / "checkout"
    copy.mkdir()
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(SOURCE / name, copy)
    ignored = shutil.ignore_patterns("__pycache__")
    shutil.copytree(SOURCE / "criagent", copy / "criagent", ignore=ignored)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(directory)]
    subprocess.run(command, cwd=copy, check=True, capture_output=True)
    (wheel,) = directory.glob("criagent-*.whl")
    return wheel


def lend_dependencies(environment: Path) -> None:
    """Let a virtual environment find what the test node has installed."""
    (packages,) = environment.glob("lib/python3*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
