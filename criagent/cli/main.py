# SPDX-License-Identifier: Apache-2.0
"""The command line: one module per command, imported only when it is used."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from pathlib import Path

from criagent.version import described

EPILOG = """exit status: 0 success; 1 failure, or a warning of doctor; 2 wrong usage, configuration
or missing capability; 3 the agent cannot be reached"""

COMMANDS = {
    "serve": "run the agent",
    "doctor": "check this node and print a cure for each problem",
    "info": "show handlers, storage, network and counts of the running agent",
    "reload": "make the running agent read its configuration again",
    "debug": "show what the running agent is doing",
    "support-bundle": "write an archive of this node's state for others to look at",
    "config": "print or check the configuration",
    "image": "pull, list, import, export, check and prune images",
    "storage": "show how images and containers are stored",
    "ps": "list containers",
    "pods": "list pods",
    "images": "list images by repository and tag",
    "inspect": "print everything about containers, pods or images as JSON",
    "logs": "print the log of a container",
    "exec": "run a command in a container",
    "stats": "show what running containers use",
    "top": "show pods and containers on the whole terminal",
    "events": "print what happens to pods and containers",
    "reset": "remove pods, images, networks and state from this node",
    "version": "print the version",
    "completion": "print a completion script for bash, zsh or fish",
}

_ELSEWHERE = {  # all others are modules of this package
    **{
        name: f"criagent.cli.containers.{name}"
        for name in "ps pods images inspect logs exec stats top events".split()
    },
    "debug": "criagent.cli.support.debug",
    "support-bundle": "criagent.cli.support.bundle",
}


class _Help(argparse.HelpFormatter):
    """Wraps paragraphs, and leaves the indented lines of examples as they are."""

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        paragraphs = text.strip().split("\n\n")
        return "\n\n".join(
            paragraph
            if "\n  " in paragraph
            else super(_Help, self)._fill_text(paragraph, width, indent)
            for paragraph in paragraphs
        )


LOG_LEVELS = ("debug", "info", "warning", "error")


def global_arguments(parser: argparse.ArgumentParser, *, inner: bool, levels: bool = True) -> None:
    """Options of every command; `inner` adds them after the command as well.

    `levels` shows the log level in the help.
    """
    missing = argparse.SUPPRESS if inner else None
    parser.add_argument(
        "--config",
        type=Path,
        metavar="FILE",
        default=missing,
        help="configuration file (default: /etc/criagent/config.toml)",
    )
    parser.add_argument(
        "--socket",
        metavar="PATH",
        default=missing,
        help="socket of the agent (default: as configured)",
    )
    parser.add_argument(
        "--log-level",
        metavar="LEVEL",
        choices=LOG_LEVELS,
        default=missing or "info",
        help="log level of serve: debug, info, warning or error (default: info)"
        if levels
        else argparse.SUPPRESS,
    )


def parser(argv: list[str] | None = None) -> argparse.ArgumentParser:
    """The whole grammar, or only that of the commands in `argv`; other modules are not imported."""
    top = argparse.ArgumentParser(
        prog="criagent",
        description=(
            "Kubernetes node agent: serves the Container Runtime Interface (CRI) on a unix socket."
        ),
        epilog=EPILOG,
        formatter_class=_Help,
        allow_abbrev=False,
    )
    top.add_argument("--version", action="version", version=f"criagent {described()}")
    global_arguments(top, inner=False)
    commands = top.add_subparsers(dest="command", metavar="COMMAND", required=True)
    for name, text in COMMANDS.items():
        if argv is not None and name not in argv:
            commands.add_parser(name, help=text)
            continue
        module = importlib.import_module(_ELSEWHERE.get(name, f"criagent.cli.{name}"))
        command = commands.add_parser(
            name,
            help=text,
            description=module.__doc__,
            epilog=getattr(module, "EXAMPLES", "") + EPILOG,
            formatter_class=_Help,
        )
        module.arguments(command)
        _everywhere(command, levels=name == "serve")
        command.set_defaults(run=module.run)
    return top


def _everywhere(command: argparse.ArgumentParser, *, levels: bool) -> None:
    """Accept the global options after the command and after its action as well."""
    global_arguments(command, inner=True, levels=levels)
    command.set_defaults(grammar=command)
    for action in command._actions:  # noqa: SLF001 - argparse has no public way to walk a grammar
        if isinstance(action, argparse._SubParsersAction):  # noqa: SLF001
            for inner in action.choices.values():
                global_arguments(inner, inner=True, levels=levels)
                inner.set_defaults(grammar=inner)


def main(argv: list[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    try:
        chosen, unknown = parser(argv).parse_known_args(argv)
        if unknown:
            chosen.grammar.error(f"unrecognized arguments: {' '.join(unknown)}")
        if sys.stdout is None and chosen.command != "serve":
            print("standard output is closed", file=sys.stderr)
            return 1
        status: int = chosen.run(chosen)
        if sys.stdout is not None:
            sys.stdout.flush()
    except BrokenPipeError:
        # The reader has closed the pipe; keep the interpreter's own flush from failing again.
        os.dup2(os.open(os.devnull, os.O_WRONLY | os.O_CLOEXEC), 1)
        return 1
    except KeyboardInterrupt:
        return 130
    return status
