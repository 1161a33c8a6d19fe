# SPDX-License-Identifier: Apache-2.0
# vm: seconds=350
"""A reboot: every pod of the kubelet comes back, nothing of the former boot is left.

This file runs twice: before the reboot, for which it asks at its end, and afterwards.
"""

from __future__ import annotations

import json
import sqlite3
import subprocess
from pathlib import Path

import pytest

from tests.support.cri_client import Cri, api
from tests.support.kubelet_node import MANIFESTS, Kubelet, ids, restarts
from tests.support.units import container_units, show

FACTS = Path("/var/lib/vm/before.json")
NAMES = ("one", "two")
RUN = Path("/run/criagent")


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """The node is looked at by the test itself."""


@pytest.mark.skipif(FACTS.exists(), reason="this is the boot after")
def test_before_the_reboot(images: None) -> None:
    kubelet = Kubelet()
    kubelet.start()
    for name in NAMES:
        kubelet.add(name, {"containers": [{"name": name, "command": ["sleep", "1000000"]}]})
    pods = {name: kubelet.until_ready(name) for name in NAMES}
    cri = Cri()
    facts = {
        "ids": {name: ids(pod)[name] for name, pod in pods.items()},
        "sandboxes": [sandbox.id for sandbox in cri.pods()],
        "boot": Path("/proc/sys/kernel/random/boot_id").read_text(),
    }
    FACTS.parent.mkdir(exist_ok=True)
    FACTS.write_text(json.dumps(facts))
    # The unit is enabled; this only waits until it serves.
    command = "systemctl start criagent && tests/nodes/vm/pytest -rA tests/vm/suite/test_reboot.py"
    subprocess.run(["vm-reboot", "bash", "-c", command], check=True)


@pytest.mark.skipif(not FACTS.exists(), reason="this is the boot before")
def test_after_the_reboot_pods_are_back_and_nothing_is_left() -> None:
    before = json.loads(FACTS.read_text())
    assert Path("/proc/sys/kernel/random/boot_id").read_text() != before["boot"]
    assert show("criagent", "ActiveState") == "active"
    cri = Cri()
    states = {sandbox.id: sandbox.state for sandbox in cri.pods()}
    assert set(before["sandboxes"]) == set(states)
    assert set(states.values()) == {api.SANDBOX_NOTREADY}
    assert [one for one in cri.containers() if one.state != api.CONTAINER_EXITED] == []
    assert _addresses() == []
    assert [line for line in _mounts() if "/run/criagent/" in line] == []
    assert list((RUN / "sandboxes").iterdir()) == []
    assert container_units() == []

    kubelet = Kubelet()
    kubelet.start()
    pods = {name: kubelet.until_ready(name) for name in NAMES}
    assert all(restarts(pod)[name] == 1 for name, pod in pods.items())
    assert all(ids(pod)[name] != before["ids"][name] for name, pod in pods.items())
    ready = [sandbox.id for sandbox in cri.pods() if sandbox.state == api.SANDBOX_READY]
    assert len(ready) == len(NAMES)
    assert sorted(path.name for path in (RUN / "sandboxes").iterdir()) == sorted(ready)
    assert len(_addresses()) == 2 * len(NAMES)  # IPv4 and IPv6
    cri.close()
    assert sorted(path.stem for path in MANIFESTS.iterdir()) == sorted(NAMES)


def _addresses() -> list[str]:
    connection = sqlite3.connect("file:/var/lib/criagent/state.db?mode=ro", uri=True)
    try:
        return sorted(
            container_id[0] for container_id in connection.execute("SELECT address FROM addresses")
        )
    finally:
        connection.close()


def _mounts() -> list[str]:
    return Path("/proc/self/mountinfo").read_text().splitlines()
