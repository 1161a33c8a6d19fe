# SPDX-License-Identifier: Apache-2.0
"""Defaults of containers: wrong values are refused at the start, right ones act in the OCI spec."""

from __future__ import annotations

import dataclasses
import json
import resource
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import InvalidRequestError, UnsupportedError, WrongStateError
from criagent.config.defaults import base_spec, values
from criagent.config.defaults.json_file import FileError
from criagent.config.defaults.workloads import Workload
from criagent.config.load import ConfigError, load
from criagent.config.runtime_section import Runtime
from criagent.model.common import Resources
from criagent.model.sandbox import SandboxMetadata, SandboxSpec
from criagent.runtime.node.defaults import ContainerDefaults, container_defaults
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.node.hooks import HookFolders, Subject
from criagent.runtime.node.workloads import Workloads
from criagent.runtime.spec.build import build_spec
from criagent.runtime.spec.gomaxprocs import gomaxprocs
from criagent.runtime.spec.limits import default_pids
from tests.unit.test_spec import inputs

META = SandboxMetadata(name="a", namespace="b", uid="c", attempt=0)


def loaded(folder: Path, text: str) -> Runtime:
    (folder / "config.toml").write_text(text)
    return load(folder / "config.toml").runtime


@pytest.mark.parametrize(
    ("key", "value", "part"),
    [
        ("sysctls", ["net.core.somaxconn"], 'not a sysctl "NAME=VALUE"'),
        ("sysctls", ["kernel.panic=1"], "set it on the node, in /etc/sysctl.d"),
        ("sysctls", ["kernel.hostname=one"], "each has a hostname of its own"),
        ("sysctls", ["net.ipv4.x=1\nkernel.core_pattern=|/x"], "is not plain"),
        ("sysctls", ["net/core/somaxconn=1", "net.core.somaxconn=2"], "given twice"),
        ("shm_size_bytes", 0, "must be greater than 0"),
        ("time_zone", "Mars/Phobos", "install the package tzdata, or correct the name"),
        ("time_zone", "../../../etc/shadow", 'neither "local" nor a time zone'),
        ("ulimits", ["nofile=1:2"], "runtime.nofile_soft and runtime.nofile_hard"),
        ("ulimits", ["core=3:2"], "the soft limit is above the hard one"),
        ("ulimits", ["core=many"], 'neither a number nor "unlimited"'),
        ("ulimits", ["what=1"], "with a NAME of as, core"),
        ("pids_limit", -1, "must be 0 or greater"),
        ("environment", ["A"], 'not a variable "NAME=VALUE"'),
        ("environment", ["A=1", "A=2"], "variable A is given twice"),
        ("capabilities", ["CHWN"], "not a capability (man 7 capabilities)"),
        ("unset_seccomp_profile", "default", 'must be "unconfined", "runtime/default"'),
        ("devices", ["dev/fuse"], "not a plain absolute path"),
        ("devices", ["/dev/fuse:/etc/passwd"], "is not below /dev"),
        ("devices", ["/dev/fuse:rwx"], "not a plain absolute path"),
        ("devices", ["/dev/a:/dev/b:rw:x"], 'is not "HOST:CONTAINER:ACCESS"'),
        ("hooks_dirs", ["hooks.d"], "absolute path"),
        ("absent_mount_sources_to_reject", ["etc"], "not a plain absolute path"),
    ],
)
def test_a_wrong_value_is_refused_with_what_would_be_right(
    tmp_path: Path, key: str, value: object, part: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"[runtime.defaults]\n{key} = {json.dumps(value)}\n")
    assert f"runtime.defaults.{key}: " in str(caught.value)
    assert part in str(caught.value)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('allowed_devices = ["/etc/passwd"]', "not the path of a device below /dev"),
        ('[runtime.handlers.crun]\nallowed_annotations = ["x"]', "'x' is not an annotation that"),
        ("[runtime.handlers.crun]\nmin_memory_bytes = -1", "must be 0 or greater, not -1"),
        ('[runtime.handlers.crun]\nbase_runtime_spec = "b"', "must be an absolute path"),
        ('[runtime.handlers.crun]\nbase_runtime_spec = "/no"', "/no: cannot be read: No such"),
        ("[runtime.workloads.w]\ncpu_shares = 2", "activation_annotation"),
        ('[runtime.workloads.w]\nactivation_annotation = "a b"', "not the name of an annotation"),
        ('[runtime.workloads.w]\nactivation_annotation = "a"\ncpushares = 2', "unknown key"),
        ('[runtime.workloads.w]\nactivation_annotation = "a"\ncpu_shares = 1', "must be 2 to"),
        ('[runtime.workloads.w]\nactivation_annotation = "a"\ncpuset_cpus = "x"', "list of CPUs"),
        (
            '[runtime.workloads.w]\nactivation_annotation = "a"\nallowed_annotations = ["b"]',
            "'b' is not an annotation that",
        ),
    ],
)
def test_wrong_values_of_handlers_and_workloads(tmp_path: Path, text: str, part: str) -> None:
    with pytest.raises(ConfigError) as caught:
        loaded(tmp_path, f"[runtime]\n{text}\n")
    assert part in str(caught.value)


