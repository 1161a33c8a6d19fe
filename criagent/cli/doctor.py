"""Check this node: kernel, cgroups, programs and their versions, configuration.

Each finding that is not ok has its cure. Status 0 = all ok, 1 = warnings, 2 = something that pods
need is missing.
"""

from __future__ import annotations

import argparse
import dataclasses
from typing import TYPE_CHECKING

from criagent.cli.common import configuration, output_argument, show

if TYPE_CHECKING:
    from criagent.doctor import Finding

_STATUS = {"ok": 0, "warning": 1, "error": 2}


def arguments(command: argparse.ArgumentParser) -> None:
    """--output."""
    output_argument(command)


def run(chosen: argparse.Namespace) -> int:
    """The worst finding's status; 2 for a wrong configuration."""
    config = configuration(chosen)
    if config is None:
        return 2
    from criagent.doctor import examine

    findings = examine(config)
    if chosen.output == "json":
        show([dataclasses.asdict(finding) for finding in findings])
    else:
        for finding in findings:
            _print(finding)
    return max((_STATUS[finding.level] for finding in findings), default=0)


def _print(finding: Finding) -> None:
    print(f"{finding.level:8}{finding.name:22}{finding.text}")
    if finding.cure:
        print(f"{'':8}{'':22}cure: {finding.cure}")
