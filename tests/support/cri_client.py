# SPDX-License-Identifier: Apache-2.0
"""A CRI client for tests and benchmarks: the generated stubs with short calls, over the socket."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import grpc

from criagent._proto import api_pb2 as api
from criagent._proto import api_pb2_grpc

__all__ = ["BUSYBOX", "DEBIAN", "ENDPOINT", "Cri", "api", "container", "pod"]

BUSYBOX = "registry.k8s.io/e2e-test-images/busybox:1.29-2"
DEBIAN = "registry.k8s.io/fixtures/debian:13"
ENDPOINT = os.environ.get("CONTAINER_RUNTIME_ENDPOINT", "unix:///run/criagent/criagent.sock")
_SIZE = 16 << 20


class Cri:
    """Blocking calls; every failure is a grpc.RpcError."""

    def __init__(self, endpoint: str = ENDPOINT) -> None:
        self.channel = grpc.insecure_channel(
            endpoint.replace("unix://", "unix:"),
            options=[
                ("grpc.max_receive_message_length", _SIZE),
                ("grpc.use_local_subchannel_pool", 1),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 200),
            ],
        )
        self.runtime = api_pb2_grpc.RuntimeServiceStub(self.channel)
        self.image = api_pb2_grpc.ImageServiceStub(self.channel)

    def close(self) -> None:
        self.channel.close()

    def pull(self, name: str = BUSYBOX, timeout: float | None = 120) -> str:
        spec = api.ImageSpec(image=name)
        request = api.PullImageRequest(image=spec)
        return str(self.image.PullImage(request, timeout=timeout).image_ref)

    def remove_image(self, name: str) -> None:
        self.image.RemoveImage(api.RemoveImageRequest(image=api.ImageSpec(image=name)))

    def images(self) -> list[api.Image]:
        return list(self.image.ListImages(api.ListImagesRequest()).images)

    def run(self, config: api.PodSandboxConfig, timeout: float = 60, handler: str = "") -> str:
        request = api.RunPodSandboxRequest(config=config, runtime_handler=handler)
        return str(self.runtime.RunPodSandbox(request, timeout=timeout).pod_sandbox_id)

    def create(
        self,
        sandbox: str,
        config: api.ContainerConfig,
        pod: api.PodSandboxConfig,
        timeout: float = 60,
    ) -> str:
        request = api.CreateContainerRequest(
            pod_sandbox_id=sandbox, config=config, sandbox_config=pod
        )
        return str(self.runtime.CreateContainer(request, timeout=timeout).container_id)

    def start(self, container_id: str) -> None:
        self.runtime.StartContainer(
            api.StartContainerRequest(container_id=container_id), timeout=60
        )

    def stop(self, container_id: str, grace: int = 0) -> None:
        request = api.StopContainerRequest(container_id=container_id, timeout=grace)
        self.runtime.StopContainer(request, timeout=grace + 60)

    def remove(self, container_id: str) -> None:
        self.runtime.RemoveContainer(
            api.RemoveContainerRequest(container_id=container_id), timeout=60
        )

    def stop_pod(self, sandbox: str) -> None:
        self.runtime.StopPodSandbox(api.StopPodSandboxRequest(pod_sandbox_id=sandbox), timeout=60)

    def remove_pod(self, sandbox: str) -> None:
        request = api.RemovePodSandboxRequest(pod_sandbox_id=sandbox)
        self.runtime.RemovePodSandbox(request, timeout=60)

    def status(self, container_id: str) -> api.ContainerStatus:
        request = api.ContainerStatusRequest(container_id=container_id)
        return self.runtime.ContainerStatus(request, timeout=10).status

    def pod_status(self, sandbox: str) -> api.PodSandboxStatus:
        request = api.PodSandboxStatusRequest(pod_sandbox_id=sandbox)
        return self.runtime.PodSandboxStatus(request, timeout=10).status

    def exec(self, container_id: str, *words: str, timeout: int = 10) -> api.ExecSyncResponse:
        request = api.ExecSyncRequest(container_id=container_id, cmd=words, timeout=timeout)
        return self.runtime.ExecSync(request, timeout=timeout + 30)

    def pods(self) -> list[api.PodSandbox]:
        return list(self.runtime.ListPodSandbox(api.ListPodSandboxRequest(), timeout=10).items)

    def containers(self) -> list[api.Container]:
        request = api.ListContainersRequest()
        return list(self.runtime.ListContainers(request, timeout=10).containers)


def pod(name: str, **fields: Any) -> api.PodSandboxConfig:
    """A pod as the kubelet makes them: each container with a PID namespace of its own."""
    config = api.PodSandboxConfig(
        metadata=api.PodSandboxMetadata(name=name, uid=f"uid-{name}", namespace="test"), **fields
    )
    config.linux.security_context.namespace_options.pid = api.CONTAINER
    return config


def container(name: str, command: Sequence[str], image: str = BUSYBOX) -> api.ContainerConfig:
    """A container that runs `command`."""
    config = api.ContainerConfig(
        metadata=api.ContainerMetadata(name=name),
        image=api.ImageSpec(image=image),
        command=command,
        log_path=f"{name}.log",
    )
    config.linux.security_context.namespace_options.pid = api.CONTAINER
    config.linux.security_context.seccomp.profile_type = api.SecurityProfile.RuntimeDefault
    return config
