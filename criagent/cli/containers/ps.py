# SPDX-License-Identifier: Apache-2.0
"""List containers: those that run, or all with --all.

A pod is named by its id, the beginning of its id, NAME or NAMESPACE/NAME.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from criagent.cli.common import show, table
from criagent.cli.containers import selection
from criagent.cli.containers.ages import age
from criagent.cli.containers.calls import Calls, document, with_agent
from criagent.cli.containers.found import all_containers, all_pods

if TYPE_CHECKING:
    from criagent._proto import api_pb2

STATES = ("created", "running", "exited", "unknown")  # by the CRI's numbers
EXAMPLES = """examples:
  criagent ps
  criagent ps --all --pod kube-system/coredns-0
  criagent ps --state exited --label app=web --quiet

"""
_HEAD = ("CONTAINER", "IMAGE", "AGE", "STATE", "NAME", "ATTEMPT", "POD ID", "POD", "NAMESPACE")


def arguments(command: argparse.ArgumentParser) -> None:
    """Filters as crictl has them."""
    command.add_argument("--all", "-a", action="store_true", help="containers of every state")
    command.add_argument("--state", "-s", choices=STATES, help="containers of this state")
    command.add_argument("--pod", "-p", metavar="POD", help="containers of this pod")
    selection.list_arguments(command, "containers")


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when the agent cannot be reached."""
    return with_agent(chosen, lambda calls: _list(chosen, calls))


def _list(chosen: argparse.Namespace, calls: Calls) -> int:
    from criagent._proto import api_pb2

    every, pods = all_containers(calls), all_pods(calls)
    found = selection.containers(
        chosen, [one for one in every if _state_wanted(chosen, one.state)], pods
    )
    if chosen.output == "json":
        show(document(api_pb2.ListContainersResponse(containers=found)))
    elif chosen.quiet:
        for container in found:
            print(container.id)
    else:
        _print(chosen, found, pods)
    return 0


def _state_wanted(chosen: argparse.Namespace, state: int) -> bool:
    if chosen.state is not None:
        return bool(state_text(state) == chosen.state)
    return bool(chosen.all) or selection.any_state(chosen) or state_text(state) == "running"


def state_text(state: int) -> str:
    """The name of a container's state."""
    return STATES[state] if 0 <= state < len(STATES) else str(state)


def _print(
    chosen: argparse.Namespace,
    found: list[api_pb2.Container],
    pods: list[api_pb2.PodSandbox],
) -> None:
    owners = {pod.id: pod.metadata for pod in pods}
    now = time.time_ns()
    table(
        _HEAD,
        [
            (
                selection.short_id(chosen, container.id),
                image_text(chosen, container),
                age(container.created_at, now),
                state_text(container.state).capitalize(),
                container.metadata.name,
                str(container.metadata.attempt),
                selection.short_id(chosen, container.pod_sandbox_id),
                *(
                    (
                        owners[container.pod_sandbox_id].name,
                        owners[container.pod_sandbox_id].namespace,
                    )
                    if container.pod_sandbox_id in owners
                    else ("", "")
                ),
            )
            for container in found
        ],
    )


def image_text(chosen: argparse.Namespace, container: api_pb2.Container) -> str:
    """The image as the pod names it; the kubelet passes its id and keeps the name beside it."""
    image = container.image.user_specified_image or container.image.image
    return selection.short_id(chosen, image) if image.startswith("sha256:") else image
