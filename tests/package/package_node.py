# SPDX-License-Identifier: Apache-2.0
"""A machine with systemd on which the Debian packages of tests/package/run can be installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

from tests.support import wheel
from tests.support.systemd_node import SystemdNode

PACKAGES = wheel.SOURCE / "build/packages"
CONFIG = """[runtime]
missing_controllers = "ignore"
"""


class PackageNode(SystemdNode):
    """Nothing of criagent is installed at first; the packages are in /packages."""

    def install(self, which: str) -> str:
        """Install the package `first` or `next`; the output of dpkg."""
        return self.run("sh", "-c", f"dpkg -i /packages/{which}/*.deb 2>&1")

    def shows(self, *command: str) -> str:
        """Output of a command that may fail, without the end of its line."""
        return self.run(*command, check=False).strip()

    @staticmethod
    def _install(directory: Path) -> None:
        up = directory / "up"
        shutil.copytree(PACKAGES, up / "packages")
        shutil.copytree(wheel.SOURCE / "criagent", up / "source/criagent")
        (up / "opt/tools").mkdir(parents=True)
        shutil.copy("/opt/tools/crictl", up / "opt/tools")
        # The test node's own configuration is below.
        script = """
            mount -t overlay overlay -o "lowerdir=/,upperdir=$0/up,workdir=$0/work" "$0/root"
            cd "$0/root"
            rm -rf etc/criagent etc/crictl.yaml etc/cni/net.d
            mkdir -p var/lib/criagent etc/criagent/config.d
            ln -sf /usr/lib/systemd/system/multi-user.target etc/systemd/system/default.target
            : > etc/fstab
        """
        command = ["unshare", "--mount", "bash", "-euc", script, str(directory)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout + done.stderr
        (up / "etc/criagent/config.d/test.toml").write_text(CONFIG)
