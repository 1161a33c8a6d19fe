# SPDX-License-Identifier: Apache-2.0
"""CRIU, which checkpoints of containers need: new enough, and able to work on this kernel."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

from criagent.config.sections import Config
from criagent.doctor.commands import ended
from criagent.doctor.finding import Finding, fine, warning
from criagent.runtime.node import criu

_NAME = "checkpoints"


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CheckpointFacts:
    """`version` and `libraries` are output of `criu --version` and `ldconfig -p`, None = neither
    can be run; `check` is what `criu check` complains of, "" = nothing.
    """

    version: str | None = None
    libraries: str | None = None
    check: str = ""


def read() -> CheckpointFacts:
    """Ask CRIU and ldconfig."""
    version = ended([criu.PROGRAM, "--version"])
    libraries = ended(["ldconfig", "-p"])
    check = "" if version is None else _complaint()
    return CheckpointFacts(
        version=None if version is None else version.output,
        libraries=None if libraries is None else libraries.output,
        check=check,
    )


def judge(facts: CheckpointFacts, config: Config) -> Iterator[Finding]:
    """One finding. Without CRIU pods run, so that is none to act on."""
    kinds = {handler.type for handler in config.runtime.handlers.values()}
    if facts.version is None:
        text = "criu is not installed: calls of checkpoint and restore answer UNIMPLEMENTED"
        yield fine(_NAME, text)
    elif problem := criu.too_old(facts.version):
        yield warning(_NAME, problem, "install a newer criu")
    elif "crun" in kinds and facts.libraries and criu.LIBRARY not in facts.libraries:
        yield warning(
            _NAME,
            f"crun cannot load {criu.LIBRARY}: its containers cannot be checkpointed",
            "install libcriu2 (Debian) or criu-libs (Fedora)",
        )
    elif facts.check:
        yield warning(
            _NAME,
            f"criu check: {facts.check}",
            "install a newer criu, or a kernel with CONFIG_CHECKPOINT_RESTORE",
        )
    else:
        yield fine(_NAME, f"criu {facts.version.partition(': ')[2].strip()}")


def _complaint() -> str:
    answer = ended([criu.PROGRAM, "check"])
    if answer is None:
        return "it cannot be run, or does not end"
    if not answer.status:
        return ""
    lines = (answer.errors or answer.output).strip().splitlines()
    return (lines[-1] if lines else f"status {answer.status}")[-300:]
