# SPDX-License-Identifier: Apache-2.0
"""systemd's units, as the tests ask for and change them."""

from __future__ import annotations

import subprocess


def systemctl(*words: str) -> str:
    """Output of a systemctl command, which must succeed."""
    done = subprocess.run(["systemctl", *words], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"systemctl {' '.join(words)}: {done.stderr}"
    return done.stdout


def show(unit: str, name: str) -> str:
    """One property of a unit."""
    return systemctl("show", "--value", f"--property={name}", unit).strip()


def main_pid(unit: str) -> int:
    """The main process of a service, 0 when it does not run."""
    return int(show(unit, "MainPID"))


def failed_units() -> list[str]:
    """Names of units in the state "failed"."""
    return _units("--state=failed")


def container_units() -> list[str]:
    """Names of all scopes of containers that systemd knows, in any state."""
    return _units("--all", "cri-*.scope")


def pod_slices() -> list[str]:
    """Names of the slices of pods, innermost first."""
    names = _units("--all", "kubepods*.slice")
    return sorted(names, key=len, reverse=True)


def restart_agent() -> None:
    """`systemctl restart criagent`, which returns when it serves again."""
    systemctl("restart", "criagent")


def kill_agent() -> int:
    """SIGKILL to the agent; returns its pid."""
    pid = main_pid("criagent")
    systemctl("kill", "--kill-whom=main", "--signal=KILL", "criagent")
    return pid


def _units(*words: str) -> list[str]:
    lines = systemctl("list-units", "--plain", "--no-legend", "--full", *words).splitlines()
    return sorted(line.split()[0] for line in lines if line.strip())
