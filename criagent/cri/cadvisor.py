# SPDX-License-Identifier: Apache-2.0
"""The part of containerd's API that the kubelet's cAdvisor uses, served for criagent's containers.

The kubelet's default gates take container metrics from cAdvisor, which knows a container's pod only
through containerd's or CRI-O's own socket. Three read-only calls of containerd's API are enough:
Version, Containers.Get and Tasks.Get, in containerd's namespace "k8s.io". Environment variables are
left out of the specification, so this socket reveals no secrets.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import socket
import stat
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import grpc
import msgspec
import structlog
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.empty_pb2 import Empty
from google.protobuf.message import Message
from google.protobuf.timestamp_pb2 import Timestamp

from criagent._proto import containerd_pb2
from criagent.kernel import process
from criagent.model.common import ProcessRef
from criagent.model.container import Container, ContainerState
from criagent.model.sandbox import Sandbox, SandboxState
from criagent.runtime.node.cgroup_names import CgroupDriver, container_cgroups_path
from criagent.runtime.stats.network_cgroups import NetworkCgroups
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore
from criagent.version import VERSION

if TYPE_CHECKING:
    Context = grpc.aio.ServicerContext[Any, Any]

_NAMESPACE = "k8s.io"
_KIND = "io.cri-containerd.kind"  # cAdvisor reads the network only of kind "sandbox"
_SPEC = "types.containerd.io/opencontainers/runtime-spec/1/Spec"

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class CadvisorService:
    """The three calls. Ids are complete: cAdvisor takes them from names of cgroups."""

    def __init__(
        self,
        *,
        sandboxes: SandboxStore,
        containers: ContainerStore,
        networks: NetworkCgroups,
        driver: CgroupDriver,
    ) -> None:
        self._sandboxes = sandboxes
        self._containers = containers
        self._networks = networks
        self._driver = driver

    def handlers(self) -> tuple[grpc.GenericRpcHandler, ...]:
        """Handlers under containerd's service names; every other method is UNIMPLEMENTED."""
        return (
            _service("version.v1.Version", "Version", self.version, Empty),
            _service(
                "containers.v1.Containers",
                "Get",
                self.container,
                containerd_pb2.GetContainerRequest,
            ),
            _service("tasks.v1.Tasks", "Get", self.task, containerd_pb2.GetTaskRequest),
        )

    async def version(self, _: Empty, __: Context) -> containerd_pb2.VersionResponse:
        """criagent's version, which is not containerd's."""
        return containerd_pb2.VersionResponse(version=VERSION, revision="criagent")

    async def container(
        self, request: containerd_pb2.GetContainerRequest, context: Context
    ) -> containerd_pb2.GetContainerResponse:
        """Labels, image, creation time and cgroup of a container or sandbox."""
        found = await self._find(request.id, context)
        if isinstance(found, Container):
            sandbox = self._sandboxes.get(found.sandbox_id)
            parent = "" if sandbox is None else sandbox.spec.cgroup_parent
            image = found.image_name
        else:
            parent, image = found.spec.cgroup_parent, ""
        created = _timestamp(found.created_at_ns)
        kind = "container" if isinstance(found, Container) else "sandbox"
        return containerd_pb2.GetContainerResponse(
            container=containerd_pb2.Container(
                id=found.id,
                labels={**found.spec.labels, _KIND: kind},
                image=image,
                spec=_spec(container_cgroups_path(self._driver, parent, found.id)),
                created_at=created,
                updated_at=created,
            )
        )

    async def task(
        self, request: containerd_pb2.GetTaskRequest, context: Context
    ) -> containerd_pb2.GetTaskResponse:
        """The process of a container, or the process whose network is a sandbox's."""
        found = await self._find(request.container_id, context)
        task = self._container_task(found) if isinstance(found, Container) else self._task(found)
        if task is None or request.exec_id:
            what = f"{request.container_id[:64]!r} has no such process"
            await context.abort(grpc.StatusCode.NOT_FOUND, f"task {what}: not found")
        return containerd_pb2.GetTaskResponse(process=task)

    async def _find(self, object_id: str, context: Context) -> Container | Sandbox:
        metadata = dict(context.invocation_metadata() or ())
        found: Container | Sandbox | None = None
        if metadata.get("containerd-namespace", _NAMESPACE) == _NAMESPACE:
            found = self._containers.get(object_id) or self._sandboxes.get(object_id)
        if found is None:
            text = f"container {object_id[:64]!r}: not found"
            await context.abort(grpc.StatusCode.NOT_FOUND, text)
            raise AssertionError  # abort raises
        return found

    def _container_task(self, container: Container) -> containerd_pb2.Process | None:
        if container.init is None:
            return None
        states = {
            ContainerState.CREATED: containerd_pb2.CREATED,
            ContainerState.RUNNING: containerd_pb2.RUNNING,
            ContainerState.EXITED: containerd_pb2.STOPPED,
        }
        task = _process(container.id, container.init, states[container.state])
        if container.finished_at_ns:
            task.exit_status = container.exit_code
            task.exited_at.CopyFrom(_timestamp(container.finished_at_ns))
        return task

    def _task(self, sandbox: Sandbox) -> containerd_pb2.Process | None:
        found = self._networks.process(sandbox)
        if found is None or sandbox.state is not SandboxState.READY or not process.alive(found):
            return None
        return _process(sandbox.id, found, containerd_pb2.RUNNING)


