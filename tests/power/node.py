# SPDX-License-Identifier: Apache-2.0
"""A node whose root directory lies on a disk of `disk.py`."""

from __future__ import annotations

import contextlib
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from criagent.kernel.mount import MS_BIND, mount, umount2
from tests.support import agent
from tests.support.cri_client import Cri

ROOT = Path("/var/lib/criagent-power")
RUN = Path("/run/criagent")
SIZE = 1 << 30
MKFS_EXT4 = ("mkfs.ext4", "-q", "-E", "lazy_itable_init=0,lazy_journal_init=0")
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


def run(*command: str | Path) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    return done.stdout


def configuration(driver: str) -> str:
    """Of an agent of ROOT."""
    return f'[storage]\nroot = "{ROOT}"\ndriver = "{driver}"\n'


@contextlib.contextmanager
def recorded_disk(directory: Path, journal: Path, image: Path | None = None) -> Iterator[Path]:
    """A disk whose writes go to `journal`, with the content of `image`; yields its backing file."""
    directory.mkdir(exist_ok=True)
    command = ["setpriv", "--pdeathsig", "KILL", sys.executable, "-m", "tests.power.disk"]
    command += [str(directory), str(journal), str(SIZE)]
    command += [] if image is None else [str(image)]
    with subprocess.Popen(command, stdout=subprocess.PIPE) as server:
        assert server.stdout is not None
        assert server.stdout.readline() == b"mounted\n"
        try:
            yield directory / "disk"
        finally:
            try:
                run("umount", directory)
                assert server.wait(timeout=30) == 0
            finally:
                server.kill()


@contextlib.contextmanager
def mounted(disk: Path, number: int, scratch: Path) -> Iterator[None]:
    """That disk at ROOT in a boot of its own, without an agent."""
    ROOT.mkdir(exist_ok=True)
    run("mount", "-o", "loop", disk, ROOT)
    boot = scratch / "boot_id"
    boot.write_text(f"00000000-0000-4000-8000-{number:012d}\n")
    mount(boot, _BOOT_ID, flags=MS_BIND)
    run("rm", "-rf", "--one-file-system", RUN)
    try:
        yield
    finally:
        umount2(_BOOT_ID)
        run("umount", "-R", ROOT)


@contextlib.contextmanager
def booted(disk: Path, driver: str, number: int, scratch: Path) -> Iterator[Cri]:
    """The agent on that disk after a boot of its own."""
    with mounted(disk, number, scratch), serving(driver) as cri:
        yield cri


@contextlib.contextmanager
def serving(driver: str) -> Iterator[Cri]:
    """An agent of ROOT; its pods are gone afterwards."""
    cri = agent.start(configuration(driver))
    try:
        yield cri
    finally:
        for sandbox in cri.pods():  # after a failure
            cri.remove_pod(sandbox.id)
        cri.close()
        agent.stop()
