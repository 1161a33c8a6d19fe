# SPDX-License-Identifier: Apache-2.0
"""Pods and containers as messages of NRI: rows, with the OCI specification where there is one."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from criagent._proto import nri_pb2
from criagent.model.common import ProfileType, Resources
from criagent.model.container import Container, ContainerState
from criagent.model.sandbox import Sandbox
from criagent.nri import resources
from criagent.nri.oci import read
from criagent.runtime.spec.inputs import OciObject

_STATES = {
    ContainerState.CREATED: nri_pb2.CONTAINER_CREATED,
    ContainerState.RUNNING: nri_pb2.CONTAINER_RUNNING,
    ContainerState.EXITED: nri_pb2.CONTAINER_STOPPED,
}
_NAMESPACES = {"net": "network"}  # OCI's names of pins that are called otherwise
_PROFILES = {
    ProfileType.RUNTIME_DEFAULT: nri_pb2.SecurityProfile.RUNTIME_DEFAULT,
    ProfileType.UNCONFINED: nri_pb2.SecurityProfile.UNCONFINED,
    ProfileType.LOCALHOST: nri_pb2.SecurityProfile.LOCALHOST,
    ProfileType.OCI: nri_pb2.SecurityProfile.LOCALHOST,  # NRI has no type of its own for it
}


def pod_message(sandbox: Sandbox, pins: Mapping[str, Path]) -> nri_pb2.PodSandbox:
    """The pod; `pins` are the namespaces that it still has, by the names of their files."""
    spec = sandbox.spec
    linux = nri_pb2.LinuxPodSandbox(cgroup_parent=spec.cgroup_parent)
    for name, path in pins.items():
        linux.namespaces.add(type=_NAMESPACES.get(name, name), path=str(path))
    holder = sandbox.holder
    if holder is not None:
        linux.namespaces.add(type="pid", path=f"/proc/{holder.pid}/ns/pid")
    for name, given in (("pod_overhead", sandbox.overhead), ("pod_resources", sandbox.resources)):
        if given is not None:
            getattr(linux, name).CopyFrom(resources.of_cri(given))
    return nri_pb2.PodSandbox(
        id=sandbox.id,
        name=spec.metadata.name,
        uid=spec.metadata.uid,
        namespace=spec.metadata.namespace,
        labels=spec.labels,
        annotations=spec.annotations,
        runtime_handler=spec.runtime_handler,
        linux=linux,
        pid=0 if holder is None else holder.pid,
        ips=sandbox.addresses,
    )


def container_message(container: Container, oci: OciObject | None) -> nri_pb2.Container:
    """The container; without `oci`, its specification, only what its row says."""
    spec = container.spec
    message = nri_pb2.Container(
        id=container.id,
        pod_sandbox_id=container.sandbox_id,
        name=spec.metadata.name,
        labels=spec.labels,
        pid=0 if container.init is None else container.init.pid,
        created_at=container.created_at_ns,
        started_at=container.started_at_ns,
        finished_at=container.finished_at_ns,
        exit_code=container.exit_code,
        status_reason=container.reason,
        status_message=container.message,
        CDI_devices=[nri_pb2.CDIDevice(name=name) for name in spec.cdi_devices],
        image=nri_pb2.Image(
            name=container.image_name,
            digest=container.image_ref.rpartition("@")[2],
            config_digest=container.image_id,
        ),
    )
    if container.ready_at_ns or container.finished_at_ns:
        message.state = _STATES[container.state]
    if (profile := spec.security.seccomp) is not None:
        message.linux.seccomp_profile.profile_type = _PROFILES[profile.type]
        ref = profile.oci_ref or profile.localhost_ref
        message.linux.seccomp_profile.localhost_ref = ref
    message.annotations.update(spec.annotations)
    if oci is not None:
        _add_oci(message, oci)
        _in_force(message.linux.resources, container.resources)
    return message


def _add_oci(message: nri_pb2.Container, oci: OciObject) -> None:
    process, linux = oci["process"], oci["linux"]
    message.annotations.update(oci.get("annotations") or {})
    message.args.extend(process["args"])
    message.env.extend(process["env"])
    for mount in oci["mounts"]:
        message.mounts.add(
            destination=mount["destination"],
            type=mount.get("type", ""),
            source=mount.get("source", ""),
            options=mount.get("options") or (),
        )
    message.hooks.CopyFrom(read.hooks(oci.get("hooks") or {}))
    for limit in process.get("rlimits") or ():
        message.rlimits.add(type=limit["type"], hard=limit["hard"], soft=limit["soft"])
    user = process["user"]
    message.user.uid, message.user.gid = user["uid"], user["gid"]
    message.user.additional_gids.extend(user.get("additionalGids") or ())
    target = message.linux
    for namespace in linux["namespaces"]:
        target.namespaces.add(type=namespace["type"], path=namespace.get("path", ""))
    target.devices.extend(read.devices(linux.get("devices") or []))
    target.resources.CopyFrom(resources.of_oci(linux["resources"]))
    target.cgroups_path = linux["cgroupsPath"]
    target.sysctl.update(linux.get("sysctl") or {})
    for name, device in (linux.get("netDevices") or {}).items():
        target.net_devices[name].name = device.get("name", "")
    if (score := process.get("oomScoreAdj")) is not None:
        target.oom_score_adj.value = score
    for part, name, convert in (
        (linux.get("seccomp"), "seccomp_policy", read.seccomp),
        (linux.get("intelRdt"), "rdt", read.rdt),
        (process.get("scheduler"), "scheduler", read.scheduler),
        (process.get("ioPriority"), "io_priority", read.io_priority),
    ):
        if part:
            getattr(target, name).CopyFrom(convert(part))


def _in_force(message: nri_pb2.LinuxResources, now: Resources) -> None:
    """The limits of the row, which updates change; the specification has the first ones."""
    current = resources.of_cri(now)
    unified = {**message.unified, **current.unified}
    sizes = {limit.page_size for limit in current.hugepage_limits}
    kept = [limit for limit in message.hugepage_limits if limit.page_size not in sizes]
    del message.hugepage_limits[:]
    message.MergeFrom(current)
    message.hugepage_limits.extend(kept)
    message.unified.update(unified)
