# SPDX-License-Identifier: Apache-2.0
"""PID 1 of a pod that shares its PID namespace: `catatonit -P`, as an OCI container of its own.

Its root holds nothing but the static program, read-only, so a pod that looks through /proc/1/root
sees no file of the host. No capability, uid 65535, seccomp; nobody monitors it but its pidfd.
"""

from __future__ import annotations

import contextlib
import dataclasses
import os
import select
import shutil
import signal
from collections.abc import Mapping
from concurrent.futures import Executor
from pathlib import Path

import msgspec

from criagent.base.aio import run_in
from criagent.base.errors import AgentError
from criagent.kernel import cgroupfs, process
from criagent.kernel.selinux import set_label
from criagent.model.common import ProcessRef
from criagent.model.sandbox import Sandbox
from criagent.runtime.node import own_cgroup
from criagent.runtime.node.cgroup_names import (
    CgroupDriver,
    check_placement,
    container_cgroup,
    container_cgroups_path,
)
from criagent.runtime.node.paths import RuntimePaths
from criagent.runtime.oci.runtime import OciRuntime
from criagent.runtime.pod.namespaces import PodNamespaces
from criagent.runtime.spec.id_mappings import oci_mappings
from criagent.runtime.spec.inputs import OciObject
from criagent.runtime.spec.security.selinux import Selinux

_UID = 65535  # what pause images run as; with fewer ids mapped, the last of them
_PROGRAM = "/catatonit"
_END_LIMIT_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class HolderSpec:
    """The OCI specification of a holder: the program `catatonit` and nothing else."""

    namespaces: PodNamespaces
    catatonit: Path
    driver: CgroupDriver
    seccomp: OciObject | None

    def of(self, sandbox: Sandbox) -> OciObject:
        """That of `sandbox`, without labels."""
        pins = self.namespaces.pins(sandbox)
        names = {"net": "network", "ipc": "ipc", "uts": "uts", "user": "user"}
        namespaces: list[OciObject] = [{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}]
        namespaces += [{"type": names[kind], "path": str(pin)} for kind, pin in pins.items()]
        bind = {
            "destination": _PROGRAM,
            "type": "bind",
            "source": str(self.catatonit),
            "options": ["bind", "ro", "nosuid", "nodev"],
        }
        parent = sandbox.spec.cgroup_parent
        linux: OciObject = {
            "namespaces": namespaces,
            "cgroupsPath": container_cgroups_path(self.driver, parent, sandbox.id),
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
        }
        if self.seccomp is not None:
            linux["seccomp"] = self.seccomp
        uid = gid = _UID
        if (userns := sandbox.spec.security.namespaces.pod_userns) is not None:
            linux["uidMappings"] = oci_mappings(userns.uids)
            linux["gidMappings"] = oci_mappings(userns.gids)
            uid = min(_UID, userns.uids[0].length - 1)
            gid = min(_UID, userns.gids[0].length - 1)
        none: list[str] = []
        return {
            "ociVersion": "1.0.2",
            "process": {
                "terminal": False,
                "user": {"uid": uid, "gid": gid},
                "args": [_PROGRAM, "-P"],
                "env": ["PATH=/"],
                "cwd": "/",
                "capabilities": dict.fromkeys(
                    ("bounding", "effective", "inheritable", "permitted", "ambient"), none
                ),
                "noNewPrivileges": True,
                "oomScoreAdj": 0,
            },
            "root": {"path": "rootfs", "readonly": True},
            "mounts": [
                {
                    "destination": "/proc",
                    "type": "proc",
                    "source": "proc",
                    "options": ["nosuid", "noexec", "nodev"],
                },
                bind,
                {
                    "destination": "/dev",
                    "type": "tmpfs",
                    "source": "tmpfs",
                    "options": ["nosuid", "noexec", "mode=755", "size=64k"],
                },
            ],
            "linux": linux,
        }


class SandboxHolder:
    """Starts, finds and removes holders; the container id is the sandbox id. `default` is the
    runtime that starts new ones."""

    def __init__(
        self,
        *,
        runtimes: Mapping[str, OciRuntime],
        default: OciRuntime,
        spec: HolderSpec,
        paths: RuntimePaths,
        driver: CgroupDriver,
        selinux: Selinux,
        fs: Executor,
    ) -> None:
        self._runtimes = runtimes
        self._default = default
        self._spec = spec
        self._paths = paths
        self._driver = driver
        self._selinux = selinux
        self._fs = fs

    async def start(self, sandbox: Sandbox) -> ProcessRef:
        """Start the holder of `sandbox`. Raises AgentError with the runtime's message."""
        bundle = self._paths.holder(sandbox.id)
        privileged = sandbox.spec.security.privileged
        labels = await self._selinux.labels(sandbox, privileged=privileged)
        spec = self._spec.of(sandbox)
        if labels is not None:
            spec["process"]["selinuxLabel"] = labels.process
            spec["linux"]["mountLabel"] = labels.mount
        userns = sandbox.spec.security.namespaces.pod_userns

        def write() -> None:
            (bundle / "rootfs").mkdir(parents=True, exist_ok=True)
            if userns is not None:  # the runtime makes mount points in it
                os.chown(bundle / "rootfs", userns.root_uid, userns.root_gid)
            if labels is not None:
                set_label(bundle / "rootfs", labels.mount)
            (bundle / "config.json").write_bytes(msgspec.json.encode(spec))

        await run_in(self._fs, write)
        pid = await self._default.run_detached(sandbox.id, bundle, bundle / "pidfile")
        ref = process.process_ref(pid)
        if ref is None:
            raise AgentError(f"the holder of sandbox {sandbox.id} died at its start")
        asked = container_cgroup(self._driver, sandbox.spec.cgroup_parent, sandbox.id)
        check_placement(cgroupfs.of_process(pid), asked, self._default.name)
        return ref

    def alive(self, sandbox: Sandbox) -> bool:
        """Whether the holder lives, for a sandbox that has one."""
        return sandbox.holder is None or process.alive(sandbox.holder)

    async def remove(self, sandbox: Sandbox) -> None:
        """Kill it and everything in its PID namespace; idempotent.

        The default handler may be another one by now than the one that started it.
        """
        if not self._paths.holder(sandbox.id).exists():
            return
        knowing = (one for one in self._runtimes.values() if one.knows(sandbox.id))
        owner = next(knowing, self._default)
        await owner.delete(sandbox.id)
        await run_in(self._fs, self._clear, sandbox)

    def _clear(self, sandbox: Sandbox) -> None:
        """The bundle goes, and what is left where the handler is no longer configured."""
        if sandbox.holder is not None:
            _end(sandbox.holder, sandbox.id)
        self._paths.forget_state(sandbox.id)
        with contextlib.suppress(FileNotFoundError):
            shutil.rmtree(self._paths.holder(sandbox.id))


def _end(holder: ProcessRef, sandbox_id: str) -> None:
    """Kill it if it lives, await its end and remove its cgroup."""
    fd = process.open_pidfd(holder)
    if fd is None:
        return
    try:
        cgroup = cgroupfs.of_process(holder.pid)
        signal.pidfd_send_signal(fd, signal.SIGKILL)
        own_cgroup.kill(cgroup, sandbox_id)
        select.select([fd], [], [], _END_LIMIT_S)
    except (FileNotFoundError, ProcessLookupError):
        return  # it was ending
    finally:
        os.close(fd)
    own_cgroup.remove(cgroup, sandbox_id)
