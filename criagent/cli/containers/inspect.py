# SPDX-License-Identifier: Apache-2.0
"""Print everything about containers, pods or images as JSON, as crictl inspect does.

A container is named by its id, the beginning of its id, NAME or POD/NAME; a pod by its id, the
beginning of its id, NAME or NAMESPACE/NAME.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping
from typing import Any

from criagent.cli.common import show
from criagent.cli.containers.calls import LIMIT_S, Calls, CommandError, document, with_agent
from criagent.cli.containers.found import (
    all_containers,
    all_pods,
    container_of,
    container_or_pod,
    pod_of,
)

EXAMPLES = """examples:
  criagent inspect 4f1c0
  criagent inspect --type pod kube-system/coredns-0
  criagent inspect --type image registry.k8s.io/pause:3.9

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """The objects and their kind."""
    command.add_argument("names", nargs="+", metavar="NAME", help="id or name")
    command.add_argument(
        "--type", choices=("container", "pod", "image"), help="default: a container or a pod"
    )
    command.add_argument("--output", choices=("json",), default="json", help="output format")
    command.add_argument(
        "--json",
        dest="output",
        action="store_const",
        const="json",
        help="same as --output json, the only format",
    )


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when the agent cannot be reached. Several objects are a list."""
    return with_agent(chosen, lambda calls: _inspect(chosen, calls))


def _inspect(chosen: argparse.Namespace, calls: Calls) -> int:
    found = [_one(chosen.type, name, calls) for name in chosen.names]
    show(found[0] if len(found) == 1 else found)
    return 0


def _one(kind: str | None, name: str, calls: Calls) -> dict[str, Any]:
    from criagent._proto import api_pb2

    if kind == "image":
        return _image(name, calls)
    containers, pods = all_containers(calls), all_pods(calls)
    found: api_pb2.Container | api_pb2.PodSandbox
    if kind == "container":
        found = container_of(name, containers, pods)
    elif kind == "pod":
        found = pod_of(name, pods)
    else:
        found = container_or_pod(name, containers, pods)
    answer: api_pb2.ContainerStatusResponse | api_pb2.PodSandboxStatusResponse
    if isinstance(found, api_pb2.Container):
        of_container = api_pb2.ContainerStatusRequest(container_id=found.id, verbose=True)
        answer = calls.runtime.ContainerStatus(of_container, timeout=LIMIT_S)
    else:
        of_pod = api_pb2.PodSandboxStatusRequest(pod_sandbox_id=found.id, verbose=True)
        answer = calls.runtime.PodSandboxStatus(of_pod, timeout=LIMIT_S)
    return {"status": document(answer.status), "info": _info(answer.info)}


def _image(name: str, calls: Calls) -> dict[str, Any]:
    from criagent._proto import api_pb2

    request = api_pb2.ImageStatusRequest(image=api_pb2.ImageSpec(image=name), verbose=True)
    answer = calls.images.ImageStatus(request, timeout=LIMIT_S)
    if not answer.image.id:
        raise CommandError(f"no image {name!r}; `criagent images` lists them")
    return {"status": document(answer.image), "info": _info(answer.info)}


def _info(info: Mapping[str, str]) -> dict[str, Any]:
    """The facts of a verbose answer; crictl merges the JSON object under "info" into them."""
    facts: dict[str, Any] = {}
    for key, value in info.items():
        try:
            read = json.loads(value)
        except ValueError:
            read = value
        facts |= read if key == "info" and isinstance(read, dict) else {key: read}
    return facts
