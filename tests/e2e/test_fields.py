# SPDX-License-Identifier: Apache-2.0
"""Fields of the security context and of Linux, each by what the container or the kernel shows."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import api, container
from tests.support.pods import Pods
from tests.support.waiting import until

Change = Callable[[api.ContainerConfig], None]


def fails(pods: Pods, container_id: str, *words: str) -> bool:
    return pods.cri.exec(container_id, *words).exit_code != 0


def output(pods: Pods, container_id: str, *words: str) -> str:
    found = pods.cri.exec(container_id, *words)
    assert found.exit_code == 0, found.stderr
    return found.stdout.decode().strip()


def privileged(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
    config.linux.security_context.privileged = True


def test_paths_are_masked_and_readonly_by_default(pods: Pods) -> None:
    container_id = pods.running()
    assert output(pods, container_id, "cat", "/proc/keys") == ""
    assert fails(pods, container_id, "sh", "-c", "echo 1 > /proc/sys/vm/drop_caches")
    assert fails(pods, container_id, "sh", "-c", "echo h > /proc/sysrq-trigger")


def test_lists_of_the_request_are_used(pods: Pods) -> None:
    def lists(config: api.ContainerConfig) -> None:
        config.linux.security_context.masked_paths.extend(["/etc/passwd", "/etc"])
        config.linux.security_context.readonly_paths.append("/home")

    container_id = pods.running(change=lists)
    assert output(pods, container_id, "ls", "/etc") == ""
    assert fails(pods, container_id, "touch", "/home/x")
    assert not fails(pods, container_id, "touch", "/root/x")


def test_nothing_is_masked_for_privileged_containers(pods: Pods) -> None:
    def lists(config: api.ContainerConfig) -> None:
        privileged(config)
        config.linux.security_context.masked_paths.append("/etc/passwd")
        config.linux.security_context.readonly_paths.append("/home")

    container_id = pods.running(pod=pods.sandbox(privileged), change=lists)
    assert "root" in output(pods, container_id, "cat", "/etc/passwd")
    assert not fails(pods, container_id, "touch", "/home/x")
    caps = output(pods, container_id, "sh", "-c", "grep CapEff /proc/self/status").split()[1]
    own = Path("/proc/self/status").read_text().partition("CapPrm:")[2].split()[0]
    assert caps == own


def test_a_privileged_container_has_the_nodes_block_devices(pods: Pods) -> None:
    container_id = pods.running(pod=pods.sandbox(privileged), change=privileged)
    blocks = [path for path in Path("/dev").iterdir() if path.is_block_device()]
    assert blocks, "this node has no block device"
    found = output(pods, container_id, "stat", "-c", "%n %F %t:%T", *map(str, blocks)).splitlines()
    for path, line in zip(blocks, found, strict=True):
        number = path.stat().st_rdev
        kind = f"block special file {os.major(number):x}:{os.minor(number):x}"
        assert line == f"{path} {kind}"
    plain = pods.running()
    assert fails(pods, plain, "ls", str(blocks[0]))


def test_a_privileged_container_needs_a_privileged_pod(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("p", ["sleep", "1"])
    privileged(wanted)
    with pytest.raises(grpc.RpcError, match="privileged sandbox") as caught:
        pods.cri.create(sandbox, wanted, config)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def target(container_id: str) -> Change:
    def change(config: api.ContainerConfig) -> None:
        options = config.linux.security_context.namespace_options
        options.pid = api.TARGET
        options.target_id = container_id

    return change


def test_a_container_joins_the_pid_namespace_of_its_target(pods: Pods) -> None:
    sandbox = pods.sandbox()
    main = pods.running("sleep", "4711", pod=sandbox)
    debugger = pods.running("sleep", "4712", pod=sandbox, change=target(main))
    assert "sleep 4711" in output(pods, debugger, "ps")
    assert output(pods, debugger, "readlink", "/proc/self/ns/pid") == output(
        pods, main, "readlink", "/proc/self/ns/pid"
    )
    pods.cri.stop(debugger)
    assert pods.cri.status(main).state == api.CONTAINER_RUNNING


def test_targets_are_running_containers_of_the_same_pod(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    elsewhere = pods.running()
    created = pods.cri.create(sandbox, container("created", ["sleep", "1"]), config)
    for container_id, words in (
        (elsewhere, "not a container of this pod"),
        (created, "not running"),
    ):
        wanted = container("debugger", ["sleep", "1"])
        target(container_id)(wanted)
        with pytest.raises(grpc.RpcError, match=words) as caught:
            pods.cri.create(sandbox, wanted, config)
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_the_nodes_pid_and_ipc_namespaces_are_shared(pods: Pods) -> None:
    def host(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
        options = config.linux.security_context.namespace_options
        options.pid = options.ipc = api.NODE

    container_id = pods.running(pod=pods.sandbox(host), change=host)
    for kind in ("pid", "ipc"):
        assert output(pods, container_id, "readlink", f"/proc/self/ns/{kind}") == os.readlink(
            f"/proc/self/ns/{kind}"
        )
    own = pods.running()
    for kind in ("pid", "ipc", "uts", "net", "mnt", "cgroup"):
        assert output(pods, own, "readlink", f"/proc/self/ns/{kind}") != os.readlink(
            f"/proc/self/ns/{kind}"
        )


@pytest.mark.parametrize(
    ("number", "name"), [(api.Signal.SIGNAL_SIGUSR1, "USR1"), (api.Signal.SIGNAL_SIGHUP, "HUP")]
)
def test_the_stop_signal_of_the_request_is_sent(pods: Pods, number: int, name: str) -> None:
    def signal(config: api.ContainerConfig) -> None:
        config.stop_signal = number  # type: ignore[assignment] # the enum's number

    trap = f"trap 'echo got {name}; exit 7' {name}; echo ready; while :; do sleep 0.1; done"
    container_id = pods.running("sh", "-c", trap, change=signal)
    until(lambda: "ready" in pods.log(container_id), "the trap")
    assert pods.cri.status(container_id).stop_signal == number
    pods.cri.stop(container_id, grace=20)
    assert pods.cri.status(container_id).exit_code == 7
    assert f"got {name}" in pods.log(container_id)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda r: r.unified.update({"memory.high/../x": "1"}), "not a limit of cgroup v2"),
        (lambda r: r.unified.update({"cgroup.procs": "1"}), "not a limit of cgroup v2"),
        (lambda r: r.unified.update({"memory.high": "1\n2"}), "not a single line"),
        (lambda r: r.hugepage_limits.add(page_size="2 MB", limit=1), "hugepage size"),
    ],
)
def test_bad_limits_are_refused(
    pods: Pods, change: Callable[[api.LinuxContainerResources], object], words: str
) -> None:
    sandbox, config = pods.sandbox()
    wanted = container("limited", ["sleep", "1"])
    change(wanted.linux.resources)
    with pytest.raises(grpc.RpcError, match=words) as caught:
        pods.cri.create(sandbox, wanted, config)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT


def test_unified_keys_and_hugepages_reach_the_kernel(pods: Pods) -> None:
    have = Path("/sys/fs/cgroup/cgroup.controllers").read_text().split()
    if not {"memory", "pids", "hugetlb"} <= set(have):
        pytest.skip("this cgroup tree has no memory, pids and hugetlb controllers; see tests/vm")

    def limits(config: api.ContainerConfig) -> None:
        config.linux.resources.unified["memory.high"] = "50331648"
        config.linux.resources.unified["pids.max"] = "77"
        config.linux.resources.hugepage_limits.add(page_size="2MB", limit=4 << 20)

    container_id = pods.running(change=limits)
    request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
    info = json.loads(pods.cri.runtime.ContainerStatus(request, timeout=30).info["info"])
    place = Path(f"/proc/{info['pid']}/cgroup").read_text().strip().removeprefix("0::/")
    group = Path("/sys/fs/cgroup", place)
    for name, value in (("memory.high", 48 << 20), ("pids.max", 77), ("hugetlb.2MB.max", 4 << 20)):
        assert (group / name).read_text().strip() == str(value), name
