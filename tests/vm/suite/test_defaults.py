# SPDX-License-Identifier: Apache-2.0
# vm: seconds=300
"""Defaults that test nodes cannot show: limits of the kernel, and the real journal."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.cri_client import Cri
from tests.support.units import show, systemctl
from tests.support.vm_fixtures import VmPods, scope_of, sleeper
from tests.support.waiting import until

DROP_IN = Path("/etc/criagent/config.d/defaults.toml")
CONFIG = """
[runtime]
log_to_journald = true
[runtime.defaults]
pids_limit = 33
ulimits = ["memlock=unlimited", "core=7:9"]
[runtime.workloads.small]
activation_annotation = "example.com/small"
annotation_prefix = "resources.example.com"
cpu_shares = 128
"""


@pytest.fixture(scope="module")
def service() -> Iterator[None]:
    """The service with the defaults of this file."""
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text(CONFIG)
    systemctl("restart", "criagent")
    assert show("criagent", "ActiveState") == "active"
    yield
    DROP_IN.unlink()
    systemctl("restart", "criagent")


def read(cgroup: Path, name: str) -> str:
    return (cgroup / name).read_text().strip()


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_limits_of_the_node_are_the_kernels(service: None, pods: VmPods, handler: str) -> None:
    pods.cri.close()
    pods.cri = Cri()
    container_id = pods.created(sleeper(), pods.of_handler(handler))
    assert read(scope_of(pods.cri, container_id), "pids.max") == "33"
    limits = pods.cri.exec(container_id, "cat", "/proc/1/limits").stdout.decode().splitlines()
    found = {line[:26].strip(): line[26:].split()[:2] for line in limits}
    assert found["Max locked memory"] == ["unlimited", "unlimited"]
    assert found["Max core file size"] == ["7", "9"]


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_a_workload_sets_the_weight(service: None, pods: VmPods, handler: str) -> None:
    pods.cri.close()
    pods.cri = Cri()
    config = pods.config()
    config.annotations["example.com/small"] = ""
    config.annotations["resources.example.com/two"] = '{"cpushares": 4096, "cpulimit": 250}'
    pod = pods.cri.run(config, handler=handler), config
    scopes = []
    for name in ("one", "two"):
        wanted = sleeper(name)
        wanted.linux.resources.cpu_shares = 1024
        scopes.append(scope_of(pods.cri, pods.created(wanted, pod)))
    weights = [int(read(scope, "cpu.weight")) for scope in scopes]
    assert 1 <= weights[0] < 39 < weights[1]  # runtimes give 1024 shares a weight of 39 or 100
    assert [read(scope, "cpu.max") for scope in scopes] == ["max 100000", "25000 100000"]


def test_output_is_in_the_journal(service: None, pods: VmPods) -> None:
    pods.cri.close()
    pods.cri = Cri()
    container_id = pods.created(sleeper("talker", "sh", "-c", "echo said; exec sleep 1000"))
    command = ["journalctl", "-o", "cat", f"CONTAINER_ID_FULL={container_id}"]
    until(
        lambda: (
            "said" in subprocess.run(command, capture_output=True, check=True, text=True).stdout
        ),
        "the line in the journal",
        60,
    )
