# SPDX-License-Identifier: Apache-2.0
"""A machine inside of the test node: systemd with D-Bus, and criagent as its service.

It is made as a node of kind is made: deploy/kind/install puts the wheel, the units, the
configuration and the stand-ins into a root file system, an overlay over the test node's own. So the
systemd cgroup driver runs without a virtual machine, though without controllers.
"""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path

from tests.support import wheel
from tests.support.cri_client import Cri
from tests.support.waiting import until

_CGROUP = "systemd-node"
_TREE = Path("/sys/fs/cgroup") / _CGROUP
_PATH = "/opt/tools:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_CONFIG = """[runtime]
missing_controllers = "ignore"
handlers.crun = { path = "/usr/bin/crun" }
handlers.runc = { path = "/usr/sbin/runc", type = "runc" }
"""


class SystemdNode:
    """Boots at construction; `close` takes everything away."""

    def __init__(self, directory: Path) -> None:
        for name in ("up", "work", "root", "lib", "wheel"):
            (directory / name).mkdir()
        self._install(directory)
        _TREE.mkdir()
        boot = Path(__file__).parents[1] / "nodes/chroot/boot-systemd"
        self._process = subprocess.Popen([boot, directory, _CGROUP])
        try:
            until(_first_processes, "systemd", 30)
            self._init = int(_first_processes()[0])
            until(lambda: self._state() in {"running", "degraded"}, "the boot", 60)
            assert self._state() == "running", self.run("systemctl", "--failed")
        except BaseException:
            self.close()
            raise

    def run(self, *command: str, stdin: bytes = b"", check: bool = True) -> str:
        """Output of a command inside; both streams when it must not fail and does."""
        enter = ["nsenter", "-t", str(self._init), "-a", "env", "-i", f"PATH={_PATH}", "HOME=/root"]
        done = subprocess.run([*enter, *command], input=stdin, capture_output=True, check=False)
        text = done.stdout.decode(errors="replace")
        assert not check or done.returncode == 0, text + done.stderr.decode(errors="replace")
        return text

    def client(self) -> Cri:
        """A client of the agent inside."""
        return Cri(f"unix:///proc/{self._init}/root/run/criagent/criagent.sock")

    def pid(self, cri: Cri, container_id: str) -> int:
        """The container's init, as the machine counts."""
        from criagent._proto import api_pb2 as api

        request = api.ContainerStatusRequest(container_id=container_id, verbose=True)
        return int(json.loads(cri.runtime.ContainerStatus(request).info["info"])["pid"])

    def close(self) -> None:
        """Kill everything and remove its cgroups; mounts go with their namespace."""
        (_TREE / "cgroup.kill").write_text("1")
        self._process.wait(30)
        until(lambda: "populated 0" in (_TREE / "cgroup.events").read_text(), "the end", 30)
        for path in sorted(_TREE.rglob("*"), reverse=True):
            if path.is_dir():
                path.rmdir()
        _TREE.rmdir()

    def _state(self) -> str:
        return self.run("systemctl", "is-system-running", check=False).strip()

    @staticmethod
    def _install(directory: Path) -> None:
        """What a container build would do, in the upper directory of the machine's root."""
        package = wheel.build(directory / "wheel")
        inside = directory / "up" / "criagent"
        shutil.copytree(wheel.SOURCE / "deploy", inside / "deploy")
        shutil.copy(package, inside)
        (directory / "up" / "opt/tools").mkdir(parents=True)
        shutil.copy("/opt/tools/crictl", directory / "up" / "opt/tools")
        script = """
            mount -t overlay overlay -o "lowerdir=/,upperdir=$0/up,workdir=$0/work" "$0/root"
            "$0/up/criagent/deploy/kind/as-container" "$0/root"
            mount -t proc proc "$0/root/proc"
            export PIP_NO_INDEX=1 PIP_NO_DEPS=1
            chroot "$0/root" /criagent/deploy/kind/install "/criagent/$1"
            cd "$0/root"
            # the test node's own configuration is below, with whatever a test has set
            rm -rf etc/criagent/config.d etc/cni/net.d
            mkdir -p opt/cni/bin etc/criagent/config.d var/lib/criagent
            cp -a usr/lib/cni/. opt/cni/bin
            install -D criagent/deploy/cni/10-criagent.conflist etc/cni/net.d/10-criagent.conflist
            rm -rf criagent etc/criagent/certs.d
        """
        command = ["unshare", "--mount", "bash", "-euc", script, str(directory), package.name]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        wheel.lend_dependencies(directory / "up/opt/criagent")
        (directory / "up/etc/criagent/config.d/test.toml").write_text(_CONFIG)


def _first_processes() -> list[str]:
    file = _TREE / "init.scope" / "cgroup.procs"
    return file.read_text().split() if file.exists() else []
