# SPDX-License-Identifier: Apache-2.0
"""Show what the running agent is doing: work and its stages, locks, queues, memory, stacks.

It is answered also while the agent recovers. If the agent does not answer at all, SIGUSR1 writes
the same to its log.
"""

from __future__ import annotations

import argparse
import json
from typing import Any

from criagent.base.text import printable
from criagent.cli.agent import UnreachableError, connection, failed
from criagent.cli.common import output_argument, show

EXAMPLES = """examples:
  criagent debug
  criagent debug --objects --output json

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """What to count beyond the state."""
    command.add_argument(
        "--objects",
        action="store_true",
        help="count Python's objects; takes 50 ms",
    )
    output_argument(command)


def run(chosen: argparse.Namespace) -> int:
    """Status 3 when the agent cannot be reached."""
    import grpc

    try:
        document = read(chosen, objects=chosen.objects)
    except (grpc.RpcError, UnreachableError) as error:
        return failed(error)
    if chosen.output == "json":
        show(document)
    else:
        _print(document)
    return 0


def read(chosen: argparse.Namespace, *, objects: bool) -> dict[str, Any]:
    """The document. Raises grpc.RpcError and UnreachableError."""
    from criagent._proto import admin_pb2, admin_pb2_grpc

    with connection(chosen) as channel:
        request = admin_pb2.DebugRequest(objects=objects)
        answer = admin_pb2_grpc.AdminStub(channel).Debug(request, timeout=30)
    document: dict[str, Any] = json.loads(answer.json)
    return document


def _print(document: dict[str, Any]) -> None:
    calls = document["calls"]
    _section("calls in progress", calls["in_flight"], f"the oldest for {calls['oldest_s']} s")
    owners = {f"{o['kind']} {o['key']}": o["stage"] for o in document["owners"]}
    _section("work in progress", owners)
    _section("locks", {f"{o['kind']} {o['key']}": o["users"] for o in document["locks"]})
    _section("waiting in queues", document["queues"])
    _section("memory", document["memory"])
    _section("failures that no caller saw", document["failures"])
    _section("objects", document.get("objects", {}))
    for name, stack in document["threads"].items():
        _stack(f"thread {name}", stack)
    for task in document["tasks"]:
        _stack(f"task {task['name']}", task["stack"])


def _section(title: str, facts: dict[str, Any], note: str = "") -> None:
    if not facts:
        return
    print(f"{title}{': ' if note else ''}{note}")
    for name, value in facts.items():
        print(printable(f"  {name}: {value}"))


def _stack(title: str, stack: list[str]) -> None:
    print(printable(title))
    for place in stack:
        print(printable(f"  {place}"))
