# SPDX-License-Identifier: Apache-2.0
"""NRI plugins that hang, die or send garbage, at each call; sockets and programs that are bad."""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import grpc
import pytest

from criagent._proto import nri_pb2 as nri
from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.nri_plugin import DIE, GARBAGE, HANG, SOCKET, NriPlugin
from tests.support.pods import Pods
from tests.support.waiting import until

LIMIT_S = 0.5  # of the plugin's answers in these tests
VALIDATE = "ValidateContainerAdjustment"
CALLS = [
    "RunPodSandbox",
    "UpdatePodSandbox",
    "PostUpdatePodSandbox",
    "CreateContainer",
    VALIDATE,
    "PostCreateContainer",
    "StartContainer",
    "PostStartContainer",
    "UpdateContainer",
    "PostUpdateContainer",
    "StopContainer",
    "RemoveContainer",
    "StopPodSandbox",
    "RemovePodSandbox",
]
# Those whose failure can fail what they are about.
DECIDING = [
    "RunPodSandbox",
    "UpdatePodSandbox",
    "CreateContainer",
    "StartContainer",
    "UpdateContainer",
]


@pytest.fixture(scope="module", autouse=True)
def short_limits() -> Iterator[None]:
    agent.stop()
    agent.start(f'[nri]\nplugin_request_timeout = "{int(LIMIT_S * 1000)}ms"\n').close()
    yield
    agent.stop()
    agent.start().close()


def life(pods: Pods) -> None:
    """Every call that a plugin can hear of."""
    cri = pods.cri
    sandbox, config = pods.sandbox()
    resize = api.UpdatePodSandboxResourcesRequest(pod_sandbox_id=sandbox)
    resize.resources.cpu_shares = 5
    cri.runtime.UpdatePodSandboxResources(resize)
    running = pods.running(pod=(sandbox, config))
    cri.runtime.UpdateContainerResources(api.UpdateContainerResourcesRequest(container_id=running))
    cri.stop(running)
    cri.remove(running)
    cri.stop_pod(sandbox)
    cri.remove_pod(sandbox)


@pytest.mark.parametrize("how", [HANG, DIE, GARBAGE])
@pytest.mark.parametrize("call", [call for call in CALLS if call != VALIDATE])
def test_a_pod_goes_on_without_a_plugin_that_fails(pods: Pods, call: str, how: str) -> None:
    with NriPlugin({call: how}) as plugin, NriPlugin(name="after", index="20") as after:
        began = time.monotonic()
        life(pods)
        took = time.monotonic() - began
        assert plugin.ended.wait(5), "the agent has let the plugin go"
        assert plugin.methods.count(call) == 1
        assert [method for method in after.methods if method in CALLS] == CALLS
    assert took < LIMIT_S + 5


@pytest.mark.parametrize("how", [HANG, DIE])
@pytest.mark.parametrize("call", DECIDING)
def test_a_policy_makes_a_failure_an_error(pods: Pods, call: str, how: str) -> None:
    policy = nri.FailurePolicy(fail_request=True)
    with (
        NriPlugin({call: how}, policy=policy),
        pytest.raises(grpc.RpcError, match=f"NRI plugin 10-test failed in {call}"),
    ):
        life(pods)
    life(pods)


def test_a_plugin_that_is_slow_once_can_stay(pods: Pods) -> None:
    policy = nri.FailurePolicy(keep_connected=True)
    with NriPlugin({"RunPodSandbox": HANG}, policy=policy) as plugin:
        pods.sandbox()
        plugin.handlers.clear()
        pods.running()
        assert "CreateContainer" in plugin.methods
        assert not plugin.ended.is_set()


def test_a_validator_that_fails_rejects(pods: Pods) -> None:
    with (
        NriPlugin({VALIDATE: HANG}, name="judge"),
        pytest.raises(grpc.RpcError, match="NRI validator 10-judge failed"),
    ):
        pods.running()
    pods.running()


