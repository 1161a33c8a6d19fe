# SPDX-License-Identifier: Apache-2.0
"""A reload takes what can change at run time, names the rest, and refuses a wrong configuration;
the service manager is told what runs and that calls are answered.
"""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri, api
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


def info() -> Any:
    return json.loads(
        subprocess.check_output([sys.executable, "-m", "criagent", "info", "--output", "json"])
    )


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
        for event in (b"watchdog_call_failed", b"task_stack"):  # which a thread writes
            until(lambda event=event: event in manager.log.read_bytes(), event.decode(), 60)
    finally:
        manager.close()


def handlers(cri: Cri) -> set[str]:
    return {one.name for one in cri.runtime.Status(api.StatusRequest()).runtime_handlers} - {""}


def test_a_new_handler_runs_pods_and_a_removed_one_keeps_those_that_it_has(
    pods: Pods, tmp_path: Path
) -> None:
    cri = pods.cri
    own = tmp_path / "crun"
    shutil.copy("/usr/bin/crun", own)
    extra = f'[runtime.handlers.extra]\npath = "{own}"\n'
    with pytest.raises(grpc.RpcError, match="is not configured"):
        cri.run(pods.config(), handler="extra")
    before = handlers(cri)
    DROP_IN.write_text(extra)
    assert reload() == {"changed": ["runtime.handlers.extra"], "need_restart": []}
    assert handlers(cri) == before | {"extra"}
    config = pods.config()
    sandbox_id = cri.run(config, handler="extra")
    first = pods.running(pod=(sandbox_id, config))

    DROP_IN.write_text("[runtime.handlers]\nextra = false\n")
    assert reload()["changed"] == ["runtime.handlers.extra"]
    assert handlers(cri) == before
    assert "extra" not in {one["name"] for one in info()["handlers"]}
    with pytest.raises(grpc.RpcError, match="is not configured") as refused:
        cri.run(pods.config(), handler="extra")
    assert refused.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert cri.exec(first, "/bin/echo", "alive").stdout == b"alive\n"
    second = pods.running(pod=(sandbox_id, config))  # of the pod that is there
    assert cri.exec(second, "/bin/echo", "alive").stdout == b"alive\n"
    cri.stop(first)
    cri.remove(first)
    cri.remove_pod(sandbox_id)

    DROP_IN.write_text(extra)
    assert reload()["changed"] == ["runtime.handlers.extra"]
    config = pods.config()
    cri.remove_pod(cri.run(config, handler="extra"))
    shutil.rmtree("/run/criagent/runtime/extra")  # crun leaves a cache there


def test_a_handler_whose_program_cannot_be_used_refuses_all(pods: Pods) -> None:
    before = handlers(pods.cri)
    broken = '[runtime.handlers.broken]\npath = "/no/such/program"\n'
    DROP_IN.write_text(PINNED + broken)
    done = subprocess.run(RELOAD, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "runtime.handlers.broken.path: /no/such/program cannot be run" in done.stderr
    assert "nothing changed" in done.stderr
    assert not pinned(pods.cri)
    assert handlers(pods.cri) == before


def test_what_a_handler_has_from_the_start_needs_a_restart(pods: Pods) -> None:
    before = handlers(pods.cri)
    DROP_IN.write_text(
        '[runtime.handlers.crun]\npath = "/bin/crun"\n'
        '[runtime.handlers.other]\npath = "/usr/sbin/runc"\ntype = "runc"\nsnapshotter = "native"\n'
    )
    assert reload() == {
        "changed": [],
        "need_restart": ["runtime.handlers.crun", "runtime.handlers.other"],
    }
    assert handlers(pods.cri) == before
