# SPDX-License-Identifier: Apache-2.0
"""Show what the running agent reports about itself: handlers, storage, network, counts."""

from __future__ import annotations

import argparse
import json
from typing import Any

from criagent.cli.agent import UnreachableError, connection, failed
from criagent.cli.common import output_argument, show
from criagent.cli.progress import size_text

_NAMES = {
    "os": "OS",
    "cpus": "CPUs",
    "nri": "NRI",
    "seccomp": "seccomp",
    "apparmor": "AppArmor",
    "selinux": "SELinux",
    "http_proxy": "HTTP proxy",
    "https_proxy": "HTTPS proxy",
    "_default": "_default",
}


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
        name = _name(key)
        if isinstance(item, dict):
            print(f"{indent}{name}:")
            _print(item, indent + "  ")
        elif isinstance(item, list) and all(isinstance(entry, dict) for entry in item):
            print(f"{indent}{name}:")
            for entry in item:
                facts = ", ".join(f"{k} {v}" for k, v in entry.items() if v not in {"", None})
                print(f"{indent}  {facts}")
        elif isinstance(item, list):
            print(f"{indent}{name}: {', '.join(map(str, item)) or '-'}")
        elif key.endswith("_bytes"):
            print(f"{indent}{name}: {size_text(item)}")
        else:
            print(f"{indent}{name}: {'-' if item in {'', None} else item}")


def _name(key: str) -> str:
    """A key as a person reads it; names of registries stay as they are."""
    if key in _NAMES:
        return _NAMES[key]
    if any(mark in key for mark in ".:"):
        return key
    return key.removesuffix("_bytes").replace("_", " ").capitalize()
