# SPDX-License-Identifier: Apache-2.0
"""Puts together the pod networks."""

from __future__ import annotations

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
    cni = CniNetwork(
        CniConfig(
            conf_dir=network.cni_conf_dir,
            bin_dirs=network.cni_bin_dirs,
            timeout_s=network.cni_timeout_s,
            cache_dir=shared.config.storage.run_dir / "cni",
        ),
        executors.fs,
        stores.settings,
    )
    return Networks([bridge, cni], network.backend, live)
