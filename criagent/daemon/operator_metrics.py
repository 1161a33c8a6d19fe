# SPDX-License-Identifier: Apache-2.0
"""What operators see at /metrics beside the timings of calls; docs/metrics.md lists every name.

Values are computed when metrics are read, in the reader's thread, from facts that the parts keep
anyway: nothing here is counted on the way of a call but exits and starts, one addition each.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
import os
from collections import Counter
from collections.abc import Callable, Mapping

from grpc import StatusCode

from criagent.base import aio
from criagent.cri.boundary import Boundary
from criagent.cri.conditions import Conditions
from criagent.cri.events import Events
from criagent.daemon.readiness import Readiness
from criagent.image.images import Images
from criagent.image.profiles.profiles import SecurityProfiles
from criagent.image.pull import Puller
from criagent.image.snapshots.snapshots import Snapshots
from criagent.model.container import Container, ContainerState, Reason
from criagent.model.sandbox import Sandbox, SandboxState
from criagent.nri.registry import Registry
from criagent.nri.tally import Tally
from criagent.store.containers import ContainerStore
from criagent.store.sandboxes import SandboxStore
from criagent.streaming.server import StreamingServer
from criagent.telemetry import logs
from criagent.telemetry.telemetry import Telemetry
from criagent.version import VERSION

_LOOP_S = 2.0


class Tallies:
    """Starts and ends since the agent's own start, heard from the rows."""

    def __init__(self, sandboxes: SandboxStore, containers: ContainerStore) -> None:
        # By reason. Each is there from the start: the first rise of a series that is born with it
        # is none to Prometheus, so the first loss would not alert.
        self.exits: Counter[str] = Counter({str(reason): 0 for reason in Reason})
        self.container_starts = 0
        self.sandbox_starts = 0
        self._ready: set[str] = {sandbox.id for sandbox in sandboxes.all() if sandbox.ready_at_ns}
        self._started: set[str] = {
            container.id for container in containers.all() if container.started_at_ns
        }
        self._ended: set[str] = {
            container.id for container in containers.all() if container.finished_at_ns
        }
        sandboxes.listeners.append(self._sandbox)
        containers.listeners.append(self._container)

    def _sandbox(self, sandbox_id: str, sandbox: Sandbox | None) -> None:
        if sandbox is None:
            self._ready.discard(sandbox_id)
        elif sandbox.ready_at_ns and sandbox_id not in self._ready:
            self._ready.add(sandbox_id)
            self.sandbox_starts += 1

    def _container(self, container_id: str, container: Container | None) -> None:
        if container is None:
            self._started.discard(container_id)
            self._ended.discard(container_id)
            return
        if container.started_at_ns and container_id not in self._started:
            self._started.add(container_id)
            self.container_starts += 1
        if container.started_at_ns and container.finished_at_ns and container_id not in self._ended:
            self._ended.add(container_id)
            self.exits[container.reason or str(Reason.UNKNOWN)] += 1


def register_agent(to: Telemetry, conditions: Conditions, readiness: Readiness) -> None:
    """The agent itself. Called on the loop."""
    loop = asyncio.get_running_loop()
    version = VERSION
    to.gauge("criagent_build_info", "1, with the version.", lambda: {version: 1.0}, label="version")
    to.gauge("criagent_ready", "1 once recovery is done.", lambda: float(readiness.ready()))
    to.gauge(
        "criagent_recovery_seconds", "Time that recovery took at this start.", readiness.recovery_s
    )
    to.gauge(
        "criagent_condition",
        "1 where the CRI Status reports the condition as true.",
        lambda: _conditions(loop, conditions),
        label="type",
    )
    to.counter(
        "criagent_internal_failures",
        "Failures that no caller sees; the log has each.",
        lambda: {kind: float(aio.FAILURES[kind]) for kind in aio.FAILURE_KINDS},
        label="kind",
    )
    to.counter(
        "criagent_log_lines",
        "Lines of the agent's log, without those of calls.",
        lambda: {level: float(logs.LINES[level]) for level in ("warning", "error")},
        label="level",
    )


