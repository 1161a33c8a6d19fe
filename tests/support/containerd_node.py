# SPDX-License-Identifier: Apache-2.0
"""containerd as a systemd service, set up as a node of Kubernetes would have it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

from tests.support.cri_client import BUSYBOX, Cri
from tests.support.units import main_pid, systemctl

ENDPOINT = "unix:///run/containerd/containerd.sock"
_CONFIG = """version = 3
[plugins.'io.containerd.cri.v1.images'.pinned_images]
sandbox = "registry.k8s.io/pause:3.10"
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = "/etc/containerd/certs.d"
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ["/usr/lib/cni"]
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = "crun"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun]
runtime_type = "io.containerd.runc.v2"
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.crun.options]
BinaryName = "/usr/bin/crun"
SystemdCgroup = true
"""
_NETWORK = {
    "cniVersion": "1.0.0",
    "name": "idle",
    "plugins": [
        {
            "type": "bridge",
            "bridge": "cni0",
            "isGateway": True,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": "10.77.0.0/24"}]]},
        }
    ],
}
_UNIT = """[Service]
Type=notify
Environment=PATH=/opt/tools/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin
ExecStart=/opt/tools/bin/containerd
Delegate=yes
KillMode=process
OOMScoreAdjust=-999
TasksMax=infinity
LimitNOFILE=1048576
"""
_NETWORK_FILE = Path("/etc/cni/net.d/10-idle.conflist")


def start() -> None:
    """Start it and pull the image of the pods."""
    certificates = Path("/etc/containerd/certs.d/_default")
    certificates.mkdir(parents=True)
    shutil.copy("/src/tests/nodes/chroot/config/hosts.toml", certificates)
    Path("/etc/containerd/config.toml").write_text(_CONFIG)
    _NETWORK_FILE.parent.mkdir(parents=True, exist_ok=True)
    _NETWORK_FILE.write_text(json.dumps(_NETWORK))
    Path("/etc/systemd/system/containerd.service").write_text(_UNIT)
    systemctl("daemon-reload")
    systemctl("start", "containerd")
    cri = Cri(ENDPOINT)
    cri.pull(BUSYBOX, timeout=300)
    cri.close()


def stop() -> None:
    """End it, without its pods."""
    systemctl("stop", "containerd")
    _NETWORK_FILE.unlink()


def processes() -> tuple[list[int], list[int]]:
    """The daemon, and the shims in its unit's cgroup."""
    daemon = main_pid("containerd")
    unit = Path("/sys/fs/cgroup/system.slice/containerd.service/cgroup.procs")
    return [daemon], [pid for pid in map(int, unit.read_text().split()) if pid != daemon]
