"""Print the default configuration with every key, or check the one in force."""

from __future__ import annotations

import argparse
import sys

from criagent.cli.common import config_path, configuration
from criagent.config import default_text


def arguments(command: argparse.ArgumentParser) -> None:
    """Which of the two."""
    command.add_argument("action", choices=("default", "check"))


def run(chosen: argparse.Namespace) -> int:
    """Status 2 when `check` finds problems, which it lists with file and key."""
    if chosen.action == "default":
        sys.stdout.write(default_text())
        return 0
    if configuration(chosen) is None:
        return 2
    print(f"{config_path(chosen)}: no problem found")
    return 0
