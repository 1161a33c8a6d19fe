"""The runtime and network rooms put together."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from concurrent.futures import Executor
from pathlib import Path

import structlog

from criagent.base.aio import KeyedLocks, Owners, run_in
from criagent.config.sections import Config
from criagent.daemon.wiring.images import ImageParts
from criagent.daemon.wiring.stores import Executors, Stores
from criagent.model.sandbox import Sandbox, SandboxMetadata
from criagent.net.bridge import BridgeConfig, BridgeNetwork
from criagent.net.cni.network import CniConfig, CniNetwork
from criagent.net.pod_network import Networks
from criagent.runtime.container.declared_volumes import DeclaredVolumes
from criagent.runtime.container.ending import ContainerEnding
from criagent.runtime.container.erasure import ContainerErasure
from criagent.runtime.container.exits import ExitWatcher
from criagent.runtime.container.files import ContainerFiles
from criagent.runtime.container.gather import SpecGatherer
from criagent.runtime.container.image_volumes import ImageVolumes
from criagent.runtime.container.keys import ContainersMade, Endings, Starts, shown_start
from criagent.runtime.container.oom import OomWatch
from criagent.runtime.container.transitions import Transitions
from criagent.runtime.exec.output import OutputBudget
from criagent.runtime.exec.plan import ExecPlanner
from criagent.runtime.node import clock as clocks
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.facts import NodeFacts, has_all_ids, read_node_facts, systemd_manages
from criagent.runtime.node.handlers import HandlerFacts, probe
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.conmon import Conmon, monitors_cgroup
from criagent.runtime.oci.runtime import OciRuntime, Runtimes, SealedProgram
from criagent.runtime.pod.files import PodFileWriter
from criagent.runtime.pod.holder_watch import HolderWatch
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.pod.pid_holder import SandboxHolder
from criagent.runtime.pod.session_facts import SessionFacts
from criagent.runtime.pod.teardown import SandboxTeardown
from criagent.runtime.pod.user_namespace_probe import probe_user_namespaces
from criagent.runtime.recovery.containers import ContainerRecovery
from criagent.runtime.recovery.recovery import Recovery
from criagent.runtime.runtime import Runtime
from criagent.runtime.spec.cdi.registry import CdiFolders
from criagent.runtime.spec.cdi.resolve import CdiDevices
from criagent.runtime.spec.host_paths import HostPaths
from criagent.runtime.spec.security.apparmor import AppArmor
from criagent.runtime.spec.security.seccomp import default_profile
from criagent.runtime.spec.security.selinux import Selinux, read_contexts
from criagent.runtime.stats.container import ContainerStatsReader
from criagent.runtime.stats.metrics import PodMetricsReader
from criagent.runtime.stats.pod import PodStatsReader
from criagent.runtime.stats.writable_layers import WritableLayers
from criagent.runtime.verbs.attach import Attacher
from criagent.runtime.verbs.create_container import ContainerCreator
from criagent.runtime.verbs.exec_stream import ExecStreamer
from criagent.runtime.verbs.exec_sync import BUDGET, ExecSync
from criagent.runtime.verbs.port_forward import PortForwarder
from criagent.runtime.verbs.remove_container import ContainerRemover
from criagent.runtime.verbs.remove_sandbox import SandboxRemover
from criagent.runtime.verbs.reopen_log import LogReopener
from criagent.runtime.verbs.run_sandbox import SandboxRunner
from criagent.runtime.verbs.start_container import ContainerStarter
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.runtime.verbs.stop_sandbox import SandboxStopper
from criagent.runtime.verbs.update_container import ResourceUpdater

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)

_STOP_LIMIT_S = 10 * 365 * 24 * 3600.0  # a stop lasts as long as its grace period


def networks(config: Config, stores: Stores, executors: Executors) -> Networks:
    """Both backends; new pods get the configured one."""
    network = config.network

    def live() -> list[Sandbox]:
        return [sandbox for sandbox in stores.sandboxes.all() if not sandbox.released_at_ns]

    bridge = BridgeNetwork(
        BridgeConfig(
            bridge=network.bridge,
            pod_cidrs=network.pod_cidrs,
            mtu=network.mtu,
            anti_spoofing=network.anti_spoofing,
        ),
        stores.addresses,
        stores.settings,
        executors.net,
        live,
    )
    cni = CniNetwork(
        CniConfig(
            conf_dir=network.cni_conf_dir,
            bin_dirs=network.cni_bin_dirs,
            timeout_s=network.cni_timeout_s,
            cache_dir=config.storage.run_dir / "cni",
        ),
        executors.fs,
        stores.settings,
    )
    return Networks([bridge, cni], network.backend, live)


def detected_driver(configured: str) -> CgroupDriver:
    """The configured cgroup driver, or systemd where it manages this system."""
    if configured != "auto":
        return CgroupDriver(configured)
    return CgroupDriver.SYSTEMD if systemd_manages() else CgroupDriver.CGROUPFS


async def probed_handlers(
    config: Config, executors: Executors, images: ImageParts
) -> tuple[HandlerFacts, ...]:
    """What each configured OCI runtime is, and whether it can have pods with user namespaces."""
    await run_in(executors.fs, images.snapshots.prepare)
    scratch = config.storage.run_dir / "userns-probe"
    lacking = await probe_user_namespaces(images.snapshots.root, scratch, executors.fs)
    if lacking:
        log.info("no_user_namespaces", problem=lacking)
    found = []
    for name, handler in config.runtime.handlers.items():
        facts = await probe(name, handler.path, handler.type)
        if facts.insecure:
            log.warning(
                "handler_insecure", handler=name, path=str(facts.path), reason=facts.insecure
            )
        found.append(dataclasses.replace(facts, userns_problem=facts.userns_problem or lacking))
    return tuple(found)


def runtime(
    config: Config,
    stores: Stores,
    executors: Executors,
    clock: clocks.Clock,
    images: ImageParts,
    handlers: Sequence[HandlerFacts],
    monitor_problem: str = "",
) -> Runtime:
    """Everything about pods and containers."""
    parts = _RuntimeAssembly(config, stores, executors, clock, images, tuple(handlers))
    return dataclasses.replace(parts.build(), monitor_problem=monitor_problem)


class _RuntimeAssembly:
    """The runtime room, built in the order in which its parts need one another."""

    def __init__(
        self,
        config: Config,
        stores: Stores,
        executors: Executors,
        clock: clocks.Clock,
        images: ImageParts,
        handlers: tuple[HandlerFacts, ...],
    ) -> None:
        self.config = config
        self.stores = stores
        self.fs, self.counting = executors.fs, executors.counting
        self.clock = clock
        self.images = images
        self.handlers = handlers
        self.boot_id = clocks.boot_id()
        self.driver = detected_driver(config.runtime.cgroup_driver)
        self.paths = RuntimePaths(root=config.storage.root, run_dir=config.storage.run_dir)
        self.networks = networks(config, stores, executors)
        section = config.runtime
        self.node = read_node_facts(
            nofile=(section.nofile_soft, section.nofile_hard),
            missing_controllers=section.missing_controllers,
        )
        if self.node.oom_score_floor > -1000:
            log.warning(
                "oom_scores_raised",
                to=self.node.oom_score_floor,
                reason="no CAP_SYS_RESOURCE: containers cannot have a lower oom_score_adj",
            )
        self.selinux = _selinux(section.selinux, self.node, self.fs)
        self.apparmor = AppArmor(available=self.node.apparmor, fs=self.fs)
        self.runtimes = Runtimes(
            (
                name,
                OciRuntime(
                    name=name,
                    program=SealedProgram(handler.path),
                    type=handler.type,
                    root=self.paths.runtime_root(name),
                    driver=self.driver,
                ),
            )
            for name, handler in section.handlers.items()
        )
        limit_s, setting = section.create_timeout_s, "runtime.create_timeout_s"
        self.sandbox_owners = Owners[SandboxMetadata, Sandbox](
            limit_s=limit_s, noun="sandbox", setting=setting, show=lambda name: name.key
        )
        self.container_owners = ContainersMade(limit_s=limit_s, noun="container", setting=setting)
        self.starts = Starts(limit_s=_STOP_LIMIT_S, show=shown_start)
        self.endings = Endings(limit_s=_STOP_LIMIT_S)
        self.transitions = Transitions(store=stores.containers, locks=KeyedLocks())

    def build(self) -> Runtime:
        """All verbs."""
        self._pods()
        self._containers()
        layers = WritableLayers(snapshots=self.images.snapshots, fs=self.fs, counting=self.counting)
        self.stats = ContainerStatsReader(layers=layers, fs=self.fs)
        pod_stats = PodStatsReader(
            sandboxes=self.stores.sandboxes,
            containers=self.stores.containers,
            stats=self.stats,
            namespaces=self.namespaces,
            driver=self.driver,
            fs=self.fs,
        )
        for store in (self.stores.sandboxes, self.stores.containers):
            store.listeners.append(self._forget_stats)
        return Runtime(
            db=self.stores.db,
            sandboxes=self.stores.sandboxes,
            containers=self.stores.containers,
            networks=self.networks,
            paths=self.paths,
            handlers=self.handlers,
            cgroup_driver=self.driver,
            runner=self.runner,
            sandbox_stopper=self.sandbox_stopper,
            sandbox_remover=self._sandbox_remover(),
            files=self.files,
            creator=self.creator,
            starter=self.starter,
            stopper=self.stopper,
            remover=self.remover,
            executor=self._executor(),
            streamer=self._streamer(),
            attacher=Attacher(store=self.stores.containers, paths=self.paths),
            forwarder=PortForwarder(
                store=self.stores.sandboxes, namespaces=self.namespaces, fs=self.fs
            ),
            reopener=self._reopener(),
            updater=ResourceUpdater(
                store=self.stores.containers,
                transitions=self.transitions,
                runtimes=self.runtimes,
                node=self.node,
            ),
            stats=self.stats,
            pod_stats=pod_stats,
            pod_metrics=PodMetricsReader(
                containers=self.stores.containers,
                pods=pod_stats,
                root=self.images.snapshots.root,
                fs=self.fs,
            ),
            exits=self.exits,
            apparmor=self.apparmor,
            recovery=self._recovery(),
            sandbox_owners=self.sandbox_owners,
            container_owners=self.container_owners,
            starts=self.starts,
            endings=self.endings,
        )

    def _sandbox_remover(self) -> SandboxRemover:
        return SandboxRemover(
            store=self.stores.sandboxes,
            containers=self.stores.containers,
            endings=self.endings,
            stopper=self.sandbox_stopper,
            remover=self.remover,
            teardown=self.teardown,
        )

    def _streamer(self) -> ExecStreamer:
        return ExecStreamer(
            store=self.stores.containers,
            planner=self._planner(),
            drain_s=self.config.runtime.exec_drain_s,
        )

    def _reopener(self) -> LogReopener:
        return LogReopener(
            store=self.stores.containers,
            paths=self.paths,
            fs=self.fs,
            owners=Owners(
                limit_s=self.config.runtime.create_timeout_s,
                noun="log of container",
                setting="runtime.create_timeout_s",
            ),
        )

    def _forget_stats(self, row_id: str, container: object) -> None:
        if container is None:
            self.stats.forget(row_id)

    def _pods(self) -> None:
        self.namespaces = PodNamespaces(
            paths=self.paths,
            fs=self.fs,
            unprivileged_ports=self.config.network.unprivileged_ports,
            # In a user namespace of the agent's own there are not that many groups.
            unprivileged_icmp=self.config.network.unprivileged_icmp and has_all_ids(),
        )
        self.holder = SandboxHolder(
            runtimes=self.runtimes,
            default_handler=self.config.runtime.default_handler,
            paths=self.paths,
            namespaces=self.namespaces,
            catatonit=self.config.runtime.catatonit,
            driver=self.driver,
            seccomp=_default_seccomp(self.node),
            selinux=self.selinux,
            fs=self.fs,
        )
        pod_files = PodFileWriter(paths=self.paths, selinux=self.selinux, fs=self.fs)
        self.teardown = SandboxTeardown(
            store=self.stores.sandboxes,
            networks=self.networks,
            namespaces=self.namespaces,
            files=pod_files,
            holder=self.holder,
            clock=self.clock,
        )
        self.watch = HolderWatch(self.stores.sandboxes, self.teardown)
        self.runner = SandboxRunner(
            store=self.stores.sandboxes,
            owners=self.sandbox_owners,
            networks=self.networks,
            namespaces=self.namespaces,
            files=pod_files,
            holder=self.holder,
            watch=self.watch,
            teardown=self.teardown,
            handlers=frozenset(facts.name for facts in self.handlers if not facts.problem),
            userns_problems={f.name: f.userns_problem for f in self.handlers},
            default_handler=self.config.runtime.default_handler,
            selinux=self.selinux,
            clock=self.clock,
            boot_id=self.boot_id,
            new_id=clocks.new_id,
        )

    def _containers(self) -> None:
        store = self.stores.containers
        self.files = ContainerFiles(paths=self.paths, snapshots=self.images.snapshots, fs=self.fs)
        self.exits = ExitWatcher(
            store=store,
            transitions=self.transitions,
            paths=self.paths,
            oom=OomWatch(),
            starts=self.starts,
            clock=self.clock,
            fs=self.fs,
            boot_id=self.boot_id,
        )
        self.starter = ContainerStarter(
            store=store,
            sandboxes=self.stores.sandboxes,
            starts=self.starts,
            runtimes=self.runtimes,
            transitions=self.transitions,
            clock=self.clock,
        )
        self.ending = ContainerEnding(
            endings=self.endings, exits=self.exits, transitions=self.transitions, fs=self.fs
        )
        self.erasure = ContainerErasure(store=store, runtimes=self.runtimes, files=self.files)
        self.stopper = ContainerStopper(store=store, ending=self.ending)
        self.remover = ContainerRemover(
            store=store, endings=self.endings, stopper=self.stopper, erasure=self.erasure
        )
        self.sandbox_stopper = SandboxStopper(
            store=self.stores.sandboxes,
            containers=store,
            making=self.container_owners,
            endings=self.endings,
            stopper=self.stopper,
            teardown=self.teardown,
        )
        self.creator = self._creator()

    def _creator(self) -> ContainerCreator:
        section = self.config.runtime
        return ContainerCreator(
            store=self.stores.containers,
            owners=self.container_owners,
            images=self.images.images,
            volumes=ImageVolumes(images=self.images.images, paths=self.paths, fs=self.fs),
            declared=DeclaredVolumes(
                mode=section.image_volumes,
                paths=self.paths,
                snapshots=self.images.snapshots,
                fs=self.fs,
            ),
            files=self.files,
            gatherer=self._gatherer(),
            conmon=Conmon(
                program=section.conmon,
                paths=self.paths,
                limit_s=section.create_timeout_s,
                cgroup=monitors_cgroup(),
                fs=self.fs,
            ),
            runtimes=self.runtimes,
            exits=self.exits,
            selinux=self.selinux,
            paths=self.paths,
            driver=self.driver,
            default_handler=section.default_handler,
            recursive_read_only=frozenset(
                facts.name for facts in self.handlers if facts.recursive_read_only
            ),
            clock=self.clock,
            boot_id=self.boot_id,
            new_id=clocks.new_id,
        )

    def _gatherer(self) -> SpecGatherer:
        section = self.config.runtime
        return SpecGatherer(
            store=self.stores.containers,
            namespaces=self.namespaces,
            host_paths=HostPaths(fs=self.fs, own=(self.paths.root, self.paths.run_dir)),
            paths=self.paths,
            driver=self.driver,
            node=self.node,
            apparmor=self.apparmor,
            cdi=CdiDevices(
                folders=CdiFolders(section.cdi_spec_dirs),
                handlers={facts.name: facts for facts in self.handlers},
            ),
            owned_devices=section.device_ownership_from_security_context,
            no_host_devices=frozenset(
                name for name, h in section.handlers.items() if h.privileged_without_host_devices
            ),
            mapping_handlers=frozenset(f.name for f in self.handlers if f.idmapped_mounts),
            fs=self.fs,
        )

    def _planner(self) -> ExecPlanner:
        return ExecPlanner(files=self.files, paths=self.paths, runtimes=self.runtimes)

    def _executor(self) -> ExecSync:
        return ExecSync(
            store=self.stores.containers,
            planner=self._planner(),
            facts=SessionFacts(self.stores.sandboxes),
            budget=OutputBudget(BUDGET),
            own_cgroup=self.config.runtime.exec_cgroup,
            drain_s=self.config.runtime.exec_drain_s,
            message_bytes=self.config.limits.grpc_message_bytes,
        )

    def _recovery(self) -> Recovery:
        return Recovery(
            sandboxes=self.stores.sandboxes,
            containers=self.stores.containers,
            container_recovery=ContainerRecovery(
                exits=self.exits,
                erasure=self.erasure,
                ending=self.ending,
                transitions=self.transitions,
                runtimes=self.runtimes,
                paths=self.paths,
                clock=self.clock,
                boot_id=self.boot_id,
            ),
            networks=self.networks,
            namespaces=self.namespaces,
            holder=self.holder,
            watch=self.watch,
            teardown=self.teardown,
            snapshots=self.images.snapshots,
            paths=self.paths,
            clock=self.clock,
            boot_id=self.boot_id,
            fs=self.fs,
        )


def _selinux(configured: str, node: NodeFacts, fs: Executor) -> Selinux:
    contexts = read_contexts() if node.selinux and configured != "off" else None
    if contexts is None:
        return Selinux(fs=fs)
    return Selinux(fs=fs, process=contexts[0], file=contexts[1])


def _default_seccomp(node: NodeFacts) -> dict[str, object] | None:
    return default_profile(node.machine, frozenset()) if _has_seccomp() else None


def _has_seccomp() -> bool:
    return Path("/proc/sys/kernel/seccomp/actions_avail").exists()
