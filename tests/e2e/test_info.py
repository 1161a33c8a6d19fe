# SPDX-License-Identifier: Apache-2.0
"""`criagent info` beside the node's own facts."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cri_client import Cri
from tests.support.pods import Pods

pytestmark = pytest.mark.root


def info(*arguments: str) -> str:
    return subprocess.run(
        [sys.executable, "-m", "criagent", "info", *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def document() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(info("--output", "json"))
    return found


def memory_bytes() -> int:
    line = next(x for x in Path("/proc/meminfo").read_text().splitlines() if "MemTotal" in x)
    return int(line.split()[1]) * 1024


def test_the_machine_is_the_one_that_the_kernel_shows() -> None:
    host = document()["host"]
    assert host == {
        "name": os.uname().nodename,
        "os": platform.freedesktop_os_release()["PRETTY_NAME"],
        "kernel": platform.release(),
        "architecture": platform.machine(),
        "cpus": os.cpu_count(),
        "memory_bytes": memory_bytes(),
    }


def test_storage_handlers_and_cgroups() -> None:
    found = document()
    space = os.statvfs("/var/lib/criagent/snapshots")
    disk = found["storage"]["file_system"]
    assert disk["total_bytes"] == space.f_blocks * space.f_frsize
    assert disk["type"]
    assert found["storage"]["root"] == "/var/lib/criagent"
    assert (found["cgroup_version"], found["live_restore"]) == (2, True)
    handlers = {one["name"]: one for one in found["handlers"]}
    assert found["default_handler"] in handlers
    for name in ("crun", "runc"):
        version = subprocess.check_output([handlers[name]["path"], "--version"], text=True)
        assert handlers[name]["version"] in version
        assert handlers[name]["type"] == name
    assert Path(found["conmon"]["path"]).exists()
    assert found["security"]["seccomp"] is Path("/proc/sys/kernel/seccomp/actions_avail").exists()


def test_mirrors_are_those_of_hosts_toml() -> None:
    (folder, file) = next(
        (folder, folder / "hosts.toml")
        for folder in sorted(Path("/etc/criagent/certs.d").iterdir())
        if (folder / "hosts.toml").exists()
    )
    servers = document()["registries"]["hosts"][folder.name]
    assert any(server in file.read_text() for server in servers)


def test_conditions_have_reasons_and_pods_are_counted(cri: Cri, pods: Pods) -> None:
    before = document()
    container_id = pods.running()
    after = document()
    assert after["sandboxes"]["ready"] == before["sandboxes"]["ready"] + 1
    assert after["containers"]["running"] == before["containers"]["running"] + 1
    assert after["images"] == len(cri.images())
    kinds = {one["type"]: one for one in after["conditions"]}
    assert set(kinds) == {"RuntimeReady", "NetworkReady", "RuntimeHandlersSecure"}
    assert all(one["status"] or one["reason"] for one in kinds.values())
    cri.stop(container_id)


def test_as_text_every_part_has_its_name() -> None:
    text = info()
    for part in ("Host:", "  CPUs: ", "Security:", "  AppArmor: ", "Registries:", "Handlers:"):
        assert part in text
    assert "{" not in text
