# SPDX-License-Identifier: Apache-2.0
"""NRI put together: its socket at once, what serves plugins when there is the first one."""

from __future__ import annotations

import dataclasses
import functools
from typing import TYPE_CHECKING, Any

from criagent.daemon.wiring.shared import Shared
from criagent.nri.container_verbs import VerbsToCome
from criagent.nri.registry import Registry
from criagent.nri.service import NriService
from criagent.nri.tally import Tally
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.nri.door import Plugins
from criagent.runtime.nri.on_demand import PluginsOnDemand

if TYPE_CHECKING:
    from criagent.nri.session import Host


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NriNeeds:
    """What the parts that serve plugins are made of."""

    shared: Shared
    facts: NodeFacts
    handlers: Handlers
    driver: CgroupDriver
    paths: RuntimePaths
    registry: Registry
    tally: Tally
    verbs: VerbsToCome


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class NriParts:
    """What others need of NRI. `service` is None where it is switched off."""

    plugins: Plugins
    verbs: VerbsToCome
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
    """Everything but the verbs behind what plugins ask for (`VerbsToCome.use`)."""
    section, plugins = shared.config.nri, PluginsOnDemand()
    needs = NriNeeds(
        shared=shared,
        facts=facts,
        handlers=handlers,
        driver=driver,
        paths=paths,
        registry=Registry(),
        tally=Tally(),
        verbs=VerbsToCome(),
    )

    @functools.cache
    def host() -> Host:
        from criagent.daemon.wiring import nri_relay

        relay, made = nri_relay.build(needs)
        plugins.serve(relay)
        return made

    if not section.disable and section.default_validator.enable:
        host()  # it may ask for plugins when there are none
    return NriParts(
        plugins=plugins,
        verbs=needs.verbs,
        registry=needs.registry,
        tally=needs.tally,
        service=None if section.disable else NriService(section, host),
    )
