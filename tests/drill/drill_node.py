# SPDX-License-Identifier: Apache-2.0
"""A machine with systemd and a small disk of its own, which the drill breaks and repairs."""

from __future__ import annotations

import itertools
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import grpc

from tests.drill import page
from tests.support.cri_client import Cri, container, pod
from tests.support.systemd_node import SystemdNode
from tests.support.waiting import until

_SOURCE = "docker://127.0.0.1:5000/e2e-test-images/busybox:1.29-2"
_PROGRAMS = Path(__file__).parent / "programs"  # those that break things, in /root of the machine
_IMAGE, _LARGE = "registry.example/busybox:drill", "registry.example/large:drill"
_MEGABYTES, _INODES = 384, 16384
_CONFIG = """[runtime]
missing_controllers = "ignore"
handlers.runc = false
handlers.test-handler = false
[network]
backend = "builtin"
[telemetry]
cadvisor_socket = ""
"""


class DrillNode(SystemdNode):
    """The agent serves, a registry and a repository of packages are there, an image is pulled."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self._numbers = itertools.count(1)
        self.problem = ""  # why the last pod did not run
        super().__init__(directory)
        try:
            self._prepare()
        except BaseException:
            self.close()
            raise

    def shell(self, script: str, *, check: bool = True) -> str:
        """Both streams of a script of bash that runs as root on the machine."""
        return self.run("bash", "-euc", f"exec 2>&1\n{script}", check=check)

    def sees(self, place: str, quote: str) -> dict[str, str]:
        """What the quote's words in capitals stand for, as soon as `place` shows it."""
        shown = [""]

        def looked() -> bool:
            shown.append(self._look(place))
            return page.found(quote, shown[-1]) is not None

        try:
            until(looked, quote, 30)
        except AssertionError:
            raise AssertionError(f"{place} does not show {quote!r}, but:\n{shown[-1]}") from None
        return page.found(quote, shown[-1]) or {}

    def runs_a_pod(self) -> bool:
        """Whether a pod with a container can be run, used and removed; `problem` says why not."""
        self.problem = self._pod()
        return not self.problem

    def close(self) -> None:
        super().close()
        subprocess.run(["umount", self._directory / "lib"], check=True)

    def _look(self, place: str) -> str:
        if place == "a pod":
            return self._pod()
        if place == "a pull":
            return self._error_of(lambda cri: cri.pull(_LARGE))
        return self.shell(place, check=False)

    def _pod(self) -> str:
        """Why no pod can be run; "" = one can."""
        config = pod(f"drill-{next(self._numbers)}", log_directory="/tmp/logs")

        def all_of_it(cri: Cri) -> None:
            sandbox = ""
            try:
                cri.pull(_IMAGE)
                sandbox = cri.run(config)
                main = container("main", ["sleep", "100000"], _IMAGE)
                container_id = cri.create(sandbox, main, config)
                cri.start(container_id)
                assert cri.exec(container_id, "true").exit_code == 0
            finally:
                if sandbox:
                    cri.remove_pod(sandbox)

        return self._error_of(all_of_it)

    def _error_of(self, call: Callable[[Cri], object]) -> str:
        cri = self.client()
        try:
            call(cri)
        except grpc.RpcError as error:
            return error.details() or str(error.code())
        finally:
            cri.close()
        return ""

    def _prepare(self) -> None:
        archive = self._directory / "image.tar"
        copy = ["skopeo", "copy", "-q", "--src-tls-verify=false", "--insecure-policy", _SOURCE]
        subprocess.run([*copy, f"docker-archive:{archive}:busybox:drill"], check=True)
        self._give("/root/busybox.tar", archive.read_bytes())
        for program in _PROGRAMS.iterdir():
            self._give(f"/root/{program.name}", program.read_bytes())
        self.shell("chmod 755 /root/*; /root/prepare crun conmon")
        assert self.runs_a_pod(), self.problem

    def _give(self, path: str, data: bytes) -> None:
        self.run("sh", "-ec", 'cat > "$0"', path, stdin=data)

    @staticmethod
    def _install(directory: Path) -> None:
        disk = directory / "disk"
        with disk.open("wb") as file:
            file.truncate(_MEGABYTES << 20)
        subprocess.run(["mkfs.ext4", "-q", "-N", str(_INODES), "-m", "0", disk], check=True)
        subprocess.run(["mount", "-o", "loop", disk, directory / "lib"], check=True)
        SystemdNode._install(directory)
        # As a package installs it: units of the vendor, and no drop-in of kind.
        etc, vendor = (directory / "up" / name for name in ("etc/systemd", "usr/lib/systemd"))
        (vendor / "system").mkdir(parents=True, exist_ok=True)
        for unit in ("criagent.service", "criagent-monitors.service"):
            (etc / "system" / unit).rename(vendor / "system" / unit)
        shutil.rmtree(etc / "system/criagent.service.d")
        (directory / "up/etc/criagent/config.d/test.toml").unlink(missing_ok=True)
        (directory / "up/etc/criagent/config.d/50-drill.toml").write_text(_CONFIG)
