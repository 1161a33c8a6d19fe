# SPDX-License-Identifier: Apache-2.0
"""NRI put together."""

from __future__ import annotations

import dataclasses
from functools import partial
from typing import Any

from criagent.config.checks import seconds
from criagent.daemon.wiring.shared import Shared
from criagent.nri.effects import Effects
from criagent.nri.oci.adjust import Adjuster
from criagent.nri.plugin import Limits, Tally
from criagent.nri.registry import Registry
from criagent.nri.relay import Relay
from criagent.nri.service import NriService
from criagent.nri.session import Host
from criagent.nri.state import NodeState
from criagent.nri.validation import Validation
from criagent.runtime.container.files import read_spec
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.nri.door import NoPlugins, Plugins
from criagent.runtime.pod.namespaces import namespace_pins
from criagent.runtime.spec.cdi.registry import CdiFolders
from criagent.runtime.spec.cdi.resolve import CdiDevices


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NriParts:
    """What others need of NRI. `service` is None where it is switched off."""

    plugins: Plugins
    effects: Effects
    registry: Registry
    tally: Tally
    service: NriService | None

    def report(self) -> dict[str, Any]:
        """What `criagent info` shows."""
        if self.service is None:
            return {"problem": "nri.disable is set", "plugins": []}
        plugins = [
            {"name": str(plugin), "pid": plugin.peer.pid, "events": plugin.mask}
            for plugin in self.registry.all
        ]
        return {"problem": self.service.problem, "plugins": plugins}


def build(
    shared: Shared,
    *,
    facts: NodeFacts,
    handlers: Handlers,
    driver: CgroupDriver,
    paths: RuntimePaths,
) -> NriParts:
    """Everything but the verbs behind what plugins ask for (`Effects.use`)."""
    section, fs = shared.config.nri, shared.executors.fs
    effects, registry, tally = Effects(facts), Registry(), Tally()
    if section.disable:
        return NriParts(
            plugins=NoPlugins(), effects=effects, registry=registry, tally=tally, service=None
        )
    cdi = CdiDevices(
        folders=CdiFolders(shared.config.runtime.cdi_spec_dirs), handlers=handlers.by_name
    )
    relay = Relay(
        registry=registry,
        state=NodeState(
            sandboxes=shared.stores.sandboxes,
            containers=shared.stores.containers,
            spec=partial(read_spec, paths),
            pins=partial(namespace_pins, paths),
            fs=fs,
        ),
        adjuster=Adjuster(node=facts, handlers=handlers.by_name, cdi=cdi, driver=driver),
        validation=Validation(section.default_validator),
        effects=effects,
        fs=fs,
    )
    host = Host(
        registry=registry,
        known=relay.known,
        effects=effects,
        limits=Limits(
            registration_s=seconds(section.plugin_registration_timeout),
            request_s=seconds(section.plugin_request_timeout),
        ),
        tally=tally,
    )
    return NriParts(
        plugins=relay,
        effects=effects,
        registry=registry,
        tally=tally,
        service=NriService(section, host),
    )
