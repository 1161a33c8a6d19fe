# SPDX-License-Identifier: Apache-2.0
"""What clients talk to: the gRPC server, the streaming server and cAdvisor's socket."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import grpc
import structlog

from criagent._proto import admin_pb2_grpc, api_pb2_grpc
from criagent.base.errors import UnavailableError
from criagent.config.sections import Config
from criagent.config.tls_suites import OPENSSL
from criagent.cri.admin_service import AdminService, Operator
from criagent.cri.boundary import Boundary
from criagent.cri.cadvisor import Cadvisor, CadvisorService
from criagent.cri.events import Events
from criagent.cri.image_service import ImageService
from criagent.cri.node_service import NodeCalls
from criagent.cri.report import AgentReport
from criagent.cri.runtime_service import RuntimeService
from criagent.cri.stats_service import StatsCalls
from criagent.cri.subjects import Subjects
from criagent.daemon import operator_metrics
from criagent.daemon.readiness import Readiness
from criagent.daemon.wiring.agent import Agent
from criagent.process.priority import raise_all_threads
from criagent.runtime.pod.session_facts import SessionFacts
from criagent.runtime.stats.network_cgroups import NetworkCgroups
from criagent.streaming.server import Listener, StreamingServer
from criagent.telemetry.telemetry import Telemetry

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


class Edge:
    """The server of all services. Calls other than Version are refused until `readiness`."""

    def __init__(
        self, agent: Agent, metrics: Telemetry, readiness: Readiness, operator: Operator
    ) -> None:
        config, stores, sessions = agent.shared.config, agent.shared.stores, agent.backend.sessions
        self._socket = config.storage.socket
        self._streaming = StreamingServer(
            _listener(config),
            sessions.exec,
            sessions.attach,
            sessions.forward,
            SessionFacts(stores.sandboxes, stores.containers),
        )
        self._events = Events(stores.sandboxes, stores.containers, agent.shared.clock.now_ns)
        subjects = Subjects(stores.sandboxes, stores.containers)
        boundary = Boundary(metrics, readiness.ready, subjects.of)
        self.report, self.boundary = _report(agent), boundary
        self._server = _server(config, boundary)
        services = _Services(self._server)
        _add_services(services, agent, self._streaming, self._events)
        admin = _admin(agent, self.report, operator)
        admin_pb2_grpc.add_AdminServicer_to_server(admin, services)
        operator_metrics.register_agent(metrics, agent.backend.node.conditions, readiness)
        operator_metrics.register_calls(metrics, boundary, self._events, self._streaming)
        operator_metrics.register_pods(metrics, stores.sandboxes, stores.containers)
        operator_metrics.register_nri(metrics, agent.nri.registry, agent.nri.tally)
        operator_metrics.register_images(metrics, agent.image.images, agent.image.puller)
        operator_metrics.register_profiles(metrics, agent.image.profiles)

    async def listen(self) -> None:
        """Take calls on the socket."""
        socket = self._socket
        socket.parent.mkdir(parents=True, exist_ok=True)
        try:
            socket.unlink(missing_ok=True)  # stale: the lock says that no daemon serves on it
        except IsADirectoryError:
            raise UnavailableError(
                f"there is a directory at {socket}, where the socket belongs, as a hostPath volume "
                f"makes it while the agent does not run; remove it (rmdir {socket})"
            ) from None
        mask = os.umask(0o117)  # from the first moment 0660
        try:
            self._server.add_insecure_port(f"unix:{socket}")
            await self._server.start()
        finally:
            os.umask(mask)
        _raise_priority()  # of gRPC's threads too

    async def open_streams(self) -> None:
        """Serve the URLs of exec, attach and port-forward. Raises OSError for a taken address."""
        await self._streaming.start()

    async def close_streams(self) -> None:
        """End streams and subscriptions, which would not end by themselves."""
        await self._streaming.close()
        self._events.close()

    async def stop(self, limit_s: float) -> None:
        """Take no new calls, and wait for those under way within `limit_s`."""
        await self._server.stop(limit_s)

    def gone(self) -> None:
        """Nobody listens on the socket any more."""
        self._socket.unlink(missing_ok=True)


class _Services:
    """The server as generated code sees it that adds a service.

    Methods are not registered one by one: grpc.aio keeps a task for each registered method, and for
    every call goes through all of them, which takes as long as an empty call should.
    """

    def __init__(self, server: grpc.aio.Server) -> None:
        self._server = server

    def add_generic_rpc_handlers(self, handlers: Sequence[grpc.GenericRpcHandler]) -> None:
        """The handlers of a service."""
        self._server.add_generic_rpc_handlers(handlers)

    def add_registered_method_handlers(self, service: str, handlers: Mapping[str, object]) -> None:
        """The same ones again."""


def cadvisor(agent: Agent) -> Cadvisor:
    """The server of cAdvisor's calls, which may be switched off."""
    stores, driver = agent.shared.stores, agent.backend.node.driver
    networks = NetworkCgroups(
        sandboxes=stores.sandboxes,
        containers=stores.containers,
        driver=driver,
        fs=agent.shared.executors.fs,
    )
    service = CadvisorService(
        sandboxes=stores.sandboxes, containers=stores.containers, networks=networks, driver=driver
    )
    return Cadvisor(agent.shared.config.telemetry.cadvisor_socket, service, networks)


