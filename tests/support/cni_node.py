# SPDX-License-Identifier: Apache-2.0
"""A node of CNI plug-ins that are shell scripts."""

from __future__ import annotations

import dataclasses
import json
import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from criagent.model.sandbox import (
    Sandbox,
    SandboxId,
    SandboxMetadata,
    SandboxSpec,
)
from criagent.net.cni.network import CniConfig, CniNetwork
from criagent.store.db import Database
from criagent.store.settings import SettingStore

NETNS = Path("/proc/self/ns/net")  # what a pinned namespace looks like


RESULT = '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/16"}]}'


SCRIPT = """#!/bin/sh
calls={log}
kind=${{0##*/}}
echo "$CNI_COMMAND $kind" >> $calls/order
cat > $calls/$CNI_COMMAND-$kind.json
env > $calls/$CNI_COMMAND-$kind.env
case $CNI_COMMAND in
ADD) {add} ;;
*) {other} ;;
esac
"""


class Node:
    """A directory of configurations, one of plugins, and what the plugins noted."""

    def __init__(self, root: Path) -> None:
        self.conf, self.bin, self.log = root / "net.d", root / "bin", root / "log"
        self.cache = root / "run" / "cni"
        for directory in (self.conf, self.bin, self.log):
            directory.mkdir()
        self.executor = ThreadPoolExecutor(2)
        self.database = Database.open(root / "state.db")

    def network(self, timeout_s: float = 30) -> CniNetwork:
        config = CniConfig(
            conf_dir=self.conf, bin_dirs=(self.bin,), timeout_s=timeout_s, cache_dir=self.cache
        )
        return CniNetwork(config, self.executor, SettingStore(self.database))

    def plugin(self, kind: str, add: str = f"echo '{RESULT}'", other: str = ":") -> None:
        program = self.bin / kind
        program.write_text(SCRIPT.format(log=self.log, add=add, other=other))
        program.chmod(0o755)

    def configure(self, *plugins: dict[str, Any], name: str = "10.conflist", **fields: Any) -> None:
        document = {"name": "net", "cniVersion": "1.0.0", "plugins": plugins, **fields}
        new = self.conf / "new"
        new.write_text(json.dumps(document))
        new.rename(self.conf / name)

    @property
    def order(self) -> list[str]:
        file = self.log / "order"
        return file.read_text().splitlines() if file.exists() else []

    def request(self, call: str) -> dict[str, Any]:
        return json.loads((self.log / f"{call}.json").read_text())

    def environment(self, call: str) -> dict[str, str]:
        lines = (self.log / f"{call}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


def sandbox(**fields: Any) -> Sandbox:
    metadata = fields.pop("metadata", SandboxMetadata(name="web", uid="u-1", namespace="prod"))
    return Sandbox(
        id=SandboxId("c" * 64),
        spec=SandboxSpec(metadata=metadata, **fields),
        created_at_ns=1,
        boot_id="b",
        network_backend="cni",
    )


async def attached(network: CniNetwork, container: Sandbox) -> Sandbox:
    found = await network.attach(container, NETNS)
    return dataclasses.replace(container, addresses=found.addresses, cni_result=found.cni_result)


class Group:
    """A plugin's process group: it is dead when no member holds the FIFO any more."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.hang = f"exec 9> {path}; sleep 1000 & sleep 1000"

    def await_death(self) -> None:
        os.set_blocking(self._fd, True)
        assert os.read(self._fd, 1) == b""
        os.close(self._fd)
