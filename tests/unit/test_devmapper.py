# SPDX-License-Identifier: Apache-2.0
"""What the driver devmapper reads of the kernel, and the sizes that it chooses."""

from __future__ import annotations

import pytest

from criagent.config.sections import Config
from criagent.config.storage_section import Storage, StorageDevmapper, StorageZfs
from criagent.doctor import storage_pools
from criagent.doctor.storage_pools import PoolFacts
from criagent.image.snapshots.drivers.devmapper import file_systems, pool_status
from criagent.image.snapshots.drivers.devmapper.pool_status import PoolStatus, parse

GOOD = "7 111/1024 20/1000 - rw discard_passdown error_if_no_space - 256 "


def test_a_status_line_of_linux_6_12() -> None:
    assert parse(GOOD) == PoolStatus(
        mode="rw", transaction=7, used_metadata=111, metadata=1024, used_data=20, data=1000
    )
    assert pool_status.problem("pool", parse(GOOD), 90) == ""
    assert parse(GOOD).full == ""


@pytest.mark.parametrize(
    ("arguments", "full", "told"),
    [
        (GOOD.replace("20/", "900/"), "", "data of the thin pool pool is 90 % full"),
        (GOOD.replace("111/", "1000/"), "", "metadata of the thin pool pool is 98 % full"),
        (GOOD.replace("20/", "1000/").replace(" rw ", " out_of_data_space "), "data", "100 % full"),
        (GOOD.replace("20/", "1000/"), "data", "100 % full"),
        (GOOD.replace(" rw ", " ro ").replace(" - 256", " needs_check 256"), "metadata", "enlarge"),
        ("Fail", "metadata", "has failed"),
        ("Error", "metadata", "has failed"),
    ],
)
def test_a_pool_that_is_full_or_broken(arguments: str, full: str, told: str) -> None:
    assert parse(arguments).full == full
    assert told in pool_status.problem("pool", parse(arguments), 90)


def test_what_is_no_status_line_is_refused() -> None:
    with pytest.raises(ValueError, match="status of a thin pool"):
        parse("7 111/1024")


def test_a_held_root_is_seen() -> None:
    assert parse(GOOD.replace(" - rw", " 123 rw")).held_root


def test_a_volume_for_a_limit_has_room_for_the_image_and_the_limit() -> None:
    below = 20 << 21
    sectors = file_systems.sectors_for(1 << 30, below)
    assert sectors * 512 > (1 << 30) + below * 512
    assert sectors % 128 == 0


def test_doctor_finds_what_a_thin_pool_lacks() -> None:
    devices = StorageDevmapper(data_device="/dev/sdx", metadata_device="/dev/sdy")
    there = frozenset({"/dev/sdx", "/dev/sdy"})
    for facts, settings, level, part in (
        ({"devices": there}, devices, "ok", "/dev/sdx"),
        ({"devices": there - {"/dev/sdy"}}, devices, "error", "/dev/sdy: not a block device"),
        ({}, StorageDevmapper(data_device="/dev/sdx"), "error", "names no thin pool"),
        ({}, StorageDevmapper(), "error", "loop_size_bytes"),
        ({}, StorageDevmapper(pool="vg-thin"), "ok", "vg-thin"),
        ({}, StorageDevmapper(loop_size_bytes=1 << 30), "ok", "for trials"),
        ({"modules": frozenset()}, devices, "error", "modprobe dm_thin_pool"),
        ({"programs": frozenset()}, devices, "error", "thin-provisioning-tools"),
    ):
        config = Config(storage=Storage(driver="devmapper", devmapper=settings))
        (finding,) = storage_pools.judge(PoolFacts(**facts), config)
        assert (finding.level, part in finding.text + finding.cure) == (level, True), finding


def test_doctor_finds_what_zfs_lacks() -> None:
    cases: tuple[tuple[dict[str, frozenset[str]], str, str, str], ...] = (
        ({}, "tank/criagent", "ok", "tank/criagent"),
        ({}, "", "error", "mountpoint=legacy"),
        ({"modules": frozenset()}, "tank", "error", "zfs-dkms"),
        ({"programs": frozenset()}, "tank", "error", "zfsutils-linux"),
    )
    for facts, dataset, level, part in cases:
        config = Config(storage=Storage(driver="zfs", zfs=StorageZfs(dataset=dataset)))
        (finding,) = storage_pools.judge(PoolFacts(**facts), config)
        assert (finding.level, part in finding.text + finding.cure) == (level, True), finding


def test_doctor_says_nothing_of_pools_with_another_driver() -> None:
    assert list(storage_pools.judge(PoolFacts(), Config())) == []
