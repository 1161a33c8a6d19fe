# SPDX-License-Identifier: Apache-2.0
"""List pods, which the CRI calls sandboxes."""

from __future__ import annotations

import argparse
import time

from criagent.cli.common import show, table
from criagent.cli.containers import selection
from criagent.cli.containers.ages import age
from criagent.cli.containers.calls import Calls, document, with_agent
from criagent.cli.containers.found import all_pods

STATES = ("ready", "notready")  # by the CRI's numbers
EXAMPLES = """examples:
  criagent pods
  criagent pods --namespace kube-system --state notready
  criagent pods --name '^web-' --quiet

"""
_HEAD = ("POD ID", "AGE", "STATE", "NAME", "NAMESPACE", "ATTEMPT", "RUNTIME")


def arguments(command: argparse.ArgumentParser) -> None:
    """Filters as crictl has them."""
    command.add_argument("--state", "-s", choices=STATES, help="pods of this state")
    selection.list_arguments(command, "pods")


def run(chosen: argparse.Namespace) -> int:
    """Status 1 for a failure, 3 when the agent cannot be reached."""
    return with_agent(chosen, lambda calls: _list(chosen, calls))


def _list(chosen: argparse.Namespace, calls: Calls) -> int:
    from criagent._proto import api_pb2

    wanted = {None, *STATES} if chosen.state is None else {chosen.state}
    found = selection.pods(chosen, [one for one in all_pods(calls) if _state(one.state) in wanted])
    if chosen.output == "json":
        show(document(api_pb2.ListPodSandboxResponse(items=found)))
    elif chosen.quiet:
        for pod in found:
            print(pod.id)
    else:
        now = time.time_ns()
        table(
            _HEAD,
            [
                (
                    selection.short_id(chosen, pod.id),
                    age(pod.created_at, now),
                    "Ready" if _state(pod.state) == "ready" else "NotReady",
                    pod.metadata.name,
                    pod.metadata.namespace,
                    str(pod.metadata.attempt),
                    pod.runtime_handler or "(default)",
                )
                for pod in found
            ],
        )
    return 0


def _state(state: int) -> str:
    return STATES[state] if 0 <= state < len(STATES) else STATES[-1]
