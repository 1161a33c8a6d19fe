# SPDX-License-Identifier: Apache-2.0
"""The outcome of one check."""

from __future__ import annotations

import socket
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Level = Literal["ok", "ignored", "warning", "error"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One finding: `error` = no pod can run; `warning` = some pods cannot run, or not safely;
    `ignored` = either, excluded by --ignore.

    These three levels have a cure.
    """

    name: str
    level: Level
    text: str
    cure: str = ""


def fine(name: str, text: str) -> Finding:
    """A finding that needs no action."""
    return Finding(name=name, level="ok", text=text)


def warning(name: str, text: str, cure: str) -> Finding:
    """A finding that affects some pods, or their safety."""
    return Finding(name=name, level="warning", text=text, cure=cure)


def error(name: str, text: str, cure: str) -> Finding:
    """A finding that affects every pod."""
    return Finding(name=name, level="error", text=text, cure=cure)


def content(path: str) -> str:
    """A kernel file, stripped of white space; "" if it does not exist."""
    try:
        return Path(path).read_text().strip()
    except OSError:
        return ""


def number(path: str) -> int | None:
    """The number in a kernel file; None if the file does not exist or holds something else."""
    text = content(path)
    return int(text) if text.isdecimal() else None


def listens(path: str) -> bool:
    """Whether a process accepts connections on the unix socket at `path`."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as trial:
        trial.settimeout(1.0)
        try:
            trial.connect(path)
        except OSError:
            return False
    return True
