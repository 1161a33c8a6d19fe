# SPDX-License-Identifier: Apache-2.0
"""The programs that the agent runs: present, new enough, without known security problems."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from criagent.config.sections import Config
from criagent.doctor.commands import ended
from criagent.doctor.finding import Finding, error, fine, warning
from criagent.doctor.system import os_release
from criagent.runtime.node.minimum_versions import (
    another_program,
    dotted,
    insecure,
    nameless,
    parse_version,
    too_old,
    version_of,
)

# By crun's name for it, in its output of --version.
_WASM_LIBRARIES = {
    "wasmedge": "libwasmedge.so.0",
    "wasmtime": "libwasmtime.so",
    "wasmer": "libwasmer.so",
    "wamr": "libiwasm.so",
}
# Where distributions list which of their packages has which fix.
_TRACKERS = {
    "debian": "https://security-tracker.debian.org/tracker/source-package/{}",
    "ubuntu": "https://ubuntu.com/security/cves?package={}",
    "fedora": "https://bodhi.fedoraproject.org/updates/?packages={}&type=security",
}


@dataclass(frozen=True, slots=True)
class _Program:
    """A configured program: the name of its finding, what it should be, its output of --version."""

    name: str
    path: Path
    kind: str
    answer: str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class ProgramFacts:
    """Output of --version of each program; None = the program cannot be run."""

    handlers: Mapping[str, str | None] = field(default_factory=dict)  # by handler
    absent: frozenset[str] = frozenset()  # handlers whose program is missing
    libraries: str = ""  # output of ldconfig -p
    conmon: str | None = "conmon version 2.1.13"
    catatonit: bool = True
    conntrack: bool = True
    distribution: str = ""  # ID of os-release


def read(config: Config) -> ProgramFacts:
    """Run the programs of this node with --version."""
    runtime = config.runtime
    return ProgramFacts(
        handlers={name: answer_of(handler.path) for name, handler in runtime.handlers.items()},
        absent=frozenset(n for n, h in runtime.handlers.items() if not h.path.exists()),
        libraries=_libraries(),
        conmon=answer_of(runtime.conmon),
        catatonit=os.access(runtime.catatonit, os.X_OK),
        conntrack=shutil.which("conntrack") is not None,
        distribution=os_release().get("ID", ""),
    )


def judge(facts: ProgramFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`."""
    runtime = config.runtime
    for name, handler in runtime.handlers.items():
        needed = name == runtime.default_handler
        if name in facts.absent and not needed:
            text = f"{handler.path} is not installed: pods that request handler {name} are refused"
            yield fine(f"handler {name}", text)
            continue
        answer = facts.handlers.get(name)
        program = _Program(f"handler {name}", handler.path, handler.type, answer)
        yield _finding(program, facts.distribution, needed=needed)
        if handler.type == "wasm" and answer is not None:
            yield from _wasm_library(program, facts.libraries)
    conmon = _Program("conmon", runtime.conmon, "conmon", facts.conmon)
    yield _finding(conmon, facts.distribution, needed=True)
    if facts.catatonit:
        yield fine("catatonit", str(runtime.catatonit))
    else:
        yield warning(
            "catatonit",
            f"{runtime.catatonit} is not installed: pods that share a PID namespace cannot run",
            "install catatonit",
        )
    if config.network.backend != "builtin":
        return
    if facts.conntrack:
        yield fine("conntrack", "installed")
    else:
        yield warning(
            "conntrack", "not installed: UDP hostPorts may keep old flows", "install conntrack"
        )


def _libraries() -> str:
    answer = ended(["ldconfig", "-p"])
    return "" if answer is None else answer.output


def _wasm_library(program: _Program, libraries: str) -> Iterator[Finding]:
    """crun loads the library of its WebAssembly handler when a container starts."""
    found = re.search(r"\+WASM:(\w+)", program.answer or "")
    file = _WASM_LIBRARIES.get(found[1], "") if found else ""
    name = f"{program.name} library"
    if file and file in libraries:
        yield fine(name, f"{file} is installed")
    elif file:
        text = f"{program.path} needs {file} for WebAssembly, and ldconfig does not find it"
        yield warning(name, text, f"install the package of {file}: on Debian, libwasmedge0")


def answer_of(path: Path) -> str | None:
    """Output of `path --version`; None when the program cannot be run or takes over ten seconds."""
    answer = ended([path, "--version"])
    return None if answer is None else answer.output + answer.errors


def _finding(program: _Program, distribution: str, *, needed: bool) -> Finding:
    name, path, kind, answer = program.name, program.path, program.kind, program.answer
    worst = error if needed else warning
    if answer is None:
        return worst(
            name,
            f"{path} cannot be executed",
            f"install {kind}, or change its path in the configuration",
        )
    if problem := too_old(kind, answer):
        return worst(name, f"{path}: {problem}", f"install a newer {kind}")
    problem = nameless(kind, answer) if kind == "conmon" else another_program(kind, answer)
    if problem:
        text, _, cure = problem.partition("; ")
        return worst(name, f"{path} {text}", cure)
    version = version_of(kind, answer)
    if version is None and parse_version(answer) is None:
        return warning(
            name,
            f"the output of {path} --version has no version",
            f"install a build of {kind} that has one",
        )
    if version is None:
        said = answer.partition("\n")[0][:80]
        return fine(name, f"{path} is not {kind}: {said}")
    if problem := insecure(kind, answer):
        return warning(name, f"{path}: {problem}", _security_cure(name, kind, distribution))
    return fine(name, f"{path} {dotted(version)}")


def _security_cure(name: str, kind: str, distribution: str) -> str:
    """A distribution's package may have the fixes under an older number; only its tracker knows."""
    tracker = _TRACKERS.get(distribution)
    where = f", see {tracker.format(kind)}," if tracker else ""
    return (
        f"update {kind}; once your distribution's package has the fixes{where} run `criagent "
        f"doctor --ignore '{name}'`"
    )
