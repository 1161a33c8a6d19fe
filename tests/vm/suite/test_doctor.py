# SPDX-License-Identifier: Apache-2.0
# vm: seconds=240
"""`criagent doctor` beside the service: what it finds when a part of the node is taken away."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.units import systemctl
from tests.support.waiting import until

DROP_IN = Path("/etc/systemd/system/criagent.service.d/test.conf")
PARSER = Path("/usr/sbin/apparmor_parser")
KUBELET = Path("/var/lib/kubelet/config.yaml")
Findings = dict[str, dict[str, str]]


def doctor() -> tuple[int, Findings]:
    """Exit status and findings; the text form says the same."""
    done = subprocess.run(
        ["criagent", "doctor", "--json"], capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    findings = json.loads(done.stdout)
    assert all(bool(entry["cure"]) == (entry["level"] != "ok") for entry in findings)
    worst = max(("ok", "warning", "error").index(entry["level"]) for entry in findings)
    assert done.returncode == worst
    return done.returncode, {entry["name"]: entry for entry in findings}


def judged(name: str, level: str, part: str) -> None:
    """There is a finding of that name and level with `part` in its text or cure."""
    _, found = doctor()
    entry = found[name]
    assert (entry["level"], part in entry["text"] + entry["cure"]) == (level, True), entry


def test_the_node_has_nothing_but_programs_behind_their_advisories() -> None:
    status, found = doctor()
    assert status == 1
    wrong = {name for name, entry in found.items() if entry["level"] != "ok"}
    # podman's package brings a CNI configuration, which lies unused here
    assert wrong <= {"handler crun", "handler runc", "conmon", "inotify", "CNI"}, wrong
    assert "podman" in found["CNI"]["text"]
    assert found["criagent.service"]["text"] == "active with the required settings"
    assert found["cgroup driver"]["text"] == "systemd"
    assert found["controllers"]["text"] == "cpu cpuset memory pids io"
    assert found["AppArmor"]["text"] == "on"
    text = subprocess.run(["criagent", "doctor"], capture_output=True, text=True, check=False)
    assert text.returncode == status
    lines = text.stdout.splitlines()
    assert sum(line.lstrip().startswith("cure:") for line in lines) == len(wrong)
    assert all(any(name in line for line in lines) for name in found)


@pytest.fixture(autouse=True)
def nothing_leaks() -> None:
    """Replaced: nothing runs here that could."""


@pytest.fixture
def restored() -> Iterator[None]:
    """What a test has taken away comes back."""
    yield
    DROP_IN.unlink(missing_ok=True)
    KUBELET.unlink(missing_ok=True)
    systemctl("unmask", "criagent")
    systemctl("daemon-reload")
    systemctl("enable", "criagent")
    systemctl("start", "dbus.socket", "dbus.service", "criagent-monitors", "criagent")


@pytest.mark.usefixtures("restored")
def test_a_service_that_does_not_serve_is_found() -> None:
    systemctl("disable", "criagent")
    judged("criagent.service", "warning", "systemctl enable criagent")
    systemctl("enable", "criagent")
    systemctl("stop", "criagent")
    judged("criagent.service", "warning", "systemctl start criagent")
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("[Service]\nExecStart=\nExecStart=/bin/false\n")
    systemctl("daemon-reload")
    subprocess.run(["systemctl", "start", "criagent"], check=False, capture_output=True)
    judged("criagent.service", "error", "journalctl -eu criagent")
    systemctl("stop", "criagent")
    DROP_IN.unlink()
    unit = Path("/etc/systemd/system/criagent.service")
    text = unit.read_text()
    unit.unlink()  # a unit file of its own in /etc cannot be masked
    try:
        systemctl("mask", "criagent")
        judged("criagent.service", "error", "systemctl unmask criagent")
        systemctl("unmask", "criagent")
    finally:
        unit.write_text(text)
        systemctl("daemon-reload")
    systemctl("start", "criagent")
    systemctl("enable", "criagent")
    judged("criagent.service", "ok", "active with the required settings")


@pytest.mark.usefixtures("restored")
def test_drop_ins_that_harm_pods_are_found() -> None:
    lines = {
        "KillMode=control-group": "set KillMode=process",
        "PrivateTmp=yes": "set PrivateTmp=no",
        "ProtectSystem=strict": "does not see mounts of pods",
        "NoNewPrivileges=yes": "setuid",
    }
    DROP_IN.parent.mkdir(exist_ok=True)
    DROP_IN.write_text("\n".join(["[Service]", *lines, ""]))
    systemctl("daemon-reload")
    done = subprocess.run(["criagent", "doctor", "--json"], capture_output=True, check=False)
    found = [one for one in json.loads(done.stdout) if one["name"] == "criagent.service"]
    assert {one["level"] for one in found} == {"error"}
    assert len(found) == len(lines)
    for part in lines.values():
        assert any(part in one["text"] + one["cure"] for one in found), part


@pytest.mark.usefixtures("restored")
def test_a_missing_unit_of_the_monitors_is_found() -> None:
    systemctl("stop", "criagent", "criagent-monitors")
    judged("criagent-monitors.service", "warning", "systemctl kill")
    systemctl("start", "criagent")  # which wants the other
    _, found = doctor()
    assert "criagent-monitors.service" not in found


@pytest.mark.usefixtures("restored")
def test_a_bus_that_is_gone_is_found() -> None:
    for unit in ("dbus.socket", "dbus.service"):
        systemctl("stop", unit)
    status, found = doctor()
    assert status == 2
    assert found["cgroup driver"]["level"] == "error"
    assert "systemctl start dbus.socket" in found["cgroup driver"]["cure"]
    systemctl("start", "dbus.socket")
    until(lambda: doctor()[1]["cgroup driver"]["level"] == "ok", "the bus", 60)


def test_a_missing_parser_of_apparmor_is_found() -> None:
    hidden = PARSER.with_suffix(".hidden")
    PARSER.rename(hidden)
    try:
        judged("AppArmor", "warning", "install apparmor")
    finally:
        hidden.rename(PARSER)


@pytest.mark.usefixtures("restored")
def test_a_kubelet_of_another_runtime_or_driver_is_found() -> None:
    KUBELET.parent.mkdir(exist_ok=True)
    KUBELET.write_text(
        "cgroupDriver: cgroupfs\ncontainerRuntimeEndpoint: unix:///run/crio/crio.sock\n"
    )
    judged("kubelet's cgroup driver", "warning", "set cgroupDriver: systemd")
    judged("kubelet", "warning", "/run/crio/crio.sock")
    KUBELET.write_text(
        "cgroupDriver: systemd\ncontainerRuntimeEndpoint: unix:///run/criagent/criagent.sock\n"
    )
    _, found = doctor()
    assert "kubelet's cgroup driver" not in found
    assert found["kubelet"]["text"] == "uses this agent"
