# SPDX-License-Identifier: Apache-2.0
"""What the commands share: options, configuration, output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

from criagent.base.text import printable
from criagent.config.load import DEFAULT_PATH, ConfigError, load_with_origins
from criagent.config.sections import Config


def config_path(chosen: argparse.Namespace) -> Path:
    """The path of the main configuration file."""
    path: Path | None = chosen.config
    return DEFAULT_PATH if path is None else path


def configuration(chosen: argparse.Namespace) -> tuple[Config, dict[str, Path]] | None:
    """The configuration and the file that sets each key; None after every problem was printed."""
    try:
        return load_with_origins(config_path(chosen))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return None


def output_argument(command: argparse.ArgumentParser) -> None:
    """--output, and --json for short."""
    command.add_argument("--output", choices=("text", "json"), default="text", help="output format")
    command.add_argument(
        "--json", dest="output", action="store_const", const="json", help="same as --output json"
    )


def show(document: object) -> None:
    """JSON on standard output."""
    print(json.dumps(document, indent=2))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on standard output; control characters in cells are shown as escapes."""
    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
