# SPDX-License-Identifier: Apache-2.0
"""The adjustments of a new container by several plugins, merged in the order of the plugins.

Each plugin sees the container as those before it have adjusted it. A key with "-" before it removes
an entry: one of the container, or one that another plugin has added.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, MutableMapping
from typing import Any, TypeVar

from criagent._proto import nri_pb2
from criagent.nri import resources
from criagent.nri.owners import Field, Owners
from criagent.nri.updates import Updates

_HOOKS = (
    "prestart",
    "create_runtime",
    "create_container",
    "start_container",
    "poststart",
    "poststop",
)

E = TypeVar("E")


class Creation:
    """One container that is being created: what plugins see of it, and what they made of it."""

    def __init__(self, pod: nri_pb2.PodSandbox, container: nri_pb2.Container) -> None:
        self.request = nri_pb2.CreateContainerRequest(pod=pod, container=container)
        self.pristine = container
        self.adjust = nri_pb2.ContainerAdjustment()
        self.owners = Owners()
        self.updates = Updates(self.owners, creating=container.id)
        self.evictions: list[nri_pb2.ContainerEviction] = []
        self.adjusted_by: list[str] = []

    def apply(self, answer: nri_pb2.CreateContainerResponse, plugin: str) -> None:
        """Add a plugin's answer. Raises ConflictError."""
        if answer.HasField("adjust"):
            _Turn(self, plugin).adjust(answer.adjust)
            self.adjusted_by.append(plugin)
        self.updates.apply(answer.update, plugin)
        self.evictions += answer.evict


