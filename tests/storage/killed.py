# SPDX-License-Identifier: Apache-2.0
"""Lives of an image and a container with a storage driver, in processes that die at a crash point.

`python3 -m tests.storage.killed` forks one process for each line of its input, so that a life does
not wait for imports. What a life has done so far it says in files of its state directory.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import stat
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path

from criagent.base import faults
from criagent.kernel import mount
from criagent.kernel.namespaces import CLONE_NEWNS, unshare
from criagent.model.image import Image
from tests.storage.ground import Storage
from tests.support.unpack_place import directory, listed, member, tar

LAYERS = (
    tar(directory("d"), member("d/low", b"low"), member("d/gone", b"gone")),
    tar(member("d/.wh.gone"), member("d/high", b"high"), member("big", bytes(300_000))),
)
SEEN = {"d": "/", "d/low": "low", "d/high": "high", "big": "\0" * 300_000}
CONTAINER = "a" * 64


class Life:
    """What is done once is not done again after a restart, and must be there."""

    def __init__(self, storage: Storage, state: Path) -> None:
        self.storage = storage
        self._state = state

    def _done(self, step: str) -> bool:
        return (self._state / f"done-{step}").exists()

    def _mark(self, step: str) -> None:
        (self._state / f"done-{step}").touch()

    async def restart(self) -> None:
        """What the agent's recovery does, and that nothing was lost and nothing is left."""
        storage = self.storage
        if not self._done("created"):
            await storage.snapshots.unmount(storage.mounts / CONTAINER[:8] / "rootfs")
            await storage.snapshots.remove(CONTAINER)
        await storage.snapshots.sweep()
        needed = {layer.chain_id for image in storage.images.all() for layer in image.layers}
        for row in reversed(storage.rows.all()):
            if row.key not in {*needed, CONTAINER}:
                await storage.snapshots.remove(row.key)
        await storage.snapshots.empty_trash()
        rows = {str(row.number) for row in storage.rows.all()}  # a row precedes and outlives
        assert rows.issuperset(storage.directories())
        assert await storage.problems() == [""] * len(needed)
        if self._done("pulled") and not self._done("deleted"):
            assert len(needed) == len(LAYERS), f"{len(needed)} layers of the image are left"

    async def go(self) -> None:
        """Pull, create, mount, write, remove, remove the image; the rest of it after a restart."""
        storage = self.storage
        if not self._done("deleted"):
            image = await storage.image(*LAYERS)
            self._mark("pulled")
            await self._container(image)
            self._mark("deleted")
            await storage.images.delete(image.id)
        for row in reversed(storage.rows.all()):
            await storage.snapshots.remove(row.key)
        await storage.snapshots.empty_trash()
        assert (storage.rows.all(), storage.directories()) == ([], [])

    async def _container(self, image: Image) -> None:
        storage = self.storage
        if not self._done("created"):
            limit = (8 << 20) * storage.snapshots.capabilities.size_limits
            await storage.writable("a", image, limit_bytes=limit)
            self._mark("created")
        snapshot = storage.rows.get(CONTAINER)
        if snapshot is not None and not self._done("used"):
            async with storage.root(snapshot, image) as root:
                self._write(root)
            async with storage.volume(image) as volume:
                assert listed(volume) == SEEN
            self._mark("used")
        await storage.snapshots.remove(CONTAINER)
        await storage.snapshots.empty_trash()

    def _write(self, root: Path) -> None:
        expected = dict(SEEN)
        if self._done("written"):
            expected["d/written"] = "written"
        assert listed(root) == expected
        with (root / "d/written").open("w") as file:
            file.write("written")
            file.flush()
            os.fsync(file.fileno())
        self._mark("written")


async def _live(top: Path, driver: str, state: Path) -> None:
    storage = await Storage(top, driver, state).open()
    life = Life(storage, state)
    await life.restart()
    await life.go()
    await storage.close()


def _run(order: dict[str, str]) -> None:
    """In a process of its own: a life that dies when it reaches its point the n-th time."""
    reached: list[str] = []
    deadly, _, which = order["point"].partition("#")

    def reach(point: str) -> None:
        reached.append(point)
        if point == deadly and reached.count(point) == int(which):
            os.kill(os.getpid(), signal.SIGKILL)
            signal.pause()

    faults.reach = reach
    with open(order["output"], "a") as output:
        os.dup2(output.fileno(), 1)
        os.dup2(output.fileno(), 2)
    if order["without"]:
        _hide(order["without"], Path(order["state"]))
    try:
        asyncio.run(_live(Path(order["top"]), order["driver"], Path(order["state"])))
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)
    (Path(order["state"]) / "reached").write_text("\n".join(reached))
    os._exit(0)


def _hide(program: str, state: Path) -> None:
    """As if it were not installed, in a mount namespace of this process's own."""
    unshare(CLONE_NEWNS)
    subprocess.run(["mount", "--make-rslave", "/"], check=True)
    for place in (Path("/usr/bin"), Path("/usr/sbin")):
        upper, work = (state / name / place.name for name in ("upper", "work"))
        upper.mkdir(parents=True)
        work.mkdir(parents=True)
        os.mknod(upper / program, stat.S_IFCHR, 0)
        mount.overlay([place], upper, work, place)


def _serve() -> None:
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            _run(json.loads(line))
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)


class Lives:
    """The process that forks lives."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self._process = process

    def run(self, top: Path, driver: str, point: str = "", *, without: str = "") -> int:
        """The exit status of a life at `top`, negative for a signal; its state is beside `top`.

        `point` is "NAME#N": it dies when it reaches it the N-th time. `without` is the name of a
        program that it does not have.
        """
        state = top.with_name(f"{top.name}-state")
        state.mkdir(exist_ok=True)
        output = state / "output"
        order = {"top": top, "driver": driver, "state": state, "point": point, "output": output}
        order["without"] = without
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps(order, default=str) + "\n")
        self._process.stdin.flush()
        return int(self._process.stdout.readline())

    @staticmethod
    def reached(top: Path) -> list[str]:
        """The crash points that the last life at `top` reached, in order, as "NAME#N"."""
        names = (top.with_name(f"{top.name}-state") / "reached").read_text().split()
        return [f"{name}#{names[: at + 1].count(name)}" for at, name in enumerate(names)]

    @staticmethod
    def output(top: Path) -> str:
        """What the lives at `top` said."""
        return (top.with_name(f"{top.name}-state") / "output").read_text()


@contextlib.contextmanager
def lives() -> Iterator[Lives]:
    """A process that forks lives, for the block."""
    pipe = subprocess.PIPE
    command = [sys.executable, "-m", "tests.storage.killed"]
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as process:
        yield Lives(process)


if __name__ == "__main__":
    _serve()
