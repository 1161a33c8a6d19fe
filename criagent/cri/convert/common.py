# SPDX-License-Identifier: Apache-2.0
"""Messages that several requests share, as domain values."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping

from criagent._proto import api_pb2
from criagent.base.errors import InvalidRequestError
from criagent.model.common import (
    HugepageLimit,
    IdMapping,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    Resources,
    SecurityProfile,
    SELinuxOptions,
    UserNamespace,
)

_LOCALHOST_BASE = api_pb2.SecurityProfileBase.Localhost


def required(text: str, field: str) -> str:
    """`text`, which must not be empty. Raises InvalidRequestError naming `field`."""
    if not text:
        raise InvalidRequestError(f"{field} is required")
    return text


def enumerated(number: int, kind: type, field: str) -> int:
    """`number` as a member of the enum `kind`. Raises InvalidRequestError for an unknown one."""
    try:
        return int(kind(number))
    except ValueError:
        raise InvalidRequestError(f"{field} has the unknown value {number}") from None


def mode(number: int, field: str) -> NamespaceMode:
    """A NamespaceMode."""
    return NamespaceMode(enumerated(number, NamespaceMode, field))


def namespaces(message: api_pb2.NamespaceOption) -> NamespaceOptions:
    """NamespaceOption; an unset one is all POD, the defaults of protobuf."""
    userns = None
    if message.HasField("userns_options"):
        options = message.userns_options
        userns = UserNamespace(
            mode=mode(options.mode, "userns_options.mode"),
            uids=mappings(options.uids),
            gids=mappings(options.gids),
        )
    return NamespaceOptions(
        network=mode(message.network, "namespace_options.network"),
        pid=mode(message.pid, "namespace_options.pid"),
        ipc=mode(message.ipc, "namespace_options.ipc"),
        target_id=message.target_id,
        userns=userns,
        cgroup=mode(message.cgroupns_options.mode, "cgroupns_options.mode")
        if message.HasField("cgroupns_options")
        else None,
    )


def mappings(messages: object) -> tuple[IdMapping, ...]:
    """IDMapping entries."""
    return tuple(
        IdMapping(host_id=m.host_id, container_id=m.container_id, length=m.length)
        for m in messages  # type: ignore[attr-defined]
    )


def namespaces_message(options: NamespaceOptions) -> api_pb2.NamespaceOption:
    """NamespaceOption as requested."""
    message = api_pb2.NamespaceOption(
        network=options.network,  # type: ignore[arg-type] # IntEnums with CRI's numbers
        pid=options.pid,  # type: ignore[arg-type]
        ipc=options.ipc,  # type: ignore[arg-type]
        target_id=options.target_id,
    )
    if (userns := options.userns) is not None:
        message.userns_options.mode = userns.mode  # type: ignore[assignment] # CRI's number
        message.userns_options.uids.extend(mappings_message(userns.uids))
        message.userns_options.gids.extend(mappings_message(userns.gids))
    if options.cgroup is not None:
        message.cgroupns_options.mode = options.cgroup  # type: ignore[assignment] # CRI's number
    return message


def mappings_message(mappings: Iterable[IdMapping]) -> Iterator[api_pb2.IDMapping]:
    """IDMapping entries as requested."""
    for m in mappings:
        yield api_pb2.IDMapping(host_id=m.host_id, container_id=m.container_id, length=m.length)


def profile(
    message: api_pb2.SecurityProfile | None, legacy: str, field: str
) -> SecurityProfile | None:
    """A security profile from its message, or from the deprecated string."""
    if message is not None:
        kind = ProfileType(enumerated(message.profile_type, ProfileType, field))
        if kind is ProfileType.OCI:
            return _of_registry(message, field)
        if message.oci_ref or message.HasField("base_profile"):
            raise InvalidRequestError(
                f"{field}: oci_ref and base_profile belong to profile type OCI; leave them out"
            )
        return SecurityProfile(type=kind, localhost_ref=message.localhost_ref)
    match legacy:
        case "":
            return None
        case "runtime/default" | "docker/default":
            return SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)
        case "unconfined":
            return SecurityProfile(type=ProfileType.UNCONFINED)
    if not legacy.startswith("localhost/"):
        raise InvalidRequestError(f"{field}: {legacy[:200]!r} is not a profile")
    reference = legacy.removeprefix("localhost/")
    return SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref=reference)


def _of_registry(message: api_pb2.SecurityProfile, field: str) -> SecurityProfile:
    """A profile of type OCI (KEP-6061). Its zero base is the runtime default profile."""
    if field == "apparmor":
        raise InvalidRequestError("apparmor: a profile from a registry is for seccomp only")
    if not message.oci_ref or message.localhost_ref:
        raise InvalidRequestError(f"{field}: profile type OCI needs oci_ref and no localhost_ref")
    base = message.base_profile
    if base.type not in {api_pb2.SecurityProfileBase.RuntimeDefault, _LOCALHOST_BASE}:
        raise InvalidRequestError(f"{field}: base_profile.type {base.type} is unknown")
    if (base.type == _LOCALHOST_BASE) != bool(base.localhost_ref):
        raise InvalidRequestError(
            f"{field}: base_profile.localhost_ref belongs to base_profile.type Localhost"
        )
    return SecurityProfile(
        type=ProfileType.OCI, oci_ref=message.oci_ref, base_ref=base.localhost_ref
    )


def selinux(message: api_pb2.SELinuxOption) -> SELinuxOptions:
    """SELinuxOption."""
    return SELinuxOptions(
        user=message.user, role=message.role, type=message.type, level=message.level
    )


def resources(message: api_pb2.LinuxContainerResources) -> Resources:
    """LinuxContainerResources."""
    return Resources(
        cpu_period=message.cpu_period,
        cpu_quota=message.cpu_quota,
        cpu_shares=message.cpu_shares,
        memory_limit_in_bytes=message.memory_limit_in_bytes,
        oom_score_adj=message.oom_score_adj,
        cpuset_cpus=message.cpuset_cpus,
        cpuset_mems=message.cpuset_mems,
        hugepage_limits=tuple(
            HugepageLimit(page_size=h.page_size, limit=h.limit) for h in message.hugepage_limits
        ),
        unified=dict(message.unified),
        memory_swap_limit_in_bytes=message.memory_swap_limit_in_bytes,
    )


def resources_message(values: Resources) -> api_pb2.LinuxContainerResources:
    """LinuxContainerResources in force."""
    return api_pb2.LinuxContainerResources(
        cpu_period=values.cpu_period,
        cpu_quota=values.cpu_quota,
        cpu_shares=values.cpu_shares,
        memory_limit_in_bytes=values.memory_limit_in_bytes,
        oom_score_adj=values.oom_score_adj,
        cpuset_cpus=values.cpuset_cpus,
        cpuset_mems=values.cpuset_mems,
        hugepage_limits=[
            api_pb2.HugepageLimit(page_size=h.page_size, limit=h.limit)
            for h in values.hugepage_limits
        ],
        unified=values.unified,
        memory_swap_limit_in_bytes=values.memory_swap_limit_in_bytes,
    )


def selected(labels: Mapping[str, str], wanted: Mapping[str, str]) -> bool:
    """Whether `labels` have every wanted pair."""
    return all(labels.get(key) == value for key, value in wanted.items())
