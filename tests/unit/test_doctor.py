# SPDX-License-Identifier: Apache-2.0
"""`doctor` judges facts: every problem of a node has its finding, and a cure when it is not ok."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from criagent.config.defaults.section import Defaults
from criagent.config.nri_section import Nri
from criagent.config.runtime_section import Handler, Runtime
from criagent.config.sections import Config, Network
from criagent.doctor import (
    Finding,
    cgroups,
    checkpoints,
    defaults,
    devices,
    limits,
    metrics,
    neighbours,
    network,
    nri,
    programs,
    security,
    system,
    unit,
)
from tests.support.findings import judged, one

CNI = Config(network=Network(backend="cni"))
WASM = {"wasm": Handler(path=Path("/usr/bin/crun"), type="wasm")}
RUNC = {"runc": Handler(path="/usr/sbin/runc", type="runc")}  # type: ignore[arg-type]
GOOD = {"crun": "crun version 1.30", "runc": "runc version 1.5.0"}


@pytest.mark.parametrize(
    ("facts", "name", "level", "part"),
    [
        ({"distribution": "debian", "release": "12"}, "system", "ok", ""),
        ({"distribution": "debian", "release": "11"}, "system", "warning", "Debian 12"),
        ({"distribution": "ubuntu", "release": "22.04"}, "system", "warning", "24.04"),
        ({"distribution": "ubuntu", "release": "24.04"}, "system", "ok", ""),
        ({"distribution": "arch"}, "system", "ok", "untested"),
        ({}, "kernel", "ok", "6.12"),
        ({"kernel": "6.7.1-cloud"}, "kernel", "ok", "6.7.1"),
        ({"kernel": "6.6.9"}, "kernel", "error", "lowerdir+"),
        ({"kernel": "5.10.0"}, "kernel", "error", "cgroup.kill"),
        ({"filesystems": frozenset({"ext4"})}, "overlay", "error", "modprobe overlay"),
        ({"openat2": 38}, "openat2", "error", "Linux 5.6"),
        ({"openat2": 1}, "openat2", "error", "seccomp"),
        ({"pidfd": 38}, "pidfd", "error", "Linux 5.4"),
        ({"distribution": "debian", "pretty": "Debian sid"}, "system", "ok", "sid"),
        ({"distribution": "fedora", "release": "rawhide"}, "system", "ok", ""),
        ({"behind_s": 3600.0}, "clock", "warning", "3600 s behind"),
        ({"behind_s": -5.0}, "clock", "ok", ""),
    ],
)
def test_system(facts: dict[str, Any], name: str, level: str, part: str) -> None:
    judged(one(system.judge(system.SystemFacts(**facts)), name), level, part)


@pytest.mark.parametrize(
    ("facts", "runtime", "name", "level", "part"),
    [
        ({"fstype": "tmpfs"}, {}, "cgroups", "error", "v1 or hybrid"),
        ({"fstype": ""}, {}, "cgroups", "error", "unified_cgroup_hierarchy"),
        ({"writable": False}, {}, "cgroups", "error", "read-only"),
        ({}, {}, "controllers", "ok", "memory"),
        ({"controllers": frozenset({"cpu"})}, {}, "controllers", "warning", "refused"),
        (
            {"controllers": frozenset()},
            {"missing_controllers": "ignore"},
            "controllers",
            "warning",
            "not enforced",
        ),
        ({}, {}, "cgroup driver", "ok", "cgroupfs"),
        ({"systemd": True, "bus": True}, {}, "cgroup driver", "ok", "systemd"),
        ({"systemd": True}, {}, "cgroup driver", "error", "crun creates its scopes"),
        (
            {"systemd": True},
            {"handlers": RUNC, "default_handler": "runc"},
            "cgroup driver",
            "warning",
            "runc reaches systemd directly",
        ),
        (
            {"systemd": True, "bus": True},
            {"cgroup_driver": "cgroupfs"},
            "cgroup driver",
            "warning",
            "two programs",
        ),
        ({}, {"cgroup_driver": "systemd"}, "cgroup driver", "error", "does not manage"),
        (
            {"systemd": True, "bus": True, "kubelets_driver": "cgroupfs"},
            {},
            "kubelet's cgroup driver",
            "warning",
            "set cgroupDriver: systemd",
        ),
    ],
)
def test_cgroups(
    facts: dict[str, Any], runtime: dict[str, Any], name: str, level: str, part: str
) -> None:
    found = cgroups.judge(cgroups.CgroupFacts(**facts), Config(runtime=Runtime(**runtime)))
    judged(one(found, name), level, part)


@pytest.mark.parametrize(
    ("facts", "name", "level", "part"),
    [
        ({}, "handler crun", "ok", "1.30"),
        ({"handlers": {"runc": "runc version 1.5.0"}}, "handler crun", "error", "install crun"),
        ({"handlers": {"crun": "crun version 1.30"}}, "handler runc", "warning", "install runc"),
        ({"handlers": {**GOOD, "crun": "crun version 1.2"}}, "handler crun", "error", "--cgroup"),
        ({"handlers": {**GOOD, "crun": "crun version 1.21"}}, "handler crun", "warning", "1.28"),
        (
            {"handlers": {**GOOD, "crun": "crun version 1.29.0"}},
            "handler crun",
            "warning",
            "not 1.29.0",
        ),
        ({"handlers": {**GOOD, "crun": "hm"}}, "handler crun", "error", "set the path of crun"),
        (
            {"handlers": {**GOOD, "crun": "crun version UNKNOWN"}},
            "handler crun",
            "warning",
            "has no version",
        ),
        (
            {"conmon": "crun version 1.30"},
            "conmon",
            "error",
            'not conmon: its --version says "crun',
        ),
        ({"handlers": GOOD, "absent": {"runc"}}, "handler runc", "ok", "is not installed"),
        ({"handlers": {}, "absent": {"crun"}}, "handler crun", "error", "install crun"),
        (
            {"handlers": {**GOOD, "runc": "runsc version 0.0~20240729"}},
            "handler runc",
            "warning",
            'set type = "runsc"',
        ),
        ({"handlers": {**GOOD, "runc": "youki version: 0.5.3"}}, "handler runc", "ok", "youki"),
        (
            {"handlers": {**GOOD, "crun": "crun version 1.21"}, "distribution": "debian"},
            "handler crun",
            "warning",
            "https://security-tracker.debian.org/tracker/source-package/crun",
        ),
        ({}, "conmon", "ok", "2.1.13"),
        ({"conmon": None}, "conmon", "error", "install conmon"),
        ({"conmon": "conmon version 2.0.22"}, "conmon", "error", "came with 2.0.23"),
        ({"conmon": "conmon version 2.1.0"}, "conmon", "warning", "2.1.2"),
        ({"catatonit": False}, "catatonit", "warning", "share a PID namespace"),
        ({"conntrack": False}, "conntrack", "warning", "install conntrack"),
    ],
)
def test_programs(facts: dict[str, Any], name: str, level: str, part: str) -> None:
    found = programs.judge(programs.ProgramFacts(**{"handlers": GOOD, **facts}), Config())
    judged(one(found, name), level, part)


@pytest.mark.parametrize(
    ("answer", "libraries", "level", "part"),
    [
        ("crun version 1.28\n+WASM:wasmedge", "libwasmedge.so.0 => /x", "ok", "is installed"),
        ("crun version 1.28\n+WASM:wasmedge", "libc.so.6 => /x", "warning", "libwasmedge0"),
    ],
)
def test_the_library_of_webassembly(answer: str, libraries: str, level: str, part: str) -> None:
    facts = programs.ProgramFacts(handlers={"wasm": answer}, libraries=libraries)
    found = programs.judge(facts, Config(runtime=Runtime(handlers=WASM, default_handler="wasm")))
    judged(one(found, "handler wasm library"), level, part)


def test_a_crun_without_webassembly() -> None:
    facts = programs.ProgramFacts(handlers={"wasm": "crun version 1.28\n+SYSTEMD"})
    found = programs.judge(facts, Config(runtime=Runtime(handlers=WASM, default_handler="wasm")))
    judged(one(found, "handler wasm"), "error", "install one with +WASM")


CRIU = {"version": "Version: 4.1.1\n", "libraries": "libcriu.so.2 (libc6,x86-64) => /x"}


@pytest.mark.parametrize(
    ("facts", "level", "part"),
    [
        ({}, "ok", "4.1.1"),
        ({"version": None}, "ok", "criu is not installed"),
        ({"version": "Version: 3.15\n"}, "warning", "3.16.0"),
        ({"version": "Version: 3.15\nGitID: v4.0\n"}, "warning", "3.16.0"),
        ({"libraries": "libc.so.6 => /x"}, "warning", "libcriu2"),
        ({"libraries": None}, "ok", "4.1.1"),
        ({"check": "the kernel lacks something"}, "warning", "lacks something"),
    ],
)
def test_checkpoints(facts: dict[str, Any], level: str, part: str) -> None:
    found = checkpoints.judge(checkpoints.CheckpointFacts(**{**CRIU, **facts}), Config())
    judged(one(found, "checkpoints"), level, part)


@pytest.mark.parametrize(
    ("facts", "config", "name", "level", "part"),
    [
        ({}, Config(), "nftables", "ok", "works"),
        ({"nftables_problem": "no"}, Config(), "nftables", "error", "libnftables1"),
        ({}, Config(), "anti-spoofing", "ok", "cannot use addresses of other pods"),
        ({"antispoof_problem": "no"}, Config(), "anti-spoofing", "warning", "NF_TABLES_BRIDGE"),
        (
            {"antispoof_problem": "no"},
            Config(network=Network(anti_spoofing=False)),
            "anti-spoofing",
            "ok",
            "off",
        ),
        ({}, Config(), "forwarding", "ok", "on"),
        ({"forward6": "0"}, Config(), "forwarding", "ok", "off for IPv6"),
        ({"forward4": "0", "serving": True}, Config(), "forwarding", "warning", "switched it off"),
        ({"forward6": ""}, Config(), "forwarding", "error", "no IPv6"),
        (
            {"forward6": ""},
            Config(network=Network(pod_cidrs=("10.0.0.0/16",))),
            "forwarding",
            "ok",
            "on",
        ),
        ({"forward_dropped": True}, Config(), "firewall", "warning", "FORWARD ACCEPT"),
        ({"cni_file": "/x/10.conf"}, Config(), "CNI", "warning", 'backend = "cni"'),
        ({"cni_name": "net"}, CNI, "CNI", "ok", '"net"'),
        ({"cni_problem": "/x is no JSON"}, CNI, "CNI", "error", "/x is no JSON"),
        ({"forward4": "0"}, CNI, "forwarding", "warning", "ip_forward=1"),
        ({"bridged": ""}, CNI, "br_netfilter", "warning", "not loaded"),
        ({"bridged": "0"}, CNI, "br_netfilter", "warning", "modprobe br_netfilter"),
        ({}, CNI, "br_netfilter", "ok", ""),
    ],
)
def test_network(facts: dict[str, Any], config: Config, name: str, level: str, part: str) -> None:
    judged(one(network.judge(network.NetworkFacts(**facts), config), name), level, part)


def test_an_old_cni_plugin_is_named_beside_the_network() -> None:
    facts = network.NetworkFacts(cni_name="n", cni_plugins=(("/opt/cni/bin/bridge", "v1.1.1"),))
    found = [entry for entry in network.judge(facts, CNI) if entry.name == "CNI"]
    assert [entry.level for entry in found] == ["warning", "ok"]
    assert "/opt/cni/bin/bridge 1.1.1" in found[0].text


def test_a_cni_plugin_that_tells_no_version_is_not_judged_by_its_protocols() -> None:
    answer = "CNI bridge plugin version unknown\nCNI protocol versions supported: 0.1.0, 1.0.0"
    facts = network.NetworkFacts(cni_name="n", cni_plugins=(("/opt/cni/bin/bridge", answer),))
    judged(one(network.judge(facts, CNI), "CNI"), "ok", '"n"')


@pytest.mark.parametrize(
    ("facts", "name", "level", "part"),
    [
        ({"capabilities": frozenset({"CAP_KILL"})}, "capabilities", "error", "SYS_ADMIN"),
        ({}, "capabilities", "ok", ""),
        ({"seccomp": False}, "seccomp", "warning", "CONFIG_SECCOMP_FILTER"),
        ({"apparmor": "Y"}, "AppArmor", "ok", "on"),
        ({"apparmor": "Y", "apparmor_parser": False}, "AppArmor", "warning", "install apparmor"),
        ({"apparmor": ""}, "AppArmor", "ok", "refused"),
        ({"selinux": "1"}, "SELinux", "ok", "enforcing"),
        ({"selinux": "1", "selinux_contexts": False}, "SELinux", "warning", "container-selinux"),
        (
            {"selinux": "0", "label": "u:r:bin_t:s0"},
            "SELinux",
            "warning",
            "has the label u:r:bin_t:s0",
        ),
        ({"selinux": "1", "label": ""}, "SELinux", "warning", "has the label nothing"),
        ({"user_namespaces": 0}, "user namespaces", "warning", "max_user_namespaces"),
        ({"user_namespaces": None}, "user namespaces", "warning", "CONFIG_USER_NS"),
        ({"unshare": False}, "user namespaces", "warning", "util-linux"),
    ],
)
def test_security(facts: dict[str, Any], name: str, level: str, part: str) -> None:
    judged(one(security.judge(security.SecurityFacts(**facts)), name), level, part)


@pytest.mark.parametrize(
    ("facts", "name", "level", "part"),
    [
        ({}, "inotify", "ok", "8192"),
        ({"inotify_instances": 128}, "inotify", "warning", "max_user_instances=512"),
        ({"inotify_watches": 8192}, "inotify", "warning", "max_user_watches=65536"),
        ({"nr_open": 4096}, "open files", "warning", "fs.nr_open=524288"),
        ({"file_max": 4096}, "open files", "warning", "fs.file-max"),
        ({"pid_max": 32768}, "processes", "warning", "kernel.pid_max"),
        ({"no_namespaces": ("net",)}, "namespaces", "error", "user.max_net_namespaces is 0"),
        ({"inotify_instances": None}, "inotify", "ok", ""),
    ],
)
def test_limits(facts: dict[str, Any], name: str, level: str, part: str) -> None:
    judged(one(limits.judge(limits.LimitFacts(**facts), Config()), name), level, part)


@pytest.mark.parametrize(
    ("properties", "level", "part"),
    [
        ({"KillMode": "process", "Delegate": "yes", "PrivateTmp": "no"}, "ok", ""),
        ({"KillMode": "control-group", "Delegate": "yes"}, "error", "kill every container"),
        ({"KillMode": "process", "Delegate": "no"}, "error", "Delegate=yes"),
        ({"ProtectSystem": "strict"}, "error", "does not see mounts of pods"),
        ({"NoNewPrivileges": "yes"}, "error", "setuid"),
        ({"LoadState": "masked", "UnitFileState": "masked"}, "error", "unmask"),
        ({"LoadState": "bad-setting"}, "error", "systemctl status"),
        ({"ActiveState": "failed"}, "error", "journalctl"),
        ({"ActiveState": "activating"}, "error", "fails repeatedly"),
        ({"ActiveState": "inactive"}, "warning", "systemctl start"),
        ({"ActiveState": "active", "UnitFileState": "disabled"}, "warning", "enable"),
        ({"ActiveState": "active", "UnitFileState": "enabled"}, "ok", ""),
    ],
)
def test_unit(properties: dict[str, str], level: str, part: str) -> None:
    found = unit.judge(unit.UnitFacts(properties=properties))
    judged(one(found, "criagent.service"), level, part)


def test_a_unit_that_fails_says_why() -> None:
    facts = unit.UnitFacts(properties={"ActiveState": "activating"}, reason="no disk; buy one")
    judged(one(unit.judge(facts), "criagent.service"), "error", "does not start: no disk; buy one")


@pytest.mark.parametrize(
    ("answers", "level", "part"),
    [("agent", "ok", "127.0.0.1:9880"), ("other", "warning", "sport = :9880")],
)
def test_who_answers_for_metrics(answers: str, level: str, part: str) -> None:
    found = metrics.judge(metrics.MetricsFacts(answers=answers), Config())
    judged(one(found, "metrics"), level, part)


def test_monitors_in_the_daemons_unit_are_a_warning() -> None:
    facts = unit.UnitFacts(properties={"KillMode": "process"}, monitors=False)
    judged(one(unit.judge(facts), "criagent-monitors.service"), "warning", "systemctl kill")


def test_a_node_without_the_unit_has_no_finding_on_it() -> None:
    assert list(unit.judge(unit.UnitFacts())) == []


def test_each_broken_cdi_file_is_a_warning() -> None:
    judged(one(devices.judge(devices.DeviceFacts(devices=2)), "CDI"), "ok", "2 devices")
    found = list(devices.judge(devices.DeviceFacts(problems=("a", "b"))))
    assert [(entry.level, entry.text) for entry in found] == [("warning", "a"), ("warning", "b")]


def test_neighbours() -> None:
    own, other = "/run/criagent/criagent.sock", "/run/containerd/containerd.sock"

    def found(*sockets: str, kubelet: str = "") -> list[tuple[str, str]]:
        facts = neighbours.NeighbourFacts(sockets=sockets, kubelet=kubelet)
        return [(entry.name, entry.level) for entry in neighbours.judge(facts, Config())]

    assert found() == []
    assert found(own) == []  # a kind-like node links the well-known socket to ours
    assert found(other) == [("other runtime", "warning")]
    assert found(other, kubelet=own) == [("kubelet", "ok"), ("other runtime", "ok")]
    assert found(kubelet=other) == [("kubelet", "warning")]


def test_nri() -> None:
    def found(server: str, config: Config = Config()) -> list[tuple[str, str]]:  # noqa: B008
        findings = nri.judge(nri.NriFacts(server=server), config)
        return [(entry.level, entry.text) for entry in findings]

    assert found("") == []
    assert found("/usr/bin/python3 /usr/bin/criagent serve")[0][0] == "ok"
    ((level, text),) = found("/usr/bin/containerd --log-level info")
    assert level == "warning"
    assert text.startswith("containerd serves NRI plugins on /var/run/nri/nri.sock")
    assert found("/usr/bin/containerd", Config(nri=Nri(disable=True))) == []


def levels(findings: list[Finding]) -> dict[str, str]:
    return {entry.name: entry.level for entry in findings if entry.level != "ok"}


def test_a_bare_debian_12() -> None:
    facts = system.SystemFacts(distribution="debian", release="12", kernel="6.1.0-32-amd64")
    found = [
        *system.judge(facts),
        *cgroups.judge(cgroups.CgroupFacts(systemd=True, bus=True), Config()),
        *programs.judge(
            programs.ProgramFacts(conmon=None, catatonit=False, conntrack=False), Config()
        ),
        *network.judge(network.NetworkFacts(forward4="0", forward6="0", bridged=""), Config()),
        *security.judge(security.SecurityFacts(apparmor="Y")),
    ]
    assert levels(found) == {
        "kernel": "error",
        "handler crun": "error",
        "handler runc": "warning",
        "conmon": "error",
        "catatonit": "warning",
        "conntrack": "warning",
    }
    assert "bookworm-backports" in one(found, "kernel").cure


def test_a_program_is_asked_for_both_of_its_streams(tmp_path: Path) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho version 1; echo more >&2; exit 3\n")
    program.chmod(0o755)
    assert programs.answer_of(program) == "version 1\nmore\n"
    assert programs.answer_of(tmp_path / "absent") is None


DEFAULTS = Runtime(defaults=Defaults(pids_limit=9), log_to_journald=True)


@pytest.mark.parametrize(
    ("facts", "level", "part"),
    [
        ({}, "ok", "is there"),
        ({"hook_problem": "OCI hook /h/a.json:2:1: is not JSON"}, "error", "/h/a.json:2:1"),
        ({"no_hook_folders": (Path("/no"),)}, "warning", "/no"),
        ({"no_devices": ("/dev/no",)}, "error", "load its driver"),
        ({"no_sysctls": ("net.no",)}, "error", "every pod is refused"),
        ({"limited": ("core=9",)}, "warning", "CAP_SYS_RESOURCE"),
        ({"no_profile": "/no.json"}, "error", "install the profile"),
        ({"controllers": frozenset()}, "error", "set the key to 0"),
        ({"journal": False}, "warning", "systemd-journald"),
    ],
)
def test_defaults_that_cannot_work(facts: dict[str, Any], level: str, part: str) -> None:
    config = Config(runtime=DEFAULTS)
    found = defaults.judge(defaults.DefaultsFacts(**facts), config)
    judged(one(found, "defaults"), level, part)


def test_what_the_configuration_names_is_looked_at(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    section = Defaults(
        hooks_dirs=(tmp_path, tmp_path / "none"),
        devices=("/dev/null", "/dev/none-such"),
        sysctls=("net.core.none_such=1", "kernel.shmmni=1"),
        unset_seccomp_profile=f"{tmp_path}/none.json",
    )
    facts = defaults.read(Config(runtime=Runtime(defaults=section)))
    assert facts.hook_problem.startswith(f"OCI hook {tmp_path}/a.json:1:2: is not JSON")
    assert facts.no_hook_folders == (tmp_path / "none",)
    assert facts.no_devices == ("/dev/none-such",)
    assert facts.no_sysctls == ("net.core.none_such",)
    assert facts.no_profile == f"{tmp_path}/none.json"
