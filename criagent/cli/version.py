"""Print the version of this package."""

from __future__ import annotations

import argparse
from importlib import metadata


def arguments(command: argparse.ArgumentParser) -> None:
    """None of its own."""


def run(chosen: argparse.Namespace) -> int:
    """Always status 0."""
    del chosen
    try:
        version = metadata.version("criagent")
    except metadata.PackageNotFoundError:
        version = "0.1.0"
    print(f"criagent {version}")
    return 0
