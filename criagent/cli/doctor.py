# SPDX-License-Identifier: Apache-2.0
"""Check this node: kernel, cgroups, disk, programs and their versions, network, configuration.

Every finding that is not ok has a cure. Exit status: 0 = all ok, 1 = warnings, 2 = something that
pods need is missing. Findings named by --ignore are shown, but do not affect the status.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from criagent.cli.common import config_path, output_argument, show
from criagent.config.load import ConfigError, load
from criagent.config.sections import Config

if TYPE_CHECKING:
    from criagent.doctor import Finding

_STATUS = {"ok": 0, "ignored": 0, "warning": 1, "error": 2}

EXAMPLES = """examples:
  criagent doctor
  criagent doctor --json --ignore "handler runc"

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """--output and --ignore."""
    output_argument(command)
    command.add_argument(
        "--ignore",
        metavar="CHECK",
        action="append",
        default=[],
        help='exclude a check from the exit status, such as "handler runc"; may be repeated',
    )


def run(chosen: argparse.Namespace) -> int:
    """The worst finding's status. A wrong configuration is one; the others use the defaults."""
    from criagent.doctor import examine

    problems: list[str] = []
    try:
        config = load(config_path(chosen))
    except ConfigError as error:
        config, problems = Config(), error.problems
    findings = [*_configuration(config_path(chosen), problems), *examine(config)]
    findings = [_without(finding, chosen.ignore) for finding in findings]
    if chosen.output == "json":
        show([dataclasses.asdict(finding) for finding in findings])
    else:
        _print(findings)
    return max(_STATUS[finding.level] for finding in findings)


def _without(finding: Finding, ignored: Sequence[str]) -> Finding:
    if finding.level == "ok" or finding.name not in ignored:
        return finding
    return dataclasses.replace(finding, level="ignored")


def _configuration(path: Path, problems: Sequence[str]) -> Iterator[Finding]:
    from criagent.doctor.finding import error, fine

    cure = "correct it; `criagent config default` prints every key"
    for problem in problems:
        yield error("configuration", problem, cure)
    if not problems:
        yield fine("configuration", str(path))


def _print(findings: list[Finding]) -> None:
    width = max(len(finding.name) for finding in findings)
    for finding in findings:
        print(f"{finding.level:7}  {finding.name:{width}}  {finding.text}")
        if finding.cure:
            print(f"{'':7}  {'':{width}}  cure: {finding.cure}")
