# SPDX-License-Identifier: Apache-2.0
"""Conversions at the edge: every field of a request arrives, and every answer can be read back."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
from google.protobuf.message import Message

from criagent._proto import api_pb2 as api
from criagent.base.errors import InvalidRequestError
from criagent.cri.convert.common import namespaces, namespaces_message, resources, resources_message
from criagent.cri.convert.container import (
    container_message,
    container_spec,
    container_status,
    pod_containers,
)
from criagent.cri.convert.image import filesystem_usage, image_message, registry_auth
from criagent.cri.convert.sandbox import sandbox_message, sandbox_spec, sandbox_status
from criagent.image.images import FsUsage
from criagent.model.common import NamespaceMode, ProfileType, Protocol
from criagent.model.container import Container, ContainerId, ContainerUser, ImageVolume
from criagent.model.image import Image, ImageConfig
from criagent.model.sandbox import Sandbox, SandboxId


def filled(message: Message, number: int = 1) -> Any:
    """`message` with a value in every field: none can be lost without being seen."""
    if isinstance(message, api.SecurityProfile):  # its other fields belong to a type not supported
        message.profile_type, message.localhost_ref = message.Localhost, f"localhost-{number}"
        return message
    for field in message.DESCRIPTOR.fields:
        value: Any
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            getattr(message, field.name)[f"key-{field.name}"] = f"value-{field.name}"
            continue
        if field.message_type is not None:
            target = getattr(message, field.name)
            filled(target.add() if field.is_repeated else target, number + 1)
            continue
        if field.enum_type is not None:
            value = field.enum_type.values[-1].number
        elif field.cpp_type == field.CPPTYPE_STRING:
            value = f"{field.name}-{number}"
            value = value.encode() if field.type == field.TYPE_BYTES else value
        elif field.cpp_type == field.CPPTYPE_BOOL:
            value = True
        else:
            value = number + field.number
        if field.is_repeated:
            getattr(message, field.name).append(value)
        else:
            setattr(message, field.name, value)
    return message


def sandbox_config(**changes: Any) -> api.PodSandboxConfig:
    config = api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name="web", uid="u1", namespace="ns", attempt=2)
    )
    for key, value in changes.items():
        setattr(config.metadata, key, value)
    return config


def container_config() -> api.ContainerConfig:
    return api.ContainerConfig(
        metadata=api.ContainerMetadata(name="main", attempt=3), image=api.ImageSpec(image="img")
    )


def sandbox(spec: Any, **fields: Any) -> Sandbox:
    return Sandbox(id=SandboxId("5" * 64), spec=spec, created_at_ns=5, boot_id="b", **fields)


def container(spec: Any, **fields: Any) -> Container:
    return Container(
        id=ContainerId("c" * 64),
        sandbox_id=SandboxId("5" * 64),
        spec=spec,
        created_at_ns=7,
        boot_id="b",
        handler="crun",
        **fields,
    )


# Requests


def test_every_field_of_a_container_that_is_supported_arrives() -> None:
    config = filled(api.ContainerConfig())
    spec = container_spec(config)
    assert spec.metadata.name == config.metadata.name
    assert spec.metadata.attempt == config.metadata.attempt
    assert spec.image == config.image.image
    assert spec.user_specified_image == config.image.user_specified_image
    assert spec.image_annotations == dict(config.image.annotations)
    assert spec.image_handler == config.image.runtime_handler
    assert (spec.command, spec.args) == (tuple(config.command), tuple(config.args))
    assert spec.working_dir == config.working_dir
    assert [(e.key, e.value) for e in spec.envs] == [(e.key, e.value) for e in config.envs]
    assert (spec.labels, spec.annotations) == (dict(config.labels), dict(config.annotations))
    assert (spec.log_path, spec.stdin, spec.stdin_once, spec.tty) == (
        config.log_path,
        True,
        True,
        True,
    )
    assert spec.cdi_devices == tuple(d.name for d in config.CDI_devices)
    (device,) = spec.devices
    assert (device.container_path, device.host_path, device.permissions) == (
        config.devices[0].container_path,
        config.devices[0].host_path,
        config.devices[0].permissions,
    )
    assert spec.stop_signal == config.stop_signal != 0


def test_every_field_of_a_mount_arrives_and_comes_back() -> None:
    config = container_config()
    mount = filled(config.mounts.add())
    spec = container_spec(config)
    (found,) = spec.mounts
    assert found.image is not None
    assert found.image.image == mount.image.image
    status = container_status(container(spec))
    back = status.mounts[0]
    back.image.CopyFrom(mount.image)  # what the image is called there, is the volume's own case
    assert back == mount


def test_an_image_volume_is_shown_by_the_id_that_the_kubelet_looks_for() -> None:
    config = container_config()
    config.mounts.add(container_path="/a", host_path="/x")
    image = config.mounts.add(container_path="/v").image
    image.image, image.user_specified_image = "sha256:1", "docker.io/library/data:1"
    volume = ImageVolume(mount=1, image_id="sha256:1", top="")
    shown = container_status(container(container_spec(config), image_volumes=(volume,))).mounts
    assert not shown[0].HasField("image")
    assert shown[1].image.image == shown[1].image.image_ref == "sha256:1"
    assert shown[1].image.user_specified_image == "docker.io/library/data:1"


def test_every_field_of_a_security_context_arrives() -> None:
    config = container_config()
    asked = filled(config.linux.security_context)
    found = container_spec(config).security
    capabilities = asked.capabilities
    assert found.add_capabilities == tuple(capabilities.add_capabilities)
    assert found.drop_capabilities == tuple(capabilities.drop_capabilities)
    assert found.add_ambient_capabilities == tuple(capabilities.add_ambient_capabilities)
    assert found.privileged
    assert found.readonly_rootfs
    assert found.no_new_privs
    assert namespaces_message(found.namespaces) == asked.namespace_options
    assert found.selinux is not None
    assert found.selinux.level == asked.selinux_options.level
    assert (found.run_as_user, found.run_as_group) == (
        asked.run_as_user.value,
        asked.run_as_group.value,
    )
    assert found.run_as_username == asked.run_as_username
    assert found.supplemental_groups == tuple(asked.supplemental_groups)
    assert found.supplemental_groups_policy == asked.supplemental_groups_policy
    assert found.masked_paths == tuple(asked.masked_paths)
    assert found.readonly_paths == tuple(asked.readonly_paths)
    for profile, message in ((found.seccomp, asked.seccomp), (found.apparmor, asked.apparmor)):
        assert profile is not None
        assert (profile.type, profile.localhost_ref) == (
            message.profile_type,
            message.localhost_ref,
        )


def test_user_zero_and_no_user_are_two_things() -> None:
    config = container_config()
    assert container_spec(config).security.run_as_user is None
    config.linux.security_context.run_as_user.value = 0
    assert container_spec(config).security.run_as_user == 0


@pytest.mark.parametrize(
    ("legacy", "kind", "reference"),
    [
        ("", None, ""),
        ("runtime/default", ProfileType.RUNTIME_DEFAULT, ""),
        ("docker/default", ProfileType.RUNTIME_DEFAULT, ""),
        ("unconfined", ProfileType.UNCONFINED, ""),
        ("localhost/my.json", ProfileType.LOCALHOST, "my.json"),
    ],
)
def test_deprecated_profile_strings_are_read_and_the_message_wins(
    legacy: str, kind: ProfileType | None, reference: str
) -> None:
    config = container_config()
    context = config.linux.security_context
    context.apparmor_profile = context.seccomp_profile_path = legacy
    security = container_spec(config).security
    for profile in (security.seccomp, security.apparmor):
        assert (None if profile is None else profile.type) == kind
        assert profile is None or profile.localhost_ref == reference
    context.seccomp.profile_type = api.SecurityProfile.Unconfined
    chosen = container_spec(config).security.seccomp
    assert chosen is not None
    assert chosen.type is ProfileType.UNCONFINED


def test_resources_come_back_as_they_were_asked_for() -> None:
    asked = filled(api.LinuxContainerResources())
    assert resources_message(resources(asked)) == asked
    empty = api.LinuxContainerResources()
    assert resources_message(resources(empty)) == empty


def test_namespaces_come_back_as_they_were_asked_for() -> None:
    asked = filled(api.NamespaceOption())
    assert namespaces_message(namespaces(asked)) == asked
    empty = api.NamespaceOption()
    assert namespaces_message(namespaces(empty)) == empty
    assert namespaces(empty).userns is None


def test_every_field_of_a_sandbox_arrives() -> None:
    config = filled(api.PodSandboxConfig())
    spec = sandbox_spec(config, "runc")
    metadata = config.metadata
    assert (spec.metadata.name, spec.metadata.uid) == (metadata.name, metadata.uid)
    assert (spec.metadata.namespace, spec.metadata.attempt) == (
        metadata.namespace,
        metadata.attempt,
    )
    assert (spec.hostname, spec.log_directory) == (config.hostname, config.log_directory)
    assert spec.dns is not None
    assert spec.dns.servers == tuple(config.dns_config.servers)
    assert spec.dns.searches == tuple(config.dns_config.searches)
    assert spec.dns.options == tuple(config.dns_config.options)
    (port,) = spec.port_mappings
    asked = config.port_mappings[0]
    assert port.protocol is Protocol.SCTP
    assert (port.container_port, port.host_port, port.host_ip) == (
        asked.container_port,
        asked.host_port,
        asked.host_ip,
    )
    assert (spec.labels, spec.annotations) == (dict(config.labels), dict(config.annotations))
    assert spec.cgroup_parent == config.linux.cgroup_parent
    assert spec.sysctls == dict(config.linux.sysctls)
    assert spec.runtime_handler == "runc"
    assert spec.overhead is not None
    assert resources_message(spec.overhead) == config.linux.overhead
    assert spec.resources is not None
    assert resources_message(spec.resources) == config.linux.resources
    context, security = config.linux.security_context, spec.security
    assert namespaces_message(security.namespaces) == context.namespace_options
    assert (security.run_as_user, security.run_as_group) == (
        context.run_as_user.value,
        context.run_as_group.value,
    )
    assert security.supplemental_groups == tuple(context.supplemental_groups)
    assert security.privileged
    assert security.readonly_rootfs


def test_a_pod_without_a_security_context_has_a_network_of_its_own() -> None:
    spec = sandbox_spec(sandbox_config(), "")
    assert spec.security.namespaces.network is NamespaceMode.POD
    assert (spec.dns, spec.overhead, spec.resources) == (None, None, None)


@pytest.mark.parametrize("field", ["name", "namespace"])
def test_a_sandbox_without_its_names_is_refused_by_field(field: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"config.metadata.{field} is required"):
        sandbox_spec(sandbox_config(**{field: ""}), "")


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (lambda c: c.metadata.Clear(), "config.metadata.name is required"),
        (lambda c: c.image.Clear(), "config.image.image is required"),
        (lambda c: c.mounts.add(propagation=9), "mounts.propagation has the unknown value 9"),
        (
            lambda c: c.linux.security_context.namespace_options.__setattr__("pid", 9),
            "namespace_options.pid has the unknown value 9",
        ),
        (
            lambda c: c.linux.security_context.seccomp.__setattr__("profile_type", 7),
            "seccomp has the unknown value 7",
        ),
        (
            lambda c: c.linux.security_context.apparmor.__setattr__("profile_type", 3),
            "apparmor: a profile from a registry is for seccomp only",
        ),
        (
            lambda c: c.linux.security_context.seccomp.__setattr__("oci_ref", "r@sha256:1"),
            "oci_ref and base_profile belong to profile type OCI",
        ),
        (
            lambda c: c.linux.security_context.__setattr__("cgroup_mount_mode", 4),
            "cgroup_mount_mode has the unknown value 4",
        ),
        (
            lambda c: c.linux.security_context.__setattr__("apparmor_profile", "odd"),
            "apparmor: 'odd' is not a profile",
        ),
        (
            lambda c: c.linux.security_context.__setattr__("supplemental_groups_policy", 5),
            "groups policy has the unknown value 5",
        ),
    ],
)
def test_what_a_container_cannot_be_is_refused_by_field(change: Any, text: str) -> None:
    config = container_config()
    change(config)
    with pytest.raises(InvalidRequestError) as caught:
        container_spec(config)
    assert text in str(caught.value)


@pytest.mark.parametrize(
    ("mapping", "text"),
    [
        (api.PortMapping(host_port=80), "host port 80 has no container_port"),
        (api.PortMapping(container_port=80, protocol=9), "protocol has the unknown value 9"),  # type: ignore[arg-type]
    ],
)
def test_what_a_port_cannot_be_is_refused(mapping: api.PortMapping, text: str) -> None:
    config = sandbox_config()
    config.port_mappings.append(mapping)
    with pytest.raises(InvalidRequestError, match=text):
        sandbox_spec(config, "")


# Answers


def test_a_sandbox_is_shown_with_its_addresses_and_state() -> None:
    spec = sandbox_spec(filled(api.PodSandboxConfig()), "runc")
    shown = sandbox_status(sandbox(spec, ready_at_ns=6, addresses=("10.0.0.2", "fd00::2")))
    assert shown.state == api.SANDBOX_READY
    assert (shown.network.ip, [ip.ip for ip in shown.network.additional_ips]) == (
        "10.0.0.2",
        ["fd00::2"],
    )
    assert (shown.labels, shown.annotations) == (spec.labels, spec.annotations)  # type: ignore[comparison-overlap]
    assert (shown.created_at, shown.runtime_handler) == (5, "runc")
    listed = sandbox_message(sandbox(spec, ready_at_ns=6, stopped_at_ns=8))
    assert listed.state == api.SANDBOX_NOTREADY
    assert listed.metadata == shown.metadata


def test_a_sandbox_of_the_hosts_network_has_no_address() -> None:
    shown = sandbox_status(sandbox(sandbox_spec(sandbox_config(), ""), ready_at_ns=6))
    assert shown.network.ip == ""
    assert list(shown.network.additional_ips) == []


@pytest.mark.parametrize(
    ("fields", "state", "code"),
    [
        ({"ready_at_ns": 8}, api.CONTAINER_CREATED, 0),
        ({"ready_at_ns": 8, "started_at_ns": 9}, api.CONTAINER_RUNNING, 0),
        (
            {"ready_at_ns": 8, "started_at_ns": 9, "finished_at_ns": 10, "exit_code": 137},
            api.CONTAINER_EXITED,
            137,
        ),
        ({"finished_at_ns": 10, "exit_code": 255}, api.CONTAINER_EXITED, 255),
    ],
)
def test_a_container_is_shown_in_each_state(fields: Any, state: int, code: int) -> None:
    made = container(container_spec(container_config()), **fields)
    status = container_status(made)
    assert (status.state, status.exit_code) == (state, code)
    assert (status.started_at, status.finished_at) == (
        fields.get("started_at_ns", 0),
        fields.get("finished_at_ns", 0),
    )
    assert container_message(made).state == state


def test_a_container_is_shown_with_its_user_and_the_name_of_its_image() -> None:
    made = container(
        container_spec(container_config()),
        image_id="sha256:1",
        image_ref="repo@sha256:2",
        image_name="repo:1",
        user=ContainerUser(uid=5, gid=6, groups=(7, 8)),
        log_path="/var/log/x",
        reason="Error",
        message="m",
        stop_signal="SIGUSR1",
    )
    status = container_status(made)
    assert (status.image.image, status.image_ref, status.image_id) == (
        "repo:1",
        "repo@sha256:2",
        "sha256:1",
    )
    user = status.user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (5, 6, [7, 8])
    assert (status.log_path, status.reason, status.message) == ("/var/log/x", "Error", "m")
    assert api.Signal.Name(status.stop_signal) == "SIGNAL_SIGUSR1"
    assert container_message(made).image.image == "img"  # a list shows what was asked for


def test_containers_and_images_agree_on_the_handler_of_an_image() -> None:
    """The kubelet's collection of images compares both (KEP-4216)."""
    config = container_config()
    config.image.runtime_handler = "kata"
    made = container(container_spec(config))
    image = Image(id="sha256:1", manifest_digest="", config=ImageConfig(), layers=())
    listed = image_message(image, pinned=False)
    assert container_message(made).image.runtime_handler == listed.spec.runtime_handler
    assert container_status(made).image.runtime_handler == "kata"


