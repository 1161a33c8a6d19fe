# SPDX-License-Identifier: Apache-2.0
"""The systemd unit, if there is one: whether it runs, now and after a reboot; bad drop-ins."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from criagent.doctor.commands import ended
from criagent.doctor.finding import Finding, error, fine, warning

_UNIT = "criagent.service"
_MONITORS = "criagent-monitors.service"
_JOURNAL = f"journalctl -eu {_UNIT}"
_WANTED = {"KillMode": "process", "Delegate": "yes", "NoNewPrivileges": "no"}
# Each of these gives the unit a mount namespace, which hides mounts of pods and of the kubelet.
_NO_NAMESPACE = {
    "PrivateTmp": "no",
    "PrivateDevices": "no",
    "PrivateMounts": "no",
    "ProtectSystem": "no",
    "ProtectHome": "no",
    "ProtectKernelTunables": "no",
    "ProtectControlGroups": "no",
}
_FAILING = frozenset({"failed", "activating"})
_STATES = ("LoadState", "ActiveState", "UnitFileState")
_WHY = {
    "KillMode": "stopping the unit would kill every container",
    "Delegate": "systemd may move or limit what belongs to containers",
    "NoNewPrivileges": "setuid programs in images do not work",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class UnitFacts:
    """Properties of the unit; empty where systemd does not run or does not know the unit."""

    properties: Mapping[str, str] = field(default_factory=dict)
    monitors: bool = True  # whether the monitors' unit runs
    reason: str = ""  # why the agent last did not start, by its log


def read() -> UnitFacts:
    """Query systemd."""
    if not Path("/run/systemd/system").is_dir():
        return UnitFacts()
    names = ",".join((*_STATES, *_WANTED, *_NO_NAMESPACE))
    command = ["systemctl", "show", _UNIT, f"--property={names}"]
    answer = ended(command)
    if answer is None:
        return UnitFacts()
    found = dict(line.split("=", 1) for line in answer.output.splitlines() if "=" in line)
    if found.get("LoadState", "not-found") == "not-found":
        return UnitFacts()
    failing = found.get("ActiveState") in _FAILING
    return UnitFacts(
        properties=found, monitors=_active(_MONITORS), reason=_reason() if failing else ""
    )


def _reason() -> str:
    """The text of the last event not_started of this boot; "" without one or a journal."""
    query = ["--unit", _UNIT, "--boot", "--priority=err", "--output=cat", "--lines=20"]
    answer = ended(["journalctl", "--no-pager", "--quiet", *query])
    reason = ""
    for line in answer.output.splitlines() if answer else ():
        try:
            event = json.loads(line)
        except ValueError:  # systemd's own
            continue
        if isinstance(event, dict) and event.get("event") == "not_started":
            reason = str(event.get("error", ""))
    return reason


def _active(unit: str) -> bool:
    answer = ended(["systemctl", "is-active", "--quiet", unit])
    return answer is not None and answer.status == 0


def judge(facts: UnitFacts) -> Iterator[Finding]:
    """Findings on `facts`; none without a unit."""
    if not facts.properties:
        return
    load = facts.properties.get("LoadState", "loaded")
    if load != "loaded":
        cure = f"systemctl unmask {_UNIT}" if load == "masked" else f"systemctl status {_UNIT}"
        yield error(_UNIT, f"{load}: systemd does not start it", cure)
        return
    wrong = [
        (key, facts.properties[key], wanted)
        for key, wanted in {**_WANTED, **_NO_NAMESPACE}.items()
        if facts.properties.get(key, wanted) != wanted
    ]
    for key, have, wanted in wrong:
        why = _WHY.get(
            key, "the kubelet does not see mounts of pods, and pods do not see their volumes"
        )
        yield error(
            _UNIT,
            f"{key}={have}: {why}",
            f"set {key}={wanted} (`systemctl cat {_UNIT}` shows the drop-in) and restart the unit",
        )
    state = list(_state(facts))
    yield from state
    if not facts.monitors:
        yield warning(
            _MONITORS,
            f"not active: `systemctl kill {_UNIT}` would kill the containers' monitors",
            f"install deploy/{_MONITORS} beside {_UNIT} and restart criagent",
        )
    if not (wrong or state):
        yield fine(_UNIT, "active with the required settings")


def _state(facts: UnitFacts) -> Iterator[Finding]:
    """Findings when the agent does not run, or would not run after a reboot."""
    active = facts.properties.get("ActiveState", "active")
    if active in _FAILING and facts.reason:
        yield error(
            _UNIT,
            f"does not start: {facts.reason}",
            f"do what the text says; systemd starts the agent again by itself ({_JOURNAL})",
        )
    elif active in _FAILING:
        text = "has failed" if active == "failed" else "is starting, or fails repeatedly"
        yield error(_UNIT, f"{text}: no pods can be started or stopped", f"check {_JOURNAL}")
    elif active != "active":
        text = f"is {active}: no pods can be started or stopped; running pods continue"
        yield warning(_UNIT, text, f"systemctl start {_UNIT}")
    if facts.properties.get("UnitFileState", "enabled") == "disabled":
        text = "not enabled: no pod starts after a reboot"
        yield warning(_UNIT, text, f"systemctl enable {_UNIT}")
