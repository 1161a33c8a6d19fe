# SPDX-License-Identifier: Apache-2.0
"""Print what happens to pods and containers from now on, until Ctrl-C.

With --output json each event is one line.
"""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

from criagent.base.text import printable
from criagent.cli.common import output_argument
from criagent.cli.containers.ages import time_text
from criagent.cli.containers.calls import Calls, document, with_agent
from criagent.cli.containers.selection import SHORT

if TYPE_CHECKING:
    from criagent._proto import api_pb2

_TYPES = ("created", "started", "stopped", "deleted")  # by the CRI's numbers
EXAMPLES = """examples:
  criagent events
  criagent events --namespace kube-system --output json

"""


def arguments(command: argparse.ArgumentParser) -> None:
    """Filters."""
    command.add_argument("--type", choices=_TYPES, help="events of this type")
    command.add_argument("--pod", "-p", metavar="NAME", help="events of pods with this name")
    command.add_argument("--namespace", metavar="NAME", help="events of this namespace")
    output_argument(command)


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when the agent cannot be reached or stops."""
    return with_agent(chosen, lambda calls: _follow(chosen, calls))


def _follow(chosen: argparse.Namespace, calls: Calls) -> int:
    from criagent._proto import api_pb2

    for event in calls.runtime.GetContainerEvents(api_pb2.GetEventsRequest()):
        if not _wanted(chosen, event):
            continue
        if chosen.output == "json":
            print(json.dumps(document(event)), flush=True)
        else:
            print(_line(event), flush=True)
    return 0


def _wanted(chosen: argparse.Namespace, event: api_pb2.ContainerEventResponse) -> bool:
    pod = event.pod_sandbox_status.metadata
    return (
        chosen.type in {None, _type(event)}
        and chosen.pod in {None, pod.name}
        and chosen.namespace in {None, pod.namespace}
    )


def _type(event: api_pb2.ContainerEventResponse) -> str:
    number = event.container_event_type
    return _TYPES[number] if 0 <= number < len(_TYPES) else str(number)


def _line(event: api_pb2.ContainerEventResponse) -> str:
    pod = event.pod_sandbox_status
    facts = [f"{pod.metadata.namespace}/{pod.metadata.name}"]
    kind = "pod" if event.container_id == pod.id else "container"
    for status in event.containers_statuses:
        if status.id == event.container_id:
            facts.append(status.metadata.name)
            if _type(event) == "stopped":
                facts.append(f"exit code {status.exit_code} {status.reason}".rstrip())
    subject = printable(" ".join(facts))
    at = time_text(event.created_at)
    return f"{at} {kind:9} {_type(event):7} {event.container_id[:SHORT]} {subject}"
