# SPDX-License-Identifier: Apache-2.0
"""A reload takes what can change at run time, names the rest, and refuses a wrong configuration;
the service manager is told what runs and that calls are answered.
"""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

DROP_IN = Path("/etc/criagent/config.d/test.toml")
RELOAD = [sys.executable, "-m", "criagent", "reload"]
PINNED = f'[registry]\npinned_images = ["{BUSYBOX}"]\n'


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """The agent with the configuration of all other tests, before and after."""
    if agent.running():
        agent.stop()
    agent.start().close()
    yield
    if agent.running():
        agent.stop()
    agent.start().close()


def reload() -> Any:
    return json.loads(subprocess.check_output([*RELOAD, "--json"], timeout=60))


def pinned(cri: Cri) -> bool:
    return any(image.pinned for image in cri.images() if BUSYBOX in image.repo_tags)


def log_since(start: int) -> list[dict[str, Any]]:
    lines = agent.LOG.read_bytes()[start:].splitlines()
    return [json.loads(line) for line in lines if line.startswith(b"{")]


def test_live_keys_change_and_others_are_named() -> None:
    cri = Cri()
    assert not pinned(cri)
    assert reload() == {"changed": [], "need_restart": []}
    DROP_IN.write_text(PINNED + '[telemetry]\nlog_level = "debug"\n[limits]\nshutdown_s = 31.0\n')
    start = agent.LOG.stat().st_size
    assert reload() == {
        "changed": ["registry.pinned_images", "telemetry.log_level"],
        "need_restart": ["limits.shutdown_s"],
    }
    assert pinned(cri)
    (line,) = [one for one in log_since(start) if one["event"] == "reloaded"]
    assert line["need_restart"] == ["limits.shutdown_s"]
    assert any(one["level"] == "debug" and one["rpc"] == "ListImages" for one in log_since(start))
    assert reload() == {"changed": [], "need_restart": ["limits.shutdown_s"]}
    DROP_IN.write_text("")
    assert reload()["changed"] == ["registry.pinned_images", "telemetry.log_level"]
    start = agent.LOG.stat().st_size
    assert not pinned(cri)
    assert log_since(start) == []  # of level info again
    cri.close()


def test_one_wrong_key_refuses_all() -> None:
    cri = Cri()
    DROP_IN.write_text(PINNED + "[limits]\nshutdown_s = -1\nsuch_a_key = 1\n")
    start = agent.LOG.stat().st_size
    done = subprocess.run(RELOAD, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    for part in (str(DROP_IN), "shutdown_s", "such_a_key", "nothing changed"):
        assert part in done.stderr
    assert not pinned(cri)
    assert "reload_refused" in [line["event"] for line in log_since(start)]
    cri.close()


def test_sighup_reloads_too() -> None:
    cri = Cri()
    DROP_IN.write_text(PINNED)
    start = agent.LOG.stat().st_size
    os.kill(int(Path("/run/criagent.pid").read_text()), signal.SIGHUP)
    until(lambda: any(one["event"] == "reloaded" for one in log_since(start)), "the reload")
    assert pinned(cri)
    cri.close()


class Manager:
    """An agent as a service manager runs it, with a watchdog of two seconds."""

    def __init__(self, directory: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(directory / "notify"))
        self._socket.settimeout(60)
        environment = {
            **os.environ,
            "NOTIFY_SOCKET": str(directory / "notify"),
            "WATCHDOG_USEC": "2000000",
        }
        self.log = directory / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "criagent", "serve"], env=environment, stderr=log
            )

    def until(self, text: str) -> None:
        """Read messages up to this one."""
        while self._socket.recv(4096).decode() != text:
            pass

    def heard(self, text: str, limit_s: float) -> bool:
        """Whether the message arrives within the limit."""
        self._socket.settimeout(limit_s)
        try:
            self.until(text)
        except TimeoutError:
            return False
        finally:
            self._socket.settimeout(60)
        return True

    def close(self) -> None:
        self.process.terminate()
        self.process.wait()
        self._socket.close()


def test_the_service_manager_hears_what_runs_and_that_calls_are_answered(
    tmp_path: Path, pods: Pods
) -> None:
    agent.stop()
    manager = Manager(tmp_path)
    try:
        manager.until("READY=1")
        manager.until("STATUS=serving; pods ready: 0, containers running: 0")
        manager.until("WATCHDOG=1")
        pods.cri = Cri()
        container_id = pods.running()
        manager.until("STATUS=serving; pods ready: 1, containers running: 1")
        pods.cri.stop(container_id)
        manager.until("STATUS=serving; pods ready: 1, containers running: 0")
        for pod in pods.cri.pods():
            pods.cri.remove_pod(pod.id)
        manager.until("WATCHDOG=1")
        # Nobody reaches the socket any more: the agent lives, but is of no use.
        Path("/run/criagent/criagent.sock").unlink()
        until(lambda: b"watchdog_call_failed" in manager.log.read_bytes(), "the failed call", 60)
        assert b"task_stack" in manager.log.read_bytes()
    finally:
        manager.close()
