"""The programs beside the agent: there, new enough, without known security problems."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from criagent.config import Config
from criagent.doctor.finding import Finding, error, fine, warning
from criagent.runtime.program_floors import Version, dotted, parse_version, too_old

# Below these the security advisories of the tools apply.
FLOORS = {
    "crun": ("1.28",),
    "runc": ("1.3.6", "1.4.3", "1.5.0"),
    "conmon": ("2.1.2",),
    "cni": ("1.9.0",),
}
_BROKEN = {("crun", (1, 29, 0))}


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFacts:
    """What each program says to --version; None = it cannot be run."""

    handlers: Mapping[str, str | None] = field(default_factory=dict)  # by handler
    conmon: str | None = "conmon version 2.1.13"
    catatonit: bool = True
    conntrack: bool = True


def read(config: Config) -> ProgramFacts:
    """Ask the programs of this node."""
    runtime = config.runtime
    return ProgramFacts(
        handlers={name: answer_of(handler.path) for name, handler in runtime.handlers.items()},
        conmon=answer_of(runtime.conmon),
        catatonit=os.access(runtime.catatonit, os.X_OK),
        conntrack=shutil.which("conntrack") is not None,
    )


def judge(facts: ProgramFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    runtime = config.runtime
    for name, handler in runtime.handlers.items():
        needed = name == runtime.default_handler
        answer = facts.handlers.get(name)
        yield _program(f"handler {name}", handler.path, handler.type, answer, needed=needed)
    yield _program("conmon", runtime.conmon, "conmon", facts.conmon, needed=True)
    if facts.catatonit:
        yield fine("catatonit", str(runtime.catatonit))
    else:
        yield warning(
            "catatonit",
            f"{runtime.catatonit} is missing: pods that share a PID namespace cannot run",
            "install catatonit",
        )
    if config.network.backend != "builtin":
        return
    if facts.conntrack:
        yield fine("conntrack", "is there")
    else:
        yield warning("conntrack", "missing: UDP hostPorts may keep old flows", "install conntrack")


def below_floor(version: Version, floors: tuple[str, ...]) -> bool:
    """Whether no floor is met; a floor holds for its own minor series, the last one beyond it."""
    parsed = [found for floor in floors if (found := parse_version(floor)) is not None]
    for floor in parsed[:-1]:
        if version[:2] == floor[:2]:
            return version < floor
    return version < parsed[-1]


def answer_of(path: Path) -> str | None:
    """What the program at `path` says to --version within ten seconds; None when it cannot."""
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=10, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout + done.stderr


def _program(name: str, path: Path, kind: str, answer: str | None, *, needed: bool) -> Finding:
    worst = error if needed else warning
    if answer is None:
        return worst(
            name,
            f"{path} cannot be run",
            f"install {kind}, or change its path in the configuration",
        )
    if problem := too_old(kind, answer):
        return worst(name, f"{path}: {problem}", f"install a newer {kind}")
    version = parse_version(answer)
    if version is None:
        return warning(name, f"{path} tells no version", f"see whether it is {kind}")
    text = f"{path} {dotted(version)}"
    if below_floor(version, FLOORS[kind]) or (kind, version) in _BROKEN:
        but = " (but not 1.29.0)" if kind == "crun" else ""
        return warning(
            name,
            f"{text}: known security problems",
            f"update {kind} to {' / '.join(FLOORS[kind])} or newer{but}; a distribution's own "
            "package may have the fixes under an older number",
        )
    return fine(name, text)
