# SPDX-License-Identifier: Apache-2.0
"""CDI specification files: what is taken, what is refused, and that no file can grow."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from criagent.runtime.spec.cdi.file import VERSIONS, SpecError, is_device_name, parse

NODE = {"deviceNodes": [{"path": "/dev/a"}]}


def document(version: str = "1.1.0", **changes: Any) -> dict[str, Any]:
    device = {"name": "one", "containerEdits": NODE}
    return {"cdiVersion": version, "kind": "vendor.com/class", "devices": [device], **changes}


def edits(**fields: Any) -> dict[str, Any]:
    return document(devices=[{"name": "one", "containerEdits": fields}])


def read(value: object) -> Any:
    return parse(json.dumps(value).encode(), yaml=False)


WHOLE = """
cdiVersion: 1.1.0
kind: vendor.com/net.class
annotations: {maker: somebody}
containerEdits:
  env: [COMMON=1]
devices:
  - name: 0
    annotations: {slot: "3"}
    containerEdits:
      env:
        - A=b=c
      deviceNodes:
        - path: /dev/a
          hostPath: /dev/b
          type: c
          major: 10
          minor: 200
          fileMode: 0640
          permissions: rw
          uid: 1
          gid: 2
      mounts:
        - {hostPath: /x, containerPath: /y, options: [ro, bind], type: none}
      hooks:
        - {hookName: createRuntime, path: /bin/h, args: [h, x], env: [A=b], timeout: 3}
      additionalGids: [7, 0]
      intelRdt: {closID: gold, l3CacheSchema: "L3:0=f", schemata: ["MB:0=1"], enableMonitoring: yes}
      netDevices:
        - {hostInterfaceName: eth7, name: net1}
