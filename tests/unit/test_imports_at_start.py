# SPDX-License-Identifier: Apache-2.0
"""What the daemon imports before its first call: memory that every node pays for.

The test runs in a fresh interpreter that imports the daemon with all its wiring, and puts together
what images and NRI need on a new root directory.
"""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

PROGRAM = """
import asyncio, json, sys
from pathlib import Path
from criagent.config.sections import Config
from criagent.config.storage_section import Storage
from criagent.daemon import serve
from criagent.streaming import server
from criagent.daemon.wiring import checkpoints, image, nri
from criagent.daemon.wiring.shared import Executors, Shared, Stores
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.facts import read_node_facts
from criagent.runtime.node.handlers import Handlers
from criagent.runtime.node.paths import RuntimePaths

async def wire(root):
    executors, stores = Executors.start(), Stores.open(root / "state.db")
    config = Config(storage=Storage(root=root, run_dir=root / "run"))
    shared = Shared.of(config, stores, executors)
    parts = await image.build(shared)
    await parts.images.prepare()
    nri.build(
        shared,
        facts=read_node_facts(nofile=(1, 1), missing_controllers="ignore"),
        handlers=Handlers([], default="crun", monitor=Path("/")),
        driver=CgroupDriver.CGROUPFS,
        paths=RuntimePaths(root=root, run_dir=root / "run"),
    )
    await parts.close()
    stores.db.close()
    executors.shutdown()

asyncio.run(wire(Path(sys.argv[1])))
json.dump(sorted(sys.modules), sys.stdout)
"""

# Modules, each with what is below it, and when they are imported.
LATER = {
    "aiohttp": "the first pull",
    "h11": "the first stream",
    "websockets": "the first stream",
    "yaml": "a CDI file in YAML, or NRI's default validator",
    "tarfile": "a checkpoint, an image archive",
    "opentelemetry": "telemetry.otlp_endpoint",
    "criagent._proto.nri_pb2": "the first NRI plugin",
    "criagent._proto.ttrpc_pb2": "the first NRI plugin",
    "criagent.daemon.wiring.checkpoint_verbs": "the first checkpoint",
    "criagent.daemon.wiring.nri_relay": "the first NRI plugin",
    "criagent.doctor": "criagent doctor",
    "criagent.image.archive.images": "an image archive",
    "criagent.image.archive.members": "the unpack worker",
    "criagent.image.archive.read": "the unpack worker",
    "criagent.image.archive.write": "an image archive",
    "criagent.image.archive_import": "an image archive",
    "criagent.image.snapshots.changes": "a checkpoint",
    "criagent.image.snapshots.drivers.btrfs": "storage.driver",
    "criagent.image.snapshots.drivers.devmapper": "storage.driver",
    "criagent.image.snapshots.drivers.erofs": "storage.driver",
    "criagent.image.snapshots.drivers.fuse_overlayfs": "storage.driver",
    "criagent.image.snapshots.drivers.native": "storage.driver",
    "criagent.image.snapshots.drivers.zfs": "storage.driver",
    "criagent.kernel.btrfs": "storage.driver",
    "criagent.kernel.devicemapper": "storage.driver",
    "criagent.nri.oci": "the first NRI plugin",
    "criagent.nri.plugin": "the first NRI plugin",
    "criagent.nri.programs": "a program in nri.plugin_path",
    "criagent.nri.relay": "the first NRI plugin",
    "criagent.nri.session": "the first NRI plugin",
    "criagent.nri.wire": "the first NRI plugin",
    "criagent.runtime.checkpoint.capture": "the first checkpoint",
    "criagent.runtime.checkpoint.container": "the first checkpoint",
    "criagent.runtime.checkpoint.pod": "the first checkpoint",
    "criagent.runtime.checkpoint.tar": "the first checkpoint",
    "criagent.runtime.restore.pod": "the first RestorePod",
}


def test_what_few_nodes_use_is_imported_when_it_is_used(tmp_path: Path) -> None:
    command = [sys.executable, "-c", PROGRAM, str(tmp_path)]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=Path(__file__).parents[2], check=False
    )
    assert done.returncode == 0, done.stderr
    imported: list[str] = json.loads(done.stdout.splitlines()[-1])
    assert "criagent.daemon.wiring.agent" in imported
    assert "criagent.image.snapshots.drivers.overlay" in imported
    early = [one for one in imported if any(f"{one}.".startswith(f"{m}.") for m in LATER)]
    assert early == []
