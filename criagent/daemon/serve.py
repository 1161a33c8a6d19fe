# SPDX-License-Identifier: Apache-2.0
"""`criagent serve`: lock, store, parts, gRPC server, recovery; then calls until a signal arrives.

The lock is held for the daemon's life and taken before the socket is bound, so that a second daemon
never touches the first one's state. Containers and their monitors outlive the daemon.
"""

from __future__ import annotations

import asyncio
import contextlib
import faulthandler
import os
import signal
import sys
from collections.abc import Callable

import structlog

# We never fork beside a running server; the support for them costs threads and locks.
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")

from criagent.base import faults
from criagent.base.aio import Background, settle, supervised
from criagent.base.errors import AgentError, InvalidRequestError, UnavailableError
from criagent.config.sections import Config
from criagent.cri.admin_service import Operator
from criagent.cri.cadvisor import Cadvisor
from criagent.daemon.debug_report import DebugReport
from criagent.daemon.edge import Edge, cadvisor
from criagent.daemon.garbage import collect_less, collect_now_and_then
from criagent.daemon.metrics_access import metrics_access
from criagent.daemon.node_page import NodePage
from criagent.daemon.readiness import Readiness
from criagent.daemon.reload import Reload
from criagent.daemon.root_lock import locked
from criagent.daemon.service_notify import notify
from criagent.daemon.watchdog import ServiceStatus, interval_s, watch
from criagent.daemon.wiring import agent as wiring
from criagent.daemon.wiring.agent import Agent
from criagent.daemon.wiring.shared import Executors, Shared, Stores
from criagent.kernel import cgroupfs
from criagent.process import signals as process_signals
from criagent.process.child import take_in_orphans
from criagent.process.heap import one_arena
from criagent.telemetry.telemetry import Telemetry

_METRICS_AGAIN_S = 30.0
_SWITCH_S = 0.001  # for how long a thread may hold the GIL while the loop waits; Python's own: 5 ms

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


def serve(config: Config, read: Callable[[], Config]) -> int:
    """Run until SIGTERM or SIGINT; returns the exit status, 1 when it cannot start.

    `read` gives the configuration as it is on disk, for a reload; it raises ConfigError.
    """
    one_arena()
    collect_less()
    faulthandler.enable()  # a watchdog's SIGABRT shows where each thread is
    try:
        with locked(config.storage.root):
            return asyncio.run(_serve(config, read))
    except AgentError as error:
        log.error("not_started", error=str(error))  # noqa: TRY400 - a clear text, no traceback
    except OSError as error:  # a full or broken disk; names what it could not use
        log.error("not_started", error=str(error))  # noqa: TRY400 - as above
    return 1


async def _serve(config: Config, read: Callable[[], Config]) -> int:
    _own_cgroup()
    take_in_orphans()
    sys.setswitchinterval(_SWITCH_S)
    executors = Executors.start()
    try:
        stores = Stores.open(config.storage.root / "state.db")
        try:
            await _Daemon(Shared.of(config, stores, executors), read).run()
        finally:
            stores.db.close()
    finally:
        executors.shutdown()
    return 0


class _Daemon:
    def __init__(self, shared: Shared, read: Callable[[], Config]) -> None:
        self._shared = shared
        self._read = read
        self._config = shared.config
        self._readiness = Readiness()
        self._stopping = asyncio.Event()
        self._debug = DebugReport(shared, asyncio.get_running_loop())

    async def run(self) -> None:
        """Serve until SIGTERM or SIGINT."""
        self._take_signals(asyncio.get_running_loop())
        config = self._config
        metrics = Telemetry(config.telemetry.otlp_endpoint)
        agent = await wiring.build(self._shared)
        reload = Reload(agent, self._read)
        edge = Edge(agent, metrics, self._readiness, Operator(self._debug.document, reload))
        self._debug.calls(edge.boundary.in_flight, edge.boundary.oldest_s)
        await edge.listen()
        for_cadvisor = cadvisor(agent)
        background: list[asyncio.Task[None]] = []
        try:
            await edge.open_streams()
            serving = self._serve_metrics(metrics, self._page(edge))
            background.append(supervised(serving, name="metrics"))
            await self._recover(agent, for_cadvisor)
            # the verbs' points, not recovery's
            faults.arm(config.debug.kill_at or None, config.debug.fail_at)
            collector = collect_now_and_then(self._shared.executors.fs)
            background.append(supervised(collector, name="garbage"))
            notify("READY=1")
            background += self._for_service_manager()
            self._reload_on_hangup(reload)
            log.info("serving", socket=str(config.storage.socket))
            await self._stopping.wait()
        finally:
            notify("STOPPING=1")
            log.info("stopping")
            await settle(*background)
            await edge.close_streams()
            await for_cadvisor.close()
            await self._shut_down(edge, agent)
            metrics.close()

    async def _recover(self, agent: Agent, for_cadvisor: Cadvisor) -> None:
        """cAdvisor's cgroups go first: they are found by rows that recovery may delete."""
        loop = asyncio.get_running_loop()
        began = loop.time()
        await for_cadvisor.listen()
        await agent.recover()
        self._readiness.reached(loop.time() - began)
        for_cadvisor.recovered()

    def _take_signals(self, loop: asyncio.AbstractEventLoop) -> None:
        process_signals.install(loop, self._debug.state)
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, self._stopping.set)

    def _page(self, edge: Edge) -> NodePage | None:
        if not self._config.telemetry.status_page:
            return None
        return NodePage(
            report=edge.report,
            stores=self._shared.stores,
            failures=lambda: list(edge.boundary.last_failed),
            loop=asyncio.get_running_loop(),
        )

    def _for_service_manager(self) -> list[asyncio.Task[None]]:
        """The status line, and the watchdog if the unit has one."""
        ServiceStatus(self._shared.stores.sandboxes, self._shared.stores.containers)
        if not (every_s := interval_s()):
            return []

        def dump() -> None:
            loop = asyncio.get_running_loop()
            process_signals.dump_stacks(loop, self._debug.state)

        watching = watch(self._config.storage.socket, every_s, dump)
        return [supervised(watching, name="watchdog")]

    def _reload_on_hangup(self, reload: Reload) -> None:
        if signal.getsignal(signal.SIGHUP) is signal.SIG_IGN:  # as nohup(1) leaves it
            return
        reloading = Background("reload")

        async def quietly() -> None:
            with contextlib.suppress(InvalidRequestError):  # logged
                await reload()

        loop = asyncio.get_running_loop()
        loop.add_signal_handler(signal.SIGHUP, lambda: reloading.start(quietly))

    async def _serve_metrics(self, metrics: Telemetry, page: Callable[[], str] | None) -> None:
        """Pods do not depend on metrics: a taken address is tried again until it is free."""
        logged, section = False, self._config.telemetry
        while True:
            try:
                access = metrics_access(section)
                metrics.serve(section.metrics_address, self._readiness.ready, page, access)
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

    async def _shut_down(self, edge: Edge, agent: Agent) -> None:
        limit_s = self._config.limits.shutdown_s
        stopping = supervised(edge.stop(limit_s), name="stopping")  # no new calls from now on
        await agent.stop(limit_s)
        await edge.stop(0)
        await stopping
        edge.gone()


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
