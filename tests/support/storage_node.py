# SPDX-License-Identifier: Apache-2.0
"""criagent's service on a storage driver that only the VM has, with a root directory of its own."""

from __future__ import annotations

import contextlib
import subprocess
from collections.abc import Iterator
from pathlib import Path

from tests.storage import pools
from tests.support.units import systemctl

ROOT = Path("/var/lib/criagent-driver")
_DROP_IN = Path("/etc/criagent/config.d/storage.toml")


@contextlib.contextmanager
def service_on(driver: str, size: int = 1 << 30) -> Iterator[None]:
    """The service on devmapper or zfs for the block, in a pool of `size` bytes on files."""
    ROOT.mkdir()
    section = f'[storage]\nroot = "{ROOT}"\ndriver = "{driver}"\n[storage.{driver}]\n'
    if driver == "devmapper":
        section += f"loop_size_bytes = {size}\nbase_size_bytes = {max(size, 1 << 30)}\n"
    else:
        assert pools.no_zfs() == ""
        pools.make_dataset(ROOT, size, vdev=size, quota=size)
        section += f'dataset = "{pools.ZPOOL}/criagent"\n'
    _DROP_IN.parent.mkdir(parents=True, exist_ok=True)
    systemctl("stop", "criagent")
    _DROP_IN.write_text(section)
    try:
        systemctl("start", "criagent")
        yield
    finally:
        systemctl("stop", "criagent")
        if driver == "devmapper":
            pools.remove_thin_pool(ROOT)
        else:
            pools.remove_zpool(ROOT)
        subprocess.run(["umount", "-R", ROOT], check=False, capture_output=True)
        subprocess.run(["rm", "-rf", "--one-file-system", ROOT], check=True)
        _DROP_IN.unlink()
        systemctl("start", "criagent")
