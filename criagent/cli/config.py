"""Print the default configuration or the one in force, or check the latter."""

from __future__ import annotations

import argparse
import sys

from criagent.cli.common import config_path, configuration
from criagent.config.text import default_text, effective_text


def arguments(command: argparse.ArgumentParser) -> None:
    """Which of them."""
    command.add_argument("action", choices=("default", "show", "check"))


def run(chosen: argparse.Namespace) -> int:
    """Status 2 when the configuration has problems, which are listed with file and key."""
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
