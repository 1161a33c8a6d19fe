# SPDX-License-Identifier: Apache-2.0
"""Run a command in a container. The exit status is that of the command.

Output reaches the terminal as the command writes it.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from criagent.cli.common import config_path
from criagent.cli.containers.calls import LIMIT_S, Calls, CommandError, with_agent
from criagent.cli.containers.found import all_containers, all_pods, container_of
from criagent.cli.containers.session import run_session
from criagent.config.load import ConfigError, load

EXAMPLES = """examples:
  criagent exec web-0/nginx nginx -t
  criagent exec -it 4f1c0 sh
  criagent exec -i web-0/nginx sh -c 'cat > /tmp/file' < file

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """The container and the command, which begins at the first argument after the container."""
    command.add_argument(
        "--stdin", "-i", action="store_true", help="pass standard input to the command"
    )
    command.add_argument("--tty", "-t", action="store_true", help="give the command a terminal")
    command.add_argument("container", metavar="CONTAINER", help="id, or name as NAME or POD/NAME")
    command.add_argument(
        "argv", metavar="COMMAND", nargs=argparse.REMAINDER, help="command and its arguments"
    )


def run(chosen: argparse.Namespace) -> int:
    """The command's status; 2 without a command, 1 for a failure, 3 without an agent."""
    if chosen.argv[:1] == ["--"]:
        del chosen.argv[0]
    if not chosen.argv:
        print("no command to run; add one after the container, such as `sh`", file=sys.stderr)
        return 2
    return with_agent(chosen, lambda calls: _exec(chosen, calls))


def _exec(chosen: argparse.Namespace, calls: Calls) -> int:
    from criagent._proto import api_pb2

    container = container_of(chosen.container, all_containers(calls), all_pods(calls))
    if container.state != api_pb2.CONTAINER_RUNNING:
        raise CommandError(
            f"container {chosen.container!r} ({container.id[:13]}) does not run; "
            "`criagent ps -a` shows its state"
        )
    terminal = chosen.tty and chosen.stdin and os.isatty(0)
    if chosen.tty and chosen.stdin and not terminal:
        print("standard input is not a terminal: its size is not passed on", file=sys.stderr)
    request = api_pb2.ExecRequest(
        container_id=container.id,
        cmd=chosen.argv,
        tty=chosen.tty,
        stdin=chosen.stdin,
        stdout=True,
        stderr=not chosen.tty,
    )
    url = str(calls.runtime.Exec(request, timeout=LIMIT_S).url)
    return run_session(
        url, certificate=_certificate(chosen, url), stdin=chosen.stdin, terminal=terminal
    )


def _certificate(chosen: argparse.Namespace, url: str) -> Path | None:
    if not url.startswith("https:"):
        return None
    try:
        configured = load(config_path(chosen)).streaming.tls_cert
    except ConfigError as error:
        raise CommandError("; ".join(map(str, error.problems))) from None
    return Path(configured) if configured else None
