# SPDX-License-Identifier: Apache-2.0
"""`doctor` judges facts of the storage: file systems, drivers, their programs, space."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from criagent.config.runtime_section import Handler, Runtime
from criagent.config.sections import Config
from criagent.config.storage_section import Storage
from criagent.doctor import storage
from tests.support.findings import judged, one


@pytest.mark.parametrize(
    ("facts", "name", "level", "part"),
    [
        ({}, "storage.root", "ok", "ext4"),
        ({"read_only": True}, "storage.root", "error", "read-only"),
        ({"writable": False}, "storage.root", "error", "run as root"),
        ({"fstype": "nfs4"}, "storage.root", "error", "nfs4"),
        ({"fstype": "overlay"}, "storage.root", "error", "ext4, xfs"),
        (
            {"options": frozenset({"noexec", "nosuid", "nodev"})},
            "storage.root",
            "warning",
            "is mounted nodev,noexec,nosuid, and so are the containers' declared volumes",
        ),
        ({}, "disk space", "ok", "GB free"),
        ({"free_bytes": 10 << 30}, "disk space", "warning", "15%"),
        ({"free_bytes": 1 << 20}, "disk space", "error", "prune"),
        ({}, "inodes", "ok", "no fixed number"),
        ({"total_inodes": 10**6, "free_inodes": 40_000}, "inodes", "warning", "5%"),
        ({"total_inodes": 10**6, "free_inodes": 10}, "inodes", "error", "mkfs.ext4 -N"),
        ({"set_aside_rows": 2}, "state database", "warning", "2 rows"),
        ({"run_fstype": "ext4"}, "storage.run_dir", "warning", "survives a reboot"),
        ({"run_free_bytes": 4096}, "storage.run_dir", "error", "no container can be created"),
        ({"run_free_bytes": 40 << 20}, "storage.run_dir", "warning", "soon no container"),
    ],
)
def test_storage(facts: dict[str, Any], name: str, level: str, part: str) -> None:
    judged(one(storage.judge(storage.StorageFacts(**facts), Config()), name), level, part)


@pytest.mark.parametrize(
    ("driver", "facts", "level", "part"),
    [
        ("auto", {"programs": frozenset(), "fuse": False}, "ok", "auto"),
        ("erofs", {}, "ok", "erofs"),
        ("erofs", {"programs": frozenset()}, "error", "install erofs-utils"),
        ("fuse-overlayfs", {"programs": frozenset()}, "error", "install fuse-overlayfs"),
        ("fuse-overlayfs", {"fuse": False}, "error", "modprobe fuse"),
    ],
)
def test_what_a_storage_driver_needs(
    driver: str, facts: dict[str, Any], level: str, part: str
) -> None:
    config = Config(storage=Storage(driver=driver))
    found = one(storage.judge(storage.StorageFacts(**facts), config), "storage.driver")
    judged(found, level, part)


def test_an_additional_store_that_is_missing(tmp_path: Path) -> None:
    config = Config(storage=Storage(root=tmp_path, additional_stores=(tmp_path / "store",)))
    found = one(storage.judge(storage.read(config), config), "storage.additional_stores")
    judged(found, "warning", "does not exist")


@pytest.mark.parametrize("driver", ["native", "btrfs"])
def test_root_file_systems_that_are_bind_mounts_inherit_options(driver: str) -> None:
    config = Config(storage=Storage(driver=driver))
    facts = storage.StorageFacts(fstype="btrfs", options=frozenset({"noexec"}))
    found = one(storage.judge(facts, config), "storage.root")
    judged(found, "error", f"with the driver {driver} no program of an image can start")
    facts = storage.StorageFacts(fstype="btrfs", options=frozenset({"nodev"}))
    found = one(storage.judge(facts, config), "storage.root")
    judged(found, "warning", "so are the containers' root file systems and declared volumes")


def test_copies_of_layers_need_no_file_system_for_overlay() -> None:
    config = Config(storage=Storage(driver="native"))
    facts = storage.StorageFacts(fstype="nfs4")
    judged(one(storage.judge(facts, config), "storage.root"), "ok", "nfs4")


@pytest.mark.parametrize(
    ("driver", "facts", "level", "part"),
    [
        ("btrfs", {"handlers": {"kata": "btrfs"}}, "ok", "btrfs"),
        ("btrfs", {"handlers": {"kata": "ext4"}}, "error", "snapshots-btrfs is on ext4"),
        ("native", {"handlers": {"kata": "nfs4"}}, "ok", "native"),
        ("erofs", {"handlers": {"kata": "nfs4"}}, "error", "snapshots-erofs is on nfs4"),
        (
            "erofs",
            {"handlers": {"kata": "ext4"}, "programs": frozenset()},
            "error",
            "install erofs-utils",
        ),
    ],
)
def test_what_the_storage_driver_of_a_handler_needs(
    driver: str, facts: dict[str, Any], level: str, part: str
) -> None:
    kata = Handler(path=Path("/usr/bin/kata"), snapshotter=driver)
    config = Config(runtime=Runtime(handlers={"kata": kata}))
    found = storage.judge(storage.StorageFacts(**facts), config)
    judged(one(found, "runtime.handlers.kata.snapshotter"), level, part)


@pytest.mark.parametrize(("fstype", "level"), [("btrfs", "ok"), ("ext4", "error")])
def test_subvolumes_need_btrfs(fstype: str, level: str) -> None:
    config = Config(storage=Storage(driver="btrfs"))
    facts = storage.StorageFacts(fstype=fstype)
    part = "mkfs.btrfs" if level == "error" else "(btrfs)"
    judged(one(storage.judge(facts, config), "storage.root"), level, part)
