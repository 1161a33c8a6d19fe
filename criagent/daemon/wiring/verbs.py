# SPDX-License-Identifier: Apache-2.0
"""Puts together the verbs of pods and containers."""

from __future__ import annotations

from criagent.config.storage_section import LIMIT_ANNOTATION
from criagent.cri.backend import Containers, Sandboxes
from criagent.daemon.wiring.containers import ContainerParts
from criagent.daemon.wiring.image import ImageParts
from criagent.daemon.wiring.node import NodeParts
from criagent.daemon.wiring.pods import PodParts
from criagent.daemon.wiring.shared import Shared
from criagent.nri.container_verbs import Verbs
from criagent.runtime.checkpoint.restored import RestoredContainers
from criagent.runtime.container.bundle import ContainerBundles
from criagent.runtime.container.declared_volumes import DeclaredVolumes
from criagent.runtime.container.gather import (
    ContainerNamespacePaths,
    DeviceGatherer,
    ProfileSources,
    SpecGatherer,
)
from criagent.runtime.container.idmapped_mounts import HostMounts
from criagent.runtime.container.image_volumes import ImageVolumes
from criagent.runtime.container.launch import ContainerLauncher
from criagent.runtime.spec.cdi.registry import CdiFolders
from criagent.runtime.spec.cdi.resolve import CdiDevices
from criagent.runtime.spec.layer_limits import LayerLimits
from criagent.runtime.spec.mounts.host_paths import HostPaths
from criagent.runtime.verbs.create_container import ContainerCreator, NewContainers
from criagent.runtime.verbs.describe import Describer
from criagent.runtime.verbs.remove_container import ContainerRemover
from criagent.runtime.verbs.remove_sandbox import SandboxRemover
from criagent.runtime.verbs.reopen_log import LogReopener
from criagent.runtime.verbs.start_container import ContainerStarter
from criagent.runtime.verbs.stop_container import ContainerStopper
from criagent.runtime.verbs.stop_sandbox import SandboxStopper
from criagent.runtime.verbs.update_container import ResourceUpdater


def build(
    shared: Shared,
    node: NodeParts,
    *,
    image: ImageParts,
    pods: PodParts,
    containers: ContainerParts,
) -> tuple[Sandboxes, Containers, ContainerCreator]:
    """Every verb except those of sessions; RunPodSandbox comes with `pods`."""
    describer = Describer(
        paths=node.paths, files=containers.files, node=node.facts, fs=shared.executors.fs
    )
    stopper = ContainerStopper(store=shared.stores.containers, ending=containers.ending)
    remover = ContainerRemover(
        store=shared.stores.containers,
        endings=shared.work.endings,
        stopper=stopper,
        erasure=containers.erasure,
        plugins=node.nri.plugins,
    )
    updater = _updater(shared, node, containers)
    node.nri.verbs.use(Verbs(update=updater.apply, stop=stopper.stop))
    creator = _creator(shared, node, image=image, pods=pods, containers=containers)
    return (
        _sandboxes(shared, pods, describer=describer, stopper=stopper, remover=remover),
        Containers(
            store=shared.stores.containers,
            create=creator.create,
            start=_starter(shared, node, containers).start,
            stop=stopper.stop,
            remove=remover.remove,
            update=updater.update,
            reopen=_reopener(shared, node).reopen,
            describe=describer.container,
        ),
        creator,
    )


def _sandboxes(
    shared: Shared,
    pods: PodParts,
    *,
    describer: Describer,
    stopper: ContainerStopper,
    remover: ContainerRemover,
) -> Sandboxes:
    sandbox_stopper = SandboxStopper(
        store=shared.stores.sandboxes,
        containers=shared.stores.containers,
        making=shared.work.container_creations,
        endings=shared.work.endings,
        stopper=stopper,
        teardown=pods.teardown,
    )
    sandbox_remover = SandboxRemover(
        store=shared.stores.sandboxes,
        containers=shared.stores.containers,
        endings=shared.work.endings,
        stopper=sandbox_stopper,
        remover=remover,
        teardown=pods.teardown,
    )
    return Sandboxes(
        store=shared.stores.sandboxes,
        run=pods.runner.run,
        stop=sandbox_stopper.stop,
        remove=sandbox_remover.remove,
        update=pods.resizer.update,
        describe=describer.sandbox,
    )


