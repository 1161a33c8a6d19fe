# SPDX-License-Identifier: Apache-2.0
"""The node: its paths, what kernel and OCI runtimes can do, and who confines containers."""

from __future__ import annotations

import dataclasses
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.errors import UnsupportedError
from criagent.daemon.wiring import handlers, nri
from criagent.daemon.wiring.handlers import Ground, LiveHandlers
from criagent.daemon.wiring.nri import NriParts
from criagent.daemon.wiring.shared import Shared
from criagent.image.snapshots.by_handler import SnapshotsByHandler
from criagent.kernel import cgroupfs
from criagent.runtime.checkpoint.criu import write_options
from criagent.runtime.node.cgroup_names import DEFAULT_PARENT, CgroupDriver
from criagent.runtime.node.defaults import container_defaults
from criagent.runtime.node.facts import NodeFacts, read_node_facts, systemd_manages
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import Runtimes
from criagent.runtime.spec.security.apparmor import AppArmor
from criagent.runtime.spec.security.selinux import Selinux, read_contexts

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NodeParts:
    """What pods and containers are made of and with."""

    paths: RuntimePaths
    driver: CgroupDriver
    facts: NodeFacts
    live: LiveHandlers
    selinux: Selinux
    apparmor: AppArmor
    nri: NriParts

    @property
    def handlers(self) -> Handlers:
        """What each handler can do."""
        return self.live.handlers

    @property
    def runtimes(self) -> Runtimes:
        """What runs the programs of the handlers."""
        return self.live.runtimes

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
    facts = dataclasses.replace(facts, defaults=container_defaults(section, facts.capabilities))
    if facts.oom_score_floor > -1000:
        log.warning(
            "oom_score_limited",
            to=facts.oom_score_floor,
            reason="no CAP_SYS_RESOURCE: containers cannot have a lower oom_score_adj",
        )
    live = await handlers.build(shared, drivers, Ground(paths, driver, facts.controllers))
    return NodeParts(
        paths=paths,
        driver=driver,
        facts=facts,
        live=live,
        selinux=_selinux(section.selinux, facts, fs),
        apparmor=AppArmor(available=facts.apparmor, fs=fs),
        nri=nri.build(shared, facts=facts, handlers=live.handlers, driver=driver, paths=paths),
    )


def detected_driver(configured: str) -> CgroupDriver:
    """The configured cgroup driver, or systemd where it manages this system."""
    if configured != "auto":
        return CgroupDriver(configured)
    return CgroupDriver.SYSTEMD if systemd_manages() else CgroupDriver.CGROUPFS


def _selinux(configured: str, node: NodeFacts, fs: Executor) -> Selinux:
    contexts = read_contexts() if node.selinux and configured != "off" else None
    if contexts is None:
        return Selinux(fs=fs)
    return Selinux(fs=fs, process=contexts[0], file=contexts[1])
