# SPDX-License-Identifier: Apache-2.0
"""The node: its paths, what kernel and OCI runtimes can do, and who confines containers."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.errors import UnsupportedError
from criagent.config.runtime_section import Handler
from criagent.config.runtime_section import Runtime as RuntimeSection
from criagent.daemon.wiring import nri
from criagent.daemon.wiring.nri import NriParts
from criagent.daemon.wiring.shared import Shared
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.kernel import cgroupfs
from criagent.runtime.checkpoint.criu import write_options
from criagent.runtime.node.annotations import PassedAnnotations
from criagent.runtime.node.cgroup_names import DEFAULT_PARENT, CgroupDriver
from criagent.runtime.node.facts import NodeFacts, read_node_facts, systemd_manages
from criagent.runtime.node.handlers import HandlerFacts, Handlers, monitor_problem, probe
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import IGNORE_CGROUPS, OciRuntime, Runtimes, SealedProgram
from criagent.runtime.pod.user_namespace_probe import probe_user_namespaces
from criagent.runtime.spec.security.apparmor import AppArmor
from criagent.runtime.spec.security.selinux import Selinux, read_contexts

# Programs that copy themselves at every call, and behave the same under any other name.
_SEALED = frozenset({"crun", "runc"})
# Annotations that a type of program needs.
_ANNOTATIONS = {"wasm": {"run.oci.handler": "wasm"}}

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeParts:
    """What pods and containers are made of and with."""

    paths: RuntimePaths
    driver: CgroupDriver
    facts: NodeFacts
    handlers: Handlers
    runtimes: Runtimes
    selinux: Selinux
    apparmor: AppArmor
    nri: NriParts

    def prepare(self) -> None:
        """Create the fixed directories and the cgroup of pods that name no parent; synchronous.

        Raises UnsupportedError without cgroup v2.
        """
        if not cgroupfs.unified():
            raise UnsupportedError(
                "/sys/fs/cgroup is not cgroup v2 (v1 and hybrid layouts are not supported); "
                "boot with systemd.unified_cgroup_hierarchy=1 and run `criagent doctor`"
            )
        self.paths.prepare()
        write_options(self.paths.criu_home)
        for name in self.handlers.by_name:
            self.paths.runtime_root(name).mkdir(exist_ok=True, mode=0o700)
        if self.driver is CgroupDriver.CGROUPFS:
            cgroupfs.make(DEFAULT_PARENT)


async def build(shared: Shared, drivers: SnapshotsByHandler) -> NodeParts:
    """Ask the kernel and the configured programs what they are; logs what is wrong with them."""
    config, fs = shared.config, shared.executors.fs
    section = config.runtime
    handlers = await _handlers(shared, drivers)
    driver = detected_driver(section.cgroup_driver)
    apart = config.storage.containers_root
    paths = RuntimePaths(
        root=config.storage.root,
        run_dir=config.storage.run_dir,
        containers_root=Path(apart) if apart else None,
    )
    facts = read_node_facts(
        nofile=(section.nofile_soft, section.nofile_hard),
        missing_controllers=section.missing_controllers,
    )
    if facts.oom_score_floor > -1000:
        log.warning(
            "oom_score_limited",
            to=facts.oom_score_floor,
            reason="no CAP_SYS_RESOURCE: containers cannot have a lower oom_score_adj",
        )
    return NodeParts(
        paths=paths,
        driver=driver,
        facts=facts,
        handlers=handlers,
        runtimes=_runtimes(section, paths, driver, facts.controllers),
        selinux=_selinux(section.selinux, facts, fs),
        apparmor=AppArmor(available=facts.apparmor, fs=fs),
        nri=nri.build(shared, facts=facts, handlers=handlers, driver=driver, paths=paths),
    )


def detected_driver(configured: str) -> CgroupDriver:
    """The configured cgroup driver, or systemd where it manages this system."""
    if configured != "auto":
        return CgroupDriver(configured)
    return CgroupDriver.SYSTEMD if systemd_manages() else CgroupDriver.CGROUPFS


async def _handlers(shared: Shared, drivers: SnapshotsByHandler) -> Handlers:
    section = shared.config.runtime
    found = await _probed(shared, drivers)
    problem = await monitor_problem(section.conmon)
    for facts in found:
        if facts.problem:
            log.warning("handler_not_usable", handler=facts.name, problem=facts.problem)
    if problem:
        log.error("conmon_not_usable", problem=problem)
    return Handlers(
        found, default=section.default_handler, monitor=section.conmon, monitor_problem=problem
    )


async def _probed(shared: Shared, drivers: SnapshotsByHandler) -> list[HandlerFacts]:
    """What each OCI runtime is, and whether it can have pods with user namespaces."""
    scratch, lacking = shared.config.storage.run_dir / "userns-probe", {}
    for part in drivers.all():
        await part.prepare()  # the probe mounts a layer that lies where layers do
        problem = await probe_user_namespaces(part.userns_problem, scratch)
        lacking[part.store.driver] = problem
        if problem and drivers.in_use(part.store.driver):
            log.info("no_user_namespaces", driver=part.driver, problem=problem)
    found = []
    for name, handler in shared.config.runtime.handlers.items():
        facts = await probe(name, handler.path, handler.type)
        if facts.insecure:
            log.warning(
                "handler_insecure", handler=name, path=str(facts.path), reason=facts.insecure
            )
        found.append(
            dataclasses.replace(
                facts,
                userns_problem=facts.userns_problem or lacking[drivers.driver_of(name)],
                host_devices=not handler.privileged_without_host_devices,
                all_devices=handler.privileged_without_host_devices_all_devices_allowed,
                annotations=PassedAnnotations(
                    of_pod=handler.pod_annotations,
                    of_container=handler.container_annotations,
                    own=_ANNOTATIONS.get(handler.type, {}),
                ),
            )
        )
    return found


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


def _runtimes(
    section: RuntimeSection, paths: RuntimePaths, driver: CgroupDriver, controllers: frozenset[str]
) -> Runtimes:
    return Runtimes(
        (
            name,
            OciRuntime(
                name=name,
                program=SealedProgram(handler.path, own_name=handler.path.name not in _SEALED),
                type=handler.type,
                root=paths.runtime_root(name),
                driver=driver,
                given=_given(handler, driver, controllers),
                create_timeout_s=handler.create_timeout_s,
                exec_in_container=handler.exec_cgroup == "container",
            ),
        )
        for name, handler in section.handlers.items()
    )


def _selinux(configured: str, node: NodeFacts, fs: Executor) -> Selinux:
    contexts = read_contexts() if node.selinux and configured != "off" else None
    if contexts is None:
        return Selinux(fs=fs)
    return Selinux(fs=fs, process=contexts[0], file=contexts[1])
