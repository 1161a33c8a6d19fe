# SPDX-License-Identifier: Apache-2.0
"""Show what running containers use: processor time between two samples, memory, disk.

CPU % is of one processor: 200 means that two were busy all the time.
"""

from __future__ import annotations

import argparse
import time
from typing import TYPE_CHECKING

from criagent.cli.common import show, table
from criagent.cli.containers import selection
from criagent.cli.containers.calls import Calls, document, with_agent
from criagent.cli.containers.found import all_containers, all_pods, container_of
from criagent.cli.containers.usage import Usage, between, sample
from criagent.cli.progress import size_text

if TYPE_CHECKING:
    from criagent._proto import api_pb2

EXAMPLES = """examples:
  criagent stats
  criagent stats --pod kube-system/coredns-0 --seconds 5

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """Which containers, and the time between both samples."""
    command.add_argument("containers", nargs="*", metavar="CONTAINER", help="id or name")
    command.add_argument("--pod", "-p", metavar="POD", help="containers of this pod")
    command.add_argument(
        "--seconds", type=seconds, default=1.0, metavar="N", help="between samples (default: 1)"
    )
    selection.list_arguments(command, "containers")


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when the agent cannot be reached."""
    return with_agent(chosen, lambda calls: _show(chosen, calls))


def _show(chosen: argparse.Namespace, calls: Calls) -> int:
    from criagent._proto import api_pb2

    found, pods = all_containers(calls), all_pods(calls)
    wanted = selection.containers(chosen, found, pods)
    if chosen.containers:
        named = {container_of(name, found, pods).id for name in chosen.containers}
        wanted = [one for one in wanted if one.id in named]
    before = sample(calls)
    time.sleep(chosen.seconds)
    latest = sample(calls)
    after = [latest[one.id] for one in wanted if one.id in latest]
    usages = between(before, after)
    if chosen.output == "json":
        listed = document(api_pb2.ListContainerStatsResponse(stats=after))
        for one, usage in zip(listed["stats"], usages, strict=True):
            one["cpu"]["percent"] = usage.cpu_percent
        show(listed)
    elif chosen.quiet:
        for usage in usages:
            print(usage.id)
    else:
        _print(chosen, usages, {one.id: one for one in wanted}, pods)
    return 0


def _print(
    chosen: argparse.Namespace,
    usages: list[Usage],
    containers: dict[str, api_pb2.Container],
    pods: list[api_pb2.PodSandbox],
) -> None:
    owners = {pod.id: pod.metadata.name for pod in pods}
    table(
        ("CONTAINER", "NAME", "POD", "CPU %", "MEM", "DISK", "INODES"),
        [
            (
                selection.short_id(chosen, usage.id),
                containers[usage.id].metadata.name,
                owners.get(containers[usage.id].pod_sandbox_id, ""),
                "-" if usage.cpu_percent is None else f"{usage.cpu_percent:.2f}",
                "-" if usage.memory_bytes is None else size_text(usage.memory_bytes),
                size_text(usage.disk_bytes),
                str(usage.inodes),
            )
            for usage in usages
        ],
    )


def seconds(text: str) -> float:
    """The time between two samples, as argparse reads it."""
    try:
        value = float(text)
    except ValueError:
        value = 0.0
    if not 0 < value <= 3600:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds up to 3600")
    return value
