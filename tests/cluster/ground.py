# SPDX-License-Identifier: Apache-2.0
"""The two grounds of a cluster: the test node, natively, and the VM with systemd.

Both have a namespace "outside" that reaches the node over a wire, as a machine beside it would.
"""

from __future__ import annotations

import json
import select
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

from tests.support import agent
from tests.support.units import failed_units, kill_agent, main_pid, pod_slices, show, systemctl

Json = dict[str, Any]
OUTSIDE = "outside"
IN_VM = Path("/run/systemd/system").exists()
SCALE = 15 if IN_VM else 1  # emulation
_NEAR, _FAR = "203.0.113.1", "203.0.113.2"


def seconds(native: float) -> float:
    """A limit that would be `native` seconds on a real processor."""
    return native * SCALE


def eventually(holds: Callable[[], object], what: str, limit_s: float = 30) -> None:
    """Look again and again, seldom enough for an emulated processor, until `holds()`."""
    end = time.monotonic() + seconds(limit_s)
    while not holds():
        assert time.monotonic() < end, f"{what} did not happen within {seconds(limit_s):.0f} s"
        select.select((), (), (), 0.05 * SCALE)


class Program:
    """A program of the cluster, with its output in a file."""

    def __init__(self, log: Path, *command: str) -> None:
        self.log = log
        program = shutil.which(command[0])
        assert program, f"{command[0]} is not on PATH; see tests/cluster/run"
        with log.open("ab") as file:
            self._process = subprocess.Popen(
                [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=file, stderr=file
            )

    def check(self) -> None:
        """Fail when it has ended."""
        assert self._process.poll() is None, f"{self.log.name} has ended:\n{self.tail()}"

    def tail(self) -> str:
        return self.log.read_text(errors="replace")[-4000:]

    def stop(self) -> None:
        self._process.terminate()
        try:
            self._process.wait(seconds(10))
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


class Ground(Protocol):
    """What differs."""

    node: str
    address: str
    kubelet_settings: Json

    def prepare(self) -> None: ...
    def clean(self) -> None: ...
    def start_kubelet(self, log: Path, *command: str) -> None: ...
    def check_kubelet(self) -> None: ...
    def stop_kubelet(self) -> None: ...
    def kubelet_log(self) -> str: ...
    def stop_agent(self) -> None: ...
    def start_agent(self) -> None: ...
    def kill_agent(self) -> None: ...
    def failed(self) -> list[str]: ...


class TestNode:
    """Natively: no systemd, no controllers."""

    __test__ = False
    node, address = "criagent-node", _NEAR

    def __init__(self) -> None:
        self.kubelet_settings: Json = {"cgroupsPerQOS": False, "enforceNodeAllocatable": []}
        self._kubelet: Program | None = None

    def prepare(self) -> None:
        _wire()
        _run("ip", "route", "add", "default", "via", _FAR)

    def clean(self) -> None:
        _unwire()

    def start_kubelet(self, log: Path, *command: str) -> None:
        self._kubelet = Program(log, *command)

    def check_kubelet(self) -> None:
        """Fail when it has ended."""
        assert self._kubelet
        self._kubelet.check()

    def stop_kubelet(self) -> None:
        if self._kubelet:
            self._kubelet.stop()

    def kubelet_log(self) -> str:
        return self._kubelet.tail() if self._kubelet else ""

    def stop_agent(self) -> None:
        agent.stop()

    def start_agent(self) -> None:
        agent.start().close()

    def kill_agent(self) -> None:
        """SIGKILL, and a new one at once."""
        agent.kill()
        self.start_agent()

    def failed(self) -> list[str]:
        return []


class Machine:
    """In the VM: the kubelet is a service, its pods are in slices."""

    node, address = "criagent-vm", "10.0.2.15"

    def __init__(self) -> None:
        self.kubelet_settings: Json = {}

    def prepare(self) -> None:
        _wire()

    def clean(self) -> None:
        for name in pod_slices():
            systemctl("stop", name)
        _unwire()

    def start_kubelet(self, log: Path, *command: str) -> None:
        program = shutil.which(command[0])
        words = " ".join([str(program), *command[1:]])
        unit = f"[Service]\nExecStart={words}\nKillMode=process\n"
        Path("/etc/systemd/system/kubelet.service").write_text(unit)
        systemctl("daemon-reload")
        systemctl("start", "kubelet")

    def check_kubelet(self) -> None:
        """Fail when it has ended."""
        assert show("kubelet", "ActiveState") == "active", self.kubelet_log()

    def stop_kubelet(self) -> None:
        systemctl("stop", "kubelet")

    def kubelet_log(self) -> str:
        command = ["journalctl", "--unit=kubelet", "--no-pager", "--output=cat", "--lines=40"]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    def stop_agent(self) -> None:
        systemctl("stop", "criagent")

    def start_agent(self) -> None:
        systemctl("start", "criagent")

    def kill_agent(self) -> None:
        """SIGKILL; systemd starts a new one."""
        gone = kill_agent()
        eventually(lambda: main_pid("criagent") not in {0, gone}, "the next agent")

    def failed(self) -> list[str]:
        return failed_units()


def this_ground() -> Ground:
    """The one that this process is on."""
    return Machine() if IN_VM else TestNode()


def outside(*command: str) -> str:
    """Output of a command on the machine beside the node; "" when it fails."""
    words = ["ip", "netns", "exec", OUTSIDE, *command]
    return subprocess.run(words, capture_output=True, text=True, check=False).stdout


def fetch(url: str, *, beside: bool = False, limit_s: float = 2) -> str:
    """A page, from the node or from beside it; "" when there is none."""
    command = ["curl", "-sf", "--max-time", str(seconds(limit_s)), url]
    if beside:
        return outside(*command)
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def _wire() -> None:
    _run("ip", "netns", "add", OUTSIDE)
    _run("ip", "link", "add", "wire", "type", "veth", "peer", "name", "far", "netns", OUTSIDE)
    _run("ip", "address", "add", f"{_NEAR}/24", "dev", "wire")
    _run("ip", "link", "set", "wire", "up")
    within = ["ip", "-n", OUTSIDE]
    _run(*within, "address", "add", f"{_FAR}/24", "dev", "far")
    _run(*within, "link", "set", "lo", "up")
    _run(*within, "link", "set", "far", "up")
    _run(*within, "route", "add", "default", "via", _NEAR)


def _unwire() -> None:
    _run("ip", "link", "delete", "wire")
    _run("ip", "netns", "delete", OUTSIDE)
    if Path("/run/netns").exists():
        subprocess.run(["umount", "/run/netns"], check=False, capture_output=True)
        Path("/run/netns").rmdir()


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(command)}: {done.stderr}"


def dump(document: Json, file: Path) -> str:
    """Write a configuration file; its name."""
    file.write_text(json.dumps(document, indent=1))
    return str(file)
