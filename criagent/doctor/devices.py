# SPDX-License-Identifier: Apache-2.0
"""CDI specifications: the devices that pods can request, and files that cannot be used."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from criagent.config.sections import Config
from criagent.doctor.finding import Finding, fine, warning
from criagent.runtime.spec.cdi.registry import CdiFolders


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceFacts:
    """What the configured directories contain."""

    devices: int = 0
    problems: tuple[str, ...] = ()


def read(config: Config) -> DeviceFacts:
    """Read the specifications."""
    registry = CdiFolders(config.runtime.cdi_spec_dirs, quiet=True).registry()
    return DeviceFacts(devices=len(registry.devices), problems=tuple(registry.problems))


def judge(facts: DeviceFacts) -> Iterator[Finding]:
    """Findings on `facts`."""
    for problem in facts.problems:
        yield warning("CDI", problem, "correct or remove the file; its devices are not available")
    if not facts.problems:
        yield fine("CDI", f"{facts.devices} devices")
