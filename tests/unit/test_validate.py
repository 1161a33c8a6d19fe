# SPDX-License-Identifier: Apache-2.0
"""Requests that can never work are refused before anything is made, and say which field it was."""

from __future__ import annotations

import dataclasses
import os
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.model.common import (
    IdMapping,
    MountPropagation,
    NamespaceMode,
    NamespaceOptions,
    ProfileType,
    Protocol,
    Resources,
    SecurityProfile,
    UserNamespace,
)
from criagent.model.container import (
    ContainerMetadata,
    ContainerSecurity,
    ContainerSpec,
    ImageMount,
    KeyValue,
    Mount,
)
from criagent.model.sandbox import (
    DnsConfig,
    PortMapping,
    Sandbox,
    SandboxId,
    SandboxMetadata,
    SandboxSecurity,
    SandboxSpec,
)
from criagent.runtime.spec.validate import validate_container_spec, validate_sandbox_spec

POD = SandboxSpec(
    metadata=SandboxMetadata(name="web-0", uid="8d0f", namespace="default"),
    hostname="web-0",
    log_directory="/var/log/pods/default_web-0_8d0f",
)
WORK = ContainerSpec(
    metadata=ContainerMetadata(name="nginx"), image="nginx", log_path="nginx/0.log"
)


def metadata(**fields: Any) -> SandboxSpec:
    return dataclasses.replace(POD, metadata=dataclasses.replace(POD.metadata, **fields))


def security(**fields: object) -> SandboxSpec:
    return dataclasses.replace(POD, security=SandboxSecurity(**fields))  # type: ignore[arg-type]


def namespaces(**fields: object) -> SandboxSpec:
    return security(namespaces=NamespaceOptions(**fields))  # type: ignore[arg-type]


def port(host_port: int, container_port: int, host_ip: str = "") -> SandboxSpec:
    mapping = PortMapping(
        protocol=Protocol.TCP, host_port=host_port, container_port=container_port, host_ip=host_ip
    )
    return dataclasses.replace(POD, port_mappings=(mapping,))


def sandbox(*, privileged: bool = False) -> Sandbox:
    return Sandbox(
        id=SandboxId("0" * 64),
        spec=security(privileged=privileged),
        created_at_ns=1,
        boot_id="boot",
    )


def work(**fields: object) -> ContainerSpec:
    return dataclasses.replace(WORK, **fields)  # type: ignore[arg-type]


def secured(**fields: object) -> ContainerSpec:
    return work(security=ContainerSecurity(**fields))  # type: ignore[arg-type]


def mounted(target: str, host: str = "/srv", **fields: Any) -> ContainerSpec:
    return work(mounts=(Mount(container_path=target, host_path=host, **fields),))


