# SPDX-License-Identifier: Apache-2.0
"""CDI devices: folders and their changes, names to edits, edits to a specification."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.spec.cdi.apply import apply_cdi
from criagent.runtime.spec.cdi.file import FILE_LIMIT, Mount, NetDevice
from criagent.runtime.spec.cdi.registry import CdiFolders
from criagent.runtime.spec.cdi.resolve import CdiDevices
from criagent.runtime.spec.inputs import CdiEdits, CdiNode


def write(file: Path, *names: str, **edits: Any) -> None:
    """A specification of devices that set an environment variable, or make `edits`."""
    file.parent.mkdir(exist_ok=True)
    devices = [
        {"name": name, "containerEdits": edits or {"env": [f"FROM={file.stem}"]}} for name in names
    ]
    document = {"cdiVersion": "1.1.0", "kind": "vendor.com/class", "devices": devices}
    file.write_text(json.dumps(document))


@pytest.fixture
def low(tmp_path: Path) -> Path:
    return tmp_path / "low"


@pytest.fixture
def high(tmp_path: Path) -> Path:
    return tmp_path / "high"


@pytest.fixture
def folders(low: Path, high: Path) -> CdiFolders:
    return CdiFolders((low, high))


def origin(folders: CdiFolders, name: str) -> str:
    (device,) = folders.devices([f"vendor.com/class={name}"])
    return device.file.name


def test_a_later_folder_hides_an_earlier_one(folders: CdiFolders, low: Path, high: Path) -> None:
    write(low / "a.json", "one", "two")
    write(high / "b.json", "two")
    assert origin(folders, "one") == "a.json"
    assert origin(folders, "two") == "b.json"


def test_two_of_one_name_in_one_folder_hide_each_other(folders: CdiFolders, low: Path) -> None:
    write(low / "a.json", "one", "both")
    write(low / "b.json", "two", "both")
    assert origin(folders, "one") == "a.json"
    with pytest.raises(InvalidRequestError, match=r"both is both in .*a\.json and in .*b\.json"):
        origin(folders, "both")


def test_a_conflict_below_does_not_matter_above(folders: CdiFolders, low: Path, high: Path) -> None:
    write(low / "a.json", "both")
    write(low / "b.json", "both")
    write(high / "c.json", "both")
    assert origin(folders, "both") == "c.json"


def test_changes_count_at_once(folders: CdiFolders, low: Path) -> None:
    with pytest.raises(InvalidRequestError):
        origin(folders, "one")
    write(low / "a.json", "one")
    assert origin(folders, "one") == "a.json"
    same = folders.registry()
    assert folders.registry() is same
    write(low / "new", "one", "two")
    (low / "new").rename(low / "a.json")  # as writers do it
    assert origin(folders, "two") == "a.json"
    (low / "a.json").rename(low / "b.json")
    assert origin(folders, "two") == "b.json"
    (low / "b.json").unlink()
    with pytest.raises(InvalidRequestError):
        origin(folders, "one")


def test_the_refusal_names_device_folders_relatives_and_broken_files(
    folders: CdiFolders, low: Path, high: Path
) -> None:
    write(low / "good.json", "one")
    (low / "broken.json").write_text('{"cdiVersion": "0.5.0"}')
    (low / "huge.yaml").write_bytes(b"#" * (FILE_LIMIT + 1))
    (low / "gone.json").symlink_to("nowhere")
    with pytest.raises(InvalidRequestError) as caught:
        origin(folders, "two")
    text = str(caught.value)
    for part in (
        "vendor.com/class=two",
        f"{low}, {high}",
        "vendor.com/class=one",
        "broken.json: Object missing required field",
        "huge.yaml: is larger",
        "gone.json: No such file",
    ):
        assert part in text
    assert origin(folders, "one") == "good.json"


def test_other_files_and_folders_are_passed_over(folders: CdiFolders, low: Path) -> None:
    write(low / "a.json", "one")
    write(low / "b.txt", "one")
    (low / "c.json").mkdir()
    os.mkfifo(low / "d.json")
    assert folders.registry().problems == ()
    assert list(folders.registry().devices) == ["vendor.com/class=one"]


def test_without_folders_the_refusal_says_so() -> None:
    with pytest.raises(InvalidRequestError, match="cdi_spec_dirs is empty"):
        CdiFolders(()).devices(["vendor.com/class=one"])


def devices(folders: CdiFolders, **facts: Any) -> CdiDevices:
    handler = HandlerFacts(name="crun", path=Path("/crun"), version="1", **facts)
    return CdiDevices(folders=folders, handlers={"crun": handler})


def node(folders: CdiFolders, low: Path, **fields: Any) -> CdiNode:
    write(low / "a.json", "one", deviceNodes=[fields])
    (found,) = devices(folders).edits(["vendor.com/class=one"], "crun").nodes
    return found


def test_a_node_takes_what_is_missing_from_the_host(folders: CdiFolders, low: Path) -> None:
    found = node(folders, low, path="/dev/x", hostPath="/dev/null")
    assert (found.kind, found.major, found.minor) == ("c", 1, 3)
    assert found.mode == stat.S_IMODE(os.stat("/dev/null").st_mode)
    assert (found.uid, found.gid, found.access) == (None, None, "rwm")
    assert node(folders, low, path="/dev/zero").minor == 5


def test_what_a_node_states_wins(folders: CdiFolders, low: Path) -> None:
    stated = node(
        folders, low, path="/dev/null", fileMode=0o100600, uid=1, gid=2, permissions="r", type="u"
    )
    assert (stated.kind, stated.minor, stated.mode) == ("c", 3, 0o600)
    assert (stated.uid, stated.gid, stated.access) == (1, 2, "r")
    whole = node(folders, low, path="/dev/not-here", type="b", major=7, minor=0)
    assert (whole.kind, whole.major, whole.minor, whole.mode) == ("b", 7, 0, None)
    assert node(folders, low, path="/dev/null", permissions="none").access == ""
    assert node(folders, low, path="/run/pipe", type="p").kind == "p"


@pytest.mark.parametrize(
    "fields",
    [
        {"path": "/dev/no-such-node"},
        {"path": "/etc/passwd"},
        {"path": "/dev/null", "type": "b"},
        {"path": "/dev/not-here", "type": "c"},
    ],
)
def test_a_node_that_is_not_there_is_refused(
    folders: CdiFolders, low: Path, fields: dict[str, Any]
) -> None:
    with pytest.raises(InvalidRequestError, match=r"vendor\.com/class=one .*a\.json.*/(dev|etc)/"):
        node(folders, low, **fields)


def test_common_edits_come_once_and_first(folders: CdiFolders, low: Path) -> None:
    low.mkdir()
    document = {
        "cdiVersion": "0.7.0",
        "kind": "vendor.com/class",
        "containerEdits": {"env": ["COMMON=1"], "additionalGids": [5]},
        "devices": [
            {"name": name, "containerEdits": {"env": [f"{name}=1"], "additionalGids": [0, 6]}}
            for name in ("A", "B", "C")
        ],
    }
    (low / "a.json").write_text(json.dumps(document))
    names = [f"vendor.com/class={name}" for name in ("B", "A", "B")]
    found = devices(folders).edits(names, "crun")
    assert found.env == ("COMMON=1", "B=1", "A=1")
    assert found.groups == (5, 6, 6)


@pytest.mark.parametrize(
    ("edits", "facts", "why"),
    [
        ({"netDevices": [{"hostInterfaceName": "a", "name": "b"}]}, {}, "crun .* does not support"),
        ({"intelRdt": {"closID": "a"}}, {"intel_rdt": True}, "resctrl"),
    ],
)
def test_edits_that_this_node_cannot_make_are_refused(
    folders: CdiFolders, low: Path, edits: dict[str, Any], facts: dict[str, Any], why: str
) -> None:
    write(low / "a.json", "one", **edits)
    with pytest.raises(UnsupportedError, match=why):
        devices(folders, **facts).edits(["vendor.com/class=one"], "crun")


def test_interfaces_are_handed_to_a_runtime_that_moves_them(folders: CdiFolders, low: Path) -> None:
    write(low / "a.json", "one", netDevices=[{"hostInterfaceName": "a", "name": "b"}])
    found = devices(folders, net_devices=True).edits(["vendor.com/class=one"], "crun")
    assert found.net_devices == (NetDevice(host_interface_name="a", name="b"),)


def specification(**linux: Any) -> dict[str, Any]:
    return {
        "process": {"env": ["PATH=/bin", "A=1"], "user": {"uid": 7, "gid": 8}},
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
            {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": []},
        ],
        "linux": {
            "devices": [{"path": "/dev/old", "type": "c", "major": 1, "minor": 3}],
            "resources": {"devices": [{"allow": False, "access": "rwm"}]},
            "namespaces": [{"type": "mount"}],
            **linux,
        },
    }


def cdi_node(path: str, **fields: Any) -> CdiNode:
    values: dict[str, Any] = {
        "kind": "c", "major": 1, "minor": 5, "mode": 0o666, "uid": None, "gid": None, "access": "rw"
    }  # fmt: skip
    return CdiNode(path=path, **{**values, **fields})


def test_nothing_changes_without_edits() -> None:
    assert apply_cdi(specification(), CdiEdits()) == {
        **specification(),
        "mounts": specification()["mounts"],
    }


def test_variables_and_nodes_take_the_place_of_their_like() -> None:
    edits = CdiEdits(
        env=("A=2", "B=x=y"), nodes=(cdi_node("/dev/old"), cdi_node("/dev/p", kind="p", uid=0))
    )
    made = apply_cdi(specification(), edits)
    assert made["process"]["env"] == ["PATH=/bin", "A=2", "B=x=y"]
    old, pipe = made["linux"]["devices"]
    assert old == {
        "path": "/dev/old", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666, "uid": 7,
        "gid": 8,
    }  # fmt: skip
    assert (pipe["type"], pipe["uid"], pipe["gid"]) == ("p", 0, 8)
    assert "major" not in pipe
    assert made["linux"]["resources"]["devices"][1:] == [
        {"allow": True, "type": "c", "access": "rw", "major": 1, "minor": 5}
    ]


@pytest.mark.parametrize(
    ("given", "mapped", "kind", "options"),
    [
        ({"options": ("ro", "bind")}, False, "bind", ["ro", "bind"]),
        ({"options": ("ro", "rbind"), "type": "none"}, False, "bind", ["ro", "rbind"]),
        ({"options": ("ro",)}, False, "bind", ["rbind", "ro"]),
        ({"type": "tmpfs", "options": ("size=1k",)}, False, "tmpfs", ["size=1k"]),
        ({"options": ("bind",)}, True, "bind", ["bind", "idmap"]),
        ({"options": ("rbind",)}, True, "bind", ["rbind", "ridmap"]),
        ({"options": ("bind", "idmap")}, True, "bind", ["bind", "idmap"]),
        ({"type": "tmpfs"}, True, "tmpfs", []),
    ],
)
def test_mounts(given: dict[str, Any], mapped: bool, kind: str, options: list[str]) -> None:
    namespaces = {"namespaces": [{"type": "user"}]} if mapped else {}
    mount = Mount(host_path="/h", container_path="/y/", **given)
    made = apply_cdi(specification(**namespaces), CdiEdits(mounts=(mount,)))
    assert made["mounts"][1] == {
        "destination": "/y", "type": kind, "source": "/h", "options": options
    }  # fmt: skip


def test_mounts_are_ordered_outer_before_inner_and_replace_their_like() -> None:
    mounts = tuple(
        Mount(host_path="/new", container_path=path, options=("bind",))
        for path in ("/etc/hosts", "/a/b/c", "/a", "/proc")
    )
    made = apply_cdi(specification(), CdiEdits(mounts=mounts))["mounts"]
    assert [mount["destination"] for mount in made] == ["/a", "/proc", "/etc/hosts", "/a/b/c"]
    assert {mount["source"] for mount in made} == {"/new"}
