# SPDX-License-Identifier: Apache-2.0
"""The handlers: their programs are asked at the start, and again by a reload that changes them."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import structlog

from criagent.base.aio import run_in
from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.config.defaults.json_file import FileError
from criagent.config.runtime_section import Handler
from criagent.daemon.wiring.shared import Shared
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.runtime.node.annotations import PassedAnnotations
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.handlers import HandlerFacts, Handlers, monitor_problem, probe
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import IGNORE_CGROUPS, OciRuntime, Runtimes, SealedProgram
from criagent.runtime.pod.user_namespace_probe import probe_user_namespaces

if TYPE_CHECKING:
    from criagent.config.defaults.base_spec import BaseSpec

# Programs that copy themselves at every call, and behave the same under any other name.
_SEALED = frozenset({"crun", "runc"})
# Annotations that a type of program needs.
_ANNOTATIONS = {"wasm": {"run.oci.handler": "wasm"}}
# Storage, platforms and networks are put together at the start.
_AT_START = ("snapshotter", "platform", "cni_conf_dir")

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

Read = tuple[HandlerFacts, OciRuntime]


class Ground(NamedTuple):
    """What the programs work on: directories, and how cgroups are made with which controllers."""

    paths: RuntimePaths
    driver: CgroupDriver
    controllers: frozenset[str]


class Changes(NamedTuple):
    """Handlers that a reload adds or changes, those that it removes, and those that it cannot."""

    wanted: Mapping[str, Handler]
    removed: frozenset[str]
    at_restart: frozenset[str]


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class LiveHandlers:
    """Handlers as they are now. `userns_problems` are those of storage drivers, by name."""

    handlers: Handlers
    runtimes: Runtimes
    drivers: SnapshotsByHandler
    ground: Ground
    userns_problems: Mapping[str, str]
    fs: Executor

    def changes(self, old: Mapping[str, Handler], new: Mapping[str, Handler]) -> Changes:
        """What is between two configurations.

        The default handler needs a restart: the processes of pods without a handler of their own
        depend on it.
        """
        differ = {name for name in {*old, *new} if old.get(name) != new.get(name)}
        fixed = {
            name
            for name in differ
            if name == self.handlers.default
            or any(_key(old.get(name), key) != _key(new.get(name), key) for key in _AT_START)
        }
        live = differ - fixed
        return Changes(
            wanted={name: new[name] for name in sorted(live & set(new))},
            removed=frozenset(live - set(new)),
            at_restart=frozenset(fixed),
        )

    async def read(self, wanted: Mapping[str, Handler]) -> list[Read]:
        """Ask new programs. Raises InvalidRequestError for one that cannot be used."""
        found = [await self._read(name, handler) for name, handler in wanted.items()]
        problems = [
            f"runtime.handlers.{facts.name}.path: {facts.problem}"
            for facts, _ in found
            if facts.problem
        ]
        if problems:
            raise InvalidRequestError("; ".join(problems))
        for name in wanted:
            root = self.ground.paths.runtime_root(name)
            await run_in(self.fs, partial(root.mkdir, exist_ok=True, mode=0o700))
        return found

    async def _read(self, name: str, handler: Handler) -> Read:
        problem = self.userns_problems[self.drivers.driver_of(name)]
        facts = await _facts(name, handler, problem)
        return facts, _runtime(name, handler, self.ground)

    def apply(self, found: Iterable[Read], removed: Iterable[str]) -> None:
        """Let new pods have these, and no new pod the removed ones; does not wait.

        Running containers of a handler that changed are served by the new program, as they would
        be after a restart. The sealed copy of the former one stays open for calls in progress.
        """
        read = list(found)
        for facts, runtime in read:
            self.runtimes[facts.name] = runtime
        self.handlers.change((facts for facts, _ in read), removed)


async def build(shared: Shared, drivers: SnapshotsByHandler, ground: Ground) -> LiveHandlers:
    """Ask the configured programs what they are; logs what is wrong with them."""
    section = shared.config.runtime
    lacking = await _userns_problems(shared, drivers)
    found = [
        await _facts(name, handler, lacking[drivers.driver_of(name)])
        for name, handler in section.handlers.items()
    ]
    problem = await monitor_problem(section.conmon)
    for facts in found:
        if facts.problem:
            log.warning("handler_not_usable", handler=facts.name, problem=facts.problem)
    if problem:
        log.error("conmon_not_usable", problem=problem)
    return LiveHandlers(
        handlers=Handlers(
            found, default=section.default_handler, monitor=section.conmon, monitor_problem=problem
        ),
        runtimes=Runtimes(
            (name, _runtime(name, handler, ground)) for name, handler in section.handlers.items()
        ),
        drivers=drivers,
        ground=ground,
        userns_problems=lacking,
        fs=shared.executors.fs,
    )


def _key(handler: Handler | None, key: str) -> str:
    """The value of one of `_AT_START`; "" without a handler, as by default."""
    return "" if handler is None else str(getattr(handler, key))


async def _userns_problems(shared: Shared, drivers: SnapshotsByHandler) -> dict[str, str]:
    """Why user namespaces cannot have the layers of each storage driver; "" = they can."""
    scratch, lacking = shared.config.storage.run_dir / "userns-probe", {}
    for part in drivers.all():
        await part.prepare()  # the probe mounts a layer that lies where layers do
        problem = await probe_user_namespaces(part.userns_problem, scratch)
        lacking[part.store.driver] = problem
        if problem and drivers.in_use(part.store.driver):
            log.info("no_user_namespaces", driver=part.driver, problem=problem)
    return lacking


async def _facts(name: str, handler: Handler, userns_problem: str) -> HandlerFacts:
    """What the program is, with what its section says."""
    facts = await probe(name, handler.path, handler.type)
    if facts.insecure:
        log.warning("handler_insecure", handler=name, path=str(facts.path), reason=facts.insecure)
    return dataclasses.replace(
        facts,
        userns_problem=facts.userns_problem or userns_problem,
        host_devices=not handler.privileged_without_host_devices,
        all_devices=handler.privileged_without_host_devices_all_devices_allowed,
        annotations=PassedAnnotations(
            of_pod=handler.pod_annotations,
            of_container=handler.container_annotations,
            own=_ANNOTATIONS.get(handler.type, {}),
        ),
        allowed_annotations=frozenset(handler.allowed_annotations),
        base=_base(handler),
        min_memory_bytes=handler.min_memory_bytes,
    )


def _base(handler: Handler) -> BaseSpec | None:
    """The handler's base specification, as it is now. Raises UnsupportedError if it changed after
    the configuration was read, and cannot be used.
    """
    if not handler.base_runtime_spec:
        return None
    from criagent.config.defaults import base_spec  # few handlers have one

    try:
        return base_spec.read(Path(handler.base_runtime_spec))
    except FileError as error:
        raise UnsupportedError(f"base_runtime_spec {error}") from None


def _given(handler: Handler, driver: CgroupDriver, controllers: frozenset[str]) -> tuple[str, ...]:
    """Global arguments of a handler: the configuration's, and what its type needs.

    gVisor's own network stack takes the pod's addresses for one container; with the node's, in the
    pod's namespace, the containers of a pod share them. Seccomp and the permission of a pod to
    gain privileges count only if it is asked. Its code for cgroups needs controllers.
    """
    given = handler.arguments
    if handler.type == "runsc":
        names = {argument.lstrip("-").partition("=")[0] for argument in given}
        given += tuple(
            argument
            for argument in ("--network=host", "--oci-seccomp", "--allow-suid")
            if argument.lstrip("-").partition("=")[0] not in names
        )
        if driver is CgroupDriver.CGROUPFS and not controllers & {"cpu", "memory", "pids"}:
            given += (IGNORE_CGROUPS,)
    return given


def _runtime(name: str, handler: Handler, ground: Ground) -> OciRuntime:
    return OciRuntime(
        name=name,
        program=SealedProgram(handler.path, own_name=handler.path.name not in _SEALED),
        type=handler.type,
        root=ground.paths.runtime_root(name),
        driver=ground.driver,
        given=_given(handler, ground.driver, ground.controllers),
        create_timeout_s=handler.create_timeout_s,
        exec_in_container=handler.exec_cgroup == "container",
    )