def test_containers_of_a_pod_come_newest_first_and_unfinished_ones_not() -> None:
    spec = container_spec(container_config())

    def made(name: str, created: int, ready: int) -> Container:
        base = container(spec, ready_at_ns=ready)
        return dataclasses.replace(base, id=ContainerId(name * 64), created_at_ns=created)

    containers = [made("a", 1, 1), made("b", 3, 1), made("d", 2, 0), made("e", 3, 1)]
    assert [status.id[0] for status in pod_containers(containers)] == ["e", "b", "a"]


@pytest.mark.parametrize(
    ("user", "uid", "name"),
    [
        ("", None, ""),
        ("1000", 1000, ""),
        ("1000:5", 1000, ""),
        ("0", 0, ""),
        ("web", None, "web"),
        ("web:web", None, "web"),
        ("9" * 11, None, "9" * 11),  # more than the field holds is a name
    ],
)
def test_an_image_is_shown_with_uid_or_username(user: str, uid: int | None, name: str) -> None:
    image = Image(
        id="sha256:1",
        manifest_digest="sha256:2",
        config=ImageConfig(user=user),
        layers=(),
        repo_tags=("a:1",),
        repo_digests=("a@sha256:2",),
        size=9,
    )
    shown = image_message(image, pinned=True)
    assert (shown.uid.value if shown.HasField("uid") else None, shown.username) == (uid, name)
    assert (shown.id, list(shown.repo_tags), list(shown.repo_digests)) == (
        "sha256:1",
        ["a:1"],
        ["a@sha256:2"],
    )
    assert (shown.size, shown.pinned) == (9, True)


def test_credentials_arrive_and_show_nothing_of_themselves() -> None:
    message = filled(api.AuthConfig())
    auth = registry_auth(message)
    for field in message.DESCRIPTOR.fields:
        assert getattr(auth, field.name) == getattr(message, field.name)
    assert message.password not in repr(auth)
    assert message.auth not in repr(auth)


def test_usage_of_a_file_system_is_shown_whole() -> None:
    shown = filesystem_usage(
        FsUsage(timestamp_ns=5, mountpoint="/var/lib/criagent", used_bytes=7, inodes_used=0)
    )
    assert (shown.timestamp, shown.fs_id.mountpoint) == (5, "/var/lib/criagent")
    assert (shown.used_bytes.value, shown.inodes_used.value) == (7, 0)
    assert shown.HasField("inodes_used")