@pytest.mark.parametrize(
    "spec",
    [
        POD,
        dataclasses.replace(POD, hostname="", log_directory=""),
        metadata(name="a/../b", namespace="../x", uid=""),
        metadata(name="..", uid="a/b"),
        dataclasses.replace(POD, hostname="a.b-c.D9"),
        dataclasses.replace(POD, hostname="pod.sub.ns.svc."),
        dataclasses.replace(POD, hostname="-a_b ü"),
        dataclasses.replace(POD, hostname="a" * 64),
        dataclasses.replace(namespaces(network=NamespaceMode.NODE), hostname=os.uname().nodename),
        namespaces(network=NamespaceMode.CONTAINER, ipc=NamespaceMode.CONTAINER),
        dataclasses.replace(POD, hostname=f"{'a' * 31}.{'b' * 32}"),
        dataclasses.replace(POD, cgroup_parent="/kubepods/besteffort/pod8d0f"),
        dataclasses.replace(POD, cgroup_parent="kubepods-besteffort-pod8d0f.slice"),
        dataclasses.replace(POD, sysctls={"net.core.somaxconn": "1024", "kernel.shmmax": "1"}),
        dataclasses.replace(POD, labels={"a": "x" * 1_000_000}),
        dataclasses.replace(POD, dns=DnsConfig(servers=("10.0.0.10",), options=("ndots:5",))),
        port(0, 80),
        port(65535, 65535, "::1"),
        dataclasses.replace(
            namespaces(network=NamespaceMode.NODE, pid=NamespaceMode.NODE, ipc=NamespaceMode.NODE),
            hostname="",
        ),
        namespaces(pid=NamespaceMode.CONTAINER),
        namespaces(userns=UserNamespace(mode=NamespaceMode.NODE)),
        security(run_as_user=0, run_as_group=2**31 - 1),
        security(seccomp=SecurityProfile(type=ProfileType.RUNTIME_DEFAULT)),
    ],
)
def test_sandboxes_that_kubernetes_sends_are_taken(spec: SandboxSpec) -> None:
    validate_sandbox_spec(spec)


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (metadata(name=""), "metadata.name"),
        (metadata(name="a\nb"), "metadata.name"),
        (metadata(name="a\0b"), "metadata.name"),
        (metadata(name="x" * 1025), "metadata.name"),
        (metadata(namespace="a;K8S_POD_NAME=other"), "metadata: "),
        (metadata(uid="a=b"), "metadata: "),
        (dataclasses.replace(POD, hostname="a" * 65), "hostname"),
        (dataclasses.replace(POD, hostname="é" * 33), "hostname"),
        (dataclasses.replace(POD, hostname="web\0"), "hostname"),
        (
            dataclasses.replace(namespaces(network=NamespaceMode.NODE), hostname="not-the-nodes"),
            "uses the node's hostname",
        ),
        (namespaces(network=NamespaceMode.TARGET), "network mode"),
        (namespaces(ipc=NamespaceMode.TARGET), "ipc mode"),
        (dataclasses.replace(POD, hostname="web\n"), "hostname"),
        (dataclasses.replace(POD, log_directory="var/log"), "log_directory"),
        (dataclasses.replace(POD, log_directory="/var/log/../../etc"), "log_directory"),
        (dataclasses.replace(POD, log_directory="/var/log\n/x"), "log_directory"),
        (dataclasses.replace(POD, log_directory="/var/log\0"), "log_directory"),
        (dataclasses.replace(POD, cgroup_parent="/kubepods/../.."), "cgroup_parent"),
        (dataclasses.replace(POD, cgroup_parent="a:b/\n"), "cgroup_parent"),
        (dataclasses.replace(POD, sysctls={"kernel.core_pattern": "|/x"}), "kernel.core_pattern"),
        (dataclasses.replace(POD, labels={"k": "é" * 600_000}), "labels"),
        (
            dataclasses.replace(POD, labels={"k": "x" * 600_000}, annotations={"k": "x" * 600_000}),
            "labels and annotations",
        ),
        (dataclasses.replace(POD, dns=DnsConfig(servers=("1.1.1.1\nsearch evil",))), "dns_config"),
        (dataclasses.replace(POD, dns=DnsConfig(searches=("",))), "dns_config"),
        (port(-1, 80), "-1"),
        (port(80, 65536), "65536"),
        (port(80, 80, "localhost"), "host_ip"),
        (namespaces(pid=NamespaceMode.TARGET), "TARGET"),
        (namespaces(userns=UserNamespace(mode=NamespaceMode.TARGET)), "user namespace mode"),
        (namespaces(userns=UserNamespace(mode=NamespaceMode.CONTAINER)), "user namespace mode"),
        (
            namespaces(
                userns=UserNamespace(uids=(IdMapping(host_id=0, container_id=0, length=1),))
            ),
            "id mappings",
        ),
        (security(run_as_user=2**31), "2147483648"),
        (security(run_as_group=-1), "-1"),
        (security(supplemental_groups=(2**32,)), "4294967296"),
        (
            security(seccomp=SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="x.json")),
            "seccomp",
        ),
        (security(apparmor=SecurityProfile(type=ProfileType.LOCALHOST)), "AppArmor"),
    ],
)
def test_bad_sandboxes_are_refused_with_the_field(spec: SandboxSpec, field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        validate_sandbox_spec(spec)


@pytest.mark.parametrize(
    "spec",
    [
        WORK,
        work(log_path=""),
        work(envs=(KeyValue(key="A", value=b""),), resources=Resources(oom_score_adj=-997)),
        mounted("/data"),
        mounted("data"),
        mounted("/a/../../data"),
        work(metadata=ContainerMetadata(name="a/../b")),
        mounted("/etc/hosts", readonly=True),
        mounted("/host/proc", "/proc"),
        mounted("/proc/cpuinfo", "/var/lib/lxcfs/proc/cpuinfo"),
        mounted("/sys/fs/bpf", "/sys/fs/bpf"),
        mounted("/x", options=("noexec",)),
        secured(run_as_user=1000, run_as_group=1000, supplemental_groups=(5,)),
        secured(add_capabilities=("NET_ADMIN", "cap_sys_time", "ALL"), drop_capabilities=("all",)),
        secured(masked_paths=("/proc/kcore",), readonly_paths=("/proc/sys",)),
        secured(
            seccomp=SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="/etc/s.json"),
            apparmor=SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="localhost/mine"),
        ),
    ],
)
def test_containers_that_kubernetes_sends_are_taken(spec: ContainerSpec) -> None:
    validate_container_spec(spec, sandbox())


