# SPDX-License-Identifier: Apache-2.0
"""Targets of mounts within a root: where links lead, in which order, and what is refused."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError
from criagent.runtime.spec.mounts.targets import cleaned, resolve_targets

IMAGE = "example.test/image:1"


def bind(target: str, source: Path | str = "/nowhere") -> dict[str, Any]:
    return {"destination": target, "type": "bind", "source": str(source), "options": ["rbind"]}


def resolved(
    root: Path, *mounts: dict[str, Any], cwd: str = "/", devices: tuple[str, ...] = ()
) -> dict[str, Any]:
    kernel = [
        {"destination": place, "type": kind, "source": kind, "options": []}
        for place, kind in (("/proc", "proc"), ("/dev", "tmpfs"), ("/sys", "sysfs"))
    ]
    return resolve_targets(
        root,
        {
            "process": {"cwd": cwd},
            "mounts": [*kernel, *mounts],
            "linux": {"devices": [{"path": path} for path in devices], "resources": {}},
        },
        IMAGE,
    )


def targets(root: Path, *mounts: dict[str, Any]) -> list[str]:
    """Where the binds go, in their order."""
    return [m["destination"] for m in resolved(root, *mounts)["mounts"] if m["type"] == "bind"]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    top = tmp_path / "root"
    for name in ("proc", "dev", "sys", "run", "var", "srv/deep", "etc"):
        (top / name).mkdir(parents=True)
    for name, target in {
        "var/run": "/run",
        "var/up": "../../../../../srv",
        "chain": "var/up/deep",
        "dangling": "no/such/place",
        "loop": "loop",
        "toproc": "/proc",
        "viachain": "toproc/self",
        "todev": "srv/../dev/pts",
        "tosys": "sys/kernel",
        "toroot": "srv/..",
        "run/shm": "/dev/shm",
        "etc/mtab": "/proc/mounts",
    }.items():
        (top / name).symlink_to(target)
    (top / "etc/file").touch()
    return top


@pytest.mark.parametrize(
    ("target", "place"),
    [
        ("/data", "/data"),
        ("/etc/file", "/etc/file"),
        ("/etc/file/below", "/etc/file/below"),  # the runtime says what is wrong with it
        ("/var/run", "/run"),
        ("/var/run/secrets/token", "/run/secrets/token"),
        ("/var/up/x", "/srv/x"),
        ("/chain/x", "/srv/deep/x"),
        ("/dangling", "/no/such/place"),
        ("/dangling/x", "/no/such/place/x"),
        ("/run/shm", "/dev/shm"),
        ("/run/shm/x", "/dev/shm/x"),
        ("/dev/termination-log", "/dev/termination-log"),
        ("/sys/fs/bpf", "/sys/fs/bpf"),
    ],
)
def test_a_target_is_where_its_links_lead_within_the_root(
    root: Path, target: str, place: str
) -> None:
    assert targets(root, bind(target)) == [place]


@pytest.mark.parametrize(
    "target",
    [
        "/toproc",
        "/viachain",
        "/viachain/attr",
        "/todev",
        "/tosys/x",
        "/toroot",
        "/etc/mtab",
        "/loop",
    ],
)
def test_a_link_to_kernel_files_or_to_the_root_itself_is_refused(root: Path, target: str) -> None:
    with pytest.raises(InvalidRequestError, match=f"{IMAGE}.*{target}"):
        targets(root, bind(target))


@pytest.mark.parametrize("name", ["proc", "dev", "sys"])
def test_a_kernel_directory_may_be_missing_but_nothing_else(root: Path, name: str) -> None:
    (root / name).rmdir()
    resolved(root)
    (root / name).symlink_to("/somewhere")
    with pytest.raises(InvalidRequestError, match=f": /{name} is a symlink to '/somewhere'"):
        resolved(root)
    (root / name).unlink()
    os.mkfifo(root / name)
    with pytest.raises(InvalidRequestError, match=f": /{name} is a file"):
        resolved(root)


def test_an_order_that_links_do_not_change_stays(root: Path) -> None:
    asked = ["/x/y/z", "/b", "/a", "/x"]
    assert targets(root, *(bind(target) for target in asked)) == asked


def test_the_outer_comes_before_the_inner_by_where_links_lead(root: Path) -> None:
    assert targets(root, bind("/chain"), bind("/srv")) == ["/srv", "/srv/deep"]
    assert targets(root, bind("/run/x"), bind("/var/run")) == ["/run", "/run/x"]


def test_links_in_a_volume_are_followed_for_what_is_mounted_below_it(
    root: Path, tmp_path: Path
) -> None:
    volume = tmp_path / "volume"
    (volume / "real").mkdir(parents=True)
    (volume / "in").symlink_to("real")
    (volume / "out").symlink_to("/srv")
    (volume / "bad").symlink_to("../../../proc")
    found = targets(root, bind("/data", volume), bind("/data/in/x"), bind("/data/out/y"))
    assert sorted(found) == ["/data", "/data/real/x", "/srv/y"]
    with pytest.raises(InvalidRequestError, match="/data/bad/1"):
        targets(root, bind("/data", volume), bind("/data/bad/1"))


def test_a_link_below_another_mount_is_found_in_a_later_round(root: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    volume.mkdir()
    (volume / "deep").symlink_to("/proc")
    with pytest.raises(InvalidRequestError, match="'/chain'"):
        targets(root, bind("/chain"), bind("/srv", volume))


def test_what_is_in_the_root_below_a_volume_does_not_count(root: Path, tmp_path: Path) -> None:
    volume = tmp_path / "volume"
    (volume / "run").mkdir(parents=True)
    assert targets(root, bind("/var", volume), bind("/var/run/x")) == ["/var", "/var/run/x"]


@pytest.mark.parametrize(
    "cwd", ["/viachain", "/toproc/1/cwd", "/proc/self", "/dev/fd/3", "/x/../proc/7/fd"]
)
def test_a_working_directory_among_open_files_is_refused(root: Path, cwd: str) -> None:
    with pytest.raises(InvalidRequestError, match="working directory"):
        resolved(root, cwd=cwd)


@pytest.mark.parametrize("cwd", ["/", "/chain", "/no/such", "/proc", "/proc/sys", "/run/.."])
def test_other_working_directories_stay_as_they_are(root: Path, cwd: str) -> None:
    assert resolved(root, cwd=cwd)["process"]["cwd"] == cwd


def test_devices_outside_of_dev_are_led_too(root: Path) -> None:
    found = resolved(root, devices=("/dev/x", "/var/run/null", "/srv/y"))["linux"]["devices"]
    assert [device["path"] for device in found] == ["/dev/x", "/run/null", "/srv/y"]
    with pytest.raises(InvalidRequestError, match="/toproc/x"):
        resolved(root, devices=("/toproc/x",))


def test_long_chains_through_deep_directories_end_soon(root: Path) -> None:
    deep = "d/" * 400
    here = root
    for _ in range(4):
        here = here / ("d/" * 100)
        here.mkdir(parents=True)
    for number in range(39):
        (here / f"link{number}").symlink_to(f"/{deep}link{number + 1}")
    (root / "start").symlink_to(f"/{deep}link0")
    with pytest.raises(InvalidRequestError, match="longer than 1000 components"):
        targets(root, bind("/start"))


def test_a_name_that_no_file_can_have_is_refused(root: Path) -> None:
    with pytest.raises(InvalidRequestError, match="too long"):
        targets(root, bind("/" + "n" * 300))


def test_targets_are_cleaned_as_runtimes_clean_them() -> None:
    assert [cleaned(path) for path in ("a", "//a//b/", "/a/./b/../c", "/../..", "")] == [
        "/a",
        "/a/b",
        "/a/c",
        "/",
        "/",
    ]
