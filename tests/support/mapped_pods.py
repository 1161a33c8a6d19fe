# SPDX-License-Identifier: Apache-2.0
"""What tests of pods with user namespaces look at, from inside and from the node."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

from tests.support.cri_client import api
from tests.support.pods import Pods


def words(pods: Pods, container_id: str, *command: str) -> str:
    """Output of a command, which must succeed."""
    done = pods.cri.exec(container_id, *command)
    assert done.exit_code == 0, done.stderr
    return done.stdout.decode().strip()


def init(pods: Pods, container_id: str) -> Path:
    """/proc/PID of a container's main process."""
    response = pods.cri.runtime.ContainerStatus(
        api.ContainerStatusRequest(container_id=container_id, verbose=True), timeout=10
    )
    return Path("/proc", str(json.loads(response.info["info"])["pid"]))


def as_user(number: int, *command: str | Path) -> int:
    """Exit status of a command that a user of the node runs."""
    ids = [f"--reuid={number}", f"--regid={number}", "--clear-groups"]
    # setpriv itself keeps capabilities until it executes something: let that be env.
    done = subprocess.run(["setpriv", *ids, "env", *command], check=False, capture_output=True)
    return done.returncode
