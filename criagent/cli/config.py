# SPDX-License-Identifier: Apache-2.0
"""Print the default or the effective configuration, or check the configuration files."""

from __future__ import annotations

import argparse
import sys

from criagent.cli.common import config_path, configuration
from criagent.config.text import default_text, effective_text

EXAMPLES = """examples:
  criagent config default > /etc/criagent/config.toml
  criagent --config new.toml config check

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """The action."""
    command.add_argument(
        "action",
        metavar="ACTION",
        choices=("default", "show", "check"),
        help="default: print every key with its default; show: print the values in force "
        "and their files; check: print problems only",
    )


def run(chosen: argparse.Namespace) -> int:
    """Status 2 when the configuration has problems, each printed with its file and key."""
    if chosen.action == "default":
        sys.stdout.write(default_text())
        return 0
    loaded = configuration(chosen)
    if loaded is None:
        return 2
    if chosen.action == "show":
        sys.stdout.write(effective_text(*loaded))
        return 0
    print(f"{config_path(chosen)}: no problem found")
    return 0
