"""What several commands do alike: configuration, connection, output."""

from __future__ import annotations

import argparse
import contextlib
import json
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from criagent.config import DEFAULT_PATH, Config, ConfigError, load

if TYPE_CHECKING:
    import grpc

UNREACHABLE = 3


def config_path(chosen: argparse.Namespace) -> Path:
    """The main configuration file."""
    path: Path | None = chosen.config
    return DEFAULT_PATH if path is None else path


def configuration(chosen: argparse.Namespace) -> Config | None:
    """The configuration, or None after every problem was printed."""
    try:
        return load(config_path(chosen))
    except ConfigError as error:
        for problem in error.problems:
            print(problem, file=sys.stderr)
        return None


@contextlib.contextmanager
def connection(chosen: argparse.Namespace) -> Iterator[grpc.Channel]:
    """A channel to the agent's socket. Raises SystemExit(2) for a wrong configuration."""
    import grpc

    socket = chosen.socket
    if socket is None:
        config = configuration(chosen)
        if config is None:
            raise SystemExit(2)
        socket = config.storage.socket
    size = 16 << 20
    options = [("grpc.max_receive_message_length", size), ("grpc.max_send_message_length", size)]
    with grpc.insecure_channel(f"unix:{socket}", options=options) as channel:
        yield channel


def failed(error: grpc.RpcError) -> int:
    """Print a call's failure; the exit status that it stands for."""
    import grpc

    if error.code() in {grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED}:
        print(
            f"the agent cannot be reached: {error.details()}\n"
            "cure: see whether it runs (systemctl status criagent), and be root",
            file=sys.stderr,
        )
        return UNREACHABLE
    print(error.details(), file=sys.stderr)
    return 1


def output_argument(command: argparse.ArgumentParser) -> None:
    """--output, and --json for short."""
    command.add_argument(
        "--output", choices=("text", "json"), default="text", help="form of the answer"
    )
    command.add_argument(
        "--json", dest="output", action="store_const", const="json", help="same as --output json"
    )


def show(document: object) -> None:
    """JSON on standard output."""
    print(json.dumps(document, indent=2))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Columns on standard output."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]
    for row in [head, *rows]:
        cells = (cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())