"""


def test_every_field_of_the_newest_version_is_read() -> None:
    spec = parse(WHOLE.encode(), yaml=True)
    assert spec.container_edits.env == ("COMMON=1",)
    (device,) = spec.devices
    assert str(device.name) == "0"
    found = device.container_edits
    (node,) = found.device_nodes
    assert (node.path, node.host_path, node.type) == ("/dev/a", "/dev/b", "c")
    assert (node.major, node.minor, node.file_mode) == (10, 200, 0o640)
    assert (node.permissions, node.uid, node.gid) == ("rw", 1, 2)
    assert found.mounts[0].options == ("ro", "bind")
    assert (found.hooks[0].hook_name, found.hooks[0].timeout) == ("createRuntime", 3)
    assert found.additional_gids == (7, 0)
    assert found.intel_rdt is not None
    assert (found.intel_rdt.clos_id, found.intel_rdt.enable_monitoring) == ("gold", True)
    assert found.net_devices[0].host_interface_name == "eth7"


def test_json_and_yaml_say_the_same() -> None:
    data = json.dumps(document(annotations={"a": "b"})).encode()
    assert parse(data, yaml=False) == parse(data, yaml=True)


@pytest.mark.parametrize("version", [*VERSIONS, "v0.6.0"])
def test_every_version_is_read(version: str) -> None:
    assert len(read(document(version)).devices) == 1


def test_nulls_stand_for_what_is_not_given() -> None:
    assert read(edits(env=["A=b"], mounts=None, intelRdt=None)) == read(edits(env=["A=b"]))


RDT = {"intelRdt": {"closID": "a"}}


@pytest.mark.parametrize(
    ("version", "value", "why"),
    [
        ("0.3.0", edits(mounts=[{"hostPath": "/a", "containerPath": "/b", "type": "x"}]), "0.4.0"),
        ("0.4.0", edits(deviceNodes=[{"path": "/a", "hostPath": "/b"}]), "0.5.0"),
        ("0.4.0", document(devices=[{"name": "0a", "containerEdits": NODE}]), "0.5.0"),
        ("0.5.0", document(annotations={"a": "b"}), "0.6.0"),
        ("0.5.0", document(kind="vendor.com/a.b"), "0.6.0"),
        ("0.6.0", edits(**RDT), "0.7.0"),
        ("0.6.0", edits(additionalGids=[1]), "0.7.0"),
        ("1.0.0", edits(netDevices=[{"hostInterfaceName": "a", "name": "b"}]), "1.1.0"),
        ("1.0.0", edits(intelRdt={"schemata": ["a"]}), "1.1.0"),
        ("1.1.0", edits(intelRdt={"enableCMT": True}), "removed in 1.1.0"),
        ("0.2.0", document(), "not one of 0.3.0"),
        ("1.2.0", document(), "not one of 0.3.0"),
        ("", document(), "not one of 0.3.0"),
    ],
)
def test_a_field_needs_its_version(version: str, value: dict[str, Any], why: str) -> None:
    with pytest.raises(SpecError, match=why):
        read({**value, "cdiVersion": version})


def test_monitoring_switches_of_older_versions_are_read_there() -> None:
    assert read({**edits(intelRdt={"enableCMT": True}), "cdiVersion": "0.7.0"})


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({}, "cdiVersion"),
        ([], "object"),
        (document(more=1), "more"),
        (document(devices=[]), "no devices"),
        (document(devices=[{"name": "one", "containerEdits": {}}]), "no containerEdits"),
        (document(devices=[{"name": "one"}]), "no containerEdits"),
        (document(devices=[{"name": "one", "containerEdits": NODE}] * 2), "twice"),
        (document(devices=[{"name": "a b", "containerEdits": NODE}]), "a b"),
        (document(devices=[{"name": "a-", "containerEdits": NODE}]), "a-"),
        (document(devices=[{"name": "", "containerEdits": NODE}]), "name"),
        (document(kind="class"), "vendor/class"),
        (document(kind="1vendor/class"), "vendor/class"),
        (document(kind="vendor/a/b"), "vendor/class"),
        (document(kind="v" * 254 + "/c"), "vendor/class"),
        (document(cdiVersion=1.1), "cdiVersion"),
        (edits(env=["NOVALUE"]), "NAME=VALUE"),
        (edits(env=["=x"]), "NAME=VALUE"),
        (edits(env=["A=\0"]), "NUL"),
        (edits(env="A=b"), "env"),
        (edits(deviceNodes=[{"path": ""}]), "absolute"),
        (edits(deviceNodes=[{"path": "dev/a"}]), "absolute"),
        (edits(deviceNodes=[{"path": "/dev/../etc/a"}]), "not an absolute path without"),
        (edits(deviceNodes=[{"path": "/dev/a", "type": "x"}]), "type"),
        (edits(deviceNodes=[{"path": "/dev/a", "permissions": "rx"}]), "permissions"),
        (edits(deviceNodes=[{"path": "/dev/a", "major": -1}]), "-1:0"),
        (edits(deviceNodes=[{"path": "/dev/a", "major": 1, "minor": 2**20}]), "1:1048576"),
        (edits(deviceNodes=[{"path": "/dev/a", "uid": 2**32 - 1}]), "4294967295"),
        (edits(deviceNodes=[{"path": "/dev/a", "fileMode": -1}]), "fileMode"),
        (edits(deviceNodes=[{"path": "/dev/a", "unknown": 1}]), "unknown"),
        (edits(mounts=[{"hostPath": "", "containerPath": "/a"}]), "hostPath"),
        (edits(mounts=[{"hostPath": "/a"}]), "containerPath"),
        (edits(hooks=[{"hookName": "sometime", "path": "/a"}]), "sometime"),
        (edits(hooks=[{"hookName": "poststop", "path": "a"}]), "absolute"),
        (edits(hooks=[{"hookName": "poststop", "path": "/a", "timeout": 0}]), "timeout"),
        (edits(hooks=[{"hookName": "poststop", "path": "/a", "env": ["x"]}]), "NAME=VALUE"),
        (edits(additionalGids=[-1]), "-1"),
        (edits(additionalGids=[2**31]), "2147483648"),
        (edits(intelRdt={"closID": "a/b"}), "closID"),
        (edits(netDevices=[{"hostInterfaceName": "", "name": "b"}]), "interface"),
        (edits(netDevices=[{"hostInterfaceName": "a", "name": "x" * 16}]), "interface"),
    ],
)
def test_broken_specifications_are_refused_with_the_reason(value: object, why: str) -> None:
    with pytest.raises(SpecError, match=why):
        read(value)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "{",
        "- a",
        "a: [",
        "a: !!python/object/apply:os.system [id]",
        "\x00",
        "cdiVersion: 2020-13-45",
        "--- {}\n--- {}\n",
    ],
)
def test_what_is_no_document_is_refused(text: str) -> None:
    for yaml in (False, True):
        with pytest.raises(SpecError):
            parse(text.encode(), yaml=yaml)
    with pytest.raises(SpecError):
        parse(b"\xff\xfe\x80", yaml=True)


LAUGHS = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)
MERGES = "a0: &a0 {x: 1}\n" + "".join(
    f"a{n}: &a{n}\n  <<: [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 12)
)


@pytest.mark.parametrize(
    "text", [LAUGHS, MERGES, "a: &a [*a]", "[" * 100_000, "{a: " * 5000, "- " * 100_000]
)
def test_documents_that_grow_or_nest_end_at_once(text: str) -> None:
    """Written out, the first two would have 10**11 values: no time limit of a test would do."""
    with pytest.raises(SpecError):
        parse(text.encode(), yaml=True)


def test_deep_json_ends_at_once() -> None:
    for text in ("[" * 100_000, '{"a":' * 100_000):
        with pytest.raises(SpecError):
            parse(text.encode(), yaml=False)


def test_anchors_within_bounds_are_read() -> None:
    text = """
cdiVersion: "0.6.0"
kind: vendor.com/class
devices:
  - name: a
    containerEdits: &same {env: [A=b]}
  - name: b
    containerEdits: *same
"""
    first, second = parse(text.encode(), yaml=True).devices
    assert first.container_edits == second.container_edits


@given(st.binary(max_size=200), st.booleans())
def test_any_bytes_are_a_specification_or_a_reason(data: bytes, yaml: bool) -> None:
    try:
        parse(data, yaml=yaml)
    except SpecError as exc:
        assert str(exc)


@pytest.mark.parametrize(
    ("name", "good"),
    [
        ("vendor.com/gpu=0", True),
        ("vendor.com/gpu=a:b.c_d-e", True),
        ("v/c=n", True),
        ("vendor.com/gpu", False),
        ("vendor.com/gpu=", False),
        ("=0", False),
        ("/gpu=0", False),
        ("vendor.com/=0", False),
        ("vendor.com/gpu=-0", False),
        ("vendor.com/gpu=0\n", False),
        ("vendor.com/gpu=" + "a" * 254, False),
        ("", False),
    ],
)
def test_names_of_devices(name: str, good: bool) -> None:
    assert is_device_name(name) is good
