# SPDX-License-Identifier: Apache-2.0
"""NRI plugins of a test's own: events, adjustments, updates, evictions, validators."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import grpc
import pytest

from criagent._proto import nri_pb2 as nri
from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.nri_plugin import SOCKET, NriPlugin, RefusalError
from tests.support.pods import Pods
from tests.support.waiting import until

LIFE = ["CreateContainer", "PostCreateContainer", "StartContainer", "PostStartContainer"]


def adjusting(change: Callable[[nri.ContainerAdjustment], object]) -> Callable[[Any], Any]:
    """A handler of CreateContainer."""

    def handler(_: nri.CreateContainerRequest) -> nri.CreateContainerResponse:
        answer = nri.CreateContainerResponse()
        change(answer.adjust)
        return answer

    return handler


def specification(container_id: str) -> dict[str, Any]:
    """What the OCI runtime got."""
    found: dict[str, Any] = json.loads(
        Path(f"/run/criagent/containers/{container_id}/config.json").read_text()
    )
    return found


def test_a_pod_and_its_container_live_as_the_plugin_is_told(cri: Cri, pods: Pods) -> None:
    with NriPlugin() as plugin:
        sandbox, config = pods.sandbox(lambda pod: pod.labels.update({"app": "web"}))
        running = pods.running(pod=(sandbox, config))
        assert plugin.of(sandbox) == ["RunPodSandbox"]
        assert plugin.of(running) == [LIFE[0], "ValidateContainerAdjustment", *LIFE[1:]]
        pod = plugin.request("RunPodSandbox").pod
        assert (pod.name, pod.labels["app"]) == (config.metadata.name, "web")
        assert pod.ips[0] == cri.pod_status(sandbox).network.ip
        network = {one.type: one.path for one in pod.linux.namespaces}["network"]
        assert Path(network).exists()
        creating = plugin.request("CreateContainer").container
        assert creating.state == nri.CONTAINER_UNKNOWN
        assert list(creating.args) == ["sleep", "100000"]
        assert "/etc/hosts" in {mount.destination for mount in creating.mounts}
        started = plugin.request("PostStartContainer").container
        assert started.state == nri.CONTAINER_RUNNING
        assert started.pid > 1
        cri.stop(running)
        assert plugin.of(running)[-1] == "StopContainer"
        stopped = plugin.request("StopContainer").container
        assert (stopped.state, stopped.exit_code) == (nri.CONTAINER_STOPPED, 137)
        cri.remove(running)
        cri.stop_pod(sandbox)
        cri.stop_pod(sandbox)
        cri.remove_pod(sandbox)
        assert plugin.of(running)[-2:] == ["StopContainer", "RemoveContainer"]
        assert plugin.of(sandbox) == ["RunPodSandbox", "StopPodSandbox", "RemovePodSandbox"]


def test_an_exit_by_itself_is_told_once(cri: Cri, pods: Pods) -> None:
    with NriPlugin() as plugin:
        ended = pods.running("sh", "-c", "exit 3")
        until(lambda: "StopContainer" in plugin.of(ended), "the plugin to hear of the exit")
        assert plugin.request("StopContainer").container.exit_code == 3
        cri.remove(ended)
        assert plugin.of(ended)[-3:] == ["PostStartContainer", "StopContainer", "RemoveContainer"]


def test_plugins_are_called_in_their_order_and_see_each_other(pods: Pods) -> None:
    order: list[str] = []

    def noting(name: str) -> Callable[[Any], Any]:
        def handler(request: nri.CreateContainerRequest) -> nri.CreateContainerResponse:
            order.append(name)
            seen = [entry for entry in request.container.env if entry.startswith("BY_")]
            answer = nri.CreateContainerResponse()
            answer.adjust.env.add(key=f"BY_{name}", value=str(len(seen)))
            return answer

        return handler

    with (
        NriPlugin({"CreateContainer": noting("last")}, index="90", name="z"),
        NriPlugin({"CreateContainer": noting("first")}, index="01", name="a"),
        NriPlugin({"CreateContainer": noting("middle")}, index="50", name="m"),
    ):
        running = pods.running()
    assert order == ["first", "middle", "last"]
    env = specification(running)["process"]["env"]
    assert env[-3:] == ["BY_first=0", "BY_middle=1", "BY_last=2"]


def test_adjustments_reach_the_container(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "given").write_text("by a plugin")

    def change(adjust: nri.ContainerAdjustment) -> None:
        adjust.env.add(key="ADDED", value="yes")
        adjust.env.add(key="-HOSTNAME")
        adjust.annotations["example.com/by"] = "nri"
        mount = adjust.mounts.add(destination="/given", type="bind", source=str(tmp_path / "given"))
        mount.options.extend(["bind", "ro"])
        adjust.mounts.add(destination="-/dev/mqueue")
        adjust.rlimits.add(type="RLIMIT_NOFILE", soft=77, hard=88)
        device = adjust.linux.devices.add(path="/dev/given", type="c", major=1, minor=3)
        device.file_mode.value = 0o666
        adjust.linux.oom_score_adj.value = 321
        adjust.hooks.poststart.add(path="/bin/true", args=["true"])

    with NriPlugin({"CreateContainer": adjusting(change)}):
        running = pods.running()
    shown = cri.exec(running, "sh", "-c", "env; cat /given; ulimit -n; ls -l /dev/given").stdout
    assert b"ADDED=yes" in shown
    assert b"by a plugin" in shown
    assert b"77" in shown
    assert b"1,   3" in shown
    assert cri.exec(running, "cat", "/proc/1/oom_score_adj").stdout == b"321\n"
    assert cri.exec(running, "sh", "-c", "echo x > /dev/given").exit_code == 0
    mounts = cri.exec(running, "cat", "/proc/1/mountinfo").stdout.decode()
    assert " /dev/mqueue " not in mounts
    spec = specification(running)
    assert spec["annotations"] == {"example.com/by": "nri"}
    assert not any(entry.startswith("HOSTNAME=") for entry in spec["process"]["env"])
    assert [limit["type"] for limit in spec["process"]["rlimits"]] == ["RLIMIT_NOFILE"]


def test_two_plugins_that_disagree_fail_the_container(cri: Cri, pods: Pods) -> None:
    def change(adjust: nri.ContainerAdjustment) -> None:
        adjust.args.extend(["sleep", "1"])

    sandbox, config = pods.sandbox()
    with (
        NriPlugin({"CreateContainer": adjusting(change)}, index="10", name="one") as first,
        NriPlugin({"CreateContainer": adjusting(change)}, index="20", name="two"),
    ):
        with pytest.raises(grpc.RpcError, match="10-one and 20-two both set Args"):
            cri.create(sandbox, container("c", ["sleep", "1"]), config)
        assert first.methods[-2:] == ["StopContainer", "RemoveContainer"]
    assert not cri.containers()


def test_a_refusal_fails_the_pod_and_is_undone(cri: Cri, pods: Pods) -> None:
    def refuse(_: object) -> None:
        raise RefusalError("not on this node")

    with (
        NriPlugin({"RunPodSandbox": refuse}, name="no") as plugin,
        pytest.raises(grpc.RpcError, match="plugin 10-no refused RunPodSandbox: not on this node"),
    ):
        pods.sandbox()
    assert [m for m in plugin.methods if "Pod" in m] == [
        "RunPodSandbox",
        "StopPodSandbox",
        "RemovePodSandbox",
    ]
    assert not cri.pods()


def test_old_plugins_hear_of_events_by_state_change(cri: Cri, pods: Pods) -> None:
    def unknown(_: object) -> None:
        raise NotImplementedError

    events = ["RunPodSandbox", "PostCreateContainer", "StartContainer", "StopPodSandbox"]
    with NriPlugin(dict.fromkeys(events, unknown)) as plugin:
        sandbox, config = pods.sandbox()
        running = pods.running(pod=(sandbox, config))
        cri.stop_pod(sandbox)
        changes = [
            (request.event, request.container.id or request.pod.id)
            for method, request in plugin.calls
            if method == "StateChange"
        ]
    assert changes == [
        (nri.RUN_POD_SANDBOX, sandbox),
        (nri.POST_CREATE_CONTAINER, running),
        (nri.START_CONTAINER, running),
        (nri.STOP_POD_SANDBOX, sandbox),
    ]


def test_a_resize_of_the_pod_reaches_plugins(cri: Cri, pods: Pods) -> None:
    with NriPlugin() as plugin:
        sandbox, _ = pods.sandbox(lambda pod: setattr(pod.linux.overhead, "cpu_shares", 7))
        assert plugin.request("RunPodSandbox").pod.linux.pod_overhead.cpu.shares.value == 7
        request = api.UpdatePodSandboxResourcesRequest(pod_sandbox_id=sandbox)
        request.overhead.cpu_shares = 8
        request.resources.memory_limit_in_bytes = 1 << 20
        cri.runtime.UpdatePodSandboxResources(request)
        before, after = plugin.request("UpdatePodSandbox"), plugin.request("PostUpdatePodSandbox")
        assert before.overhead_linux_resources.cpu.shares.value == 8
        assert before.linux_resources.memory.limit.value == 1 << 20
        assert before.pod.linux.pod_overhead.cpu.shares.value == 7
        assert after.pod.linux.pod_overhead.cpu.shares.value == 8
        cri.stop_pod(sandbox)
        stopped = plugin.request("StopPodSandbox").pod
        assert stopped.linux.pod_resources.memory.limit.value == 1 << 20


def test_a_plugin_evicts_a_container(cri: Cri, pods: Pods) -> None:
    victim = pods.running("sh", "-c", "trap '' TERM; sleep 100000")
    with NriPlugin(name="evictor") as plugin:
        request = nri.UpdateContainersRequest()
        request.evict.add(container_id=victim, reason="its memory is needed")
        answer = plugin.call("UpdateContainers", request)
        assert not answer.status.code
        assert cri.status(victim).state == api.CONTAINER_EXITED
        assert "StopContainer" in plugin.of(victim)
    assert "its memory is needed" in agent.LOG.read_text()


def test_an_update_of_what_is_not_there_fails(pods: Pods) -> None:
    with NriPlugin() as plugin:
        request = nri.UpdateContainersRequest()
        request.update.add(container_id="0" * 64).linux.resources.cpu.shares.value = 9
        request.update.add(container_id="1" * 64, ignore_failure=True)
        answer = nri.UpdateContainersResponse.FromString(
            plugin.call("UpdateContainers", request).payload
        )
        assert [failed.container_id for failed in answer.failed] == ["0" * 64]
        pods.sandbox()
        assert "RunPodSandbox" in plugin.methods


def test_a_validator_rejects_an_adjustment(cri: Cri, pods: Pods) -> None:
    def change(adjust: nri.ContainerAdjustment) -> None:
        adjust.env.add(key="LD_PRELOAD", value="x")

    def validate(request: Any) -> Any:
        answer = nri.ValidateContainerAdjustmentResponse()
        owners = request.owners.owners[request.container.id].compound[6].owners
        if "LD_PRELOAD" in owners:
            assert not any(entry.startswith("LD_PRELOAD") for entry in request.container.env)
            answer.reject, answer.reason = True, f"{owners['LD_PRELOAD']} sets LD_PRELOAD"
        return answer

    sandbox, config = pods.sandbox()
    with NriPlugin({"ValidateContainerAdjustment": validate}, name="judge"):
        pods.running(pod=(sandbox, config))
        with (
            NriPlugin({"CreateContainer": adjusting(change)}, name="sinner", index="20"),
            pytest.raises(grpc.RpcError, match=r"judge rejected .*20-sinner sets LD_PRELOAD"),
        ):
            cri.create(sandbox, container("other", ["sleep", "1"]), config)


def test_the_default_validator_rejects_hooks_and_asks_for_plugins(tmp_path: Path) -> None:
    agent.stop()
    cri = agent.start(
        "[nri.default_validator]\nenable = true\nreject_oci_hook_adjustment = true\n"
        'required_plugins = ["needed"]\ntolerate_missing_plugins_annotation = "tolerates"\n'
    )
    try:
        pods = Pods(cri, tmp_path, "validated")
        sandbox, config = pods.sandbox()
        with pytest.raises(grpc.RpcError, match="required NRI plugins are not there: needed"):
            pods.running(pod=(sandbox, config))
        pods.running(pod=pods.sandbox(lambda pod: pod.annotations.update(tolerates="true")))

        def hook(adjust: nri.ContainerAdjustment) -> None:
            adjust.hooks.prestart.add(path="/bin/true")

        with NriPlugin({"CreateContainer": adjusting(hook)}, name="needed") as plugin:
            with pytest.raises(grpc.RpcError, match="10-needed may not inject OCI hooks"):
                pods.running(pod=(sandbox, config))
            plugin.handlers.clear()
            pods.running(pod=(sandbox, config))
        for pod in cri.pods():
            cri.remove_pod(pod.id)
    finally:
        cri.close()
        agent.stop()
        agent.start().close()


def test_plugins_learn_of_what_runs_when_the_agent_starts_again(pods: Pods) -> None:
    running = pods.running()
    sandbox = pods.cri.containers()[0].pod_sandbox_id
    agent.kill()
    agent.start().close()
    with NriPlugin() as plugin:
        told = plugin.request("Synchronize")
        assert [pod.id for pod in told.pods] == [sandbox]
        assert [one.id for one in told.containers] == [running]
        assert told.containers[0].state == nri.CONTAINER_RUNNING
        assert list(told.containers[0].args) == ["sleep", "100000"]


def test_what_is_created_meanwhile_waits_for_a_synchronization(pods: Pods) -> None:
    go, reached = threading.Event(), threading.Event()
    told: list[bool] = []

    def synchronize(_: object) -> nri.SynchronizeResponse:
        reached.set()
        go.wait(10)
        return nri.SynchronizeResponse()

    handlers = {"Synchronize": synchronize, "CreateContainer": lambda _: told.append(go.is_set())}
    sandbox, config = pods.sandbox()
    with NriPlugin(handlers) as plugin:
        assert reached.wait(10)
        made: list[str] = []
        making = threading.Thread(target=lambda: made.append(pods.running(pod=(sandbox, config))))
        making.start()
        until(lambda: owners() != [], "the creation to begin")
        go.set()
        making.join()
        assert told == [True]
        assert plugin.of(made[0])[0] == "CreateContainer"


def owners() -> list[str]:
    """Bundles of containers, which exist before plugins are asked."""
    return [path.name for path in Path("/run/criagent/containers").iterdir()]


def test_only_root_can_connect() -> None:
    assert SOCKET.stat().st_mode & 0o777 == 0o600
    assert SOCKET.parent.stat().st_mode & 0o777 == 0o700
