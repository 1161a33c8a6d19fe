# SPDX-License-Identifier: Apache-2.0
"""Show what the running agent reports about itself: handlers, storage, network, counts."""

from __future__ import annotations

import argparse
import json
from typing import Any

from criagent.cli.agent import UnreachableError, connection, failed
from criagent.cli.common import output_argument, show


def arguments(command: argparse.ArgumentParser) -> None:
    """The output format."""
    output_argument(command)


def run(chosen: argparse.Namespace) -> int:
    """Status 3 when the agent cannot be reached."""
    import grpc

    from criagent._proto import admin_pb2, admin_pb2_grpc

    try:
        with connection(chosen) as channel:
            answer = admin_pb2_grpc.AdminStub(channel).Info(admin_pb2.InfoRequest(), timeout=10)
    except (grpc.RpcError, UnreachableError) as error:
        return failed(error)
    document = json.loads(answer.json)
    if chosen.output == "json":
        show(document)
    else:
        _print(document, "")
    return 0


def _print(value: Any, indent: str) -> None:
    for key, item in value.items():
        name = key.replace("_", " ").capitalize()
        if isinstance(item, dict):
            print(f"{indent}{name}:")
            _print(item, indent + "  ")
        elif isinstance(item, list):
            print(f"{indent}{name}:")
            for entry in item:
                facts = ", ".join(f"{k} {v}" for k, v in entry.items() if v not in {"", None})
                print(f"{indent}  {facts}")
        else:
            print(f"{indent}{name}: {item}")
