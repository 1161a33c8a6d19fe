# SPDX-License-Identifier: Apache-2.0
# vm: seconds=270
"""The systemd driver: scopes under the kubelet's slices, and what systemd thinks of them."""

from __future__ import annotations

import subprocess
from concurrent.futures import ThreadPoolExecutor

import grpc
import pytest

from tests.support.cri_client import Cri, api
from tests.support.units import container_units, show, systemctl
from tests.support.vm_fixtures import CGROUPS, VmPods, cgroup_of, scope_of, sleeper
from tests.support.waiting import until

HANDLERS = ("crun", "runc")


def test_the_driver_is_told_by_runtime_config(cri: Cri) -> None:
    answer = cri.runtime.RuntimeConfig(api.RuntimeConfigRequest(), timeout=30)
    assert answer.linux.cgroup_driver == api.SYSTEMD


@pytest.mark.parametrize("handler", HANDLERS)
def test_a_container_is_a_scope_of_its_pods_slice(pods: VmPods, handler: str) -> None:
    sandbox = pods.of_handler(handler)
    container_id = pods.created(sleeper(), sandbox)
    scope = scope_of(pods.cri, container_id)
    # cAdvisor and the kubelet take the id after the last dash of the scope's name.
    assert (
        scope == CGROUPS / sandbox[1].linux.cgroup_parent.lstrip("/") / f"cri-{container_id}.scope"
    )
    assert show(scope.name, "Slice") == scope.parent.name
    assert show(scope.name, "ActiveState") == "active"
    assert show(scope.name, "Delegate") == "yes"
    assert container_units() == [scope.name]
    pods.cri.stop(container_id)
    pods.cri.remove(container_id)
    assert container_units() == []
    assert not scope.exists()


@pytest.mark.parametrize("handler", HANDLERS)
def test_no_unit_is_left_of_containers_that_fail(pods: VmPods, handler: str) -> None:
    sandbox = pods.of_handler(handler)
    failing = pods.created(sleeper("failing", "sh", "-c", "exit 3"), sandbox)
    until(lambda: pods.cri.status(failing).state == api.CONTAINER_EXITED, "the exit", 60)
    with pytest.raises(grpc.RpcError) as caught:
        pods.created(sleeper("missing", "/no/such/program"), sandbox)
    assert "no/such/program" in (caught.value.details() or "")
    until(lambda: container_units() == [], "the end of the scopes", 60)


def test_a_pod_without_a_parent_lives_in_the_system_slice(pods: VmPods) -> None:
    config = pods.config()
    config.linux.cgroup_parent = ""
    container_id = pods.created(sleeper(), (pods.cri.run(config), config))
    assert (
        scope_of(pods.cri, container_id) == CGROUPS / "system.slice" / f"cri-{container_id}.scope"
    )


def test_a_parent_that_is_no_slice_is_refused_with_its_cure(pods: VmPods) -> None:
    config = pods.config()
    config.linux.cgroup_parent = "/kubepods/pod1"
    with pytest.raises(grpc.RpcError) as caught:
        pods.created(sleeper(), (pods.cri.run(config), config))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert "set cgroupDriver: systemd" in (caught.value.details() or "")


@pytest.mark.parametrize("handler", HANDLERS)
def test_exec_runs_in_the_container_and_its_time_out_kills_it(pods: VmPods, handler: str) -> None:
    container_id = pods.created(sleeper(), pods.of_handler(handler))
    assert pods.cri.exec(container_id, "echo", "hello", timeout=60).stdout == b"hello\n"
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.exec(container_id, "sh", "-c", "sleep 54321 & sleep 54321", timeout=3)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    left = subprocess.run(["pgrep", "-f", "sleep 54321"], capture_output=True, check=False)
    assert left.stdout == b""
    assert cgroup_of(pods.cri, container_id).exists()


def test_the_monitor_lives_in_a_unit_of_its_own(pods: VmPods) -> None:
    container_id = pods.created(sleeper())
    found = subprocess.run(
        ["pgrep", "-f", f"conmon.*{container_id}"], capture_output=True, check=True
    )
    pid = int(found.stdout.split()[0])
    with open(f"/proc/{pid}/cgroup") as file:
        assert file.read().strip() == "0::/system.slice/criagent-monitors.service/monitors"


def test_a_shared_pid_namespace_has_a_scope_of_its_own(pods: VmPods) -> None:
    config = pods.config()
    config.linux.security_context.namespace_options.pid = api.POD
    sandbox = pods.cri.run(config, timeout=120)
    wanted = sleeper()
    wanted.linux.security_context.namespace_options.pid = api.POD
    container_id = pods.created(wanted, (sandbox, config))
    assert sorted(container_units()) == sorted(
        [f"cri-{sandbox}.scope", f"cri-{container_id}.scope"]
    )
    assert show(f"cri-{sandbox}.scope", "Slice") == show(f"cri-{container_id}.scope", "Slice")
    pods.cri.stop_pod(sandbox)
    pods.cri.remove_pod(sandbox)
    assert container_units() == []


def test_daemon_reload_changes_no_limit(pods: VmPods) -> None:
    wanted = sleeper()
    wanted.linux.resources.memory_limit_in_bytes = 100 << 20
    wanted.linux.resources.cpu_quota = 20_000
    wanted.linux.resources.cpu_period = 100_000
    container_id = pods.created(wanted)
    scope = scope_of(pods.cri, container_id)
    before = {name: (scope / name).read_text() for name in ("memory.max", "cpu.max", "cpu.weight")}
    systemctl("daemon-reload")
    assert {name: (scope / name).read_text() for name in before} == before
    assert before["memory.max"].strip() == str(100 << 20)


@pytest.mark.parametrize("pid", [api.NamespaceMode.CONTAINER, api.NamespaceMode.POD])
def test_containers_of_a_pod_that_are_stopped_at_once(pods: VmPods, pid: int) -> None:
    """As the kubelet does; some end at SIGTERM, others only at SIGKILL."""
    commands = (("sleep", "100000"), ("sh", "-c", "trap '' TERM; while :; do sleep 0.1; done"))

    def made(number: int) -> str:
        wanted = sleeper(f"c{number}", *commands[number % 2])
        wanted.linux.security_context.namespace_options.pid = pid  # type: ignore[assignment]
        return pods.created(wanted, sandbox)

    def stop(container_id: str) -> None:
        request = api.StopContainerRequest(container_id=container_id, timeout=1)
        pods.cri.runtime.StopContainer(request, timeout=120)

    with ThreadPoolExecutor(6) as threads:
        for _ in range(4):
            config = pods.config()
            config.linux.security_context.namespace_options.pid = pid  # type: ignore[assignment]
            sandbox = (pods.cri.run(config), config)
            container_ids = list(threads.map(made, range(6)))
            list(threads.map(stop, container_ids))
            assert {pods.cri.status(container_id).exit_code for container_id in container_ids} <= {
                137,
                143,
            }
            pods.cri.remove_pod(sandbox[0])