def _server(config: Config, boundary: Boundary) -> grpc.aio.Server:
    size = config.limits.grpc_message_bytes
    return grpc.aio.server(
        interceptors=[boundary],
        options=[
            ("grpc.max_receive_message_length", size),
            ("grpc.max_send_message_length", size),
            ("grpc.so_reuseport", 0),
        ],
    )


def _add_services(
    services: _Services, agent: Agent, streaming: StreamingServer, events: Events
) -> None:
    backend, stores, images = agent.backend, agent.shared.stores, agent.image.images
    runtime_service = RuntimeService(
        sandboxes=backend.sandboxes,
        containers=backend.containers,
        checkpoints=backend.checkpoints,
        sessions=backend.sessions,
        streaming=streaming,
        events=events,
        node=NodeCalls(backend.node),
        stats=StatsCalls(
            sandboxes=stores.sandboxes, containers=stores.containers, stats=backend.stats
        ),
    )
    api_pb2_grpc.add_RuntimeServiceServicer_to_server(runtime_service, services)
    api_pb2_grpc.add_ImageServiceServicer_to_server(
        ImageService(images, stores.images, agent.image.profiles, backend.node.handlers), services
    )


def _report(agent: Agent) -> AgentReport:
    stores = agent.shared.stores
    return AgentReport(
        sandboxes=stores.sandboxes,
        containers=stores.containers,
        images=agent.image.images,
        node=agent.backend.node,
        registry=agent.image.client,
    )


def _admin(agent: Agent, report: AgentReport, operator: Operator) -> AdminService:
    return AdminService(report, agent.image.images, agent.shared.executors.fs, operator)


def _listener(config: Config) -> Listener:
    section = config.streaming
    return Listener(
        address=section.address,
        port=section.port,
        url_host=section.url_host,
        tls_cert=Path(section.tls_cert) if section.tls_cert else None,
        tls_key=Path(section.tls_key) if section.tls_key else None,
        tls_min_version=section.tls_min_version,
        tls_suites=tuple(OPENSSL[name] for name in section.tls_cipher_suites),
        idle_timeout_s=section.idle_timeout_s,
        creation_timeout_s=section.creation_timeout_s,
    )


def _raise_priority() -> None:
    """A kubelet's lists and probes are answered also while containers use up every processor."""
    try:
        raise_all_threads()
    except PermissionError:
        log.warning("priority_not_raised", reason="no CAP_SYS_NICE")