def test_values_are_what_the_specification_needs(tmp_path: Path) -> None:
    runtime = loaded(
        tmp_path,
        '[runtime.defaults]\nulimits = ["core=0", "memlock=unlimited", "nproc=1:2"]\n'
        'devices = ["/dev/a", "/dev/a:/dev/b", "/dev/a:/dev/c:r"]\n'
        'unset_seccomp_profile = "/p.json"\n',
    )
    held = frozenset({"CAP_SYS_RESOURCE"})
    found = container_defaults(runtime, held)
    assert [(limit.soft, limit.hard) for limit in found.ulimits] == [
        (0, 0),
        (2**64 - 1, 2**64 - 1),
        (1, 2),
    ]
    assert [tuple(device) for device in found.devices] == [
        ("/dev/a", "/dev/a", "rwm"),
        ("/dev/a", "/dev/b", "rwm"),
        ("/dev/a", "/dev/c", "r"),
    ]
    assert found.seccomp is not None
    assert found.seccomp.localhost_ref == "/p.json"


def test_a_limit_is_at_most_what_an_agent_without_the_capability_may_set(tmp_path: Path) -> None:
    _, most = resource.getrlimit(resource.RLIMIT_NPROC)
    runtime = loaded(tmp_path, '[runtime.defaults]\nulimits = ["nproc=unlimited"]\n')
    (limit,) = container_defaults(runtime, frozenset()).ulimits
    expected = values.UNLIMITED if most == resource.RLIM_INFINITY else most
    assert (limit.soft, limit.hard) == (expected, expected)


def with_defaults(**fields: Any) -> Any:
    made = inputs()
    defaults = dataclasses.replace(ContainerDefaults(), **fields)
    return dataclasses.replace(made, node=dataclasses.replace(made.node, defaults=defaults))


def test_without_defaults_nothing_is_added() -> None:
    plain = build_spec(inputs())
    assert [limit["type"] for limit in plain["process"]["rlimits"]] == ["RLIMIT_NOFILE"]
    assert "pids" not in plain["linux"]["resources"]
    assert "hooks" not in plain
    assert build_spec(with_defaults()) == plain


def test_the_variables_of_the_node_are_below_all_others() -> None:
    env = build_spec(with_defaults(environment=("A=node", "PATH=/node")))["process"]["env"]
    assert "A=node" in env
    assert "PATH=/image/bin" in env


def test_a_default_limit_of_pids_needs_its_controller() -> None:
    node = NodeFacts(capabilities=frozenset(), controllers=frozenset({"pids"}))
    assert default_pids(7, Resources(), node) == {"pids": {"limit": 7}}
    assert default_pids(7, Resources(unified={"pids.max": "3"}), node) == {}
    lacking = dataclasses.replace(node, controllers=frozenset())
    with pytest.raises(UnsupportedError, match=r"runtime.defaults.pids_limit 7: cgroup controller"):
        default_pids(7, Resources(), lacking)
    ignoring = dataclasses.replace(lacking, missing_controllers="ignore")
    assert default_pids(7, Resources(), ignoring) == {}


@pytest.mark.parametrize(
    ("env", "parent", "resources", "expected"),
    [
        ([], "/kubepods/besteffort/x", Resources(), ["GOMAXPROCS=2"]),
        ([], "kubepods-burstable.slice", Resources(cpu_shares=1536), ["GOMAXPROCS=3"]),
        ([], "kubepods-burstable.slice", Resources(cpu_shares=1537), ["GOMAXPROCS=4"]),
        ([], "/kubepods/pod1", Resources(cpu_shares=4096), []),
        ([], "/kubepods/burstable", Resources(cpu_quota=1000), []),
        (["GOMAXPROCS=1"], "/kubepods/burstable", Resources(), []),
    ],
)
def test_gomaxprocs(env: list[str], parent: str, resources: Resources, expected: list[str]) -> None:
    assert gomaxprocs(env, least=2, resources=resources, cgroup_parent=parent) == expected


def pod(**annotations: str) -> SandboxSpec:
    return SandboxSpec(
        metadata=META, annotations={k.replace("__", "/"): v for k, v in annotations.items()}
    )


