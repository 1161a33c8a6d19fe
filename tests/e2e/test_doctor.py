# SPDX-License-Identifier: Apache-2.0
"""`criagent doctor` on a real node whose parts are missing or broken, one at a time."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.root


Findings = dict[str, dict[str, str]]


def doctor(before: str = "", config: str = "", *options: str, at: Path) -> tuple[int, Findings]:
    """Status and findings by name, in a mount namespace of its own that `before` changed."""
    file = at / "config.toml"
    file.write_text(config)
    script = f'{before or ":"}\nfile=$1; shift\nexec "$0" -m criagent --config "$file" doctor "$@"'
    command = ["unshare", "--mount", "sh", "-e", "-c", script, sys.executable, str(file)]
    done = subprocess.run(
        [*command, "--json", *options], capture_output=True, text=True, timeout=60, check=False
    )
    assert done.stderr == ""
    findings = json.loads(done.stdout)
    assert all(bool(entry["cure"]) == (entry["level"] != "ok") for entry in findings)
    worst = max({"warning": 1, "error": 2}.get(entry["level"], 0) for entry in findings)
    assert done.returncode == worst
    return done.returncode, {entry["name"]: entry for entry in findings}


def test_the_node_itself_has_warnings_only(tmp_path: Path) -> None:
    """Debian's crun and runc are behind their advisories; the node has no controllers."""
    status, found = doctor(at=tmp_path)
    assert status == 1
    assert [name for name, entry in found.items() if entry["level"] == "error"] == []
    assert found["cgroup driver"]["text"] == "cgroupfs"
    assert found["nftables"]["level"] == found["catatonit"]["level"] == "ok"


@pytest.mark.parametrize(
    ("before", "config", "name", "part"),
    [
        ("umount /sys/fs/cgroup", "", "cgroups", "nothing"),
        (
            "umount /sys/fs/cgroup; mount -t tmpfs none /sys/fs/cgroup",
            "",
            "cgroups",
            "v1 or hybrid",
        ),
        ("mount -o remount,bind,ro /sys/fs/cgroup", "", "cgroups", "read-only"),
        ("mount --bind /dev/null /usr/bin/crun", "", "handler crun", "install crun"),
        ("mount --bind /dev/null /usr/bin/conmon", "", "conmon", "install conmon"),
        ("mount -t tmpfs -o ro none /mnt", "storage.root = '/mnt/a'", "storage.root", "read-only"),
        ("mount -t tmpfs -o size=1m none /mnt", "storage.root = '/mnt/a'", "disk space", "prune"),
        (
            "mount -t tmpfs -o size=1g,nr_inodes=50 none /mnt",
            "storage.root = '/mnt/a'",
            "inodes",
            "50",
        ),
        (
            "mount -t tmpfs -o noexec none /mnt",
            "storage.root = '/mnt'\nstorage.driver = 'native'",
            "storage.root",
            "noexec",
        ),
        ("", "storage.root = '/proc/x'", "storage.root", "proc"),
        (
            "mount -t tmpfs none /mnt; echo '{' > /mnt/1.conf",
            "network.backend = 'cni'\nnetwork.cni_conf_dir = '/mnt'",
            "CNI",
            "/mnt/1.conf is not valid JSON",
        ),
        ("", "runtime.cgroup_driver = 'systemd'", "cgroup driver", "does not manage"),
        ("", "network.mtu = 3", "configuration", "network.mtu"),
    ],
)
def test_what_pods_cannot_do_without_is_an_error(
    before: str, config: str, name: str, part: str, tmp_path: Path
) -> None:
    status, found = doctor(before, config, at=tmp_path)
    assert status == 2
    assert found[name]["level"] == "error"
    assert part in found[name]["text"] + found[name]["cure"]


def test_what_few_pods_need_is_a_warning(tmp_path: Path) -> None:
    status, found = doctor("mount --bind /dev/null /usr/bin/catatonit", at=tmp_path)
    assert status == 1
    assert (found["catatonit"]["level"], found["catatonit"]["cure"]) == (
        "warning",
        "install catatonit",
    )