@pytest.mark.parametrize(
    ("spec", "field"),
    [
        (work(metadata=ContainerMetadata(name="")), "metadata.name"),
        (work(log_path="../../../etc/cron.d/x"), "log_path"),
        (work(log_path="/etc/cron.d/x"), "log_path"),
        (work(log_path="."), "log_path"),
        (work(log_path="a\nb"), "log_path"),
        (work(annotations={"k": "x" * 1_100_000}), "annotations"),
        (work(envs=(KeyValue(key="", value=b"x"),)), "environment"),
        (work(envs=(KeyValue(key="A=B", value=b"x"),)), "environment"),
        (work(envs=(KeyValue(key="A", value=b"x\0y"),)), "environment"),
        (work(resources=Resources(oom_score_adj=-1001)), "oom_score_adj"),
        (mounted(""), "container_path"),
        (mounted("/"), "container_path"),
        (mounted("//"), "container_path"),
        (mounted("/./"), "container_path"),
        (mounted("/a\0b"), "container_path"),
        (mounted("/proc"), "/proc"),
        (mounted("//proc/self/attr"), "/proc"),
        (mounted("proc/sys/kernel"), "/proc"),
        (mounted("/data/../proc/sys"), "/proc"),
        (mounted("/data/.."), "container_path"),
        (mounted("/x", ""), "host_path"),
        (mounted("/x", "relative"), "host_path"),
        (mounted("/x", "/a\0b"), "host_path"),
        (mounted("/x", options=("suid",)), "suid"),
        (mounted("/x", recursive_read_only=True), "recursive_read_only requires readonly"),
        (
            mounted(
                "/x",
                recursive_read_only=True,
                readonly=True,
                propagation=MountPropagation.HOST_TO_CONTAINER,
            ),
            "private propagation",
        ),
        (mounted("/x", image_sub_path="etc"), "image_sub_path"),
        (mounted("/x", "", image=ImageMount(image="v")), "^ImageVolumeMountFailed: .*readonly"),
        (mounted("/x", "", readonly=True, image=ImageMount(image="")), "image.image"),
        (mounted("/x", "/y", readonly=True, image=ImageMount(image="v")), "host_path"),
        (
            mounted("/x", "", readonly=True, image=ImageMount(image="v"), image_sub_path="a/../b"),
            "relative image_sub_path",
        ),
        (work(cdi_devices=("gpu",)), "vendor/class=name"),
        (work(cdi_devices=("vendor.com/gpu=0",) * 1001), "1000 CDI"),
        (secured(privileged=True), "privileged sandbox"),
        (secured(run_as_user=4294967296), "4294967296"),
        (secured(run_as_user=-1), "-1"),
        (secured(supplemental_groups=(2**31,)), "2147483648"),
        (secured(run_as_user=1, run_as_username="root"), "run_as_username"),
        (secured(namespaces=NamespaceOptions(pid=NamespaceMode.TARGET)), "target_id"),
        (secured(add_capabilities=("FLY",)), "FLY"),
        (secured(drop_capabilities=("CAP_CAP_CHOWN",)), "CAP_CAP_CHOWN"),
        (secured(masked_paths=("proc/kcore",)), "masked"),
        (secured(readonly_paths=("/proc/../etc",)), "readonly"),
        (
            secured(seccomp=SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="")),
            "seccomp",
        ),
        (
            secured(apparmor=SecurityProfile(type=ProfileType.LOCALHOST, localhost_ref="a\nb")),
            "AppArmor",
        ),
        (mounted("/x", uid_mappings=(IdMapping(host_id=1, container_id=0, length=1),)), "mapping"),
    ],
)
def test_bad_containers_are_refused_with_the_field(spec: ContainerSpec, field: str) -> None:
    with pytest.raises(InvalidRequestError, match=field):
        validate_container_spec(spec, sandbox())


def test_privileged_containers_need_a_privileged_sandbox_and_may_have_the_nodes_proc() -> None:
    spec = dataclasses.replace(
        mounted("/proc", "/proc"), security=ContainerSecurity(privileged=True)
    )
    validate_container_spec(spec, sandbox(privileged=True))
    below = dataclasses.replace(mounted("/proc/1"), security=ContainerSecurity(privileged=True))
    with pytest.raises(InvalidRequestError, match="/proc"):
        validate_container_spec(below, sandbox(privileged=True))
