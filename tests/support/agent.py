# SPDX-License-Identifier: Apache-2.0
"""The agent of a test node, started and ended by tests."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

from tests.support.cri_client import Cri

_PROGRAM = "/src/tests/nodes/chroot/agent"
_DROP_INS = Path("/etc/criagent/config.d")
LOG = Path("/var/log/criagent.log")


def start(config: str = "") -> Cri:
    """Start the agent with a drop-in of `config`; returns a client of it."""
    configure(config)
    done = subprocess.run([_PROGRAM, "start"], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout
    return Cri()


def configure(config: str) -> None:
    """Make `config` the drop-in of the next agent and of commands."""
    _DROP_INS.mkdir(exist_ok=True)
    (_DROP_INS / "test.toml").write_text(config)


def stop() -> None:
    """SIGTERM; returns when it has ended."""
    subprocess.run([_PROGRAM, "stop"], check=True)


def kill() -> None:
    """SIGKILL; returns when it is dead."""
    subprocess.run([_PROGRAM, "kill"], check=True)


def died() -> bool:
    """Whether the last agent is dead within ten seconds."""
    try:
        process = os.pidfd_open(int(Path("/run/criagent.pid").read_text()))
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([process], [], [], 10)[0])
    finally:
        os.close(process)


def running() -> bool:
    """Whether the last agent lives."""
    try:
        pid = Path("/run/criagent.pid").read_text()
        return " Z " not in Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
