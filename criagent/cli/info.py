"""Show what the running agent knows of itself: handlers, storage, network, counts."""

from __future__ import annotations

import argparse
import json
from typing import Any

from criagent.cli.common import connection, failed, output_argument, show


def arguments(command: argparse.ArgumentParser) -> None:
    """--output."""
    output_argument(command)


def run(chosen: argparse.Namespace) -> int:
    """Status 3 when the agent cannot be reached."""
    import grpc  # noqa: PLC0415

    from criagent._proto import admin_pb2, admin_pb2_grpc  # noqa: PLC0415

    with connection(chosen) as channel:
        try:
            answer = admin_pb2_grpc.AdminStub(channel).Info(admin_pb2.InfoRequest(), timeout=10)
        except grpc.RpcError as error:
            return failed(error)
    document = json.loads(answer.json)
    if chosen.output == "json":
        show(document)
    else:
        _print(document, "")
    return 0


def _print(value: Any, indent: str) -> None:  # noqa: ANN401 - any JSON value
    for key, item in value.items():
        name = key.replace("_", " ").capitalize()
        if isinstance(item, dict):
            print(f"{indent}{name}:")  # noqa: T201
            _print(item, indent + "  ")
        elif isinstance(item, list):
            print(f"{indent}{name}:")  # noqa: T201
            for entry in item:
                words = ", ".join(f"{k} {v}" for k, v in entry.items() if v)
                print(f"{indent}  {words}")  # noqa: T201
        else:
            print(f"{indent}{name}: {item}")  # noqa: T201
