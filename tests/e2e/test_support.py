# SPDX-License-Identifier: Apache-2.0
"""`criagent debug`, SIGUSR1 and `criagent support-bundle` while the agent has work."""

from __future__ import annotations

import base64
import json
import os
import signal
import subprocess
import sys
import tarfile
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from tests.support import agent
from tests.support.cri_client import Cri
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

CRIAGENT = [sys.executable, "-m", "criagent"]


def debug(*argv: str) -> Any:
    return json.loads(subprocess.check_output([*CRIAGENT, "debug", "--json", *argv], timeout=60))


@contextmanager
def stopping(cri: Cri, container_id: str) -> Iterator[None]:
    """A stop whose grace period goes on, until the container is killed at the end."""
    call = threading.Thread(target=cri.stop, args=(container_id, 300))
    call.start()
    try:
        yield
    finally:
        Cri().stop(container_id)  # brings the deadline to now
        call.join()


def owned(container_id: str) -> list[dict[str, str]]:
    return [owner for owner in debug()["owners"] if container_id in owner["key"]]


def test_debug_shows_work_in_progress_and_where_it_stands(cri: Cri, pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "trap '' TERM; while :; do sleep 1; done")
    with stopping(cri, container_id):
        until(lambda: owned(container_id), "the stop in the report")
        (owner,) = owned(container_id)
        assert owner["kind"] == "stop or remove"
        assert owner["stage"]
        document = debug("--objects")
        assert document["calls"]["in_flight"]["StopContainer"] == 1
        assert document["calls"]["oldest_s"] > 0
        assert document["memory"]["rss_bytes"] > 10 << 20
        assert document["queues"].keys() == {"net", "fs", "counting", "checkpoints", "db"}
        assert any(stack for stack in document["threads"].values())
        names = [task["name"] for task in document["tasks"]]
        assert f"owner:{owner['key']}" in names
        assert sum(document["objects"].values()) > 10_000
        text = subprocess.check_output([*CRIAGENT, "debug"], text=True, timeout=60)
        assert f"stop or remove {owner['key']}: {owner['stage']}" in text
        assert f"task owner:{owner['key']}" in text

        start = agent.LOG.stat().st_size
        os.kill(int(Path("/run/criagent.pid").read_text()), signal.SIGUSR1)
        until(lambda: "debug_state" in _since(start), "the state in the log")
        (line,) = [one for one in _since(start).splitlines() if "debug_state" in one]
        assert owner["key"] in line
    assert owned(container_id) == []


def _since(start: int) -> str:
    return agent.LOG.read_bytes()[start:].decode()


def test_a_bundle_has_the_node_and_none_of_its_secrets(pods: Pods, tmp_path: Path) -> None:
    container_id = pods.running()
    auth = base64.b64encode(b"ann:s3cret-of-docker").decode()
    docker = tmp_path / "docker.json"
    docker.write_text(json.dumps({"auths": {"reg.example": {"auth": auth}}}))
    config = tmp_path / "config.toml"
    config.write_text(
        f'[registry]\ndocker_config = "{docker}"\nhttps_proxy = "http://u:s3cret-of-proxy@proxy:1"\n'
    )
    bundle = tmp_path / "bundle.tar.gz"
    argv = ["--config", str(config), "support-bundle", "--file", str(bundle)]
    subprocess.run([*CRIAGENT, *argv], check=True, timeout=120, capture_output=True)
    content = {}
    with tarfile.open(bundle) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            content[member.name.partition("/")[2]] = file.read().decode()
    everything = "".join(content.values())
    for secret in ("s3cret-of-docker", "s3cret-of-proxy", auth):
        assert secret not in everything
    assert [one["id"] for one in json.loads(content["agent/containers.json"])] == [container_id]
    assert json.loads(content["agent/info.json"])["version"]
    assert json.loads(content["agent/debug.json"])["tasks"]
    assert json.loads(content["agent/storage.json"])["driver"]
    assert "criagent_rpc_seconds" in content["metrics.txt"]
    assert json.loads(content["doctor.json"])
    assert content["journal.txt"]
    assert "reg.example" in content["config/registries.json"]


def test_a_time_that_journalctl_cannot_read_is_refused_before_the_archive(tmp_path: Path) -> None:
    bundle = tmp_path / "bundle.tar.gz"
    argv = ["support-bundle", "--file", str(bundle), "--since", "garbage"]
    done = subprocess.run([*CRIAGENT, *argv], capture_output=True, timeout=60, check=False)
    assert done.returncode == 2
    assert b"Failed to parse timestamp: garbage" in done.stderr
    assert not bundle.exists()


def test_debug_is_status_3_without_an_agent() -> None:
    agent.stop()
    done = subprocess.run([*CRIAGENT, "debug"], capture_output=True, timeout=60, check=False)
    assert done.returncode == 3
    assert b"not running" in done.stderr
