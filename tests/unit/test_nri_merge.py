# SPDX-License-Identifier: Apache-2.0
"""NRI adjustments by several plugins: owners, conflicts, removals, and the OCI specification."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from criagent._proto import nri_pb2 as nri
from criagent.base.errors import InvalidRequestError, UnsupportedError
from criagent.model.common import HugepageLimit, Resources
from criagent.model.container import Container, ContainerId, ContainerMetadata, ContainerSpec
from criagent.model.sandbox import Sandbox, SandboxId, SandboxMetadata, SandboxSpec
from criagent.nri.creation import Creation
from criagent.nri.messages import container_message
from criagent.nri.oci.adjust import Adjuster
from criagent.nri.owners import ConflictError, Field, Owners
from criagent.nri.updates import Updates
from criagent.runtime.node.cgroup_names import CgroupDriver
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.node.handlers import HandlerFacts
from criagent.runtime.spec.cdi.registry import CdiFolders
from criagent.runtime.spec.cdi.resolve import CdiDevices

ID = "c" * 64
CONTROLLERS = frozenset({"cpu", "cpuset", "memory", "pids", "hugetlb"})
SPEC: dict[str, Any] = {
    "ociVersion": "1.0.2",
    "process": {
        "args": ["sleep", "1"],
        "env": ["PATH=/bin", "HOME=/"],
        "user": {"uid": 0, "gid": 0, "additionalGids": []},
        "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 1, "hard": 2}],
        "oomScoreAdj": 0,
    },
    "mounts": [
        {"destination": "/proc", "type": "proc", "source": "proc", "options": []},
        {"destination": "/etc/hosts", "type": "bind", "source": "/h", "options": ["rbind"]},
    ],
    "linux": {
        "cgroupsPath": f"/pods/{ID}",
        "namespaces": [{"type": "mount"}, {"type": "ipc", "path": "/ipc"}],
        "resources": {"cpu": {"shares": 2}, "devices": [{"allow": False, "access": "rwm"}]},
        "devices": [{"path": "/dev/x", "type": "c", "major": 1, "minor": 2}],
        "seccomp": {
            "defaultAction": "SCMP_ACT_ERRNO",
            "syscalls": [{"names": ["read"], "action": "SCMP_ACT_ALLOW"}],
        },
    },
}
CONTAINER = Container(
    id=ContainerId(ID),
    sandbox_id=SandboxId("s" * 64),
    spec=ContainerSpec(metadata=ContainerMetadata(name="app"), image="i"),
    created_at_ns=1,
    boot_id="b",
    handler="crun",
    cgroup=f"/pods/{ID}",
    resources=Resources(cpu_shares=2),
)
SANDBOX = Sandbox(
    id=SandboxId("s" * 64),
    spec=SandboxSpec(metadata=SandboxMetadata(name="pod", uid="u", namespace="n")),
    created_at_ns=1,
    boot_id="b",
)

Change = Callable[[nri.ContainerAdjustment], object]


def created(*changes: tuple[str, Change]) -> Creation:
    creation = Creation(nri.PodSandbox(id="s"), container_message(CONTAINER, SPEC))
    for plugin, change in changes:
        answer = nri.CreateContainerResponse()
        answer.adjust.SetInParent()
        change(answer.adjust)
        creation.apply(answer, plugin)
    return creation


def adjusted(
    *changes: tuple[str, Change], driver: CgroupDriver = CgroupDriver.CGROUPFS, **facts: Any
) -> tuple[Container, dict[str, Any]]:
    spec = copy.deepcopy(SPEC)
    handlers = {"crun": HandlerFacts(name="crun", path=Path("/bin/crun"), version="1", **facts)}
    adjuster = Adjuster(
        node=NodeFacts(capabilities=frozenset(), controllers=CONTROLLERS, swap=True),
        handlers=handlers,
        cdi=CdiDevices(folders=CdiFolders(()), handlers=handlers),
        driver=driver,
    )
    return adjuster.adjusted(CONTAINER, SANDBOX, spec, created(*changes)), spec


def env(key: str, value: str = "") -> Change:
    return lambda adjust: adjust.env.add(key=key, value=value)


def scalar(name: str, value: Any) -> Change:
    """Set a field of `linux`; "a.b" is the field b of a."""

    def change(adjust: nri.ContainerAdjustment) -> None:
        *path, last = name.split(".")
        target: Any = adjust.linux
        for part in path:
            target = getattr(target, part)
        if last == "value" or isinstance(value, str):
            setattr(target, last, value)
        else:
            getattr(target, last).CopyFrom(value)

    return change


def mount(place: str, source: str = "/s", *options: str) -> Change:
    return lambda adjust: adjust.mounts.add(
        destination=place, type="bind", source=source, options=options
    )


def annotation(key: str, value: str = "") -> Change:
    return lambda adjust: adjust.annotations.update({key: value})


def sysctl(key: str, value: str = "") -> Change:
    return lambda adjust: adjust.linux.sysctl.update({key: value})


def device(path: str) -> Change:
    return lambda adjust: adjust.linux.devices.add(path=path, type="c", major=5, minor=6)


def namespace(kind: str, path: str = "") -> Change:
    return lambda adjust: adjust.linux.namespaces.add(type=kind, path=path)


def both(*changes: Change) -> Change:
    return lambda adjust: [change(adjust) for change in changes]


CONFLICTS: dict[str, Change] = {
    "Annotations 'k'": annotation("k", "v"),
    "Mounts '/m'": mount("/m"),
    "Devices '/dev/d'": device("/dev/d"),
    "CdiDevices 'v/c=d'": lambda a: a.CDI_devices.add(name="v/c=d"),
    "Env 'E'": env("E"),
    "Args": lambda a: a.args.extend(["x"]),
    "MemLimit": scalar("resources.memory.limit.value", 1),
    "MemReservation": scalar("resources.memory.reservation.value", 1),
    "MemSwapLimit": scalar("resources.memory.swap.value", 1),
    "MemKernelLimit": scalar("resources.memory.kernel.value", 1),
    "MemTCPLimit": scalar("resources.memory.kernel_tcp.value", 1),
    "MemSwappiness": scalar("resources.memory.swappiness.value", 1),
    "MemDisableOomKiller": scalar("resources.memory.disable_oom_killer.value", value=True),
    "MemUseHierarchy": scalar("resources.memory.use_hierarchy.value", value=True),
    "CPUShares": scalar("resources.cpu.shares.value", 1),
    "CPUQuota": scalar("resources.cpu.quota.value", 1),
    "CPUPeriod": scalar("resources.cpu.period.value", 1),
    "CPURealtimeRuntime": scalar("resources.cpu.realtime_runtime.value", 1),
    "CPURealtimePeriod": scalar("resources.cpu.realtime_period.value", 1),
    "CPUSetCPUs": scalar("resources.cpu.cpus", "0"),
    "CPUSetMems": scalar("resources.cpu.mems", "0"),
    "PidsLimit": scalar("resources.pids", nri.LinuxPids(limit=1)),
    "HugepageLimits '2MB'": lambda a: a.linux.resources.hugepage_limits.add(page_size="2MB"),
    "BlockioClass": scalar("resources.blockio_class.value", "x"),
    "RdtClass": scalar("resources.rdt_class.value", "x"),
    "CgroupsUnified 'pids.max'": lambda a: a.linux.resources.unified.update({"pids.max": "1"}),
    "CgroupsPath": scalar("cgroups_path", "/x"),
    "OomScoreAdj": scalar("oom_score_adj.value", 1),
    "Rlimits 'RLIMIT_CORE'": lambda a: a.rlimits.add(type="RLIMIT_CORE"),
    "IoPriority": scalar("io_priority", nri.LinuxIOPriority(priority=1)),
    "SeccompPolicy": scalar("seccomp_policy", nri.LinuxSeccomp(default_action="x")),
    "Namespace 'ipc'": namespace("ipc"),
    "Sysctl 'net.a'": sysctl("net.a", "1"),
    "LinuxNetDevices 'eth7'": lambda a: a.linux.net_devices["eth7"].SetInParent(),
    "LinuxSched": scalar("scheduler", nri.LinuxScheduler(nice=1)),
    "RdtClosID": scalar("rdt.clos_id.value", "x"),
    "RdtSchemata": lambda a: a.linux.rdt.schemata.value.append("x"),
    "RdtEnableMonitoring": scalar("rdt.enable_monitoring.value", value=True),
    "MemoryPolicy": scalar("memory_policy", nri.LinuxMemoryPolicy(nodes="0")),
}


@pytest.mark.parametrize("what", CONFLICTS)
def test_no_two_plugins_set_one_field(what: str) -> None:
    with pytest.raises(ConflictError) as conflict:
        created(("00-a", CONFLICTS[what]), ("10-b", CONFLICTS[what]))
    assert str(conflict.value) == f"00-a and 10-b both set {what}"


def test_every_field_that_can_have_an_owner_is_in_the_table() -> None:
    named = {what.partition(" ")[0] for what in CONFLICTS} | {"None_", "OciHooks"}
    assert named == set(Field.keys())


@pytest.mark.parametrize(
    ("remove", "again"),
    [
        (annotation("-k"), annotation("k", "w")),
        (mount("-/m"), mount("/m", "/other")),
        (device("-/dev/d"), device("/dev/d")),
        (env("-E"), env("E", "w")),
        (sysctl("-net.a"), sysctl("net.a", "2")),
    ],
)
def test_a_plugin_that_removes_may_set_and_others_may_not(remove: Change, again: Change) -> None:
    first = both(
        annotation("k", "v"), mount("/m"), device("/dev/d"), env("E", "v"), sysctl("net.a", "1")
    )
    created(("00-a", first), ("10-b", both(remove, again)))
    with pytest.raises(ConflictError, match="10-b and 20-c both set"):
        created(("00-a", first), ("10-b", remove), ("20-c", again))


def test_arguments_are_replaced_with_an_empty_one_before_them() -> None:
    first = ("00-a", lambda a: a.args.extend(["one"]))
    _, spec = adjusted(first, ("10-b", lambda a: a.args.extend(["", "two", "2"])))
    assert spec["process"]["args"] == ["two", "2"]


def test_later_plugins_see_what_earlier_ones_did() -> None:
    creation = created(
        ("00-a", both(env("NEW", "1"), env("-HOME"), mount("-/etc/hosts"), mount("/m"))),
        ("10-b", both(namespace("-ipc"), sysctl("net.a", "1"))),
    )
    seen = creation.request.container
    assert list(seen.env) == ["PATH=/bin", "NEW=1"]
    assert [one.destination for one in seen.mounts] == ["/proc", "/m"]
    assert [one.type for one in seen.linux.namespaces] == ["mount"]
    assert dict(seen.linux.sysctl) == {"net.a": "1"}
    assert list(creation.pristine.env) == ["PATH=/bin", "HOME=/"]


def test_hooks_of_several_plugins_add_up() -> None:
    def hook(path: str) -> Change:
        return lambda adjust: adjust.hooks.create_runtime.add(path=path, args=[path, "x"])

    creation = created(("00-a", hook("/a")), ("10-b", hook("/b")))
    assert creation.owners.owner(ID, Field.OciHooks) == "00-a,10-b"
    _, spec = adjusted(("00-a", hook("/a")), ("10-b", hook("/b")))
    assert spec["hooks"] == {
        "createRuntime": [
            {"path": "/a", "args": ["/a", "x"]},
            {"path": "/b", "args": ["/b", "x"]},
        ]
    }


def test_entries_keep_their_places() -> None:
    _, spec = adjusted(
        ("00-a", both(env("PATH", "/new"), env("-HOME"), env("X", "1=2"))),
        ("10-b", both(annotation("k", "v"), lambda a: a.rlimits.add(type="RLIMIT_NOFILE", hard=9))),
        ("20-c", both(mount("/a/b"), mount("/a"), mount("-/etc/hosts"))),
        ("30-d", both(device("-/dev/x"), device("/dev/d"), namespace("ipc"), namespace("pid"))),
    )
    process, linux = spec["process"], spec["linux"]
    assert process["env"] == ["PATH=/new", "X=1=2"]
    assert spec["annotations"] == {"k": "v"}
    assert process["rlimits"] == [{"type": "RLIMIT_NOFILE", "soft": 0, "hard": 9}]
    assert [one["destination"] for one in spec["mounts"]] == ["/proc", "/a", "/a/b"]
    assert linux["devices"] == [{"path": "/dev/d", "type": "c", "major": 5, "minor": 6}]
    assert linux["resources"]["devices"][1:] == [
        {"allow": True, "type": "c", "access": "rw", "major": 5, "minor": 6}
    ]
    assert linux["namespaces"] == [{"type": "mount"}, {"type": "ipc"}, {"type": "pid"}]


def test_without_an_adjustment_nothing_changes() -> None:
    container, spec = adjusted(("00-a", lambda _: None))
    assert (container, spec) == (CONTAINER, SPEC)


def test_process_attributes() -> None:
    container, spec = adjusted(
        (
            "00-a",
            both(
                scalar("oom_score_adj.value", -5),
                scalar(
                    "scheduler",
                    nri.LinuxScheduler(
                        policy=nri.SCHED_RR, priority=3, flags=[nri.SCHED_FLAG_RECLAIM]
                    ),
                ),
                scalar(
                    "io_priority", nri.LinuxIOPriority(**{"class": nri.IOPRIO_CLASS_BE}, priority=2)
                ),
            ),
        )
    )
    process = spec["process"]
    assert process["oomScoreAdj"] == container.resources.oom_score_adj == -5
    assert process["scheduler"] == {
        "policy": "SCHED_RR",
        "priority": 3,
        "flags": ["SCHED_FLAG_RECLAIM"],
    }
    assert process["ioPriority"] == {"class": "IOPRIO_CLASS_BE", "priority": 2}


def test_a_seccomp_policy_replaces_the_profile() -> None:
    policy = nri.LinuxSeccomp(default_action="SCMP_ACT_ALLOW", architectures=["SCMP_ARCH_X86_64"])
    policy.default_errno.value = 38
    rule = policy.syscalls.add(names=["reboot"], action="SCMP_ACT_ERRNO")
    rule.errno_ret.value = 1
    rule.args.add(index=0, value=5, op="SCMP_CMP_EQ")
    _, spec = adjusted(("00-a", scalar("seccomp_policy", policy)))
    assert spec["linux"]["seccomp"] == {
        "defaultAction": "SCMP_ACT_ALLOW",
        "defaultErrnoRet": 38,
        "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [
            {
                "names": ["reboot"],
                "action": "SCMP_ACT_ERRNO",
                "errnoRet": 1,
                "args": [{"index": 0, "value": 5, "valueTwo": 0, "op": "SCMP_CMP_EQ"}],
            }
        ],
    }
    assert container_message(CONTAINER, spec).linux.seccomp_policy == policy


def test_limits_of_a_new_container() -> None:
    def change(adjust: nri.ContainerAdjustment) -> None:
        given = adjust.linux.resources
        given.memory.limit.value, given.memory.reservation.value = 1 << 20, 1 << 19
        given.memory.swappiness.value = 5  # of cgroup v1
        given.cpu.quota.value, given.cpu.realtime_runtime.value = 500, 7
        given.cpu.cpus = "0-1"
        given.pids.limit = 10
        given.unified["pids.max"] = "9"
        given.hugepage_limits.add(page_size="2MB", limit=4)
        given.devices.add(allow=True, type="b", access="r").major.value = 8

    container, spec = adjusted(("00-a", change))
    assert spec["linux"]["resources"] == {
        "cpu": {
            "shares": 2,
            "quota": 500,
            "period": 100_000,
            "cpus": "0-1",
            "realtimeRuntime": 7,
        },
        "memory": {"limit": 1 << 20, "swap": 1 << 20, "reservation": 1 << 19},
        "unified": {"pids.max": "9"},
        "hugepageLimits": [{"pageSize": "2MB", "limit": 4}],
        "pids": {"limit": 10},
        "devices": [
            {"allow": False, "access": "rwm"},
            {"allow": True, "access": "r", "type": "b", "major": 8},
        ],
    }
    assert container.resources == Resources(
        cpu_shares=2,
        cpu_quota=500,
        cpuset_cpus="0-1",
        memory_limit_in_bytes=1 << 20,
        unified={"pids.max": "9"},
        hugepage_limits=(HugepageLimit(page_size="2MB", limit=4),),
    )


@pytest.mark.parametrize(
    ("driver", "path", "cgroup"),
    [
        (CgroupDriver.CGROUPFS, f"/other/{ID}", f"/other/{ID}"),
        (CgroupDriver.SYSTEMD, f"a-b.slice:cri:{ID}", f"/a.slice/a-b.slice/cri-{ID}.scope"),
    ],
)
def test_a_container_moves_to_another_cgroup_of_its_name(
    driver: CgroupDriver, path: str, cgroup: str
) -> None:
    container, spec = adjusted(("00-a", scalar("cgroups_path", path)), driver=driver)
    assert (container.cgroup, spec["linux"]["cgroupsPath"]) == (cgroup, path)


@pytest.mark.parametrize("path", ["/", "/system.slice", f"/x/../{ID}", f"/{ID}x", "a.slice:cri:x"])
@pytest.mark.parametrize("driver", list(CgroupDriver))
def test_a_container_cannot_take_a_cgroup_of_others(driver: CgroupDriver, path: str) -> None:
    with pytest.raises(InvalidRequestError, match="NRI plugin 00-a: cgroups path"):
        adjusted(("00-a", scalar("cgroups_path", path)), driver=driver)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (CONFLICTS["LinuxNetDevices 'eth7'"], "00-a moves network interfaces"),
        (CONFLICTS["MemoryPolicy"], "00-a sets a memory policy"),
        (CONFLICTS["RdtClosID"], "sets Intel RDT"),
        (CONFLICTS["BlockioClass"], "00-a sets block I/O class 'x'"),
    ],
)
def test_what_the_handler_cannot_do_is_refused(change: Change, text: str) -> None:
    with pytest.raises(UnsupportedError, match=text):
        adjusted(("00-a", change))


def test_what_the_handler_can_do_is_written() -> None:
    policy = nri.LinuxMemoryPolicy(mode=nri.MPOL_BIND, nodes="0", flags=[nri.MPOL_F_STATIC_NODES])
    _, spec = adjusted(
        ("00-a", scalar("memory_policy", policy)),
        ("10-b", lambda a: a.linux.net_devices["eth7"].MergeFrom(nri.LinuxNetDevice(name="n0"))),
        memory_policy=True,
        net_devices=True,
    )
    assert spec["linux"]["memoryPolicy"] == {
        "mode": "MPOL_BIND",
        "nodes": "0",
        "flags": ["MPOL_F_STATIC_NODES"],
    }
    assert spec["linux"]["netDevices"] == {"eth7": {"name": "n0"}}


def test_updates_of_one_container_are_merged() -> None:
    updates = Updates()
    one, two = nri.ContainerUpdate(container_id="x"), nri.ContainerUpdate(container_id="x")
    one.linux.resources.cpu.shares.value = 5
    two.linux.resources.memory.limit.value = 6
    updates.apply([one], "00-a")
    updates.apply([two], "10-b")
    (found,) = updates.all
    assert (found.linux.resources.cpu.shares.value, found.linux.resources.memory.limit.value) == (
        5,
        6,
    )
    two.linux.resources.cpu.shares.value = 7
    two.linux.resources.memory.Clear()
    with pytest.raises(ConflictError, match="00-a and 20-c both set CPUShares"):
        updates.apply([two], "20-c")
    two.ignore_failure = True
    updates.apply([two], "20-c")
    assert updates.all[0].linux.resources.cpu.shares.value == 5


def test_a_container_that_is_being_created_cannot_be_updated() -> None:
    with pytest.raises(ConflictError, match="has to adjust it"):
        Updates(creating="x").apply([nri.ContainerUpdate(container_id="x")], "00-a")


def test_owners_as_validators_get_them() -> None:
    owners = Owners()
    owners.claim(ID, Field.Args, "00-a")
    owners.claim(ID, Field.Env, "00-a", "E")
    message = owners.message().owners[ID]
    assert dict(message.simple) == {7: "00-a"}
    assert dict(message.compound[6].owners) == {"E": "00-a"}
