"""Files of a sandbox that its containers mount: resolv.conf, hostname, hosts and /dev/shm."""

from __future__ import annotations

import dataclasses
import os
import shutil
from concurrent.futures import Executor
from pathlib import Path

from criagent.aio import run_in
from criagent.kernel import mount
from criagent.kernel.selinux import set_label
from criagent.model import NamespaceMode, Sandbox
from criagent.net.resolv import resolv_conf
from criagent.runtime.paths import RuntimePaths
from criagent.runtime.pod_namespaces import pod_hostname
from criagent.runtime.selinux import Selinux

_SHM_FLAGS = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
_SHM_DATA = "mode=1777,size=65536k"  # what containerd and CRI-O give every pod


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodFileWriter:
    """Writes and removes the sandbox directory."""

    paths: RuntimePaths
    selinux: Selinux
    fs: Executor

    async def write(self, box: Sandbox) -> None:
        """Write the files and mount shm; raises InvalidRequestError for a bad DNS configuration."""
        labels = await self.selinux.labels(box)
        await run_in(self.fs, self._write, box, "" if labels is None else labels.mount)

    async def remove(self, sandbox_id: str) -> None:
        """Unmount shm and delete the sandbox directory; idempotent."""
        await run_in(self.fs, self._remove, sandbox_id)

    def _write(self, box: Sandbox, label: str) -> None:
        directory = self.paths.sandbox(box.id)
        directory.mkdir(parents=True, exist_ok=True, mode=0o711)
        files = {
            self.paths.resolv_conf(box.id): resolv_conf(box.spec.dns, _host("/etc/resolv.conf")),
            self.paths.hostname(box.id): pod_hostname(box) + "\n",
            self.paths.hosts(box.id): _host("/etc/hosts"),
        }
        mapped = box.spec.security.namespaces.mapped
        for path, text in files.items():
            path.write_text(text)
            path.chmod(0o644)
            if mapped is not None:
                os.chown(path, mapped.root_uid, mapped.root_gid)
            if label:
                set_label(path, label)
        if box.spec.security.namespaces.ipc is not NamespaceMode.NODE:
            shm = self.paths.shm(box.id)
            shm.mkdir(exist_ok=True)
            owner = f",uid={mapped.root_uid},gid={mapped.root_gid}" if mapped is not None else ""
            context = f',context="{label}"' if label else ""
            mount.mount("shm", shm, "tmpfs", _SHM_FLAGS, _SHM_DATA + owner + context)

    def _remove(self, sandbox_id: str) -> None:
        shm = self.paths.shm(sandbox_id)
        if shm.exists():
            mount.detach(shm)
        shutil.rmtree(self.paths.sandbox(sandbox_id), ignore_errors=False, onerror=_missing_is_fine)


def _host(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _missing_is_fine(_call: object, _path: str, info: tuple[object, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
