"""`criagent serve`: lock, store, parts, recovery, gRPC server - and the same backwards.

The lock is held for the daemon's life and taken before the socket is bound, so that a second daemon
never touches the first one's state. Containers and their monitors outlive the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import structlog

# We never fork beside a running server; the support for them costs threads and locks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

import grpc

from criagent._proto import admin_pb2_grpc, api_pb2_grpc
from criagent.base import faults
from criagent.base.aio import run_in, settle, supervised
from criagent.base.errors import AgentError, UnavailableError
from criagent.config.sections import Config
from criagent.cri.admin_service import AdminService
from criagent.cri.boundary import Boundary
from criagent.cri.cadvisor import Cadvisor, CadvisorService
from criagent.cri.events import Events
from criagent.cri.image_service import ImageService
from criagent.cri.runtime_service import RuntimeService
from criagent.cri.subjects import Subjects
from criagent.daemon import wiring as assembly
from criagent.daemon.garbage import collect_now_and_then
from criagent.daemon.operator_metrics import OperatorMetrics
from criagent.daemon.service_notify import notify
from criagent.image.images import Images
from criagent.kernel import cgroupfs
from criagent.process import signals as process_signals
from criagent.process.child import take_in_orphans
from criagent.process.priority import raise_all_threads
from criagent.runtime.node.clock import Clock
from criagent.runtime.node.handlers import HandlerFacts, monitor_problem
from criagent.runtime.pod.session_facts import SessionFacts
from criagent.runtime.runtime import Runtime
from criagent.runtime.stats.network_cgroups import NetworkCgroups
from criagent.streaming.server import Listener, StreamingServer
from criagent.telemetry import telemetry

_METRICS_AGAIN_S = 30.0
_SWITCH_S = 0.001  # for how long a file thread may keep the loop from going on; Python's own: 5 ms

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def serve(config: Config) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status, 1 when it cannot start."""
    try:
        with _lock(config.storage.root):
            return asyncio.run(_serve(config))
    except AgentError as error:
        log.error("not_started", error=str(error))  # noqa: TRY400 - a clear text, no traceback
    except OSError as error:  # a full or broken disk; names what it could not use
        log.error("not_started", error=str(error))  # noqa: TRY400 - as above
    return 1


async def _serve(config: Config) -> int:
    _own_cgroup()
    take_in_orphans()
    sys.setswitchinterval(_SWITCH_S)
    executors = assembly.Executors.start()
    try:
        stores = assembly.Stores.open(config.storage.root / "state.db")
        try:
            await _Daemon(config, stores, executors).run()
        finally:
            stores.db.close()
    finally:
        executors.shutdown()
    return 0