def test_other_pods_do_not_wait_for_one_that_a_plugin_holds(pods: Pods) -> None:
    """The plugin hangs for one pod only; twenty others come and go meanwhile."""
    held, go = threading.Event(), threading.Event()

    def run(request: nri.RunPodSandboxRequest) -> None:
        if request.pod.labels.get("held"):
            held.set()
            go.wait(60)

    policy = nri.FailurePolicy(keep_connected=True, fail_request=True)
    with NriPlugin({"RunPodSandbox": run}, policy=policy) as plugin:
        waiting = pods.config(labels={"held": "yes"})
        runner = threading.Thread(target=lambda: _ignored(pods.cri, waiting))
        runner.start()
        assert held.wait(10)
        took: list[float] = []
        while runner.is_alive() and len(took) < 20:
            began = time.monotonic()
            sandbox, _ = pods.sandbox()
            took.append(time.monotonic() - began)
            pods.cri.remove_pod(sandbox)
        go.set()
        runner.join()
        assert plugin.methods.count("RunPodSandbox") > len(took) > 1
        assert sorted(took)[len(took) // 2] < LIMIT_S / 2


def _ignored(cri: Cri, config: api.PodSandboxConfig) -> None:
    with contextlib.suppress(grpc.RpcError):  # it is held for too long
        cri.run(config)


@pytest.mark.parametrize("how", [HANG, DIE, GARBAGE])
@pytest.mark.parametrize("call", ["Configure", "Synchronize"])
def test_a_plugin_that_fails_to_register_leaves_nothing(pods: Pods, call: str, how: str) -> None:
    plugin = NriPlugin({call: how})
    plugin._thread.start()
    plugin.call("RegisterPlugin", plugin._identity)
    assert plugin.ended.wait(10)
    plugin.close()
    life(pods)


@pytest.mark.parametrize(
    ("name", "index", "reason"),
    [("", "10", "plugin name '' is not"), ("a b", "10", "'a b' is not"), ("a", "7", "'7' is not")],
)
def test_a_bad_name_is_refused(name: str, index: str, reason: str) -> None:
    plugin = NriPlugin(name=name, index=index)
    plugin._thread.start()
    answer = plugin.call("RegisterPlugin", plugin._identity)
    assert reason in answer.status.message
    assert plugin.ended.wait(10)
    plugin.close()


def test_connections_without_a_plugin_end(pods: Pods) -> None:
    silent = socket.socket(socket.AF_UNIX)
    silent.connect(str(SOCKET))
    loud = socket.socket(socket.AF_UNIX)
    loud.connect(str(SOCKET))
    loud.sendall(b"GET / HTTP/1.1\r\n\r\n")
    assert loud.recv(1) == b""
    life(pods)
    silent.settimeout(10)
    assert silent.recv(1) == b"", "the agent waits for a registration for five seconds"
    silent.close()
    loud.close()


def test_a_look_at_the_socket_is_no_failed_plugin() -> None:
    """As the doctor looks; a connection that says something and ends is one."""
    before = len(agent.LOG.read_text())
    for said in (b"", b"GET / HTTP/1.1\r\n\r\n"):
        with socket.socket(socket.AF_UNIX) as looking:
            looking.connect(str(SOCKET))
            looking.sendall(said)

    def failed() -> list[str]:
        lines = agent.LOG.read_text()[before:].splitlines()
        return [line for line in lines if "nri_plugin_not_registered" in line]

    until(failed, "the event of the second", 3)
    (line,) = failed()
    assert "not ttrpc" in line or "closed the connection" in line


def test_a_socket_of_another_runtime_is_left_alone(pods: Pods) -> None:
    agent.stop()
    other = socket.socket(socket.AF_UNIX)
    other.bind(str(SOCKET))
    other.listen()
    try:
        agent.start().close()
        assert "serves NRI plugins on" in agent.LOG.read_text()
        cri = Cri()
        life(Pods(cri, pods.logs, "beside-another"))
        cri.close()
        agent.stop()
        assert SOCKET.exists()
    finally:
        other.close()
        SOCKET.unlink()
        _again()


def test_a_socket_of_a_dead_runtime_is_replaced() -> None:
    agent.kill()
    assert SOCKET.exists()
    _again()
    with NriPlugin() as plugin:
        assert plugin.methods == ["Configure", "Synchronize"]


def _again() -> None:
    agent.start(f'[nri]\nplugin_request_timeout = "{int(LIMIT_S * 1000)}ms"\n').close()


@contextlib.contextmanager
def programs(**texts: str) -> Iterator[None]:
    """An agent with these programs as plugins that it starts."""
    folder = Path("/opt/nri/plugins")
    folder.mkdir(parents=True)
    agent.stop()
    try:
        for name, text in texts.items():
            (folder / name.replace("_", "-")).write_text(text)
            os.chmod(folder / name.replace("_", "-"), 0o755)
        _again()
        yield
    finally:
        agent.stop()
        for path in folder.iterdir():
            path.unlink()
        folder.rmdir()
        folder.parent.rmdir()
        _again()


def test_bad_programs_do_not_keep_the_agent_from_starting(tmp_path: Path) -> None:
    began = time.monotonic()
    with programs(
        **{
            "10_exits": "#!/bin/sh\necho no luck >&2\nexit 3\n",
            "20_hangs": "#!/bin/sh\nexec sleep 1000\n",
            "30_no_program": "not a program",
            "badname": "#!/bin/sh\n",
            "40_wasm": "\0asm\1\0\0\0",
        }
    ):
        assert time.monotonic() - began < 30
        cri = Cri()
        life(Pods(cri, tmp_path, "bad-programs"))
        cri.close()
        log = agent.LOG.read_text()
        for text in ("no luck", "it did not answer in time", "WebAssembly is not supported"):
            assert text in log, text
        assert "plugin index 'badname' is not two digits" in log
        until(lambda: not _sleeps(), "the program that hangs to be killed")


def _sleeps() -> list[str]:
    return [
        entry.name
        for entry in Path("/proc").iterdir()
        if entry.name.isdigit() and _command(entry) == b"sleep\x001000\x00"
    ]


def _command(process: Path) -> bytes:
    try:
        return (process / "cmdline").read_bytes()
    except OSError:
        return b""
