"""The systemd unit, where there is one: what a drop-in may have changed to the pods' harm."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from criagent.doctor.finding import Finding, error, fine, warning

_UNIT = "criagent.service"
_MONITORS = "criagent-monitors.service"
_WANTED = {"KillMode": "process", "Delegate": "yes", "NoNewPrivileges": "no"}
# Each of these gives the unit a mount namespace: pods' mounts and the kubelet's volumes get lost.
_NO_NAMESPACE = {
    "PrivateTmp": "no",
    "PrivateDevices": "no",
    "PrivateMounts": "no",
    "ProtectSystem": "no",
    "ProtectHome": "no",
    "ProtectKernelTunables": "no",
    "ProtectControlGroups": "no",
}
_WHY = {
    "KillMode": "stopping the unit would kill every container",
    "Delegate": "systemd may move or limit what belongs to containers",
    "NoNewPrivileges": "setuid programs in images do not work",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """Properties of the loaded unit; none where systemd does not run or has no such unit."""

    properties: Mapping[str, str] = field(default_factory=dict)
    monitors: bool = True  # whether the unit of the monitors runs


def read() -> UnitFacts:
    """Ask systemd."""
    if not Path("/run/systemd/system").is_dir():
        return UnitFacts()
    names = ",".join(("LoadState", *_WANTED, *_NO_NAMESPACE))
    command = ["systemctl", "show", _UNIT, f"--property={names}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return UnitFacts()
    found = dict(line.split("=", 1) for line in done.stdout.splitlines() if "=" in line)
    if found.pop("LoadState", "") != "loaded":
        return UnitFacts()
    return UnitFacts(properties=found, monitors=_active(_MONITORS))


def _active(unit: str) -> bool:
    command = ["systemctl", "is-active", "--quiet", unit]
    try:
        return subprocess.run(command, capture_output=True, timeout=10, check=False).returncode == 0
    except (OSError, subprocess.TimeoutExpired):
        return False


def judge(facts: UnitFacts) -> Iterator[Finding]:
    """Findings on `facts`; none without a unit."""
    if not facts.properties:
        return
    wrong = [
        (key, facts.properties[key], wanted)
        for key, wanted in {**_WANTED, **_NO_NAMESPACE}.items()
        if facts.properties.get(key, wanted) != wanted
    ]
    for key, have, wanted in wrong:
        why = _WHY.get(key, "the kubelet does not see pods' mounts, nor pods their volumes")
        yield error(
            _UNIT,
            f"{key}={have}: {why}",
            f"set {key}={wanted} (systemctl cat {_UNIT} shows the drop-in), and restart it",
        )
    if not facts.monitors:
        yield warning(
            _MONITORS,
            f"not active: `systemctl kill {_UNIT}` would kill the containers' monitors",
            f"install deploy/{_MONITORS} beside {_UNIT}, and restart that",
        )
    if not wrong:
        yield fine(_UNIT, "as it should be")