def _creator(
    shared: Shared,
    node: NodeParts,
    *,
    image: ImageParts,
    pods: PodParts,
    containers: ContainerParts,
) -> ContainerCreator:
    section, fs, files = shared.config.runtime, shared.executors.fs, containers.files
    volumes = ImageVolumes(images=image.images, drivers=image.drivers, paths=node.paths, fs=fs)
    namespaces = ContainerNamespacePaths(shared.stores.containers, pods.namespaces)
    bundles = ContainerBundles(
        files=files,
        volumes=volumes,
        declared=DeclaredVolumes(
            mode=section.image_volumes, paths=node.paths, drivers=image.drivers, fs=fs
        ),
        gatherer=_gatherer(shared, node, image, namespaces),
        handlers=node.handlers,
        selinux=node.selinux,
        plugins=node.nri.plugins,
        fs=fs,
    )
    storage = shared.config.storage
    return ContainerCreator(
        sandboxes=shared.stores.sandboxes,
        store=shared.stores.containers,
        making=shared.work.container_creations,
        new=NewContainers(
            images=image.images,
            volumes=volumes,
            handlers=node.handlers,
            driver=node.driver,
            identities=shared.identities,
            layer_limits=LayerLimits(
                default_bytes=storage.container_limit_bytes,
                allowed=LIMIT_ANNOTATION in storage.allowed_annotations,
            ),
            workloads=node.facts.defaults.workloads,
        ),
        files=files,
        bundles=bundles,
        launcher=ContainerLauncher(
            conmon=containers.conmon,
            runtimes=node.runtimes,
            namespaces=namespaces,
            files=files,
            exits=containers.exits,
        ),
        plugins=node.nri.plugins,
    )


def _gatherer(
    shared: Shared, node: NodeParts, image: ImageParts, namespaces: ContainerNamespacePaths
) -> SpecGatherer:
    section, fs = shared.config.runtime, shared.executors.fs
    return SpecGatherer(
        namespaces=namespaces,
        mounts=HostMounts(
            host_paths=HostPaths(
                fs=fs,
                own=(*node.paths.roots, node.paths.run_dir),
                never_made=frozenset(section.defaults.absent_mount_sources_to_reject),
            ),
            handlers=node.handlers,
            paths=node.paths,
            fs=fs,
        ),
        devices=DeviceGatherer(
            defaults=node.facts.defaults,
            cdi=CdiDevices(
                folders=CdiFolders(section.cdi_spec_dirs), handlers=node.handlers.by_name
            ),
            owned=section.device_ownership_from_security_context,
        ),
        profiles=ProfileSources(apparmor=node.apparmor, pulled=image.profiles.document),
        node=node.facts,
        driver=node.driver,
        paths=node.paths,
    )


def _starter(shared: Shared, node: NodeParts, containers: ContainerParts) -> ContainerStarter:
    return ContainerStarter(
        store=shared.stores.containers,
        sandboxes=shared.stores.sandboxes,
        starts=shared.work.starts,
        runtimes=node.runtimes,
        transitions=containers.transitions,
        plugins=node.nri.plugins,
        clock=shared.clock,
        restored=RestoredContainers(
            conmon=containers.conmon,
            runtimes=node.runtimes,
            exits=containers.exits,
            transitions=containers.transitions,
            paths=node.paths,
            clock=shared.clock,
            fs=shared.executors.fs,
        ),
    )


def _updater(shared: Shared, node: NodeParts, containers: ContainerParts) -> ResourceUpdater:
    return ResourceUpdater(
        store=shared.stores.containers,
        transitions=containers.transitions,
        runtimes=node.runtimes,
        node=node.facts,
        plugins=node.nri.plugins,
    )


def _reopener(shared: Shared, node: NodeParts) -> LogReopener:
    return LogReopener(
        store=shared.stores.containers,
        paths=node.paths,
        reopenings=shared.work.reopenings,
        fs=shared.executors.fs,
    )
