# SPDX-License-Identifier: Apache-2.0
"""Sandboxes: PodSandboxConfig to the domain, rows to PodSandbox and PodSandboxStatus."""

from __future__ import annotations

from criagent._proto import api_pb2
from criagent.base.errors import InvalidRequestError
from criagent.cri.convert import common
from criagent.model.common import GroupsPolicy, NamespaceMode, NamespaceOptions, Protocol
from criagent.model.sandbox import (
    DnsConfig,
    PortMapping,
    Sandbox,
    SandboxMetadata,
    SandboxSecurity,
    SandboxSpec,
)


def sandbox_spec(config: api_pb2.PodSandboxConfig, runtime_handler: str) -> SandboxSpec:
    """The request of a RunPodSandbox. Raises InvalidRequestError naming the field."""
    metadata = config.metadata
    linux = config.linux
    return SandboxSpec(
        metadata=SandboxMetadata(
            name=common.required(metadata.name, "config.metadata.name"),
            uid=metadata.uid,
            namespace=common.required(metadata.namespace, "config.metadata.namespace"),
            attempt=metadata.attempt,
        ),
        hostname=config.hostname,
        log_directory=config.log_directory,
        dns=_dns(config.dns_config) if config.HasField("dns_config") else None,
        port_mappings=tuple(_port(mapping) for mapping in config.port_mappings),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        cgroup_parent=linux.cgroup_parent,
        sysctls=dict(linux.sysctls),
        security=_security(linux.security_context),
        overhead=common.resources(linux.overhead) if linux.HasField("overhead") else None,
        resources=common.resources(linux.resources) if linux.HasField("resources") else None,
        runtime_handler=runtime_handler,
    )


def sandbox_message(sandbox: Sandbox) -> api_pb2.PodSandbox:
    """The row as ListPodSandbox shows it."""
    return api_pb2.PodSandbox(
        id=sandbox.id,
        metadata=_metadata(sandbox),
        state=sandbox.state,  # type: ignore[arg-type] # an IntEnum with CRI's numbers
        created_at=sandbox.created_at_ns,
        labels=sandbox.spec.labels,
        annotations=sandbox.spec.annotations,
        runtime_handler=sandbox.spec.runtime_handler,
    )


def sandbox_status(sandbox: Sandbox) -> api_pb2.PodSandboxStatus:
    """The row as PodSandboxStatus shows it. A pod on the host's network has no ip of its own."""
    first, *others = sandbox.addresses or ("",)
    return api_pb2.PodSandboxStatus(
        id=sandbox.id,
        metadata=_metadata(sandbox),
        state=sandbox.state,  # type: ignore[arg-type] # an IntEnum with CRI's numbers
        created_at=sandbox.created_at_ns,
        network=api_pb2.PodSandboxNetworkStatus(
            ip=first, additional_ips=[api_pb2.PodIP(ip=address) for address in others]
        ),
        linux=api_pb2.LinuxPodSandboxStatus(
            namespaces=api_pb2.Namespace(
                options=common.namespaces_message(sandbox.spec.security.namespaces)
            )
        ),
        labels=sandbox.spec.labels,
        annotations=sandbox.spec.annotations,
        runtime_handler=sandbox.spec.runtime_handler,
    )


def _metadata(sandbox: Sandbox) -> api_pb2.PodSandboxMetadata:
    metadata = sandbox.spec.metadata
    return api_pb2.PodSandboxMetadata(
        name=metadata.name,
        uid=metadata.uid,
        namespace=metadata.namespace,
        attempt=metadata.attempt,
    )


def _dns(message: api_pb2.DNSConfig) -> DnsConfig:
    return DnsConfig(
        servers=tuple(message.servers),
        searches=tuple(message.searches),
        options=tuple(message.options),
    )


def _port(message: api_pb2.PortMapping) -> PortMapping:
    if message.host_port and not message.container_port:
        raise InvalidRequestError(f"host port {message.host_port} has no container_port")
    return PortMapping(
        protocol=Protocol(common.enumerated(message.protocol, Protocol, "protocol")),
        container_port=message.container_port,
        host_port=message.host_port,
        host_ip=message.host_ip,
    )


def _security(message: api_pb2.LinuxSandboxSecurityContext) -> SandboxSecurity:
    options = NamespaceOptions(network=NamespaceMode.POD)
    if message.HasField("namespace_options"):
        options = common.namespaces(message.namespace_options)
    seccomp = message.seccomp if message.HasField("seccomp") else None
    apparmor = message.apparmor if message.HasField("apparmor") else None
    return SandboxSecurity(
        namespaces=options,
        selinux=common.selinux(message.selinux_options)
        if message.HasField("selinux_options")
        else None,
        run_as_user=message.run_as_user.value if message.HasField("run_as_user") else None,
        run_as_group=message.run_as_group.value if message.HasField("run_as_group") else None,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=tuple(message.supplemental_groups),
        supplemental_groups_policy=GroupsPolicy(
            common.enumerated(message.supplemental_groups_policy, GroupsPolicy, "groups policy")
        ),
        privileged=message.privileged,
        seccomp=common.profile(seccomp, message.seccomp_profile_path, "seccomp"),
        apparmor=common.profile(apparmor, "", "apparmor"),
    )
