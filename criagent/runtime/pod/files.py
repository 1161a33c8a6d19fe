# SPDX-License-Identifier: Apache-2.0
"""Files of a sandbox that its containers mount: resolv.conf, hostname, hosts and /dev/shm.

Containers write to them, so they lie in separate file systems of limited size: a full one affects
the pod only, not the node's /run.
"""

from __future__ import annotations

import dataclasses
import os
import shutil
from collections.abc import Callable, Mapping
from concurrent.futures import Executor
from functools import partial
from pathlib import Path

from criagent.base import faults
from criagent.base.aio import run_in
from criagent.base.os_errors import about
from criagent.config.defaults.pod_annotations import SHM_SIZE
from criagent.kernel import mount
from criagent.model.common import NamespaceMode
from criagent.model.sandbox import Sandbox, SandboxSpec
from criagent.net.resolv import resolv_conf
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.node.workloads import Workloads
from criagent.runtime.pod.namespaces import pod_hostname
from criagent.runtime.spec.layer_limits import quantity
from criagent.runtime.spec.security.selinux import Selinux

_SAFE = mount.MS_NOSUID | mount.MS_NODEV | mount.MS_NOEXEC
_LEAST_SHM = 4096  # 0 would be no limit for tmpfs
_ROOM = 1 << 20  # for what a pod adds to its /etc/hosts


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class ShmSizes:
    """The sizes of /dev/shm: `default_bytes`, or what an annotation says that is allowed."""

    default_bytes: int
    handlers: Handlers
    workloads: Workloads

    def of(self, pod: SandboxSpec) -> int:
        """Bytes of a pod's /dev/shm. Raises InvalidRequestError for an invalid annotation."""
        if pod.annotations.keys().isdisjoint(SHM_SIZE):
            return self.default_bytes
        handler = self.handlers.of_pod(pod.runtime_handler)
        found = self.workloads.annotation(handler, pod, SHM_SIZE)
        return self.default_bytes if found is None else max(quantity(*found), _LEAST_SHM)


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class PodFileWriter:
    """Writes and removes the sandbox directory."""

    paths: RuntimePaths
    selinux: Selinux
    shm: ShmSizes
    fs: Executor

    def directory(self, sandbox_id: str) -> Path:
        """Where the files of a sandbox are."""
        return self.paths.sandbox(sandbox_id)

    async def writer(self, sandbox: Sandbox) -> Callable[[], None]:
        """A call that writes the files and mounts shm, for a thread.

        It raises InvalidRequestError for an invalid DNS configuration or size.
        """
        labels = await self.selinux.labels(sandbox)
        return partial(self._write, sandbox, "" if labels is None else labels.mount)

    async def remove(self, sandbox_id: str) -> None:
        """Unmount its file systems and delete the sandbox directory; idempotent."""
        await run_in(self.fs, self._remove, sandbox_id)

    def _write(self, sandbox: Sandbox, label: str) -> None:
        with about(self.directory(sandbox.id)):
            self._make(sandbox, label)
        faults.reach("sandbox-run:files")

    def _make(self, sandbox: Sandbox, label: str) -> None:
        userns = sandbox.spec.security.namespaces.pod_userns
        owner = None if userns is None else (userns.root_uid, userns.root_gid)
        self.paths.make_sandbox(sandbox.id, None if owner is None else owner[1])
        context = f',context="{label}"' if label else ""
        texts = {
            "resolv.conf": resolv_conf(sandbox.spec.dns, _host("/etc/resolv.conf")),
            "hostname": pod_hostname(sandbox) + "\n",
            "hosts": _host("/etc/hosts"),
        }
        _write_files(self.paths.etc(sandbox.id), texts, owner, context)
        if sandbox.spec.security.namespaces.ipc is not NamespaceMode.NODE:
            shm = self.paths.shm(sandbox.id)
            shm.mkdir(exist_ok=True)
            ids = "" if owner is None else f",uid={owner[0]},gid={owner[1]}"
            size = self.shm.of(sandbox.spec)
            mount.mount("shm", shm, "tmpfs", _SAFE, f"mode=1777,size={size}{ids}{context}")

    def _remove(self, sandbox_id: str) -> None:
        for place in (self.paths.shm(sandbox_id), self.paths.etc(sandbox_id)):
            if place.exists():
                mount.detach(place)
        shutil.rmtree(self.paths.sandbox(sandbox_id), ignore_errors=False, onerror=_missing_is_fine)


def _write_files(
    etc: Path, texts: Mapping[str, str], owner: tuple[int, int] | None, context: str
) -> None:
    contents = {name: text.encode() for name, text in texts.items()}
    size = _ROOM + 2 * sum(map(len, contents.values()))
    etc.mkdir(exist_ok=True)
    mount.mount("etc", etc, "tmpfs", _SAFE, f"mode=755,nr_inodes=16,size={size}" + context)
    for name, content in contents.items():
        path = etc / name
        path.write_bytes(content)
        path.chmod(0o644)
        if owner is not None:
            os.chown(path, *owner)


def _host(path: str) -> str:
    try:
        return Path(path).read_text(errors="replace")
    except FileNotFoundError:
        return ""


def _missing_is_fine(_call: object, _path: str, info: tuple[object, BaseException, object]) -> None:
    if not isinstance(info[1], FileNotFoundError):
        raise info[1]