class _Daemon:
    def __init__(
        self, config: Config, stores: assembly.Stores, executors: assembly.Executors
    ) -> None:
        self._config = config
        self._stores = stores
        self._executors = executors
        self._recovered = False
        self._recovery_s = 0.0
        self._events: Events | None = None
        self._stopping = asyncio.Event()

    async def run(self) -> None:
        """Serve until told to stop."""
        loop = asyncio.get_running_loop()
        self._take_signals(loop)
        config, clock = self._config, Clock()
        metrics = telemetry.Telemetry(config.telemetry.otlp_endpoint)
        images = assembly.image_parts(config, self._stores, self._executors, clock)
        handlers = await assembly.probed_handlers(config, self._executors, images)
        monitor = await monitor_problem(config.runtime.conmon)
        runtime = assembly.runtime(
            config, self._stores, self._executors, clock, images, handlers, monitor
        )
        _log_problems(handlers, monitor)
        await run_in(self._executors.fs, runtime.prepare)
        streaming = StreamingServer(
            self._listener(),
            runtime.streamer,
            runtime.attacher,
            runtime.forwarder,
            SessionFacts(self._stores.sandboxes),
        )
        server = await self._listen(metrics, runtime, images.images, streaming)
        cadvisor = self._cadvisor(runtime)
        background: list[asyncio.Task[None]] = []
        try:
            await streaming.start()
            background.append(supervised(self._serve_metrics(metrics), name="metrics"))
            await self._recover(runtime, images.images, cadvisor)
            # the verbs' points, not recovery's
            faults.arm(config.debug.kill_at or None, config.debug.fail_at)
            collector = collect_now_and_then(self._executors.fs)
            background.append(supervised(collector, name="garbage"))
            notify("READY=1")
            log.info("serving", socket=str(config.storage.socket))
            await self._stopping.wait()
        finally:
            notify("STOPPING=1")
            log.info("stopping")
            await settle(*background)
            await streaming.close()
            if self._events is not None:
                self._events.close()
            await cadvisor.close()
            await self._shut_down(server, runtime, images)
            metrics.close()

    async def _recover(self, runtime: Runtime, images: Images, cadvisor: Cadvisor) -> None:
        """Reconcile rows, disk and kernel: layers, then networks, then pods and containers."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await cadvisor.listen()
        await images.prepare()
        await runtime.networks.start()
        await runtime.recover()
        self._recovery_s = loop.time() - began
        self._recovered = True
        cadvisor.recovered()

    def _cadvisor(self, runtime: Runtime) -> Cadvisor:
        networks = NetworkCgroups(
            sandboxes=runtime.sandboxes,
            containers=runtime.containers,
            driver=runtime.cgroup_driver,
            fs=self._executors.fs,
        )
        service = CadvisorService(
            sandboxes=runtime.sandboxes,
            containers=runtime.containers,
            networks=networks,
            driver=runtime.cgroup_driver,
        )
        return Cadvisor(self._config.telemetry.cadvisor_socket, service, networks)

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        process_signals.install(loop)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    async def _serve_metrics(self, metrics: telemetry.Telemetry) -> None:
        """Pods do not depend on metrics: a taken address is tried again until it is free."""
        logged = False
        while True:
            try:
                metrics.serve(self._config.telemetry.metrics_address, lambda: self._recovered)
            except UnavailableError as error:
                if not logged:
                    facts = {"error": str(error), "again_in_s": _METRICS_AGAIN_S}
                    log.error("metrics_not_served", **facts)  # noqa: TRY400 - its text
                logged = True
                await asyncio.sleep(_METRICS_AGAIN_S)
            else:
                if logged:
                    log.info("metrics_served")
                return

    def _listener(self) -> Listener:
        section = self._config.streaming
        return Listener(
            address=section.address,
            port=section.port,
            url_host=section.url_host,
            tls_cert=Path(section.tls_cert) if section.tls_cert else None,
            tls_key=Path(section.tls_key) if section.tls_key else None,
            idle_timeout_s=section.idle_timeout_s,
            creation_timeout_s=section.creation_timeout_s,
        )

    async def _listen(
        self,
        metrics: telemetry.Telemetry,
        runtime: Runtime,
        images: Images,
        streaming: StreamingServer,
    ) -> grpc.aio.Server:
        size = self._config.limits.grpc_message_bytes
        subjects = Subjects(runtime.sandboxes, runtime.containers)
        boundary = Boundary(metrics, lambda: self._recovered, subjects.of)
        server = grpc.aio.server(
            interceptors=[boundary],
            options=[
                ("grpc.max_receive_message_length", size),
                ("grpc.max_send_message_length", size),
                ("grpc.so_reuseport", 0),
            ],
        )
        service = RuntimeService(runtime, streaming)
        self._events = service.events
        OperatorMetrics(
            loop=asyncio.get_running_loop(),
            runtime=runtime,
            images=images,
            boundary=boundary,
            events=service.events,
            streaming=streaming,
            ready=lambda: self._recovered,
            recovery_s=lambda: self._recovery_s,
        ).register(metrics)
        api_pb2_grpc.add_RuntimeServiceServicer_to_server(service, server)
        handlers = frozenset(facts.name for facts in runtime.handlers)
        api_pb2_grpc.add_ImageServiceServicer_to_server(ImageService(images, handlers), server)
        admin_pb2_grpc.add_AdminServicer_to_server(
            AdminService(runtime, images, self._executors.fs), server
        )
        socket = self._config.storage.socket
        socket.parent.mkdir(parents=True, exist_ok=True)
        socket.unlink(missing_ok=True)  # stale: the lock says that no daemon serves on it
        mask = os.umask(0o117)  # from the first moment 0660
        try:
            server.add_insecure_port(f"unix:{socket}")
            await server.start()
        finally:
            os.umask(mask)
        _raise_priority()  # of gRPC's threads too
        return server

    async def _shut_down(
        self, server: grpc.aio.Server, runtime: Runtime, images: assembly.ImageParts
    ) -> None:
        limit_s = self._config.limits.shutdown_s
        stopping = supervised(server.stop(limit_s), name="stopping")  # no new calls from now on
        await runtime.stop(limit_s)
        await images.close()
        await runtime.networks.stop()
        await server.stop(0)
        await stopping
        self._config.storage.socket.unlink(missing_ok=True)


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    try:
        root.mkdir(parents=True, exist_ok=True, mode=0o700)
        root.chmod(0o700)
        fd = os.open(root / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as exc:
        raise UnavailableError(f"root directory {root} cannot be used: {exc.strerror}") from exc
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise UnavailableError(
                f"another criagent serves with root directory {root}; stop it, or give this one a "
                "storage.root of its own"
            ) from None
        yield
    finally:
        os.close(fd)


def _log_problems(handlers: Sequence[HandlerFacts], monitor: str) -> None:
    for facts in handlers:
        if facts.problem:
            log.warning("handler_not_usable", handler=facts.name, problem=facts.problem)
    if monitor:
        log.error("conmon_not_usable", problem=monitor)


def _raise_priority() -> None:
    """A kubelet's lists and probes are answered also while containers use up every processor."""
    try:
        raise_all_threads()
    except PermissionError:
        log.warning("priority_not_raised", reason="no CAP_SYS_NICE")


def _own_cgroup() -> None:
    """Leave the unit's own cgroup for a child of it, which monitors inherit.

    systemd starts the next daemon in the unit's cgroup, and nothing may have enabled controllers
    there (systemd.resource-control, Delegate=).
    """
    try:
        own = cgroupfs.of_process(os.getpid())
        if own.endswith(".service"):
            cgroupfs.make(f"{own}/daemon")
            cgroupfs.join(f"{own}/daemon", os.getpid())
    except OSError as exc:
        log.warning("cgroup_not_changed", error=str(exc))
