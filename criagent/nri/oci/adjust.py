# SPDX-License-Identifier: Apache-2.0
"""A container adjusted as plugins ask: its OCI specification, and what its row says of it.

What this node or the handler cannot do is refused with the name of the plugin that asked for it.
Limits that only cgroup v1 has are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from criagent._proto import nri_pb2
from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.container import Container, ContainerUser
from criagent.model.sandbox import Sandbox
from criagent.nri import resources
from criagent.nri.creation import Creation
from criagent.nri.oci import write
from criagent.nri.owners import Field, Owners
from criagent.runtime.node.cgroup_names import (
    SCOPE_PREFIX,
    CgroupDriver,
    belongs_to,
    container_cgroup,
)
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.spec.build import clamp_oom
from criagent.runtime.spec.cdi.apply import apply_cdi
from criagent.runtime.spec.cdi.resolve import CdiDevices
from criagent.runtime.spec.id_mappings import check_user
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.limits import resources_to_oci
from criagent.runtime.verbs.update_container import joined, merged

_RESCTRL = Path("/sys/fs/resctrl/schemata")


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Adjuster:
    """Writes the merged adjustment of a container."""

    node: NodeFacts
    handlers: Mapping[str, HandlerFacts]
    cdi: CdiDevices
    driver: CgroupDriver

    def adjusted(
        self, container: Container, sandbox: Sandbox, spec: OciObject, creation: Creation
    ) -> Container:
        """The row after the adjustments of `creation`, which are written into `spec`.

        Reads files of CDI devices: call it in a thread. Raises InvalidRequestError and
        UnsupportedError for what cannot be done, naming the plugin.
        """
        adjust = creation.adjust
        process, linux = spec["process"], spec["linux"]
        annotations = spec.setdefault("annotations", {})
        write.write_map(annotations, adjust.annotations)
        if not annotations:
            del spec["annotations"]
        write.write_env(process, adjust.env)
        if adjust.args:
            process["args"] = list(adjust.args)
        write.write_hooks(spec, adjust.hooks)
        container = self._cdi(container, sandbox, spec, creation)
        write.write_devices(linux, adjust.linux.devices)
        _write_process(process, adjust.linux, self.node)
        container = self._linux(container, linux, creation)
        write.write_mounts(spec, adjust.mounts)
        write.write_rlimits(process, adjust.rlimits)
        _check_texts(spec)
        return container

    def _cdi(
        self, container: Container, sandbox: Sandbox, spec: OciObject, creation: Creation
    ) -> Container:
        names = [device.name for device in creation.adjust.CDI_devices]
        if not names:
            return container
        edits = self.cdi.edits(names, container.handler)
        apply_cdi(spec, edits)
        user = container.user or ContainerUser(uid=0, gid=0)
        groups = tuple(dict.fromkeys((*user.groups, *edits.groups)))
        spec["process"]["user"]["additionalGids"] = list(groups)
        user = dataclasses.replace(user, groups=groups)
        check_user(user, sandbox.spec.security.namespaces.pod_userns)
        return dataclasses.replace(container, user=user)

    def _linux(self, container: Container, linux: OciObject, creation: Creation) -> Container:
        adjust, owners = creation.adjust.linux, creation.owners
        facts = self.handlers[container.handler]
        if adjust.cgroups_path:
            container = self._moved(container, linux, creation)
        if adjust.HasField("seccomp_policy"):
            linux["seccomp"] = write.seccomp(adjust.seccomp_policy)
        write.write_namespaces(linux, adjust.namespaces)
        if adjust.sysctl:
            write.write_map(linux.setdefault("sysctl", {}), adjust.sysctl)
        if adjust.net_devices:
            who = ", ".join(owners.keyed(container.id, Field.LinuxNetDevices).values())
            _require(who, "moves network interfaces", facts, able=facts.net_devices)
            write.write_net_devices(linux, adjust.net_devices)
        if adjust.HasField("memory_policy"):
            who = owners.owner(container.id, Field.MemoryPolicy)
            _require(who, "sets a memory policy", facts, able=facts.memory_policy)
            linux["memoryPolicy"] = write.memory_policy(adjust.memory_policy)
        if adjust.HasField("resources"):
            container = self._limited(container, linux, adjust.resources, owners)
        _write_rdt(linux, adjust, facts)
        if adjust.HasField("oom_score_adj"):
            score = adjust.oom_score_adj.value
            now = dataclasses.replace(container.resources, oom_score_adj=score)
            container = dataclasses.replace(container, resources=now)
        return container

    def _moved(self, container: Container, linux: OciObject, creation: Creation) -> Container:
        """The container in another cgroup of its own name."""
        path = creation.adjust.linux.cgroups_path
        cgroup = "/" + path.strip("/")
        if self.driver is CgroupDriver.SYSTEMD:
            parent, _, name = path.partition(":")
            own = name == f"{SCOPE_PREFIX}:{container.id}"
            cgroup = container_cgroup(self.driver, parent, container.id) if own else ""
        if not belongs_to(cgroup, container.id):
            who = creation.owners.owner(container.id, Field.CgroupsPath)
            raise InvalidRequestError(
                f"NRI plugin {who}: cgroups path {path[:300]!r} does not end as that of the "
                f"container did ({linux['cgroupsPath'][-80:]!r}); change what is before it"
            )
        linux["cgroupsPath"] = path
        return dataclasses.replace(container, cgroup=cgroup)

    def _limited(
        self,
        container: Container,
        linux: OciObject,
        given: nri_pb2.LinuxResources,
        owners: Owners,
    ) -> Container:
        if given.blockio_class.value:
            who = owners.owner(container.id, Field.BlockioClass)
            raise UnsupportedError(
                f"NRI plugin {who} sets block I/O class {given.blockio_class.value[:80]!r}; this "
                "node has no classes"
            )
        old, new = container.resources, resources.to_cri(given)
        if new.memory_limit_in_bytes and not new.memory_swap_limit_in_bytes:
            old = dataclasses.replace(old, memory_swap_limit_in_bytes=0)  # no swap, as by default
        now = merged(old, new)
        rules = linux["resources"].get("devices", [])
        linux["resources"] = joined(
            resources_to_oci(
                now,
                controllers=self.node.controllers,
                missing=self.node.missing_controllers,
                swap=self.node.swap,
            ),
            resources.available(resources.beyond_cri(given), self.node),
        )
        linux["resources"]["devices"] = [*rules, *write.device_rules(given.devices)]
        return dataclasses.replace(container, resources=now)


def _write_process(
    process: OciObject, adjust: nri_pb2.LinuxContainerAdjustment, node: NodeFacts
) -> None:
    if adjust.HasField("oom_score_adj"):
        process["oomScoreAdj"] = clamp_oom(adjust.oom_score_adj.value, node.oom_score_floor)
    if adjust.HasField("io_priority"):
        process.pop("ioPriority", None)
        if getattr(adjust.io_priority, "class") != nri_pb2.IOPRIO_CLASS_NONE:
            process["ioPriority"] = write.io_priority(adjust.io_priority)
    if adjust.HasField("scheduler"):
        process.pop("scheduler", None)
        if adjust.scheduler.policy != nri_pb2.SCHED_NONE:
            process["scheduler"] = write.scheduler(adjust.scheduler)


def _write_rdt(
    linux: OciObject, adjust: nri_pb2.LinuxContainerAdjustment, facts: HandlerFacts
) -> None:
    given = adjust.rdt
    found: OciObject = dict(linux.pop("intelRdt", {}))
    if adjust.resources.HasField("rdt_class"):
        name = adjust.resources.rdt_class.value
        found = {"closID": name} if name else {}
    if given.remove:
        found = {}
    if given.HasField("clos_id"):
        found["closID"] = given.clos_id.value
    if given.HasField("schemata"):
        found["schemata"] = list(given.schemata.value)
    if given.HasField("enable_monitoring"):
        found["enableMonitoring"] = given.enable_monitoring.value
    if not found:
        return
    newer = found.keys() & {"schemata", "enableMonitoring"}
    able = facts.intel_rdt_schemata if newer else facts.intel_rdt
    _require("", "sets Intel RDT", facts, able=able and _RESCTRL.exists())
    linux["intelRdt"] = found


def _require(who: str, what: str, facts: HandlerFacts, *, able: bool) -> None:
    if not able:
        plugin = f"NRI plugin {who}" if who else "an NRI plugin"
        raise UnsupportedError(
            f"{plugin} {what}, which the runtime handler {facts.name} ({facts.version}) does not "
            "support on this node"
        )


def _check_texts(spec: OciObject) -> None:
    texts = [*spec["process"]["args"], *spec["process"]["env"]]
    if any("\0" in text for text in texts):
        raise InvalidRequestError("an NRI plugin sets an argument or variable with a NUL byte")