WORKLOADS = Workloads(
    {
        "b": Workload(activation_annotation="on", cpu_shares=9, annotation_prefix="r"),
        "c": Workload(activation_annotation="on", cpu_shares=11),
    }
)


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({}, Resources(cpu_shares=5, cpu_quota=6)),
        ({"on": ""}, Resources(cpu_shares=9, cpu_quota=6)),
        ({"on": "", "r__a": '{"cpushares": 7}'}, Resources(cpu_shares=7, cpu_quota=6)),
        ({"on": "", "r__a": '{"cpulimit": 1}'}, Resources(cpu_shares=9, cpu_quota=1000)),
        (
            {"on": "", "r__a": '{"cpulimit": 500, "cpuperiod": 10000}'},
            Resources(cpu_shares=9, cpu_quota=5000, cpu_period=10000),
        ),
        ({"on": "", "r__other": '{"cpushares": 7}'}, Resources(cpu_shares=9, cpu_quota=6)),
    ],
)
def test_resources_of_a_workload(annotations: dict[str, str], expected: Resources) -> None:
    requested = Resources(cpu_shares=5, cpu_quota=6)
    assert WORKLOADS.resources(pod(**annotations), "a", requested) == expected


@pytest.mark.parametrize(
    "text", ["[]", "x", '{"cpushares": true}', '{"cpushares": 1}', '{"cpuset": "a"}', "[" * 9000]
)
def test_wrong_resources_of_a_workload(text: str) -> None:
    with pytest.raises(InvalidRequestError, match=r"^annotation r/a: "):
        WORKLOADS.resources(pod(on="", r__a=text), "a", Resources())


def test_an_annotation_counts_only_where_it_is_allowed() -> None:
    handler = HandlerFacts(name="h", path=Path("/h"), allowed_annotations=frozenset({"two"}))
    given = pod(one="1", two="2")
    assert WORKLOADS.annotation(handler, given, ("one", "two")) == ("two", "2")
    assert WORKLOADS.annotation(handler, given, ("one",)) is None
    workloads = Workloads({"w": Workload(activation_annotation="on", allowed_annotations=("one",))})
    assert workloads.annotation(handler, given, ("one",)) is None
    assert workloads.annotation(handler, pod(one="1", on=""), ("one",)) == ("one", "1")


def hook(folder: Path, name: str, when: object, **more: Any) -> None:
    folder.mkdir(exist_ok=True)
    text = {"version": "1.0.0", "hook": {"path": "/bin/sh"}, "when": when, "stages": ["prestart"]}
    (folder / name).write_text(json.dumps({**text, **more}))


def subject(
    command: str = "/bin/sleep",
    annotations: Mapping[str, str] | None = None,
    *,
    binds: bool = False,
) -> Subject:
    return Subject(command=command, annotations=annotations or {}, bind_mounts=binds)


@pytest.mark.parametrize(
    ("when", "given", "met"),
    [
        ({}, subject(), False),
        ({"always": True}, subject(), True),
        ({"always": False, "commands": ["sleep"]}, subject(), False),
        ({"commands": ["^sleep", "ee.$"]}, subject(), True),
        ({"commands": ["^sleep"]}, subject(), False),
        ({"hasBindMounts": True}, subject(binds=True), True),
        ({"hasBindMounts": True}, subject(), False),
        ({"hasBindMounts": False, "always": True}, subject(), False),
        ({"annotations": {"^a$": "b"}}, subject(annotations={"a": "xbx"}), True),
        ({"annotations": {"^a$": "^b$"}}, subject(annotations={"a": "xbx", "c": "b"}), False),
        (
            {"annotations": {"^a$": ".*", "^c$": ".*"}, "commands": ["sleep"]},
            subject(annotations={"a": "1"}),
            False,
        ),
    ],
)
def test_a_hook_applies_when_all_its_conditions_are_met(
    tmp_path: Path, when: object, given: Subject, *, met: bool
) -> None:
    hook(tmp_path / "d", "a.json", when)
    found = HookFolders([tmp_path / "d", tmp_path / "none"]).of(given)
    assert found == ((("createRuntime", {"path": "/bin/sh"}),) if met else ())


