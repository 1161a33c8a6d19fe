"""The command line: one file per command, chosen here and imported when it is needed."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from criagent.version import VERSION

EPILOG = """exit status: 0 done; 1 failed, or a warning of doctor; 2 wrong usage or configuration,
or a capability that is missing; 3 the daemon cannot be reached"""

COMMANDS = {
    "serve": "run the agent",
    "doctor": "check this node, with a cure for each problem",
    "info": "show what the running agent knows of itself",
    "config": "print the default configuration, or check one",
    "image": "import, export, list, check and prune images",
    "version": "print the version",
    "completion": "print a completion script for bash, zsh or fish",
}


def parser(words: list[str] | None = None) -> argparse.ArgumentParser:
    """The whole grammar, or that of the commands among `words`: only their modules are imported."""
    top = argparse.ArgumentParser(
        prog="criagent",
        description="Kubernetes node agent (CRI).",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    top.add_argument(
        "--config",
        type=Path,
        help="configuration file (default: /etc/criagent/config.toml)",
    )
    top.add_argument("--version", action="version", version=f"criagent {VERSION}")
    top.add_argument("--socket", type=Path, help="the agent's socket (default: as configured)")
    top.add_argument(
        "--log-level",
        choices=("debug", "info", "warning", "error"),
        default="info",
        help="what serve logs (default: %(default)s)",
    )
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if words is not None and name not in words:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"criagent.cli.{name}")
        command = commands.add_parser(name, help=text, description=module.__doc__, epilog=EPILOG)
        module.arguments(command)
        command.set_defaults(run=module.run)
    return top


def main(words: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    words = sys.argv[1:] if words is None else words
    chosen = parser(words).parse_args(words)
    try:
        status: int = chosen.run(chosen)
        sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left; the interpreter's own flush must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