class Cadvisor:
    """The server of these calls on its own socket, and the cgroups that belong to it.

    An empty `path` switches both off.
    """

    def __init__(self, path: str, service: CadvisorService, networks: NetworkCgroups) -> None:
        self._path = Path(path) if path else None
        self._service = service
        self._networks = networks
        self._server: grpc.aio.Server | None = None
        self._inode = 0

    async def listen(self) -> None:
        """Serve, unless another program serves at that path: then log it and leave the path alone.

        To be called before recovery. Raises OSError when the directory cannot be created.
        """
        await self._networks.clear()
        if self._path is None:
            return
        if (problem := await asyncio.to_thread(_taken, self._path)) is not None:
            log.error("cadvisor_socket_not_served", socket=str(self._path), problem=problem)
            return
        self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o711)
        self._path.unlink(missing_ok=True)
        server = grpc.aio.server(options=[("grpc.so_reuseport", 0)])
        server.add_generic_rpc_handlers(self._service.handlers())
        mask = os.umask(0o117)  # 0660 from the first moment
        try:
            server.add_insecure_port(f"unix:{self._path}")
            await server.start()
        finally:
            os.umask(mask)
        self._server, self._inode = server, self._path.stat().st_ino

    def recovered(self) -> None:
        """Publish the networks of pods from now on: cAdvisor asks only once for each new cgroup."""
        if self._server is not None:
            self._networks.start()
            log.info("cadvisor_socket_served", socket=str(self._path))

    async def close(self) -> None:
        """Stop serving, and remove the socket unless another program has replaced it."""
        if self._server is None or self._path is None:
            return
        await self._networks.close()
        await self._server.stop(0)
        with contextlib.suppress(FileNotFoundError):
            if self._path.stat().st_ino == self._inode:
                self._path.unlink()


def _taken(path: Path) -> str | None:
    """Why the path cannot be used; None when it is free or stale."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISSOCK(mode):
        return "the path exists and is not a socket; remove it or change telemetry.cadvisor_socket"
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC) as client:
        try:
            client.connect(os.fspath(path))
        except (ConnectionRefusedError, FileNotFoundError):
            return None
    return "another program serves there; stop it or change telemetry.cadvisor_socket"


def _service(
    name: str,
    method: str,
    call: Callable[[Any, Context], Awaitable[Message]],
    request: type[Message],
) -> grpc.GenericRpcHandler:
    handler: grpc.RpcMethodHandler[Any, Any] = grpc.unary_unary_rpc_method_handler(
        call,
        request_deserializer=request.FromString,
        response_serializer=lambda answer: answer.SerializeToString(),
    )
    return grpc.method_handlers_generic_handler(f"containerd.services.{name}", {method: handler})


def _process(
    object_id: str, process: ProcessRef, status: containerd_pb2.TaskStatus
) -> containerd_pb2.Process:
    return containerd_pb2.Process(
        container_id=object_id, id=object_id, pid=process.pid, status=status
    )


def _spec(cgroups_path: str) -> AnyMessage:
    """The parts of the OCI specification that cAdvisor reads."""
    document = {
        "ociVersion": "1.0.2",
        "process": {"user": {"uid": 0, "gid": 0}, "env": [], "cwd": "/"},
        "linux": {"cgroupsPath": cgroups_path},
    }
    return AnyMessage(type_url=_SPEC, value=msgspec.json.encode(document))


def _timestamp(ns: int) -> Timestamp:
    stamp = Timestamp()
    stamp.FromNanoseconds(ns)
    return stamp