def test_a_changed_file_counts_for_the_next_container(tmp_path: Path) -> None:
    folders = HookFolders([tmp_path])
    always = {"always": True}
    hook(tmp_path, "B.json", always, stages=["poststart"])
    hook(tmp_path, "a.json", always, stages=["poststop"])
    assert [stage for stage, _ in folders.of(subject())] == ["poststop", "poststart"]
    hook(tmp_path, "a.json", always, stages=["startContainer", "poststop"])
    assert [stage for stage, _ in folders.of(subject())] == [
        "startContainer",
        "poststop",
        "poststart",
    ]
    (tmp_path / "B.json").unlink()
    assert [stage for stage, _ in folders.of(subject())] == ["startContainer", "poststop"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{"version": "1.0.0",\n "hook": {,}}', "a.json:2:11: is not JSON"),
        ('{"version": "0.1.0"}', "a.json: Object missing required field"),
        ({"version": "0.1.0"}, "version: '0.1.0' is not 1.0.0"),
        ({"hook": {"path": "sh"}}, "hook.path: 'sh' is not absolute"),
        ({"hook": {"path": "/no"}}, "hook.path: /no does not exist; install it"),
        ({"hook": {"path": "/bin/sh", "timeout": 0}}, "a.json: hook.timeout: "),
        ({"stages": ["later"]}, "stages: 'later' is not one of createContainer"),
        ({"when": {"commands": ["("]}}, "when.commands: '(' is not a regular expression"),
        ({"when": {"allways": True}}, "a.json: when: Object contains unknown field"),
    ],
)
def test_a_hook_that_cannot_be_used_stops_the_container(
    tmp_path: Path, text: object, part: str
) -> None:
    changed = text if isinstance(text, dict) else {}
    hook(tmp_path, "a.json", **{"when": {"always": True}, **changed})
    if isinstance(text, str):
        (tmp_path / "a.json").write_text(text)
    with pytest.raises(WrongStateError) as caught:
        HookFolders([tmp_path]).of(subject())
    assert f"OCI hook {tmp_path}/a.json" in str(caught.value)
    assert part in str(caught.value)


def based(folder: Path, document: object) -> Any:
    (folder / "base.json").write_text(json.dumps(document))
    base = base_spec.read(folder / "base.json")
    return build_spec(dataclasses.replace(inputs(), base=base))


def test_a_base_specification_gives_what_the_pod_does_not_decide(tmp_path: Path) -> None:
    plain = build_spec(inputs())
    made = based(
        tmp_path,
        {
            "ociVersion": "9",
            "root": {"path": "/mine"},
            "annotations": {"a": "b"},
            "hooks": {"poststop": [{"path": "/bin/true"}]},
            "process": {"oomScoreAdj": 7, "ioPriority": {"class": "IOPRIO_CLASS_IDLE"}},
            "linux": {
                "cgroupsPath": "/mine",
                "maskedPaths": [],
                "sysctl": {"net.core.somaxconn": "5"},
                "resources": {
                    "devices": [{"allow": True}],
                    "pids": {"limit": 5},
                    "unified": {"memory.high": "7"},
                },
                "devices": [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 7}],
                "intelRdt": {"closID": "x"},
            },
        },
    )
    assert (made["root"], made["ociVersion"]) == (plain["root"], plain["ociVersion"])
    assert made["linux"]["cgroupsPath"] == plain["linux"]["cgroupsPath"]
    assert made["linux"]["maskedPaths"] == plain["linux"]["maskedPaths"]
    assert made["process"]["oomScoreAdj"] == plain["process"]["oomScoreAdj"]
    assert made["process"]["ioPriority"] == {"class": "IOPRIO_CLASS_IDLE"}
    assert made["annotations"] == {"a": "b"}
    assert made["hooks"] == {"poststop": [{"path": "/bin/true"}]}
    assert made["linux"]["sysctl"] == {"net.core.somaxconn": "5"}
    assert made["linux"]["intelRdt"] == {"closID": "x"}
    resources = made["linux"]["resources"]
    assert (resources["pids"], resources["unified"]) == ({"limit": 5}, {"memory.high": "7"})
    rule = {"allow": True, "type": "c", "access": "rwm", "major": 1, "minor": 7}
    assert resources["devices"] == [*plain["linux"]["resources"]["devices"], rule]
    assert [device["path"] for device in made["linux"]["devices"]] == ["/dev/mine"]
    assert made["mounts"] == plain["mounts"]


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ('{\n "process": {"env": ["A=1",]}}', "base.json:2:"),
        ('{"process": {"env": ["A"]}}', "process: 'A' is not a variable"),
        ('{"process": {"env": "A=1"}}', "base.json: process.env: Expected `array`"),
        ('{"mounts": [{"destination": "x"}]}', "mounts[0].destination: must be an absolute path"),
        ('{"process": {"capabilities": {"bounding": ["X"]}}}', "'X' is not a capability"),
        ('{"process": {"rlimits": [{"type": "N", "soft": 1, "hard": 1}]}}', "process.rlimits[0]"),
        ("[]", "base.json: Expected `object`"),
    ],
)
def test_a_base_specification_that_cannot_be_used_is_named(
    tmp_path: Path, text: str, part: str
) -> None:
    (tmp_path / "base.json").write_text(text)
    with pytest.raises(FileError) as caught:
        base_spec.read(tmp_path / "base.json")
    assert str(caught.value).startswith(f"{tmp_path}/base.json")
    assert part in str(caught.value)
