"""RuntimeService of CRI v1: each method converts, calls one verb, and converts back."""

from __future__ import annotations

import json
import platform
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Any

import grpc

from criagent._proto import api_pb2, api_pb2_grpc
from criagent.base.errors import InvalidRequestError, NotFoundError, UnsupportedError
from criagent.cri.convert.common import resources
from criagent.cri.convert.container import (
    container_message,
    container_spec,
    container_status,
    pod_containers,
)
from criagent.cri.convert.sandbox import sandbox_message, sandbox_spec, sandbox_status
from criagent.cri.events import Events
from criagent.cri.listing import Encoded
from criagent.cri.stats_service import StatsCalls, pieces
from criagent.model.container import Container
from criagent.model.sandbox import Sandbox
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.runtime import Runtime
from criagent.streaming.server import StreamingServer
from criagent.streaming.sessions import AttachSession, ExecSession, PortForwardSession
from criagent.version import VERSION

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_KUBELET_API = "0.1.0"  # the kubelet refuses to start with any other version


class RuntimeService(StatsCalls, api_pb2_grpc.RuntimeServiceServicer):
    """Pods and containers. Calls that this release does not implement answer UNIMPLEMENTED."""

    def __init__(self, runtime: Runtime, streaming: StreamingServer) -> None:
        super().__init__(runtime)
        self._streaming = streaming
        self.events = Events(runtime.sandboxes, runtime.containers, runtime.runner.clock.now_ns)
        self._sandboxes = Encoded[Sandbox](
            runtime.sandboxes,
            lambda sandbox: sandbox.id,
            lambda b: sandbox_message(b) if b.visible else None,
        )
        self._containers = Encoded[Container](
            runtime.containers,
            lambda container: container.id,
            lambda container: container_message(container) if container.visible else None,
        )

    # The agent itself.

    async def Version(
        self, request: api_pb2.VersionRequest, context: Context
    ) -> api_pb2.VersionResponse:
        return api_pb2.VersionResponse(
            version=_KUBELET_API,
            runtime_name="criagent",
            runtime_version=VERSION,
            runtime_api_version="v1",
        )

    async def Status(
        self, request: api_pb2.StatusRequest, context: Context
    ) -> api_pb2.StatusResponse:
        network = self._runtime.networks.default.condition()
        reason, message = await self._runtime.unready()
        response = api_pb2.StatusResponse(
            status=api_pb2.RuntimeStatus(
                conditions=[
                    api_pb2.RuntimeCondition(
                        type="RuntimeReady",
                        status=not reason,
                        reason=reason,
                        message=message,
                    ),
                    api_pb2.RuntimeCondition(
                        type="NetworkReady",
                        status=network.ready,
                        reason=network.reason,
                        message=network.message,
                    ),
                    self._security_condition(),
                ]
            ),
            runtime_handlers=self._handlers(),
            features=api_pb2.RuntimeFeatures(supplemental_groups_policy=True, mount_options=True),
        )
        if request.verbose:
            response.info["config"] = json.dumps(self._config())
        return response

    def _security_condition(self) -> api_pb2.RuntimeCondition:
        """A condition that kubelets ignore, as containerd's deprecations; crictl shows it."""
        found = [f"handler {f.name}: {f.insecure}" for f in self._runtime.handlers if f.insecure]
        return api_pb2.RuntimeCondition(
            type="RuntimeHandlersSecure",
            status=not found,
            reason="KnownVulnerabilities" if found else "",
            message="; ".join(found),
        )

    def _handlers(self) -> list[api_pb2.RuntimeHandler]:
        default = self._runtime.creator.default_handler
        found = []
        for facts in self._runtime.handlers:
            if facts.problem:
                continue
            features = api_pb2.RuntimeHandlerFeatures(
                recursive_read_only_mounts=facts.recursive_read_only,
                user_namespaces=facts.user_namespaces,
            )
            for name in ("", facts.name) if facts.name == default else (facts.name,):
                found.append(api_pb2.RuntimeHandler(name=name, features=features))
        return found

    def _config(self) -> dict[str, Any]:
        return {
            "sandboxImage": "",
            "stateDir": str(self._runtime.paths.run_dir),
            "rootDir": str(self._runtime.paths.root),
            "cgroupDriver": str(self._runtime.cgroup_driver),
            "networkBackend": self._runtime.networks.default.backend,
            "handlers": {h.name: f"{h.path} {h.version}" for h in self._runtime.handlers},
            "machine": platform.machine(),
        }

    async def RuntimeConfig(
        self, request: api_pb2.RuntimeConfigRequest, context: Context
    ) -> api_pb2.RuntimeConfigResponse:
        systemd = self._runtime.cgroup_driver is CgroupDriver.SYSTEMD
        driver = api_pb2.CgroupDriver.SYSTEMD if systemd else api_pb2.CgroupDriver.CGROUPFS
        return api_pb2.RuntimeConfigResponse(
            linux=api_pb2.LinuxRuntimeConfiguration(cgroup_driver=driver)
        )

    async def UpdateRuntimeConfig(
        self, request: api_pb2.UpdateRuntimeConfigRequest, context: Context
    ) -> api_pb2.UpdateRuntimeConfigResponse:
        cidr = request.runtime_config.network_config.pod_cidr
        if cidr:
            cidrs = [part.strip() for part in cidr.split(",")]
            await self._runtime.networks.default.set_pod_cidrs(cidrs)
        return api_pb2.UpdateRuntimeConfigResponse()

    # Sandboxes.

    async def RunPodSandbox(
        self, request: api_pb2.RunPodSandboxRequest, context: Context
    ) -> api_pb2.RunPodSandboxResponse:
        if not request.HasField("config"):
            raise InvalidRequestError("config is required")
        spec = sandbox_spec(request.config, request.runtime_handler)
        sandbox = await self._runtime.run_pod_sandbox(spec)
        return api_pb2.RunPodSandboxResponse(pod_sandbox_id=sandbox.id)

    async def StopPodSandbox(
        self, request: api_pb2.StopPodSandboxRequest, context: Context
    ) -> api_pb2.StopPodSandboxResponse:
        await self._runtime.stop_pod_sandbox(request.pod_sandbox_id)
        return api_pb2.StopPodSandboxResponse()

    async def RemovePodSandbox(
        self, request: api_pb2.RemovePodSandboxRequest, context: Context
    ) -> api_pb2.RemovePodSandboxResponse:
        await self._runtime.remove_pod_sandbox(request.pod_sandbox_id)
        return api_pb2.RemovePodSandboxResponse()

    async def PodSandboxStatus(
        self, request: api_pb2.PodSandboxStatusRequest, context: Context
    ) -> api_pb2.PodSandboxStatusResponse:
        sandbox = self._runtime.sandboxes.resolve(request.pod_sandbox_id)
        if not sandbox.visible:
            raise NotFoundError(f"sandbox {sandbox.id!r} not found")
        response = api_pb2.PodSandboxStatusResponse(
            status=sandbox_status(sandbox),
            containers_statuses=pod_containers(self._runtime.containers.of_sandbox(sandbox.id)),
            timestamp=self._runtime.runner.clock.now_ns(),
        )
        if request.verbose:
            response.info["info"] = json.dumps(
                {
                    "pid": sandbox.holder.pid if sandbox.holder else 0,
                    "netNamespace": str(self._runtime.paths.netns(sandbox.id))
                    if sandbox.network_backend
                    else "",
                    "networkBackend": sandbox.network_backend,
                    "runtimeHandler": sandbox.spec.runtime_handler,
                    "cniResult": json.loads(sandbox.cni_result or b"null"),
                }
            )
        return response

    async def ListPodSandbox(
        self, request: api_pb2.ListPodSandboxRequest, context: Context
    ) -> bytes:
        return b"".join(self._sandboxes.chosen(request.filter))

    # Containers.

    async def CreateContainer(
        self, request: api_pb2.CreateContainerRequest, context: Context
    ) -> api_pb2.CreateContainerResponse:
        if not request.HasField("config"):
            raise InvalidRequestError("config is required")
        spec = container_spec(request.config)
        container = await self._runtime.create_container(request.pod_sandbox_id, spec)
        return api_pb2.CreateContainerResponse(container_id=container.id)

    async def StartContainer(
        self, request: api_pb2.StartContainerRequest, context: Context
    ) -> api_pb2.StartContainerResponse:
        await self._runtime.start_container(request.container_id)
        return api_pb2.StartContainerResponse()

    async def StopContainer(
        self, request: api_pb2.StopContainerRequest, context: Context
    ) -> api_pb2.StopContainerResponse:
        await self._runtime.stop_container(request.container_id, request.timeout)
        return api_pb2.StopContainerResponse()

    async def RemoveContainer(
        self, request: api_pb2.RemoveContainerRequest, context: Context
    ) -> api_pb2.RemoveContainerResponse:
        await self._runtime.remove_container(request.container_id)
        return api_pb2.RemoveContainerResponse()

    async def ListContainers(
        self, request: api_pb2.ListContainersRequest, context: Context
    ) -> bytes:
        return b"".join(self._containers.chosen(request.filter))

    async def ContainerStatus(
        self, request: api_pb2.ContainerStatusRequest, context: Context
    ) -> api_pb2.ContainerStatusResponse:
        container = self._visible(request.container_id)
        response = api_pb2.ContainerStatusResponse(status=container_status(container))
        if request.verbose:
            response.info["info"] = json.dumps(await self._runtime.describe(container))
        return response

    async def UpdateContainerResources(
        self, request: api_pb2.UpdateContainerResourcesRequest, context: Context
    ) -> api_pb2.UpdateContainerResourcesResponse:
        await self._runtime.update_resources(request.container_id, resources(request.linux))
        return api_pb2.UpdateContainerResourcesResponse()

    async def ReopenContainerLog(
        self, request: api_pb2.ReopenContainerLogRequest, context: Context
    ) -> api_pb2.ReopenContainerLogResponse:
        await self._runtime.reopen_log(request.container_id)
        return api_pb2.ReopenContainerLogResponse()

    async def ExecSync(
        self, request: api_pb2.ExecSyncRequest, context: Context
    ) -> api_pb2.ExecSyncResponse:
        if request.timeout < 0:
            raise InvalidRequestError(f"timeout {request.timeout} is negative")
        command, limit_s = list(request.cmd), request.timeout
        result = await self._runtime.exec_sync(request.container_id, command, limit_s)
        # The answer is ignored by then; the stub wants a class where grpc takes a function.
        context.add_done_callback(lambda _: result.release())  # type: ignore[arg-type]
        return api_pb2.ExecSyncResponse(
            stdout=result.stdout, stderr=result.stderr, exit_code=result.exit_code
        )

    # Pods as a whole.

    async def UpdatePodSandboxResources(
        self, request: api_pb2.UpdatePodSandboxResourcesRequest, context: Context
    ) -> api_pb2.UpdatePodSandboxResourcesResponse:
        # The kubelet writes the pod's cgroup itself; an error here would make it refuse the resize.
        self._runtime.sandboxes.resolve(request.pod_sandbox_id)
        return api_pb2.UpdatePodSandboxResourcesResponse()

    async def GetContainerEvents(
        self, request: api_pb2.GetEventsRequest, context: Context
    ) -> AsyncIterator[api_pb2.ContainerEventResponse]:
        with self.events.subscription() as events:
            await context.send_initial_metadata(())  # from here on the caller misses nothing
            async for event in events:
                yield event

    # Streams: a one-time URL of the streaming server.

    async def Exec(self, request: api_pb2.ExecRequest, context: Context) -> api_pb2.ExecResponse:
        _check_streams(request, request.tty and request.stderr)
        if not request.cmd:
            raise InvalidRequestError("exec: the command is empty")
        session = ExecSession(
            container_id=self._visible(request.container_id).id,
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
            container_id=self._visible(request.container_id).id,
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
        sandbox = self._runtime.sandboxes.resolve(request.pod_sandbox_id)
        session = PortForwardSession(sandbox_id=sandbox.id, ports=tuple(request.port))
        return api_pb2.PortForwardResponse(url=await self._streaming.port_forward(session))

    # Lists in pieces (KEP-5825).

    async def StreamPodSandboxes(
        self, request: api_pb2.StreamPodSandboxesRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(self._sandboxes.chosen(request.filter)):
            yield b"".join(piece)

    async def StreamContainers(
        self, request: api_pb2.StreamContainersRequest, context: Context
    ) -> AsyncIterator[bytes]:
        for piece in pieces(self._containers.chosen(request.filter)):
            yield b"".join(piece)


def _check_streams(
    request: api_pb2.ExecRequest | api_pb2.AttachRequest,
    tty_and_stderr: bool,  # noqa: FBT001
) -> None:
    if tty_and_stderr:
        raise InvalidRequestError("tty and stderr cannot both be set: a terminal has one output")
    if not (request.stdin or request.stdout or request.stderr):
        raise InvalidRequestError("at least one of stdin, stdout and stderr must be set")


def _later(name: str, streams: bool) -> Any:  # noqa: FBT001 - a servicer method
    text = f"{name} is not implemented in this release"

    async def answer(self: RuntimeService, request: object, context: Context) -> None:
        raise UnsupportedError(text)

    async def stream(
        self: RuntimeService, request: object, context: Context
    ) -> AsyncIterator[object]:
        raise UnsupportedError(text)
        yield  # type: ignore[unreachable] # makes it a generator

    return stream if streams else answer


NOT_YET = {
    "CheckpointContainer": False,
    "CheckpointPod": False,
    "RestorePod": False,
}
for _name, _streams in NOT_YET.items():
    setattr(RuntimeService, _name, _later(_name, _streams))
