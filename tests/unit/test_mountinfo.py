# SPDX-License-Identifier: Apache-2.0
"""The mounts of a namespace: names as the kernel escapes them, and the mount that holds a path."""

from __future__ import annotations

from pathlib import Path

import pytest

from criagent.kernel import mount
from criagent.kernel.mount import MountEntry, parse_mountinfo
from criagent.runtime.stats.metric_values import Devices

ROOT = rb"22 1 0:20 / / rw,relatime shared:1 - overlay overlay rw"
LINES = {
    "/mnt/данные".encode(): "/mnt/данные",
    rb"/mnt/a\040b": "/mnt/a b",
    rb"/mnt/a\011b": "/mnt/a\tb",
    rb"/mnt/a\012b": "/mnt/a\nb",
    rb"/mnt/a\134040": r"/mnt/a\040",
    rb"/mnt/a\043b": "/mnt/a#b",
    b"/mnt/a\rb": "/mnt/a\rb",
    b"/mnt/a\x85b": "/mnt/a\udc85b",
    "/mnt/a\x85b\u2028c".encode(): "/mnt/a\x85b\u2028c",
    b"/mnt/\xff": "/mnt/\udcff",
}


@pytest.mark.parametrize(("raw", "target"), LINES.items())
def test_a_target_is_the_name_that_was_mounted_on(
    tmp_path: Path, raw: bytes, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mountinfo"
    line = b"23 22 8:1 " + raw + b" " + raw + b" rw - ext4 /dev/disk/by-label/" + raw[5:] + b" rw"
    file.write_bytes(ROOT + b"\n" + line + b"\n")
    monkeypatch.setattr(mount, "_MOUNTINFO", file)
    root, entry = mount.mountinfo()
    assert (root.target, root.shared) == ("/", True)
    assert (entry.target, entry.root) == (target, target)
    assert entry.source == f"/dev/disk/by-label/{target[5:]}"


def test_mounts_below_a_directory_can_be_left_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mountinfo"
    targets = ("/", "/run", "/run/agent", "/run/agent/pod/shm", "/run/agent-2", r"/run/agent/\040")
    lines = (f"{20 + n} 1 0:{n} / {t} rw - tmpfs tmpfs rw\n" for n, t in enumerate(targets))
    file.write_text("".join(lines))
    monkeypatch.setattr(mount, "_MOUNTINFO", file)
    left = [entry.target for entry in mount.mountinfo([Path("/run/agent")])]
    assert left == ["/", "/run", "/run/agent", "/run/agent-2"]
    assert len(mount.mountinfo()) == len(targets)


def entries(*targets: str) -> list[MountEntry]:
    lines = (f"{20 + n} 1 0:{n} / {t} rw - fs{n} dev{n} rw" for n, t in enumerate(targets))
    return list(parse_mountinfo(lines))


@pytest.mark.parametrize(
    ("path", "fstype"),
    [("/a/b/c", "fs3"), ("/a/bc", "fs1"), ("/a", "fs1"), ("/b", "fs0"), ("/", "fs0")],
)
def test_a_path_is_on_the_topmost_mount_of_the_nearest_mount_point(path: str, fstype: str) -> None:
    found = mount.holding(Path(path), entries("/", "/a", "/a/b", "/a/b"))
    assert found is not None
    assert found.fstype == fstype


@pytest.mark.parametrize(
    ("path", "fstype"),
    [("/", "fs0"), ("/srv/a b/c", "fs2"), ("/srv/a", "fs1"), ("/srv-2", "fs0"), ("/é/x", "fs3")],
)
def test_the_mount_of_a_path_is_found_without_parsing_the_others(
    tmp_path: Path, path: str, fstype: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mountinfo"
    targets = ("/", "/srv", r"/srv/a\040b", "/é")
    lines = (f"{20 + n} 1 0:{n} / {t} rw - fs{n} dev{n} rw\n" for n, t in enumerate(targets))
    file.write_text("".join(lines) + "not a line that can be parsed /other\n")
    monkeypatch.setattr(mount, "_MOUNTINFO", file)
    found = mount.holder(Path(path))
    assert found is not None
    assert found.fstype == fstype


@pytest.mark.parametrize("directory", ["/", "/proc", "/proc/self", "/sys", "/dev/shm"])
def test_the_mount_of_an_open_directory_is_that_of_its_path(directory: str) -> None:
    assert mount.holder_of(Path(directory)) == mount.holder(Path(directory).resolve())


def test_a_mount_that_is_not_listed_is_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mountinfo"
    file.write_bytes(b"999999999" + ROOT.removeprefix(b"22") + b"\n")
    monkeypatch.setattr(mount, "_MOUNTINFO", file)
    assert mount.holder_of(Path("/proc")) is None
    with pytest.raises(FileNotFoundError):
        mount.holder_of(tmp_path / "none")


def test_a_path_can_be_on_no_mount() -> None:
    assert mount.holding(Path("/b"), entries("/a")) is None


def test_a_filesystem_label_is_its_source_as_it_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "mountinfo"
    place = str(tmp_path).encode().replace(b" ", rb"\040")
    file.write_bytes(b"23 22 8:1 / " + place + b" rw - fuse.x " + r"host:/мои\040дни".encode())
    monkeypatch.setattr(mount, "_MOUNTINFO", file)
    monkeypatch.setattr(Devices, "name", lambda _self, number: number)
    assert Devices().holding(tmp_path) == "host:/мои дни"
