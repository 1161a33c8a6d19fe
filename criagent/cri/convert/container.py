# SPDX-License-Identifier: Apache-2.0
"""Containers: ContainerConfig to the domain, rows to Container and ContainerStatus."""

from __future__ import annotations

from collections.abc import Iterable

from criagent._proto import api_pb2
from criagent.cri.convert import common
from criagent.model.common import CgroupMount, GroupsPolicy, MountPropagation
from criagent.model.container import (
    Container,
    ContainerMetadata,
    ContainerSecurity,
    ContainerSpec,
    ContainerState,
    Device,
    ImageMount,
    KeyValue,
    Mount,
)
from criagent.runtime.spec.signals import cri_signal


def container_spec(config: api_pb2.ContainerConfig) -> ContainerSpec:
    """The request of a CreateContainer. Raises InvalidRequestError naming the field."""
    linux = config.linux
    return ContainerSpec(
        metadata=ContainerMetadata(
            name=common.required(config.metadata.name, "config.metadata.name"),
            attempt=config.metadata.attempt,
        ),
        image=common.required(config.image.image, "config.image.image"),
        user_specified_image=config.image.user_specified_image,
        image_annotations=dict(config.image.annotations),
        image_handler=config.image.runtime_handler,
        command=tuple(config.command),
        args=tuple(config.args),
        working_dir=config.working_dir,
        envs=tuple(KeyValue(key=item.key, value=item.value) for item in config.envs),
        mounts=tuple(_mount(mount) for mount in config.mounts),
        devices=tuple(
            Device(
                container_path=d.container_path, host_path=d.host_path, permissions=d.permissions
            )
            for d in config.devices
        ),
        cdi_devices=tuple(device.name for device in config.CDI_devices),
        labels=dict(config.labels),
        annotations=dict(config.annotations),
        log_path=config.log_path,
        stdin=config.stdin,
        stdin_once=config.stdin_once,
        tty=config.tty,
        resources=common.resources(linux.resources),
        security=_security(linux.security_context),
        stop_signal=config.stop_signal,
    )


def container_message(container: Container) -> api_pb2.Container:
    """The row as ListContainers shows it.

    Its image has no runtime handler, as in ListImages: with RuntimeClassInImageCriApi the kubelet
    compares id and handler of both, and collects images that no container seems to use.
    """
    image = _image(container, container.spec.image)
    image.ClearField("runtime_handler")
    return api_pb2.Container(
        id=container.id,
        pod_sandbox_id=container.sandbox_id,
        metadata=_metadata(container),
        image=image,
        image_ref=container.image_ref,
        state=container.state,  # type: ignore[arg-type] # an IntEnum with CRI's numbers
        created_at=container.created_at_ns,
        labels=container.spec.labels,
        annotations=container.spec.annotations,
        image_id=container.image_id,
    )


def container_status(container: Container) -> api_pb2.ContainerStatus:
    """The row as ContainerStatus shows it; `mounts` are only those of the request."""
    exited = container.state is ContainerState.EXITED
    status = api_pb2.ContainerStatus(
        id=container.id,
        metadata=_metadata(container),
        state=container.state,  # type: ignore[arg-type] # an IntEnum with CRI's numbers
        created_at=container.created_at_ns,
        started_at=container.started_at_ns,
        finished_at=container.finished_at_ns,
        exit_code=container.exit_code if exited else 0,
        image=_image(container, container.image_name or container.spec.image),
        image_ref=container.image_ref,
        reason=container.reason,
        message=container.message,
        labels=container.spec.labels,
        annotations=container.spec.annotations,
        mounts=_mount_messages(container),
        log_path=container.log_path,
        resources=api_pb2.ContainerResources(linux=common.resources_message(container.resources)),
        image_id=container.image_id,
        stop_signal=cri_signal(container.stop_signal),  # type: ignore[arg-type] # CRI's number
    )
    if container.user is not None:
        status.user.linux.uid = container.user.uid
        status.user.linux.gid = container.user.gid
        status.user.linux.supplemental_groups.extend(container.user.groups)
    return status