def register_calls(
    to: Telemetry, boundary: Boundary, events: Events, streaming: StreamingServer
) -> None:
    """Calls, subscriptions and streams."""
    to.gauge(
        "criagent_rpcs_in_flight",
        "Calls being served.",
        boundary.in_flight,
        label="method",
    )
    to.gauge(
        "criagent_rpc_oldest_seconds",
        "Age of the oldest call in progress, without streams.",
        boundary.oldest_s,
    )
    to.counter(
        "criagent_rpc_errors",
        "Calls that failed, by gRPC status.",
        lambda: {
            code.name: float(boundary.failed[code.name])
            for code in StatusCode
            if code is not StatusCode.OK
        },
        label="code",
    )
    to.gauge(
        "criagent_event_streams",
        "Subscribers of GetContainerEvents.",
        lambda: events.subscribers,
    )
    to.counter(
        "criagent_event_streams_dropped",
        "Subscribers let go because they did not keep up.",
        lambda: events.dropped,
    )
    to.gauge(
        "criagent_streaming_connections",
        "Connections of exec, attach and port-forward.",
        lambda: streaming.connections,
    )


def register_pods(to: Telemetry, sandboxes: SandboxStore, containers: ContainerStore) -> None:
    """Pods and containers."""
    tallies = Tallies(sandboxes, containers)
    to.gauge("criagent_sandboxes", "Pod sandboxes.", lambda: _sandboxes(sandboxes), label="state")
    to.gauge("criagent_containers", "Containers.", lambda: _containers(containers), label="state")
    to.gauge(
        "criagent_handler_containers",
        "Running containers of each handler that has some.",
        lambda: _by_handler(containers),
        label="handler",
    )
    to.counter("criagent_sandbox_starts", "Sandboxes made ready.", lambda: tallies.sandbox_starts)
    to.counter("criagent_container_starts", "Containers started.", lambda: tallies.container_starts)
    to.counter(
        "criagent_container_exits",
        "Ends of started containers.",
        lambda: {reason: float(number) for reason, number in list(tallies.exits.items())},
        label="reason",
    )


def _by_handler(containers: ContainerStore) -> dict[str, float]:
    running = (one for one in containers.all() if one.state is ContainerState.RUNNING)
    return {name: float(number) for name, number in Counter(c.handler for c in running).items()}


def register_profiles(to: Telemetry, profiles: SecurityProfiles) -> None:
    """Security profiles from registries."""
    to.gauge(
        "criagent_security_profiles",
        "Seccomp profiles from registries; incomplete are those that lack a blob.",
        profiles.states,
        label="state",
    )


def register_images(to: Telemetry, images: Images, puller: Puller) -> None:
    """Images, pulls and what both take of the disk."""
    to.gauge(
        "criagent_storage_used_ratio",
        "How full the store of the storage driver is: data and metadata of a thin pool, or what a "
        "ZFS dataset may take. None with drivers that store files below storage.root.",
        functools.partial(_used_shares, images),
        label="part",
    )
    to.gauge("criagent_images", "Images.", lambda: len(images.all()))
    to.gauge(
        "criagent_image_fs_used_bytes",
        "Blobs and layers of images, and what pulls have fetched, as in ImageFsInfo.",
        lambda: sum(usage.used_bytes for usage in images.fs_usages()),
    )
    to.gauge(
        "criagent_image_fs_used_inodes",
        "Their inodes, as in ImageFsInfo.",
        lambda: sum(usage.inodes_used for usage in images.fs_usages()),
    )
    to.gauge(
        "criagent_container_fs_used_bytes",
        "Writable layers as they were counted last, as in ImageFsInfo.",
        lambda: sum(usage.used_bytes for usage in images.container_fs_usages()),
    )
    to.gauge(
        "criagent_container_fs_used_inodes",
        "Their inodes, as in ImageFsInfo.",
        lambda: sum(usage.inodes_used for usage in images.container_fs_usages()),
    )
    for name, text, field in (
        ("size_bytes", "Sizes of the file systems of images and of containers.", "f_blocks"),
        ("free_bytes", "What is free on them.", "f_bavail"),
        ("inodes", "Their inodes, 0 without a fixed number.", "f_files"),
        ("free_inodes", "Free ones.", "f_favail"),
    ):
        ask = functools.partial(_disks, images, field)
        to.gauge(f"criagent_storage_{name}", text, ask, label="of")
    to.gauge("criagent_pulls_in_flight", "Pulls in progress.", lambda: puller.running)
    to.counter(
        "criagent_pulls",
        "Pulls ended; callers that joined one are not counted.",
        lambda: {result: float(puller.results[result]) for result in ("ok", "failed", "cancelled")},
        label="result",
    )


