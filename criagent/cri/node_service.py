# SPDX-License-Identifier: Apache-2.0
"""The calls of RuntimeService about the agent and its node."""

from __future__ import annotations

import json
import platform
from typing import TYPE_CHECKING, Any

import grpc

from criagent._proto import api_pb2
from criagent.cri.backend import Node
from criagent.cri.node_report import insecure_handlers
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.version import VERSION

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_KUBELET_API = "0.1.0"  # the kubelet refuses to start with any other version


class NodeCalls:
    """Version, status and configuration."""

    def __init__(self, node: Node) -> None:
        self._node = node

    async def Version(
        self, request: api_pb2.VersionRequest, context: Context
    ) -> api_pb2.VersionResponse:
        return api_pb2.VersionResponse(
            version=_KUBELET_API,
            runtime_name="criagent",
            runtime_version=VERSION,
            runtime_api_version="v1",
        )

    async def Status(
        self, request: api_pb2.StatusRequest, context: Context
    ) -> api_pb2.StatusResponse:
        network = self._node.conditions.network()
        reason, message = await self._node.conditions.unready()
        response = api_pb2.StatusResponse(
            status=api_pb2.RuntimeStatus(
                conditions=[
                    api_pb2.RuntimeCondition(
                        type="RuntimeReady",
                        status=not reason,
                        reason=reason,
                        message=message,
                    ),
                    api_pb2.RuntimeCondition(
                        type="NetworkReady",
                        status=network.ready,
                        reason=network.reason,
                        message=network.message,
                    ),
                    self._security_condition(),
                ]
            ),
            runtime_handlers=self._handlers(),
            features=api_pb2.RuntimeFeatures(
                supplemental_groups_policy=True,
                user_namespaces_host_network=True,
                mount_options=True,
                cgroup_mount_mode=True,
                seccomp_profile_oci=self._node.facts.seccomp,
            ),
        )
        if request.verbose:
            response.info["config"] = json.dumps(self._config())
        return response

    def _security_condition(self) -> api_pb2.RuntimeCondition:
        """A condition that kubelets ignore, as containerd's deprecations; crictl shows it."""
        found = insecure_handlers(self._node.handlers)
        return api_pb2.RuntimeCondition(
            type="RuntimeHandlersSecure",
            status=not found,
            reason="KnownVulnerabilities" if found else "",
            message="; ".join(found),
        )

    def _handlers(self) -> list[api_pb2.RuntimeHandler]:
        default = self._node.handlers.default
        found = []
        for facts in self._node.handlers.usable:
            features = api_pb2.RuntimeHandlerFeatures(
                recursive_read_only_mounts=facts.recursive_read_only,
                user_namespaces=facts.user_namespaces,
                cgroup_namespaces=True,
            )
            for name in ("", facts.name) if facts.name == default else (facts.name,):
                found.append(api_pb2.RuntimeHandler(name=name, features=features))
        return found

    def _config(self) -> dict[str, Any]:
        return {
            "sandboxImage": "",
            "stateDir": str(self._node.paths.run_dir),
            "rootDir": str(self._node.paths.root),
            "cgroupDriver": str(self._node.driver),
            "networkBackend": self._node.network.backend,
            "handlers": {h.name: f"{h.path} {h.version}" for h in self._node.handlers.configured},
            "machine": platform.machine(),
        }

    async def RuntimeConfig(
        self, request: api_pb2.RuntimeConfigRequest, context: Context
    ) -> api_pb2.RuntimeConfigResponse:
        systemd = self._node.driver is CgroupDriver.SYSTEMD
        driver = api_pb2.CgroupDriver.SYSTEMD if systemd else api_pb2.CgroupDriver.CGROUPFS
        return api_pb2.RuntimeConfigResponse(
            linux=api_pb2.LinuxRuntimeConfiguration(cgroup_driver=driver)
        )

    async def UpdateRuntimeConfig(
        self, request: api_pb2.UpdateRuntimeConfigRequest, context: Context
    ) -> api_pb2.UpdateRuntimeConfigResponse:
        cidr = request.runtime_config.network_config.pod_cidr
        if cidr:
            cidrs = [part.strip() for part in cidr.split(",")]
            await self._node.network.set_pod_cidrs(cidrs)
        return api_pb2.UpdateRuntimeConfigResponse()