def test_an_old_conmon_is_an_error_with_the_version_that_would_do(tmp_path: Path) -> None:
    old = tmp_path / "conmon"
    old.write_text("#!/bin/sh\necho conmon version 2.0.22\n")
    old.chmod(0o755)
    status, found = doctor(config=f"runtime.conmon = '{old}'", at=tmp_path)
    assert (status, found["conmon"]["level"]) == (2, "error")
    assert "2.0.23" in found["conmon"]["text"]


def test_a_kind_like_node(tmp_path: Path) -> None:
    """systemd with its bus, a CNI network to come, the well-known socket linked to ours."""
    before = (
        "mkdir -p /run/systemd/system /run/containerd /var/lib/kubelet\n"
        "touch /run/systemd/private\n"
        "ln -sf /run/criagent/criagent.sock /run/containerd/containerd.sock\n"
        "mount -t tmpfs none /var/lib/kubelet\n"
        "echo 'containerRuntimeEndpoint: unix:///run/containerd/containerd.sock'"
        " > /var/lib/kubelet/config.yaml"
    )
    bus = Path("/run/dbus/system_bus_socket")
    bus.parent.mkdir(exist_ok=True)
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(bus))
            listening.listen()
            _, found = doctor(before, "network.backend = 'cni'", at=tmp_path)
    finally:
        bus.unlink()
        subprocess.run(["rm", "-rf", "/run/systemd", "/run/containerd"], check=True)
    assert found["cgroup driver"] == {
        "name": "cgroup driver",
        "level": "ok",
        "text": "systemd",
        "cure": "",
    }
    assert found["kubelet"]["text"] == "uses this agent"
    assert found["CNI"]["level"] == "error"  # kindnet brings it later
    assert "other runtime" not in found


def test_another_runtime_on_the_node_is_a_warning(tmp_path: Path) -> None:
    other = Path("/run/crio/crio.sock")
    other.parent.mkdir()
    try:
        with socket.socket(socket.AF_UNIX) as listening:
            listening.bind(str(other))
            listening.listen()
            _, found = doctor(at=tmp_path)
    finally:
        other.unlink()
        other.parent.rmdir()
    assert found["other runtime"]["level"] == "warning"
    assert str(other) in found["other runtime"]["text"]


def test_a_clock_that_was_set_back_is_a_warning(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    subprocess.run(["touch", "-d", "+2 days", root / "state.db"], check=True)
    _, found = doctor(config=f"storage.root = '{root}'", at=tmp_path)
    assert found["clock"]["level"] == "warning"


def test_an_unprivileged_user_is_told_so() -> None:
    command = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", sys.executable]
    command += ["-m", "criagent", "doctor", "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (2, "")
    found = {entry["name"]: entry for entry in json.loads(done.stdout)}
    assert found["capabilities"]["level"] == found["nftables"]["level"] == "error"
    assert "root" in found["capabilities"]["cure"]


def test_checks_may_be_left_out_so_that_a_known_node_is_fine(tmp_path: Path) -> None:
    """Debian's crun and runc stay below the floors of their authors, whatever was mended."""
    status, found = doctor(at=tmp_path)
    assert status == 1
    assert "security-tracker.debian.org" in found["handler crun"]["cure"]
    bad = [name for name, entry in found.items() if entry["level"] != "ok"]
    status, found = doctor("", "", *(f"--ignore={name}" for name in bad), at=tmp_path)
    assert status == 0
    assert {found[name]["level"] for name in bad} == {"ignored"}
    status, _ = doctor("", "", *(f"--ignore={name}" for name in bad[1:]), at=tmp_path)
    assert status == 1


def test_a_handler_that_is_not_installed_is_nobodys_trouble(tmp_path: Path) -> None:
    config = "".join(
        f"[runtime.handlers.{name}]\npath = '{path}'\ntype = '{name}'\n"
        for name, path in (("crun", "/usr/bin/crun"), ("runc", "/nowhere/runc"))
    )
    _, found = doctor("", config, at=tmp_path)
    assert found["handler runc"]["level"] == "ok"
    _, found = doctor("", "[runtime]\ndefault_handler = 'runc'\n" + config, at=tmp_path)
    assert found["handler runc"]["level"] == "error"