def register_nri(to: Telemetry, registry: Registry, tally: Tally) -> None:
    """NRI plugins and calls of them."""

    def by_plugin(counts: Mapping[str, float]) -> Callable[[], dict[str, float]]:
        return lambda: dict(list(counts.items()))

    to.gauge("criagent_nri_plugins", "Registered NRI plugins.", lambda: len(registry.all))
    for name, text, counts in (
        ("calls", "Calls of NRI plugins.", tally.calls),
        ("refusals", "Calls that a plugin refused.", tally.refusals),
        ("failures", "Calls that a plugin did not answer.", tally.failures),
        ("call_seconds", "Time that calls of NRI plugins took.", tally.seconds),
    ):
        to.counter(f"criagent_nri_{name}", text, by_plugin(counts), label="plugin")


def _conditions(loop: asyncio.AbstractEventLoop, conditions: Conditions) -> dict[str, float]:
    """Asked on the loop, where Status asks too; nothing while the loop does not answer."""

    async def ask() -> dict[str, float]:
        reason, _ = await conditions.unready()
        network = conditions.network()
        return {"RuntimeReady": float(not reason), "NetworkReady": float(network.ready)}

    try:
        return asyncio.run_coroutine_threadsafe(ask(), loop).result(_LOOP_S)
    except TimeoutError:
        return {}


def _disks(images: Images, field: str) -> dict[str, float]:
    """A field of statvfs(2) for each file system, bytes for blocks; nothing for one that fails."""
    found: dict[str, float] = {}
    places = [
        (f"{of}{_suffix(part)}", place)
        for part in images.content.drivers.all()
        for of, place in (("images", part.root), ("containers", part.containers_root))
    ]
    for of, place in places:
        with contextlib.suppress(OSError):
            facts = os.statvfs(place)
            unit = facts.f_frsize if field in {"f_blocks", "f_bavail"} else 1
            found[of] = float(getattr(facts, field) * unit)
    return found


def _used_shares(images: Images) -> dict[str, float]:
    return {
        f"{name}{_suffix(part)}": share
        for part in images.content.drivers.all()
        for name, share in part.used_shares().items()
    }


def _suffix(part: Snapshots) -> str:
    """After a label's value: "" for storage.driver, else the driver's name."""
    return f"-{part.store.driver}" if part.store.driver else ""


def _sandboxes(sandboxes: SandboxStore) -> dict[str, float]:
    counts = Counter(sandbox.state.name for sandbox in sandboxes.all() if sandbox.visible)
    return {state.name.lower(): float(counts[state.name]) for state in SandboxState}


def _containers(containers: ContainerStore) -> dict[str, float]:
    counts = Counter(container.state.name for container in containers.all() if container.visible)
    states = (ContainerState.CREATED, ContainerState.RUNNING, ContainerState.EXITED)
    return {state.name.lower(): float(counts[state.name]) for state in states}
