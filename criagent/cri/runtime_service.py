# SPDX-License-Identifier: Apache-2.0
"""RuntimeService of CRI v1: each method converts, calls one verb, and converts back."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from typing import TYPE_CHECKING, Any

import grpc

from criagent._proto import api_pb2, api_pb2_grpc
from criagent.base.errors import InvalidRequestError
from criagent.cri.backend import Checkpoints, Containers, Sandboxes, Sessions
from criagent.cri.convert.common import resources
from criagent.cri.convert.container import (
    container_message,
    container_spec,
    container_status,
    pod_containers,
)
from criagent.cri.convert.sandbox import sandbox_message, sandbox_spec, sandbox_status
from criagent.cri.events import Events
from criagent.cri.listing import Encoded, pieces
from criagent.cri.node_service import NodeCalls
from criagent.cri.stats_service import StatsCalls
from criagent.cri.visible import visible_container, visible_sandbox
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.streaming.server import StreamingServer
from criagent.streaming.sessions import AttachSession, ExecSession, PortForwardSession

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]


class RuntimeService(api_pb2_grpc.RuntimeServiceServicer):
    """Pods and containers."""

    def __init__(
        self,
        *,
        sandboxes: Sandboxes,
        containers: Containers,
        checkpoints: Checkpoints,
        sessions: Sessions,
        streaming: StreamingServer,
        events: Events,
        node: NodeCalls,
        stats: StatsCalls,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._checkpoints = checkpoints
        self._sessions = sessions
        self._streaming = streaming
        self._events = events
        self._node = node
        self._stats = stats
        self._listed_sandboxes = Encoded[Sandbox](
            sandboxes.store,
            lambda sandbox: sandbox.id,
            lambda sandbox: sandbox_message(sandbox) if sandbox.visible else None,
            lambda sandbox: sandbox.spec.labels,
        )
        self._listed_containers = Encoded[Container](
            containers.store,
            lambda container: container.id,
            lambda container: container_message(container) if container.visible else None,
            lambda container: container.spec.labels,
        )

    # The agent itself.

    async def Version(
        self, request: api_pb2.VersionRequest, context: Context
    ) -> api_pb2.VersionResponse:
        return await self._node.Version(request, context)

    async def Status(
        self, request: api_pb2.StatusRequest, context: Context
    ) -> api_pb2.StatusResponse:
        return await self._node.Status(request, context)

    async def RuntimeConfig(
        self, request: api_pb2.RuntimeConfigRequest, context: Context
    ) -> api_pb2.RuntimeConfigResponse:
        return await self._node.RuntimeConfig(request, context)

    async def UpdateRuntimeConfig(
        self, request: api_pb2.UpdateRuntimeConfigRequest, context: Context
    ) -> api_pb2.UpdateRuntimeConfigResponse:
        return await self._node.UpdateRuntimeConfig(request, context)

    # Sandboxes.

    async def RunPodSandbox(
        self, request: api_pb2.RunPodSandboxRequest, context: Context
    ) -> api_pb2.RunPodSandboxResponse:
        if not request.HasField("config"):
            raise InvalidRequestError("config is required")
        spec = sandbox_spec(request.config, request.runtime_handler)
        sandbox = await self._sandboxes.run(spec)
        return api_pb2.RunPodSandboxResponse(pod_sandbox_id=sandbox.id)

    async def StopPodSandbox(
        self, request: api_pb2.StopPodSandboxRequest, context: Context
    ) -> api_pb2.StopPodSandboxResponse:
        await self._sandboxes.stop(request.pod_sandbox_id)
        return api_pb2.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: api_pb2.RemovePodSandboxRequest, context: Context
    ) -> api_pb2.RemovePodSandboxResponse:
        await self._sandboxes.remove(request.pod_sandbox_id)
        return api_pb2.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: api_pb2.PodSandboxStatusRequest, context: Context
    ) -> api_pb2.PodSandboxStatusResponse:
        sandbox = visible_sandbox(self._sandboxes.store, request.pod_sandbox_id)
        response = api_pb2.PodSandboxStatusResponse(
            status=sandbox_status(sandbox),
            containers_statuses=pod_containers(self._containers.store.of_sandbox(sandbox.id)),
            timestamp=self._events.now_ns(),
        )
        if request.verbose:
            response.info["info"] = json.dumps(self._sandboxes.describe(sandbox))
        return response

    async def ListPodSandbox(
        self, request: api_pb2.ListPodSandboxRequest, context: Context
    ) -> bytes:
        return b"".join(self._listed_sandboxes.chosen(request.filter))

    # Containers.

    async def CreateContainer(
        self, request: api_pb2.CreateContainerRequest, context: Context
    ) -> api_pb2.CreateContainerResponse:
        if not request.HasField("config"):
            raise InvalidRequestError("config is required")
        spec = container_spec(request.config)
        container = await self._containers.create(request.pod_sandbox_id, spec)
        return api_pb2.CreateContainerResponse(container_id=container.id)

    async def StartContainer(
        self, request: api_pb2.StartContainerRequest, context: Context
    ) -> api_pb2.StartContainerResponse:
        await self._containers.start(request.container_id)
        return api_pb2.StartContainerResponse()

    async def StopContainer(
        self, request: api_pb2.StopContainerRequest, context: Context
    ) -> api_pb2.StopContainerResponse:
        await self._containers.stop(request.container_id, request.timeout)
        return api_pb2.StopContainerResponse()

    async def RemoveContainer(
        self, request: api_pb2.RemoveContainerRequest, context: Context
    ) -> api_pb2.RemoveContainerResponse:
        await self._containers.remove(request.container_id)
        return api_pb2.RemoveContainerResponse()

    async def ListContainers(
        self, request: api_pb2.ListContainersRequest, context: Context
    ) -> bytes:
        return b"".join(self._listed_containers.chosen(request.filter))

    async def ContainerStatus(
        self, request: api_pb2.ContainerStatusRequest, context: Context
    ) -> api_pb2.ContainerStatusResponse:
        container = visible_container(self._containers.store, request.container_id)
        response = api_pb2.ContainerStatusResponse(status=container_status(container))
        if request.verbose:
            response.info["info"] = json.dumps(await self._containers.describe(container))
        return response

    async def UpdateContainerResources(
        self, request: api_pb2.UpdateContainerResourcesRequest, context: Context
    ) -> api_pb2.UpdateContainerResourcesResponse:
        await self._containers.update(request.container_id, resources(request.linux))
        return api_pb2.UpdateContainerResourcesResponse()

    async def ReopenContainerLog(
        self, request: api_pb2.ReopenContainerLogRequest, context: Context
    ) -> api_pb2.ReopenContainerLogResponse:
        await self._containers.reopen(request.container_id)
        return api_pb2.ReopenContainerLogResponse()

    async def CheckpointContainer(
        self, request: api_pb2.CheckpointContainerRequest, context: Context
    ) -> api_pb2.CheckpointContainerResponse:
        await self._checkpoints.container(request.container_id, request.location, request.timeout)
        return api_pb2.CheckpointContainerResponse()

    async def ExecSync(
        self, request: api_pb2.ExecSyncRequest, context: Context
    ) -> api_pb2.ExecSyncResponse:
        if request.timeout < 0:
            raise InvalidRequestError(f"timeout {request.timeout} is negative")
        command, limit_s = list(request.cmd), request.timeout
        result = await self._sessions.exec_sync(request.container_id, command, limit_s)
        # The answer is ignored by then; the stub wants a class where grpc takes a function.
        context.add_done_callback(lambda _: result.release())  # type: ignore[arg-type]
        return api_pb2.ExecSyncResponse(
            stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
        )

    # Pods as a whole.

    async def UpdatePodSandboxResources(
        self, request: api_pb2.UpdatePodSandboxResourcesRequest, context: Context
    ) -> api_pb2.UpdatePodSandboxResourcesResponse:
        await self._sandboxes.update(
            request.pod_sandbox_id,
            resources(request.overhead) if request.HasField("overhead") else None,
            resources(request.resources) if request.HasField("resources") else None,
        )
        return api_pb2.UpdatePodSandboxResourcesResponse()

    async def CheckpointPod(
        self, request: api_pb2.CheckpointPodRequest, context: Context
    ) -> api_pb2.CheckpointPodResponse:
        limit_s = _limit("CheckpointPod", request.options, context)
        ids = list(request.container_ids)
        await self._checkpoints.pod(request.pod_sandbox_id, request.output_path, ids, limit_s)
        return api_pb2.CheckpointPodResponse()

    async def RestorePod(
        self, request: api_pb2.RestorePodRequest, context: Context
    ) -> api_pb2.RestorePodResponse:
        limit_s = _limit("RestorePod", request.options, context)
        if not request.HasField("config"):
            raise InvalidRequestError("config is required")
        sandbox, containers = await self._checkpoints.restore(
            request.checkpoint_path,
            sandbox_spec(request.config, request.runtime_handler),
            [container_spec(config) for config in request.container_configs],
            limit_s,
        )
        return api_pb2.RestorePodResponse(
            pod_sandbox_id=sandbox.id,
            restored_containers=[
                api_pb2.RestoredContainer(name=one.spec.metadata.name, container_id=one.id)
                for one in containers
            ],
        )

    async def GetContainerEvents(
        self, request: api_pb2.GetEventsRequest, context: Context
    ) -> AsyncIterator[api_pb2.ContainerEventResponse]:
        with self._events.subscription() as events:
            await context.send_initial_metadata(())  # from here on the caller misses nothing
            async for event in events:
                yield event

    # Streams: a one-time URL of the streaming server.

    async def Exec(self, request: api_pb2.ExecRequest, context: Context) -> api_pb2.ExecResponse:
        _check_streams(request, request.tty and request.stderr)
        if not request.cmd:
            raise InvalidRequestError("exec: the command is empty")
        session = ExecSession(
            container_id=visible_container(self._containers.store, request.container_id).id,
            cmd=tuple(request.cmd),
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return api_pb2.ExecResponse(url=await self._streaming.exec(session))

    async def Attach(
        self, request: api_pb2.AttachRequest, context: Context
    ) -> api_pb2.AttachResponse:
        _check_streams(request, request.tty and request.stderr)
        session = AttachSession(
            container_id=visible_container(self._containers.store, request.container_id).id,
            tty=request.tty,
            stdin=request.stdin,
            stdout=request.stdout,
            stderr=request.stderr,
        )
        return api_pb2.AttachResponse(url=await self._streaming.attach(session))

    async def PortForward(
        self, request: api_pb2.PortForwardRequest, context: Context
    ) -> api_pb2.PortForwardResponse:
        for port in request.port:
            if not 0 < port < 65536:
                raise InvalidRequestError(f"port {port} is not between 1 and 65535")
        sandbox = self._sandboxes.store.resolve(request.pod_sandbox_id)
        session = PortForwardSession(sandbox_id=sandbox.id, ports=tuple(request.port))
        return api_pb2.PortForwardResponse(url=await self._streaming.port_forward(session))

    # Lists in pieces (KEP-5825).

    async def StreamPodSandboxes(
        self, request: api_pb2.StreamPodSandboxesRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(self._listed_sandboxes.chosen(request.filter)):
            yield b"".join(piece)

    async def StreamContainers(
        self, request: api_pb2.StreamContainersRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(self._listed_containers.chosen(request.filter)):
            yield b"".join(piece)

    # Statistics and metrics.

    async def ContainerStats(
        self, request: api_pb2.ContainerStatsRequest, context: Context
    ) -> bytes:
        return await self._stats.ContainerStats(request, context)

    async def ListContainerStats(
        self, request: api_pb2.ListContainerStatsRequest, context: Context
    ) -> bytes:
        return await self._stats.ListContainerStats(request, context)

    async def StreamContainerStats(
        self, request: api_pb2.StreamContainerStatsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async for piece in self._stats.StreamContainerStats(request, context):
            yield piece

    async def PodSandboxStats(
        self, request: api_pb2.PodSandboxStatsRequest, context: Context
    ) -> bytes:
        return await self._stats.PodSandboxStats(request, context)

    async def ListPodSandboxStats(
        self, request: api_pb2.ListPodSandboxStatsRequest, context: Context
    ) -> bytes:
        return await self._stats.ListPodSandboxStats(request, context)

    async def StreamPodSandboxStats(
        self, request: api_pb2.StreamPodSandboxStatsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async for piece in self._stats.StreamPodSandboxStats(request, context):
            yield piece

    async def ListMetricDescriptors(
        self, request: api_pb2.ListMetricDescriptorsRequest, context: Context
    ) -> api_pb2.ListMetricDescriptorsResponse:
        return await self._stats.ListMetricDescriptors(request, context)

    async def ListPodSandboxMetrics(
        self, request: api_pb2.ListPodSandboxMetricsRequest, context: Context
    ) -> bytes:
        return await self._stats.ListPodSandboxMetrics(request, context)

    async def StreamPodSandboxMetrics(
        self, request: api_pb2.StreamPodSandboxMetricsRequest, context: Context
    ) -> AsyncIterator[bytes]:
        async for piece in self._stats.StreamPodSandboxMetrics(request, context):
            yield piece


def _limit(call: str, options: Mapping[str, str], context: Context) -> float:
    """The seconds until the call's deadline. Raises InvalidRequestError without one, and for
    options.
    """
    limit_s = context.time_remaining()
    if limit_s is None:
        raise InvalidRequestError(f"{call} needs a deadline")
    if options:
        names = ", ".join(sorted(options))
        raise InvalidRequestError(f"{call} knows no options, but got: {names}")
    return float(limit_s)


def _check_streams(
    request: api_pb2.ExecRequest | api_pb2.AttachRequest,
    tty_and_stderr: bool,  # noqa: FBT001
) -> None:
    if tty_and_stderr:
        raise InvalidRequestError("tty and stderr cannot both be set: a terminal has one output")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidRequestError("at least one of stdin, stdout and stderr must be set")
