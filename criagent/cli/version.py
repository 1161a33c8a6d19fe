# SPDX-License-Identifier: Apache-2.0
"""Print the version of this package, and the commit that it was built from."""

from __future__ import annotations

import argparse

from criagent.version import described


def arguments(command: argparse.ArgumentParser) -> None:
    """No arguments of its own."""


def run(chosen: argparse.Namespace) -> int:
    """Always status 0."""
    del chosen
    print(f"criagent {described()}")
    return 0
