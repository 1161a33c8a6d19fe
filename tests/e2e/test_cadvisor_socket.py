# SPDX-License-Identifier: Apache-2.0
"""What cAdvisor asks a containerd, over the wire: Version, Containers.Get and Tasks.Get."""

from __future__ import annotations

import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from google.protobuf.empty_pb2 import Empty

from criagent._proto import containerd_pb2 as containerd
from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root
SOCKET = Path("/run/containerd/containerd.sock")
CONFIG = f'[telemetry]\ncadvisor_socket = "{SOCKET}"\n'
KUBERNETES = (("containerd-namespace", "k8s.io"),)


class Containerd:
    """The calls as a client of containerd makes them."""

    def __init__(self) -> None:
        self._channel = grpc.insecure_channel(
            f"unix:{SOCKET}", options=[("grpc.use_local_subchannel_pool", 1)]
        )

    def close(self) -> None:
        self._channel.close()

    def call(self, method: str, request: Any, answer: Any, metadata: Any = KUBERNETES) -> Any:
        stub: Any = self._channel.unary_unary(
            f"/containerd.services.{method}",
            request_serializer=lambda message: message.SerializeToString(),
            response_deserializer=answer.FromString,
        )
        return stub(request, metadata=metadata, timeout=10, wait_for_ready=True)

    def container(self, object_id: str, metadata: Any = KUBERNETES) -> containerd.Container:
        request = containerd.GetContainerRequest(id=object_id)
        answer = containerd.GetContainerResponse
        return self.call("containers.v1.Containers/Get", request, answer, metadata).container

    def task(self, object_id: str) -> containerd.Process:
        request = containerd.GetTaskRequest(container_id=object_id)
        return self.call("tasks.v1.Tasks/Get", request, containerd.GetTaskResponse).process


@pytest.fixture
def served(cri: Cri) -> Iterator[Cri]:
    """The agent with the socket; afterwards it is without again, as `nothing_leaks` found it."""
    agent.stop()
    client = agent.start(CONFIG)
    yield client
    client.close()
    if agent.running():
        agent.stop()
    agent.start().close()


@pytest.fixture
def asked(served: Cri) -> Iterator[Containerd]:
    client = Containerd()
    yield client
    client.close()


def refused(call: Any, *arguments: Any) -> grpc.StatusCode:
    with pytest.raises(grpc.RpcError) as caught:
        call(*arguments)
    code: grpc.StatusCode = caught.value.code()
    return code


def network_cgroup(sandbox: str) -> Path:
    return Path("/sys/fs/cgroup/cri", sandbox)


def process_of(cri: Cri, container: str) -> int:
    request = api.ContainerStatusRequest(container_id=container, verbose=True)
    return int(json.loads(cri.runtime.ContainerStatus(request).info["info"])["pid"])


def test_a_container_is_told_with_its_labels_cgroup_and_process(
    asked: Containerd, served: Cri, pods: Pods
) -> None:
    pods.cri = served
    sandbox, config = pods.sandbox(lambda config: config.labels.update({"app": "web"}))

    def change(config: api.ContainerConfig) -> None:
        config.labels["io.kubernetes.container.name"] = "main"
        config.envs.append(api.KeyValue(key="PASSWORD", value=b"secret"))

    container = pods.running(change=change, pod=(sandbox, config))
    found = asked.container(container)
    assert found.id == container
    assert dict(found.labels) == {
        "io.kubernetes.container.name": "main",
        "io.cri-containerd.kind": "container",
    }
    assert found.image == BUSYBOX
    assert found.created_at.ToNanoseconds() == served.status(container).created_at
    spec = json.loads(found.spec.value)
    assert found.spec.type_url == "types.containerd.io/opencontainers/runtime-spec/1/Spec"
    assert spec["linux"]["cgroupsPath"] == f"/cri/{container}"
    assert b"secret" not in found.spec.value
    task = asked.task(container)
    assert (task.pid, task.status) == (process_of(served, container), containerd.RUNNING)
    pause = asked.container(sandbox)
    assert dict(pause.labels) == {"app": "web", "io.cri-containerd.kind": "sandbox"}
    served.stop(container)
    ended = asked.task(container)
    assert (ended.status, ended.exit_status) == (containerd.STOPPED, 137)


def test_what_is_unknown_or_changes_something_is_refused(asked: Containerd) -> None:
    unknown = "f" * 64
    assert refused(asked.container, unknown) is grpc.StatusCode.NOT_FOUND
    assert refused(asked.task, unknown) is grpc.StatusCode.NOT_FOUND
    create = ("containers.v1.Containers/Create", Empty(), Empty)
    assert refused(asked.call, *create) is grpc.StatusCode.UNIMPLEMENTED
    version = asked.call("version.v1.Version/Version", Empty(), containerd.VersionResponse)
    assert version.version
    assert SOCKET.stat().st_mode & 0o777 == 0o660


def test_other_namespaces_are_empty(asked: Containerd, served: Cri, pods: Pods) -> None:
    pods.cri = served
    container = pods.running()
    docker = (("containerd-namespace", "moby"),)
    assert refused(asked.container, container, docker) is grpc.StatusCode.NOT_FOUND


def test_a_sandbox_has_the_process_that_runs_longest(
    asked: Containerd, served: Cri, pods: Pods
) -> None:
    pods.cri = served
    sandbox = pods.sandbox()
    cgroup = network_cgroup(sandbox[0])
    assert not cgroup.exists()
    assert refused(asked.task, sandbox[0]) is grpc.StatusCode.NOT_FOUND
    first, second = pods.running(pod=sandbox), pods.running(pod=sandbox)
    until(cgroup.exists, "a cgroup of the sandbox's name")
    assert asked.task(sandbox[0]).pid == process_of(served, first)
    inode = cgroup.stat().st_ino
    served.stop(first)
    until(lambda: cgroup.exists() and cgroup.stat().st_ino != inode, "a new one")
    assert asked.task(sandbox[0]).pid == process_of(served, second)
    served.stop(second)
    until(lambda: not cgroup.exists(), "its end with the last container")
    assert refused(asked.task, sandbox[0]) is grpc.StatusCode.NOT_FOUND


def test_a_killed_agent_leaves_no_cgroup_behind(served: Cri, pods: Pods) -> None:
    pods.cri = served
    sandbox = pods.sandbox()
    pods.running(pod=sandbox)
    cgroup = network_cgroup(sandbox[0])
    until(cgroup.exists, "a cgroup of the sandbox's name")
    agent.kill()
    agent.start().close()  # without the socket
    assert not cgroup.exists()


def test_a_killed_agents_socket_is_taken_over(served: Cri, pods: Pods) -> None:
    pods.cri = served
    container = pods.running()
    agent.kill()
    assert SOCKET.is_socket()
    agent.start(CONFIG).close()
    client = Containerd()
    assert client.container(container).id == container
    client.close()
    agent.stop()
    assert not SOCKET.exists()


def test_a_containerd_that_lives_there_is_left_alone(cri: Cri) -> None:
    agent.stop()
    SOCKET.parent.mkdir(exist_ok=True)
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(SOCKET))
        other.listen()
        inode = SOCKET.stat().st_ino
        agent.start(CONFIG).close()
        assert "another program serves there" in agent.LOG.read_text()
        agent.stop()
        assert SOCKET.stat().st_ino == inode
    SOCKET.unlink()
    SOCKET.write_text("a file")
    agent.start(CONFIG).close()
    assert "is not a socket" in agent.LOG.read_text()
    agent.stop()
    assert SOCKET.read_text() == "a file"
    SOCKET.unlink()
    agent.start().close()
