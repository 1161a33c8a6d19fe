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
    "config": "print the default configuration or the one in force, or check it",
    "image": "import, export, list, check and prune images",
    "version": "print the version",
    "completion": "print a completion script for bash, zsh or fish",
}


LOG_LEVELS = ("debug", "info", "warning", "error")


def global_arguments(parser: argparse.ArgumentParser, *, inner: bool) -> None:
    """Options of every command, which may stand before it or, with `inner`, after it."""
    missing = argparse.SUPPRESS if inner else None
    parser.add_argument(
        "--config",
        type=Path,
        default=missing,
        help="configuration file (default: /etc/criagent/config.toml)",
    )
    parser.add_argument(
        "--socket", default=missing, help="the agent's socket (default: as configured)"
    )
    parser.add_argument(
        "--log-level",
        choices=LOG_LEVELS,
        default=missing or "info",
        help="what serve logs (default: info)",
    )


def parser(argv: list[str] | None = None) -> argparse.ArgumentParser:
    """The whole grammar, or that of the commands among `argv`: only their modules are imported."""
    top = argparse.ArgumentParser(
        prog="criagent",
        description="Kubernetes node agent (CRI).",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"criagent {VERSION}")
    global_arguments(top, inner=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if argv is not None and name not in argv:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(f"criagent.cli.{name}")
        command = commands.add_parser(name, help=text, description=module.__doc__, epilog=EPILOG)
        module.arguments(command)
        _everywhere(command)
        command.set_defaults(run=module.run)
    return top


def _everywhere(command: argparse.ArgumentParser) -> None:
    """Let the global options stand after the command and its action as well."""
    global_arguments(command, inner=True)
    for action in command._actions:  # noqa: SLF001 - argparse has no public way to walk a grammar
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for inner in action.choices.values():
                global_arguments(inner, inner=True)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        chosen = parser(argv).parse_args(argv)
        if sys.stdout is None and chosen.command != "serve":
            print("standard output is closed", file=sys.stderr)
            return 1
        status: int = chosen.run(chosen)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader of our output has left; the interpreter's own flush must not complain again.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
