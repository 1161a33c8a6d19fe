# SPDX-License-Identifier: Apache-2.0
"""The driver of a root directory: chosen once, remembered, and used by pods."""

from __future__ import annotations

import contextlib
import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support import agent
from tests.support.cri_client import BUSYBOX, Cri
from tests.support.mapped import mapped
from tests.support.pods import Pods

pytestmark = pytest.mark.root

CRIAGENT = ("/opt/venv/bin/python3", "-m", "criagent")
OTHER = Path("/mnt/storage-driver")


def with_driver(name: str) -> Cri:
    """The agent with the other root directory."""
    return agent.start(f'[storage]\nroot = "{OTHER}"\ndriver = "{name}"\n')


@pytest.fixture
def native(pods: Pods) -> Iterator[Pods]:
    """Pods of an agent whose layers are copies."""
    agent.stop()
    OTHER.mkdir(exist_ok=True)
    subprocess.run(["mount", "-t", "tmpfs", "other", OTHER], check=True)
    pods.cri = with_driver("native")
    pods.cri.pull(BUSYBOX)
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    pods.cri.close()
    agent.stop()
    subprocess.run(["umount", OTHER], check=True)
    OTHER.rmdir()
    pods.cri = agent.start()


def info() -> str:
    command = [*CRIAGENT, "info", "--json"]
    done = subprocess.run(command, capture_output=True, check=True)
    driver: str = json.loads(done.stdout)["storage"]["driver"]
    return driver


@pytest.mark.parametrize("userns", [False, True])
def test_pods_run_on_copies_and_survive_a_restart(native: Pods, *, userns: bool) -> None:
    config = native.config()
    if userns:
        mapped()(config)
    pod = native.cri.run(config), config
    container_id = native.running("sleep", "1000", pod=pod)
    native.cri.exec(container_id, "sh", "-c", "echo written > /etc/file; rm /bin/ls")
    assert native.cri.exec(container_id, "stat", "-c", "%u", "/etc/file").stdout == b"0\n"
    agent.kill()
    native.cri = with_driver("auto")
    assert info() == "native"
    assert native.cri.exec(container_id, "cat", "/etc/file").stdout == b"written\n"
    second = native.running("sleep", "1000", pod=pod)
    assert native.cri.exec(second, "ls", "/etc/file").exit_code != 0
    assert native.cri.exec(second, "ls", "/bin/ls").stdout == b"/bin/ls\n"


@pytest.mark.parametrize("driver", ["native", "overlay"])
def test_another_root_does_not_end_containers_on_copies(native: Pods, driver: str) -> None:
    """A changed storage.root is no lost database."""
    container_id = native.running("sleep", "1000")
    agent.stop()
    third = OTHER / "third"
    with contextlib.suppress(AssertionError):  # it listens before it has found them, or it does not
        agent.start(f'[storage]\nroot = "{third}"\ndriver = "{driver}"\n').close()
    assert agent.died()
    refusal = agent.LOG.read_text().splitlines()[-1]
    assert container_id in refusal
    assert "storage.root" in refusal
    native.cri = with_driver("auto")
    assert native.cri.exec(container_id, "echo", "alive").stdout == b"alive\n"


def test_containers_on_copies_without_their_database_are_ended(native: Pods) -> None:
    container_id = native.running("sleep", "1000")
    agent.stop()
    for file in OTHER.glob("state.db*"):
        file.unlink()
    native.cri = with_driver("native")
    assert native.cri.containers() == []
    assert not Path("/run/criagent/containers", container_id).exists()
    assert [path for path in (OTHER / "snapshots").iterdir() if path.name.isdigit()] == []


def test_another_driver_is_refused_until_the_root_is_empty(native: Pods) -> None:
    agent.stop()
    config = OTHER / "config.toml"
    config.write_text(
        f'[storage]\nroot = "{OTHER}"\nsocket = "/run/criagent/other.sock"\ndriver = "overlay"\n'
        '[telemetry]\nmetrics_address = ""\n'
    )
    command = [*CRIAGENT, "--config", str(config), "serve"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    events = [json.loads(line) for line in done.stderr.splitlines()]
    (reason,) = [event["error"] for event in events if event["event"] == "not_started"]
    assert 'set storage.driver = "native"' in reason
    assert "remove all pods and images" in reason
    native.cri = with_driver("auto")
    for image in native.cri.images():
        native.cri.remove_image(image.id)
    agent.stop()
    native.cri = with_driver("overlay")
    assert info() == "overlay"
