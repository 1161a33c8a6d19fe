# SPDX-License-Identifier: Apache-2.0
"""What serves NRI plugins put together; imported when there is the first one."""

from __future__ import annotations

from functools import partial

from criagent.config.checks import seconds
from criagent.daemon.wiring.nri import NriNeeds
from criagent.nri.effects import Effects
from criagent.nri.oci.adjust import Adjuster
from criagent.nri.plugin import Limits
from criagent.nri.relay import Relay
from criagent.nri.session import Host
from criagent.nri.state import NodeState
from criagent.nri.validation import Validation
from criagent.runtime.container.files import read_spec
from criagent.runtime.pod.namespaces import namespace_pins
from criagent.runtime.spec.cdi.registry import CdiFolders
from criagent.runtime.spec.cdi.resolve import CdiDevices


def build(needs: NriNeeds) -> tuple[Relay, Host]:
    """What verbs call, and what every session of a plugin shares."""
    shared, handlers = needs.shared, needs.handlers
    section, fs, stores = shared.config.nri, shared.executors.fs, shared.stores
    effects = Effects(needs.facts, needs.verbs)
    cdi = CdiDevices(
        folders=CdiFolders(shared.config.runtime.cdi_spec_dirs), handlers=handlers.by_name
    )
    relay = Relay(
        registry=needs.registry,
        state=NodeState(
            sandboxes=stores.sandboxes,
            containers=stores.containers,
            spec=partial(read_spec, needs.paths),
            pins=partial(namespace_pins, needs.paths),
            fs=fs,
        ),
        adjuster=Adjuster(
            node=needs.facts, handlers=handlers.by_name, cdi=cdi, driver=needs.driver
        ),
        validation=Validation(section.default_validator),
        effects=effects,
        fs=fs,
    )
    host = Host(
        registry=needs.registry,
        known=relay.known,
        effects=effects,
        limits=Limits(
            registration_s=seconds(section.plugin_registration_timeout),
            request_s=seconds(section.plugin_request_timeout),
        ),
        tally=needs.tally,
    )
    return relay, host