def pod_containers(containers: Iterable[Container]) -> list[api_pb2.ContainerStatus]:
    """Statuses of a pod's containers, the newest first.

    With EventedPLEG the kubelet does not sort them and takes the first of each name.
    """
    visible = [container for container in containers if container.visible]
    visible.sort(key=lambda container: (container.created_at_ns, container.id), reverse=True)
    return [container_status(container) for container in visible]


def _metadata(container: Container) -> api_pb2.ContainerMetadata:
    metadata = container.spec.metadata
    return api_pb2.ContainerMetadata(name=metadata.name, attempt=metadata.attempt)


def _image(container: Container, name: str) -> api_pb2.ImageSpec:
    return api_pb2.ImageSpec(
        image=name,
        user_specified_image=container.spec.user_specified_image,
        annotations=container.spec.image_annotations,
        runtime_handler=container.spec.image_handler,
    )


def _mount(message: api_pb2.Mount) -> Mount:
    image = None
    if message.HasField("image"):
        image = ImageMount(
            image=message.image.image,
            user_specified_image=message.image.user_specified_image,
            handler=message.image.runtime_handler,
        )
    return Mount(
        container_path=message.container_path,
        host_path=message.host_path,
        readonly=message.readonly,
        selinux_relabel=message.selinux_relabel,
        propagation=MountPropagation(
            common.enumerated(message.propagation, MountPropagation, "mounts.propagation")
        ),
        uid_mappings=common.mappings(message.uidMappings),
        gid_mappings=common.mappings(message.gidMappings),
        recursive_read_only=message.recursive_read_only,
        image=image,
        image_sub_path=message.image_sub_path,
        options=tuple(message.mount_options),
    )


def _mount_messages(container: Container) -> list[api_pb2.Mount]:
    messages = [_mount_message(mount) for mount in container.spec.mounts]
    for volume in container.image_volumes:
        # The kubelet's collection spares images with this name; image_ref goes to the pod.
        image, asked = messages[volume.mount].image, container.spec.mounts[volume.mount].image
        image.image = image.image_ref = volume.image_id
        image.user_specified_image = "" if asked is None else asked.user_specified_image
    return messages


def _mount_message(mount: Mount) -> api_pb2.Mount:
    return api_pb2.Mount(
        container_path=mount.container_path,
        host_path=mount.host_path,
        readonly=mount.readonly,
        selinux_relabel=mount.selinux_relabel,
        propagation=mount.propagation,  # type: ignore[arg-type] # CRI's number
        uidMappings=common.mappings_message(mount.uid_mappings),
        gidMappings=common.mappings_message(mount.gid_mappings),
        recursive_read_only=mount.recursive_read_only,
        image_sub_path=mount.image_sub_path,
        mount_options=mount.options,
    )


def _security(message: api_pb2.LinuxContainerSecurityContext) -> ContainerSecurity:
    seccomp = message.seccomp if message.HasField("seccomp") else None
    apparmor = message.apparmor if message.HasField("apparmor") else None
    capabilities = message.capabilities
    return ContainerSecurity(
        add_capabilities=tuple(capabilities.add_capabilities),
        drop_capabilities=tuple(capabilities.drop_capabilities),
        add_ambient_capabilities=tuple(capabilities.add_ambient_capabilities),
        privileged=message.privileged,
        namespaces=common.namespaces(message.namespace_options),
        selinux=common.selinux(message.selinux_options)
        if message.HasField("selinux_options")
        else None,
        run_as_user=message.run_as_user.value if message.HasField("run_as_user") else None,
        run_as_group=message.run_as_group.value if message.HasField("run_as_group") else None,
        run_as_username=message.run_as_username,
        readonly_rootfs=message.readonly_rootfs,
        supplemental_groups=tuple(message.supplemental_groups),
        supplemental_groups_policy=GroupsPolicy(
            common.enumerated(message.supplemental_groups_policy, GroupsPolicy, "groups policy")
        ),
        no_new_privs=message.no_new_privs,
        masked_paths=tuple(message.masked_paths),
        readonly_paths=tuple(message.readonly_paths),
        seccomp=common.profile(seccomp, message.seccomp_profile_path, "seccomp"),
        apparmor=common.profile(apparmor, message.apparmor_profile, "apparmor"),
        cgroup_mount=CgroupMount(
            common.enumerated(message.cgroup_mount_mode, CgroupMount, "cgroup_mount_mode")
        ),
    )