class _Turn:
    """The adjustment by one plugin."""

    def __init__(self, creation: Creation, plugin: str) -> None:
        self._id = creation.request.container.id
        self._container = creation.request.container
        self._adjust = creation.adjust
        self._owners = creation.owners
        self._plugin = plugin

    def adjust(self, given: nri_pb2.ContainerAdjustment) -> None:
        """Merge everything that `given` sets."""
        container, adjust = self._container, self._adjust
        self._map(Field.Annotations, given.annotations, container.annotations, adjust.annotations)
        self._listed(
            Field.Mounts, given.mounts, container.mounts, adjust.mounts, lambda m: m.destination
        )
        self._env(given.env)
        self._args(list(given.args))
        self._hooks(given.hooks)
        for limit in given.rlimits:
            self._claim(Field.Rlimits, limit.type)
            _replace(container.rlimits, limit, lambda one: one.type)
            adjust.rlimits.append(limit)
        for device in given.CDI_devices:
            self._claim(Field.CdiDevices, device.name)
            adjust.CDI_devices.append(device)
        if given.HasField("linux"):
            self._linux(given.linux)

    def _linux(self, given: nri_pb2.LinuxContainerAdjustment) -> None:
        container, adjust = self._container.linux, self._adjust.linux
        self._listed(
            Field.Devices, given.devices, container.devices, adjust.devices, lambda d: d.path
        )
        if given.HasField("resources"):
            self._resources(given.resources)
        if given.cgroups_path:
            self._claim(Field.CgroupsPath)
            container.cgroups_path = adjust.cgroups_path = given.cgroups_path
        for name, field in (
            ("oom_score_adj", Field.OomScoreAdj),
            ("io_priority", Field.IoPriority),
            ("seccomp_policy", Field.SeccompPolicy),
            ("scheduler", Field.LinuxSched),
        ):
            if given.HasField(name):
                self._claim(field)
                getattr(container, name).CopyFrom(getattr(given, name))
                getattr(adjust, name).CopyFrom(getattr(given, name))
        if given.HasField("memory_policy"):
            self._claim(Field.MemoryPolicy)
            adjust.memory_policy.CopyFrom(given.memory_policy)
        self._namespaces(given.namespaces)
        self._map(Field.Sysctl, given.sysctl, container.sysctl, adjust.sysctl)
        self._net_devices(given)
        if given.HasField("rdt"):
            self._rdt(given.rdt)

    def _claim(self, field: int, key: str | None = None) -> None:
        self._owners.claim(self._id, field, self._plugin, key)

    def _clear(self, field: int, key: str | None = None) -> None:
        self._owners.clear(self._id, field, self._plugin, key)

    def _map(
        self,
        field: int,
        given: MutableMapping[str, str],
        container: MutableMapping[str, str],
        adjust: MutableMapping[str, str],
    ) -> None:
        for key in sorted(given):
            if key.startswith("-"):
                name = key[1:]
                if adjust.pop(name, None) is not None or name in given:
                    self._clear(field, name)
                container.pop(name, None)
                adjust[key] = ""
        for key in sorted(given):
            if not key.startswith("-"):
                self._claim(field, key)
                container[key] = adjust[key] = given[key]

    def _net_devices(self, given: nri_pb2.LinuxContainerAdjustment) -> None:
        container, adjust = self._container.linux.net_devices, self._adjust.linux.net_devices
        for key in sorted(given.net_devices):
            if key.startswith("-"):
                name = key[1:]
                if name in adjust or name in given.net_devices:
                    self._clear(Field.LinuxNetDevices, name)
                adjust.pop(name, None)
                container.pop(name, None)
                adjust[key].SetInParent()
        for key in sorted(given.net_devices):
            if not key.startswith("-"):
                self._claim(Field.LinuxNetDevices, key)
                container[key].CopyFrom(given.net_devices[key])
                adjust[key].CopyFrom(given.net_devices[key])

    def _listed(
        self,
        field: int,
        given: Iterable[E],
        container: Any,
        adjust: Any,
        key_of: Callable[[E], str],
    ) -> None:
        """Merge a list whose entries have a unique key: mounts, devices."""
        given = list(given)
        removed = {key_of(one)[1:]: one for one in given if key_of(one).startswith("-")}
        added = [one for one in given if not key_of(one).startswith("-")]
        keys = {key_of(one) for one in added}
        for name in removed:
            if any(key_of(one) == name for one in adjust):
                self._clear(field, name)
        _keep(adjust, lambda one: key_of(one) not in removed)
        _keep(container, lambda one: key_of(one) not in removed and key_of(one) not in keys)
        for one in added:
            self._claim(field, key_of(one))
        adjust.extend(one for name, one in removed.items() if name not in keys)
        adjust.extend(added)
        container.extend(added)

    def _env(self, given: Iterable[nri_pb2.KeyValue]) -> None:
        listed = [
            nri_pb2.KeyValue(key=name, value=value)
            for name, _, value in (entry.partition("=") for entry in self._container.env)
        ]
        self._listed(Field.Env, given, listed, self._adjust.env, lambda one: one.key)
        del self._container.env[:]
        self._container.env.extend(f"{one.key}={one.value}" for one in listed)

    def _args(self, given: list[str]) -> None:
        if not given:
            return
        if given[0] == "":
            self._clear(Field.Args)
            given = given[1:]
        self._claim(Field.Args)
        for target in (self._adjust.args, self._container.args):
            del target[:]
            target.extend(given)

    def _hooks(self, given: nri_pb2.Hooks) -> None:
        if not any(getattr(given, name) for name in _HOOKS):
            return
        for name in _HOOKS:
            getattr(self._container.hooks, name).extend(getattr(given, name))
            getattr(self._adjust.hooks, name).extend(getattr(given, name))
        self._owners.add(self._id, Field.OciHooks, self._plugin)

    def _resources(self, given: nri_pb2.LinuxResources) -> None:
        resources.merge(
            given,
            self._adjust.linux.resources,
            owners=self._owners,
            container_id=self._id,
            plugin=self._plugin,
        )
        resources.merge(
            given,
            self._container.linux.resources,
            owners=Owners(),  # claimed just now
            container_id=self._id,
            plugin=self._plugin,
        )

    def _namespaces(self, given: Iterable[nri_pb2.LinuxNamespace]) -> None:
        container = self._container.linux.namespaces
        for namespace in given:
            name = namespace.type.removeprefix("-")
            self._claim(Field.Namespace, name)
            _remove(container, name)
            if namespace.type == name:
                container.append(namespace)
            self._adjust.linux.namespaces.append(namespace)

    def _rdt(self, given: nri_pb2.LinuxRdt) -> None:
        rdt = self._adjust.linux.rdt
        fields = {
            "clos_id": Field.RdtClosID,
            "schemata": Field.RdtSchemata,
            "enable_monitoring": Field.RdtEnableMonitoring,
        }
        if given.remove:
            for field in fields.values():
                self._clear(field)
            rdt.Clear()
            rdt.remove = True
        for name, field in fields.items():
            if given.HasField(name):
                self._claim(field)
                getattr(rdt, name).CopyFrom(getattr(given, name))


def _keep(entries: Any, wanted: Callable[[Any], bool]) -> None:
    kept = [one for one in entries if wanted(one)]
    del entries[:]
    entries.extend(kept)


def _remove(namespaces: Any, kind: str) -> None:
    _keep(namespaces, lambda one: one.type != kind)


def _replace(entries: Any, new: E, key_of: Callable[[E], str]) -> None:
    _keep(entries, lambda one: key_of(one) != key_of(new))
    entries.append(new)
