# SPDX-License-Identifier: Apache-2.0
"""CRIU on this node: the program, and the library by which crun calls it."""

from __future__ import annotations

import re
from pathlib import Path

from criagent.process.child import run
from criagent.runtime.node.minimum_versions import Version, dotted, parse_version

PROGRAM = Path("criu")  # OCI runtimes look for it in PATH as well
FLOOR: Version = (3, 16, 0)  # the first for containers of pods
LIBRARY = "libcriu.so.2"
NO_LIBRARY = (
    f"crun needs CRIU's library {LIBRARY}; install the package libcriu2 (Debian) or criu-libs "
    "(Fedora) and restart criagent"
)
_KINDS = {"crun", "runc"}
_CRUN_RESTORES: Version = (1, 21, 0)  # the first that has CRIU restore into the new cgroup


async def checkpoint_problem(kind: str, version: str, *, limit_s: float) -> str:
    """Why a handler of type `kind` with that --version output cannot checkpoint; "" = it can."""
    if kind not in _KINDS:
        return f"its type is {kind}; only {' and '.join(sorted(_KINDS))} call CRIU"
    if kind == "crun" and "+CRIU" not in version.split():
        return "this crun was built without CRIU; install another build"
    try:
        answer = (await run([PROGRAM, "--version"], limit_s=limit_s)).output
    except TimeoutError:
        return "criu --version does not end; install another build and restart criagent"
    except OSError:
        return "criu is not installed; install the package criu and restart criagent"
    if problem := too_old(answer):
        return f"{problem}; install a newer one and restart criagent"
    return await _library_problem(limit_s) if kind == "crun" else ""


def restore_problem(kind: str, version: str) -> str:
    """Why a handler of type `kind` and that version cannot restore; "" = it can if it can
    checkpoint.
    """
    found = parse_version(version)
    if kind != "crun" or found is None or found >= _CRUN_RESTORES:
        return ""
    return f"crun {version} is too old: restoring needs crun {dotted(_CRUN_RESTORES)}, or runc"


def too_old(answer: str) -> str:
    """Why CRIU with that --version output cannot be used; "" = it can."""
    version = re.search(r"^Version: (.*)", answer, re.MULTILINE)
    found = parse_version(version[1]) if version else None
    if found is None or found >= FLOOR:
        return ""
    return f"criu {dotted(found)} is too old: containers of pods need {dotted(FLOOR)}"


async def _library_problem(limit_s: float) -> str:
    """Why crun cannot load CRIU's library, as far as ldconfig(8) knows it; "" = it can."""
    try:
        known = (await run(["ldconfig", "-p"], limit_s=limit_s)).output
    except OSError:
        return ""  # not a system with glibc
    return "" if not known or LIBRARY in known else NO_LIBRARY
