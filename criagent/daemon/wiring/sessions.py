# SPDX-License-Identifier: Apache-2.0
"""Sessions put together: commands in containers, streams to containers and pods."""

from __future__ import annotations

from criagent.cri.backend import Sessions
from criagent.daemon.wiring.containers import ContainerParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.pods import PodParts
from criagent.daemon.wiring.shared import Shared
from criagent.runtime.exec.output import OutputBudget
from criagent.runtime.exec.plan import ExecPlanner
from criagent.runtime.pod.session_facts import SessionFacts
from criagent.runtime.verbs.attach import Attacher
from criagent.runtime.verbs.exec_stream import ExecStreamer
from criagent.runtime.verbs.exec_sync import BUDGET, ExecSync
from criagent.runtime.verbs.port_forward import PortForwarder


def build(shared: Shared, node: NodeParts, pods: PodParts, containers: ContainerParts) -> Sessions:
    """Exec, attach and port-forward."""
    section, store = shared.config.runtime, shared.stores.containers
    planner = ExecPlanner(files=containers.files, paths=node.paths, runtimes=node.runtimes)
    exec_sync = ExecSync(
        store=store,
        planner=planner,
        facts=SessionFacts(shared.stores.sandboxes, store),
        budget=OutputBudget(BUDGET),
        own_cgroup=section.exec_cgroup,
        drain_s=section.exec_drain_s,
        message_bytes=shared.config.limits.grpc_message_bytes,
    )
    return Sessions(
        exec_sync=exec_sync.run,
        exec=ExecStreamer(
            store=store, planner=planner, paths=node.paths, drain_s=section.exec_drain_s
        ),
        attach=Attacher(store=store, paths=node.paths),
        forward=PortForwarder(
            store=shared.stores.sandboxes, namespaces=pods.namespaces, fs=shared.executors.fs
        ),
    )
