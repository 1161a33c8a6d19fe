# SPDX-License-Identifier: Apache-2.0
"""Paths of the runtime's files; each follows from an id alone (docs/architecture.md)."""

from __future__ import annotations

import dataclasses
import functools
import os
import shutil
from pathlib import Path


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class RuntimePaths:
    """`root` survives a reboot, `run_dir` does not.

    `containers_root` has the writable layers if they are not below `root`.
    """

    root: Path
    run_dir: Path
    containers_root: Path | None = None

    @property
    def roots(self) -> tuple[Path, ...]:
        """What survives a reboot."""
        return (self.root,) if self.containers_root is None else (self.root, self.containers_root)

    def prepare(self) -> None:
        """Create the fixed directories with their modes; idempotent.

        Local users can reach only the socket. `make_sandbox` opens the way for user namespaces.
        """
        self.root.mkdir(parents=True, exist_ok=True, mode=0o700)
        self.checkpoints.mkdir(exist_ok=True, mode=0o700)
        self.restores.mkdir(exist_ok=True, mode=0o700)
        self.run_dir.mkdir(parents=True, exist_ok=True)
        self.run_dir.chmod(0o711)
        for name, mode in (
            ("sandboxes", 0o700),
            ("containers", 0o700),
            ("exits", 0o700),
            ("attach", 0o700),
            ("runtime", 0o700),
        ):
            (self.run_dir / name).mkdir(exist_ok=True, mode=mode)
            (self.run_dir / name).chmod(mode)

    def make_sandbox(self, sandbox_id: str, gid: int | None) -> None:
        """Create a sandbox's directory, closed to local users; idempotent.

        With a user namespace the runtime mounts as its root, so the group `gid`, that root's group
        on the node, may pass through.
        """
        directory = self.sandbox(sandbox_id)
        directory.mkdir(exist_ok=True, mode=0o700)
        if gid is None:
            directory.chmod(0o700)
            return
        os.chown(directory, -1, gid)
        directory.chmod(0o710)
        for name in ("sandboxes", "containers"):  # their contents are closed by themselves
            (self.run_dir / name).chmod(0o711)

    def sandbox(self, sandbox_id: str) -> Path:
        """Everything of one sandbox."""
        return _below(self.run_dir, "sandboxes", sandbox_id)

    def netns(self, sandbox_id: str) -> Path:
        """Pin of the network namespace."""
        return _below(self.run_dir, "sandboxes", sandbox_id, "ns", "net")

    def ipcns(self, sandbox_id: str) -> Path:
        """Pin of the IPC namespace."""
        return _below(self.run_dir, "sandboxes", sandbox_id, "ns", "ipc")

    def utsns(self, sandbox_id: str) -> Path:
        """Pin of the UTS namespace."""
        return _below(self.run_dir, "sandboxes", sandbox_id, "ns", "uts")

    def userns(self, sandbox_id: str) -> Path:
        """Pin of the user namespace that owns the others."""
        return _below(self.run_dir, "sandboxes", sandbox_id, "ns", "user")

    def shm(self, sandbox_id: str) -> Path:
        """The tmpfs that is /dev/shm in the pod."""
        return _below(self.run_dir, "sandboxes", sandbox_id, "shm")

    def etc(self, sandbox_id: str) -> Path:
        """The small tmpfs with resolv.conf, hostname and hosts of the pod."""
        return _below(self.run_dir, "sandboxes", sandbox_id, "etc")

    def holder(self, sandbox_id: str) -> Path:
        """Bundle of the process that holds a shared PID namespace."""
        return self.sandbox(sandbox_id) / "holder"

    def container(self, container_id: str) -> Path:
        """The OCI bundle of a container."""
        return _below(self.run_dir, "containers", container_id)

    def rootfs(self, container_id: str) -> Path:
        """Where the container's overlay is mounted."""
        return _below(self.run_dir, "containers", container_id, "rootfs")

    def image_volumes(self, container_id: str) -> Path:
        """Where the container's image volumes are mounted."""
        return self.container(container_id) / "volumes"

    def image_volume(self, container_id: str, number: int) -> Path:
        """Where the image of the container's mount `number` is mounted."""
        return self.image_volumes(container_id) / str(number)

    def lower_layers(self, container_id: str) -> Path:
        """Where the layers are attached with mapped ids while the overlay is mounted."""
        return self.container(container_id) / "lowers"

    def mapped_mounts(self, container_id: str) -> Path:
        """Where volumes are attached with mapped ids for a runtime that cannot map them."""
        return self.container(container_id) / "mapped"

    def exit_file(self, container_id: str) -> Path:
        """Where conmon leaves the exit code."""
        return self.run_dir / "exits" / container_id

    def oom_file(self, container_id: str) -> Path:
        """conmon's mark for a memory shortage; it does not say whether a process was killed."""
        return self.container(container_id) / "oom"

    @property
    def exits(self) -> Path:
        """conmon's --exit-dir."""
        return self.run_dir / "exits"

    @property
    def attach(self) -> Path:
        """conmon's --socket-dir-path; for conmon it must not be the bundle's parent."""
        return self.run_dir / "attach"

    @property
    def checkpoints(self) -> Path:
        """One directory for each checkpoint in progress, by the id of its container or sandbox."""
        return self.root / "checkpoints"

    def checkpoint(self, object_id: str) -> Path:
        """What a checkpoint of a container or sandbox consists of until it is archived."""
        return self.checkpoints / object_id

    @property
    def restores(self) -> Path:
        """One directory for each container whose processes are yet to be restored, by its id."""
        return self.root / "restores"

    def restore(self, object_id: str) -> Path:
        """What was unpacked of a checkpoint for a container or sandbox."""
        return self.restores / object_id

    @property
    def criu_home(self) -> Path:
        """Where CRIU finds its options that OCI runtimes do not pass on: `.criu/default.conf`."""
        return self.run_dir / "criu"

    def runtime_root(self, handler: str) -> Path:
        """--root of one OCI runtime handler."""
        return self.run_dir / "runtime" / handler

    def forget_state(self, object_id: str) -> None:
        """Remove an OCI runtime's state of a dead container or holder; synchronous.

        For handlers that are no longer configured: a runtime removes its own state.
        """
        for state in (self.run_dir / "runtime").glob(f"*/{object_id}"):
            shutil.rmtree(state, ignore_errors=True)
        for directory in (self.run_dir / "runtime").iterdir():
            for file in gvisor_state(directory, object_id):
                file.unlink(missing_ok=True)


@functools.lru_cache(256)  # of the pods that start or end now; each is asked for many times
def _below(directory: Path, *names: str) -> Path:
    return directory.joinpath(*names)


def gvisor_state(directory: Path, object_id: str) -> list[Path]:
    """Where runsc keeps a container in its --root, the file that says that it exists first."""
    name = f"{object_id}_sandbox:{object_id}"
    return [
        directory / part for part in (f"{name}.state", f"{name}.lock", f"runsc-{object_id}.sock")
    ]
