# SPDX-License-Identifier: Apache-2.0
"""Puts together the pod networks."""

from __future__ import annotations

import dataclasses
from pathlib import Path

from criagent.daemon.wiring.shared import Shared
from criagent.model.sandbox import Sandbox
from criagent.net.bridge import BridgeConfig, BridgeNetwork
from criagent.net.cni.network import CniConfig, CniNetwork
from criagent.net.pod_network import Networks


def build(shared: Shared) -> Networks:
    """Both backends; new pods get the configured one."""
    network, stores, executors = shared.config.network, shared.stores, shared.executors

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
    config = CniConfig(
        conf_dir=network.cni_conf_dir,
        bin_dirs=network.cni_bin_dirs,
        timeout_s=network.cni_timeout_s,
        cache_dir=shared.config.storage.run_dir / "cni",
    )
    cni = CniNetwork(config, executors.fs, stores.settings)
    runtime = shared.config.runtime
    own = {
        name: CniNetwork(
            dataclasses.replace(config, conf_dir=Path(handler.cni_conf_dir)),
            executors.fs,
            stores.settings,
            handler=name,
        )
        for name, handler in runtime.handlers.items()
        if handler.cni_conf_dir
    }
    of_handler = {name: found.backend for name, found in own.items()}
    if runtime.default_handler in own:
        of_handler[""] = of_handler[runtime.default_handler]
    return Networks([bridge, cni, *own.values()], network.backend, live, of_handler)
