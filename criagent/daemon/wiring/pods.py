# SPDX-License-Identifier: Apache-2.0
"""Pods put together: what they have in the kernel, and the verb that makes them."""

from __future__ import annotations

import dataclasses

from criagent.base.aio import KeyedLocks
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.shared import Shared
from criagent.image.profiles.profiles import SecurityProfiles
from criagent.net.pod_network import Networks
from criagent.runtime.node.defaults import default_sysctls
from criagent.runtime.node.facts import has_all_ids
from criagent.runtime.pod.files import PodFileWriter, ShmSizes
from criagent.runtime.pod.holder_watch import HolderWatch
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.pod.objects import SandboxObjects
from criagent.runtime.pod.pid_holder import HolderSpec, SandboxHolder
from criagent.runtime.pod.resize import SandboxResizer
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.pod.transitions import SandboxTransitions
from criagent.runtime.spec.security.seccomp import default_profile
from criagent.runtime.verbs.run_sandbox import NewSandboxes, SandboxRunner


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodParts:
    """What others need of pods."""

    networks: Networks
    namespaces: PodNamespaces
    objects: SandboxObjects
    watch: HolderWatch
    teardown: SandboxTeardown
    runner: SandboxRunner
    resizer: SandboxResizer


def build(
    shared: Shared, node: NodeParts, networks: Networks, profiles: SecurityProfiles
) -> PodParts:
    """Everything about pods but their end, which takes their containers along."""
    fs, store = shared.executors.fs, shared.stores.sandboxes
    namespaces = PodNamespaces(
        paths=node.paths,
        fs=fs,
        unprivileged_ports=shared.config.network.unprivileged_ports,
        # In a user namespace of the agent's own there are not that many groups.
        unprivileged_icmp=shared.config.network.unprivileged_icmp and has_all_ids(),
        defaults=default_sysctls(shared.config.runtime.defaults.sysctls),
    )
    shm = ShmSizes(
        default_bytes=shared.config.runtime.defaults.shm_size_bytes,
        handlers=node.handlers,
        workloads=node.facts.defaults.workloads,
    )
    objects = SandboxObjects(
        networks=networks,
        namespaces=namespaces,
        files=PodFileWriter(paths=node.paths, selinux=node.selinux, shm=shm, fs=fs),
        holder=_holder(shared, node, namespaces),
    )
    transitions = SandboxTransitions(store=store, locks=KeyedLocks("sandbox"))
    teardown = SandboxTeardown(
        store=store,
        transitions=transitions,
        objects=objects,
        plugins=node.nri.plugins,
        clock=shared.clock,
    )
    watch = HolderWatch(store, teardown)
    runner = SandboxRunner(
        store=store,
        making=shared.work.sandbox_creations,
        handlers=node.handlers,
        objects=objects,
        watch=watch,
        teardown=teardown,
        new=NewSandboxes(
            store=store,
            objects=objects,
            selinux=node.selinux,
            identities=shared.identities,
            require_profile=profiles.require,
        ),
        plugins=node.nri.plugins,
    )
    return PodParts(
        networks=networks,
        namespaces=namespaces,
        objects=objects,
        watch=watch,
        teardown=teardown,
        runner=runner,
        resizer=SandboxResizer(store=store, transitions=transitions, plugins=node.nri.plugins),
    )


def _holder(shared: Shared, node: NodeParts, namespaces: PodNamespaces) -> SandboxHolder:
    return SandboxHolder(
        runtimes=node.runtimes,
        default=node.runtimes[node.handlers.default],
        spec=HolderSpec(
            namespaces=namespaces,
            catatonit=shared.config.runtime.catatonit,
            driver=node.driver,
            seccomp=default_profile(node.facts.machine, frozenset())
            if node.facts.seccomp
            else None,
        ),
        paths=node.paths,
        driver=node.driver,
        selinux=node.selinux,
        fs=shared.executors.fs,
    )
