# SPDX-License-Identifier: Apache-2.0
"""Cgroup namespaces and the cgroup mount's mode of containers (CRI 0.38), by crun and runc."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from criagent.kernel.cgroupfs import has_nsdelegate
from tests.support.cri_client import api
from tests.support.mapped import mapped
from tests.support.mapped_pods import init, words
from tests.support.pods import Pods

pytestmark = pytest.mark.root

Change = Callable[[api.ContainerConfig], None]


def asking(mode: int | None = None, mount: int = 0, *, privileged: bool = False) -> Change:
    def change(config: api.ContainerConfig) -> None:
        security = config.linux.security_context
        security.privileged = privileged
        security.cgroup_mount_mode = mount  # type: ignore[assignment] # the CRI's number
        if mode is not None:
            security.namespace_options.cgroupns_options.mode = mode  # type: ignore[assignment]

    return change


def privileged_pod(config: api.PodSandboxConfig) -> None:
    config.linux.security_context.privileged = True


def sandbox(
    pods: Pods, change: Callable[[api.PodSandboxConfig], None], handler: str
) -> tuple[str, api.PodSandboxConfig]:
    config = pods.config()
    change(config)
    return pods.cri.run(config, handler=handler), config


def own_namespace(pods: Pods, container_id: str) -> bool:
    ours = Path("/proc/self/ns/cgroup").readlink()
    return (init(pods, container_id) / "ns/cgroup").readlink() != ours


def mount_options(pods: Pods, container_id: str) -> str:
    """Of the topmost mount on /sys/fs/cgroup."""
    lines = words(pods, container_id, "cat", "/proc/mounts").splitlines()
    return [line.split()[3] for line in lines if line.split()[1] == "/sys/fs/cgroup"][-1]


@pytest.mark.parametrize("handler", ["crun", "runc"])
@pytest.mark.parametrize(
    ("mode", "privileged", "own", "access"),
    [
        (None, False, True, "ro"),
        (api.CONTAINER, False, True, "ro"),
        (api.NODE, False, False, "ro"),
        (None, True, False, "rw"),
        (api.CONTAINER, True, True, "rw"),
        (api.NODE, True, False, "rw"),
    ],
)
def test_the_namespace_and_the_mount_are_what_was_asked_for(
    pods: Pods, handler: str, mode: int | None, privileged: bool, own: bool, access: str
) -> None:
    pod = sandbox(pods, privileged_pod, handler)
    container_id = pods.running(change=asking(mode, privileged=privileged), pod=pod)
    assert own_namespace(pods, container_id) is own
    assert mount_options(pods, container_id).split(",")[0] == access


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (asking(api.POD), "must be CONTAINER or NODE"),
        (asking(api.TARGET), "must be CONTAINER or NODE"),
        (asking(api.NODE, api.CGROUP_MOUNT_MODE_READ_WRITE), "only a privileged container"),
        (asking(None, api.CGROUP_MOUNT_MODE_READ_ONLY, privileged=True), "always writable"),
    ],
)
def test_what_the_cri_forbids_is_refused(pods: Pods, change: Change, text: str) -> None:
    pod = pods.sandbox(privileged_pod)
    with pytest.raises(grpc.RpcError) as caught:
        pods.running(change=change, pod=pod)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in str(caught.value.details())


def test_a_writable_cgroup_or_the_cure(pods: Pods) -> None:
    writable = asking(None, api.CGROUP_MOUNT_MODE_READ_WRITE)
    pod = pods.sandbox()
    if not has_nsdelegate():
        with pytest.raises(grpc.RpcError, match="nsdelegate") as caught:
            pods.running(change=writable, pod=pod)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
        return
    container_id = pods.running(change=writable, pod=pod)
    words(pods, container_id, "mkdir", "/sys/fs/cgroup/inner")
    words(pods, container_id, "rmdir", "/sys/fs/cgroup/inner")


def test_status_says_so(pods: Pods) -> None:
    status = pods.cri.runtime.Status(api.StatusRequest())
    assert status.features.cgroup_mount_mode
    assert status.features.user_namespaces_host_network
    assert status.features.seccomp_profile_oci
    assert all(h.features.cgroup_namespaces for h in status.runtime_handlers)


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_a_user_namespace_beside_the_nodes_network(pods: Pods, handler: str) -> None:
    """KEP-5607: root of the namespace owns no network, and reads the node's sysfs."""
    container_id = pods.running(pod=sandbox(pods, mapped(network=api.NODE), handler))
    process = init(pods, container_id)
    assert (process / "ns/net").readlink() == Path("/proc/self/ns/net").readlink()
    assert (process / "ns/user").readlink() != Path("/proc/self/ns/user").readlink()
    assert words(pods, container_id, "id", "-u") == "0"
    assert "lo" in words(pods, container_id, "ls", "/sys/class/net").split()
    answer = pods.cri.exec(container_id, "sh", "-c", "echo 0 > /sys/kernel/mm/ksm/run")
    assert answer.exit_code != 0
