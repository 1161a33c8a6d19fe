# SPDX-License-Identifier: Apache-2.0
"""The order of units on a kind node: kind waits half a minute for multi-user.target."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tests.support.systemd_node import SystemdNode
from tests.support.waiting import until

pytestmark = [pytest.mark.root, pytest.mark.timeout(180)]

SOURCE = "docker://127.0.0.1:5000/e2e-test-images/busybox:1.29-2"
# As kind has it: kubeadm brings the configuration, long after the boot.
KUBELET = """[Unit]
ConditionPathExists=/var/lib/kubelet/config.yaml
[Service]
ExecStart=/bin/sleep infinity
[Install]
WantedBy=multi-user.target
"""


def test_the_kubelet_waits_for_the_images_and_the_boot_does_not(tmp_path: Path) -> None:
    machine = tmp_path / "machine"
    machine.mkdir()
    node = SystemdNode(machine)
    try:
        archive = tmp_path / "image.tar"
        copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--insecure-policy", SOURCE]
        subprocess.run([*copy, f"docker-archive:{archive}:busybox:kind"], check=True)
        node.run("tee", "/etc/systemd/system/kubelet.service", stdin=KUBELET.encode())
        node.run("mkdir", "-p", "/kind/images", "/var/lib/kubelet")
        node.run("mkfifo", "/kind/images/slow.tar")  # an import that lasts
        node.run("systemctl", "daemon-reload")
        node.run("systemctl", "enable", "kubelet")

        node.run("systemctl", "stop", "multi-user.target")
        node.run("systemctl", "start", "--no-block", "criagent-images")
        until(lambda: state(node, "criagent-images") == "activating", "the import", 30)
        node.run("timeout", "30", "systemctl", "start", "multi-user.target")
        assert state(node, "criagent-images") == "activating"

        node.run("touch", "/var/lib/kubelet/config.yaml")
        node.run("systemctl", "start", "--no-block", "kubelet")
        until(lambda: state(node, "kubelet") == "activating", "the kubelet's start", 30)
        assert node.run("crictl", "images", "-q") == ""
        node.run("tee", "/kind/images/slow.tar", stdin=archive.read_bytes())
        until(lambda: state(node, "kubelet") == "active", "the kubelet", 30)
        assert "busybox" in node.run("crictl", "images")
        assert node.run("ls", "/kind/images") == ""
    finally:
        node.close()


def state(node: SystemdNode, unit: str) -> str:
    """What systemd says of the unit."""
    return node.run("systemctl", "is-active", unit, check=False).strip()
