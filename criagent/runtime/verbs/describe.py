# SPDX-License-Identifier: Apache-2.0
"""What verbose PodSandboxStatus and ContainerStatus say beside the row."""

from __future__ import annotations

import json
from concurrent.futures import Executor
from typing import Any

from criagent.base.aio import run_in
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.limits import resources_to_oci


class Describer:
    """Facts as JSON objects."""

    def __init__(
        self, *, paths: RuntimePaths, files: ContainerFiles, node: NodeFacts, fs: Executor
    ) -> None:
        self._paths = paths
        self._files = files
        self._node = node
        self._fs = fs

    def sandbox(self, sandbox: Sandbox) -> dict[str, Any]:
        """Process, network and handler of a pod, and what CNI answered."""
        netns = str(self._paths.netns(sandbox.id)) if sandbox.network_backend else ""
        return {
            "pid": sandbox.holder.pid if sandbox.holder else 0,
            "netNamespace": netns,
            "networkBackend": sandbox.network_backend,
            "runtimeHandler": sandbox.spec.runtime_handler,
            "cniResult": json.loads(sandbox.cni_result or b"null"),
        }

    async def container(self, container: Container) -> dict[str, Any]:
        """Process and handler, and the OCI specification while there is one."""
        try:
            spec = await run_in(self._fs, self._files.spec, container.id)
        except FileNotFoundError:
            shown = None
        else:
            shown = in_force(self._node, container, spec)
        return {
            "sandboxID": container.sandbox_id,
            "pid": container.init.pid if container.init and not container.finished_at_ns else 0,
            "runtimeType": container.handler,
            "cgroup": container.cgroup,
            "runtimeSpec": shown,
        }


def in_force(node: NodeFacts, container: Container, spec: OciObject) -> OciObject:
    """`spec` of a container with the limits in force since its last update."""
    if container.resources == container.spec.resources:
        return spec
    limits = resources_to_oci(
        container.resources, controllers=node.controllers, missing="ignore", swap=node.swap
    )
    linux = spec["linux"]
    return {**spec, "linux": {**linux, "resources": {**linux["resources"], **limits}}}
