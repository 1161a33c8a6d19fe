# SPDX-License-Identifier: Apache-2.0
"""`criagent reset`: nothing of the agent is left on the node, whatever state it was in."""

from __future__ import annotations

import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from criagent.daemon import reset as source
from tests.support import agent
from tests.support.cri_client import BUSYBOX, DEBIAN, api
from tests.support.node_state import ROOT, RUN, node_state, settled_state
from tests.support.pods import Pods

pytestmark = pytest.mark.root

POINTS = re.findall(r'faults\.reach\("([^"]+)"\)', Path(source.__file__).read_text())
DROP_IN = Path("/etc/criagent/config.d/reset.toml")


@pytest.fixture
def node(pods: Pods) -> Iterator[Pods]:
    """Pods of every kind; afterwards an agent with the images that other tests share."""
    pods.running()
    shared_pids, config = pods.sandbox(
        lambda c: setattr(c.linux.security_context.namespace_options, "pid", api.POD)
    )
    pods.running(pod=(shared_pids, config))
    with_port, _ = pods.sandbox(lambda c: c.port_mappings.add(container_port=80, host_port=8077))
    pods.cri.stop_pod(with_port)
    yield pods
    pods.cri.close()
    if agent.running():
        agent.stop()
    pods.cri = agent.start()
    for image in (BUSYBOX, DEBIAN):
        pods.cri.pull(image)


def reset(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "criagent", "reset", *words],
        stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False,
    )  # fmt: skip


def left() -> str:
    """Traces of the agent on the node."""
    found = [str(path) for path in (RUN, Path("/sys/fs/cgroup/cri")) if path.exists()]
    found += map(str, ROOT.iterdir())  # in the test node a file system is mounted there
    found += [path.name for path in Path("/sys/class/net").glob("cri*")]
    mounts = Path("/proc/self/mountinfo").read_text().splitlines()
    found += [line for line in mounts if f"{ROOT}/" in line or f"{RUN}/" in line]
    for name in ("conmon", "catatonit", "sleep"):
        done = subprocess.run(["pgrep", "-x", name], capture_output=True, text=True, check=False)
        found += [f"{name} {pid}" for pid in done.stdout.split() if pid != "1"]
    rules = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    return "\n".join([*found, *(line for line in rules.stdout.splitlines() if "criagent" in line)])


def test_it_refuses_a_node_whose_agent_runs(node: Pods) -> None:
    before = settled_state(node.cri)
    for words in (("--yes",), ("--dry-run",)):
        done = reset(*words)
        assert (done.returncode, done.stdout) == (1, "")
        assert "another criagent serves" in done.stderr
    assert node_state() == before
    assert reset().returncode == 2  # nobody confirms


def test_the_dry_run_names_everything_and_changes_nothing(node: Pods) -> None:
    names = [pod.metadata.name for pod in node.cri.pods()]
    settled_state(node.cri)
    node.cri.close()
    agent.stop()
    before = node_state()
    done = reset("--dry-run")
    assert (done.returncode, done.stderr) == (0, "")
    for part in (*names, BUSYBOX, "link cri0", "table inet criagent", f"directory {ROOT}"):
        assert part in done.stdout
    assert node_state() == before


def test_nothing_is_left(node: Pods) -> None:
    node.cri.close()
    agent.stop()
    done = reset("--yes")
    assert (done.returncode, done.stderr) == (0, "")
    assert "3 pods removed" in done.stdout
    assert left() == ""
    again = reset("--yes")
    assert (again.returncode, left()) == (0, "")


def test_without_a_database_what_runs_is_found_by_its_name(node: Pods) -> None:
    node.cri.close()
    agent.stop()
    for file in ROOT.glob("state.db*"):
        file.write_bytes(b"damaged")
    done = reset("--yes")
    assert (done.returncode, left()) == (0, ""), done.stdout + done.stderr
    assert "found by its name" in done.stdout


@pytest.mark.parametrize("point", POINTS)
def test_a_reset_that_was_killed_is_run_again(node: Pods, point: str) -> None:
    node.cri.close()
    agent.stop()
    DROP_IN.write_text(f'[debug]\nkill_at = "{point}"\n')
    try:
        assert reset("--yes").returncode == -signal.SIGKILL
    finally:
        DROP_IN.unlink()
    assert (reset("--yes").returncode, left()) == (0, "")
