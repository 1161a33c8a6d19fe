# SPDX-License-Identifier: Apache-2.0
"""Defaults of the node, seen from inside containers of crun and of runc."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import api, container
from tests.support.made_images import ImageMaker, of
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

Configured = Callable[[str], Pods]
PARENTS = [Path("/sys/fs/cgroup", name) for name in ("burstable-test", "besteffort-test")]
BOTH = pytest.mark.parametrize("handler", ["crun", "runc"])
SHM = "runtime.criagent.io/shm-size"
DEVICES = "runtime.criagent.io/devices"
MANY = """
[runtime.defaults]
sysctls = ["net.ipv4.ip_local_port_range=2048 3000", "kernel.shmmni = 77"]
shm_size_bytes = 1048576
time_zone = "Asia/Tokyo"
ulimits = ["core=1000:2000", "nproc=2222:3333"]
environment = ["DEFAULT=node", "POD_WINS=node", "PATH=/opt/mine:/bin"]
capabilities = ["CHOWN", "KILL"]
inheritable_capabilities = true
unset_seccomp_profile = "runtime/default"
devices = ["/dev/full:/dev/mine:rw"]
min_gomaxprocs = 3
"""


@pytest.fixture(scope="module", name="in_force")
def of_the_module() -> Iterator[list[str]]:
    """The configuration that the agent has; after the module it has the usual one."""
    texts = [""]
    yield texts
    agent.stop()
    agent.start().close()


@pytest.fixture
def configured(pods: Pods, in_force: list[str]) -> Iterator[Configured]:
    """Restarts the agent with a configuration, unless it has that already."""

    def restart(text: str) -> Pods:
        if text != in_force[-1]:
            agent.stop()
            pods.cri.close()
            pods.cri = agent.start(text)
            in_force.append(text)
        return pods

    yield restart
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    for parent in PARENTS:
        if parent.exists():
            parent.rmdir()


def running(
    pods: Pods,
    handler: str = "",
    pod: Callable[[api.PodSandboxConfig], object] = lambda _: None,
    change: Callable[[api.ContainerConfig], object] = lambda _: None,
) -> str:
    config = pods.config()
    pod(config)
    return pods.running(change=change, pod=(pods.cri.run(config, handler=handler), config))


def shell(pods: Pods, container_id: str, command: str) -> str:
    answer = pods.cri.exec(container_id, "sh", "-c", command)
    assert answer.exit_code == 0, answer
    return str(answer.stdout.decode(errors="replace").strip())


def status(pods: Pods, container_id: str) -> dict[str, str]:
    """/proc/1/status of a container."""
    lines = shell(pods, container_id, "cat /proc/1/status").splitlines()
    return {name: value.strip() for name, _, value in (line.partition(":") for line in lines)}


@BOTH
def test_a_container_has_the_defaults_of_the_node(configured: Configured, handler: str) -> None:
    pods = configured(MANY)

    def change(config: api.ContainerConfig) -> None:
        config.envs.add(key="POD_WINS", value=b"pod")

    one = running(pods, handler, change=change)
    assert shell(pods, one, "cat /proc/sys/net/ipv4/ip_local_port_range") == "2048\t3000"
    assert shell(pods, one, "cat /proc/sys/kernel/shmmni") == "77"
    assert "1024" in shell(pods, one, "df -k /dev/shm | tail -1").split()
    assert "JST-9" in shell(pods, one, "tail -1 /etc/localtime")
    assert shell(pods, one, "touch /etc/localtime 2>&1 || true").endswith("Read-only file system")
    limits = shell(pods, one, "cat /proc/1/limits")
    assert [line.split()[-3:-1] for line in limits.splitlines() if "core file" in line] == [
        ["1000", "2000"]
    ]
    assert [line.split()[-3:-1] for line in limits.splitlines() if "Max processes" in line] == [
        ["2222", "3333"]
    ]
    environment = shell(pods, one, "cat /proc/1/environ").split("\0")
    assert {"DEFAULT=node", "POD_WINS=pod"} <= set(environment)
    assert "PATH=/opt/mine:/bin" not in environment  # the image has one
    assert not any(entry.startswith("GOMAXPROCS") for entry in environment)
    facts = status(pods, one)
    mask = f"{1 << 0 | 1 << 5:016x}"  # CAP_CHOWN, CAP_KILL
    assert [facts[name] for name in ("CapBnd", "CapPrm", "CapEff", "CapInh", "CapAmb")] == [
        mask,
        mask,
        mask,
        mask,
        "0" * 16,
    ]
    assert facts["Seccomp"] == "2"
    assert shell(pods, one, "stat -c %t:%T /dev/mine") == "1:7"
    assert "No space left" in shell(pods, one, "echo x 2>&1 > /dev/mine || true")


def test_a_pod_has_the_last_word(configured: Configured) -> None:
    pods = configured(MANY)

    def pod(config: api.PodSandboxConfig) -> None:
        config.linux.sysctls["net.ipv4.ip_local_port_range"] = "4000 5000"
        config.annotations[SHM] = "2Mi"  # not allowed

    def change(config: api.ContainerConfig) -> None:
        security = config.linux.security_context
        security.capabilities.add_capabilities.append("NET_ADMIN")
        security.capabilities.drop_capabilities.append("CHOWN")
        security.seccomp.profile_type = api.SecurityProfile.Unconfined
        config.mounts.add(host_path="/etc/hostname", container_path="/etc/localtime")

    one = running(pods, pod=pod, change=change)
    assert shell(pods, one, "cat /proc/sys/net/ipv4/ip_local_port_range") == "4000\t5000"
    assert "1024" in shell(pods, one, "df -k /dev/shm | tail -1").split()
    assert int(status(pods, one)["CapBnd"], 16) == 1 << 5 | 1 << 12  # CAP_KILL, CAP_NET_ADMIN
    assert status(pods, one)["Seccomp"] == "0"
    assert shell(pods, one, "cat /etc/localtime") == Path("/etc/hostname").read_text().strip()


def test_a_pod_of_the_node_keeps_the_sysctls_of_the_node(configured: Configured) -> None:
    pods = configured('[runtime.defaults]\nsysctls = ["net.core.somaxconn=99"]\n')
    before = Path("/proc/sys/net/core/somaxconn").read_text()

    def pod(config: api.PodSandboxConfig) -> None:
        options = config.linux.security_context.namespace_options
        options.network = options.ipc = api.NODE

    one = running(pods, pod=pod)
    assert shell(pods, one, "cat /proc/sys/net/core/somaxconn") == before.strip()
    assert Path("/proc/sys/net/core/somaxconn").read_text() == before != "99\n"


def test_the_time_zone_of_an_image_whose_own_is_missing(
    configured: Configured, make_image: ImageMaker
) -> None:
    pods = configured(MANY)
    image = make_image(lambda layer: layer.symlink("etc/localtime", "/usr/share/zoneinfo/Etc/UTC"))
    one = running(pods, change=of(image))
    assert "JST-9" in shell(pods, one, "cat /etc/localtime")


def test_the_time_zone_of_the_node(configured: Configured) -> None:
    pods = configured('[runtime.defaults]\ntime_zone = "local"\n')
    zone = Path("/etc/localtime")
    before = zone.readlink() if zone.is_symlink() else None
    zone.unlink(missing_ok=True)
    try:
        zone.symlink_to("/usr/share/zoneinfo/Asia/Tokyo")
        one = running(pods)
        assert "JST-9" in shell(pods, one, "tail -1 /etc/localtime")
    finally:
        zone.unlink()
        if before is not None:
            zone.symlink_to(before)


@pytest.mark.parametrize(("shares", "expected"), [(0, "3"), (1024, "3"), (2048, "4"), (2304, "5")])
def test_gomaxprocs_follows_the_cpu_request(
    configured: Configured, shares: int, expected: str
) -> None:
    pods = configured(MANY)

    def pod(config: api.PodSandboxConfig) -> None:
        config.linux.cgroup_parent = "/burstable-test"

    def change(config: api.ContainerConfig) -> None:
        config.linux.resources.cpu_shares = shares

    one = running(pods, pod=pod, change=change)
    assert shell(pods, one, "echo $GOMAXPROCS") == expected


def test_a_cpu_limit_and_the_pod_decide_about_gomaxprocs(configured: Configured) -> None:
    pods = configured(MANY)

    def pod(config: api.PodSandboxConfig) -> None:
        config.linux.cgroup_parent = "/besteffort-test"

    def limited(config: api.ContainerConfig) -> None:
        config.linux.resources.cpu_quota, config.linux.resources.cpu_period = 50_000, 100_000

    def named(config: api.ContainerConfig) -> None:
        config.envs.add(key="GOMAXPROCS", value=b"7")

    assert shell(pods, running(pods, pod=pod, change=limited), "echo $GOMAXPROCS") == ""
    assert shell(pods, running(pods, pod=pod, change=named), "echo $GOMAXPROCS") == "7"


ANNOTATIONS = f"""
[runtime]
allowed_devices = ["/dev/full", "/dev/zero"]
[runtime.handlers.crun]
allowed_annotations = ["{SHM}", "{DEVICES}", "shm-size.crio.io"]
"""


def test_allowed_annotations_are_obeyed(configured: Configured) -> None:
    pods = configured(ANNOTATIONS)

    def pod(config: api.PodSandboxConfig) -> None:
        config.annotations[SHM] = "3Mi"
        config.annotations[DEVICES] = "/dev/full:/dev/mine:r,/dev/zero"

    one = running(pods, pod=pod)
    assert "3072" in shell(pods, one, "df -k /dev/shm | tail -1").split()
    assert shell(pods, one, "stat -c %t:%T /dev/mine") == "1:7"
    other = running(pods, pod=lambda config: config.annotations.update({"shm-size.crio.io": "5Mi"}))
    assert "5120" in shell(pods, other, "df -k /dev/shm | tail -1").split()
    not_allowed = running(pods, "runc", pod=pod)
    assert "65536" in shell(pods, not_allowed, "df -k /dev/shm | tail -1").split()
    assert shell(pods, not_allowed, "ls /dev/mine 2>&1 || true").endswith(
        "No such file or directory"
    )


def test_wrong_annotations_are_refused(configured: Configured) -> None:
    pods = configured(ANNOTATIONS)
    config = pods.config()
    config.annotations[SHM] = "plenty"
    invalid = grpc.StatusCode.INVALID_ARGUMENT
    refused(lambda: pods.cri.run(config), invalid, f"annotation {SHM}: 'plenty' is not a size")
    config = pods.config()
    config.annotations[DEVICES] = "/dev/mem"
    sandbox = pods.cri.run(config)
    wanted = container("c", ["sleep", "1000"])
    text = f"annotation {DEVICES}: device /dev/mem is not in runtime.allowed_devices"
    refused(lambda: pods.cri.create(sandbox, wanted, config), invalid, text)


@BOTH
def test_hooks_run_for_the_containers_that_they_name(
    configured: Configured, tmp_path: Path, handler: str
) -> None:
    early, late = tmp_path / "early", tmp_path / "late"
    early.mkdir()
    late.mkdir()
    program, record = tmp_path / "hook", tmp_path / "record"
    program.write_text(f'#!/bin/sh\n{{ echo "$1 $MARK"; cat; echo; }} >> {record}\n')
    program.chmod(0o755)

    def hook(folder: Path, name: str, mark: str, **when: Any) -> None:
        text = {
            "version": "1.0.0",
            "hook": {"path": str(program), "args": ["hook", name], "env": [f"MARK={mark}"]},
            "when": when,
            "stages": ["createRuntime", "poststop"],
        }
        (folder / f"{name}.json").write_text(json.dumps(text))

    hook(early, "10-all", "hidden", always=True)
    hook(late, "10-all", "all", always=True)
    hook(early, "20-some", "some", annotations={"^example\\.com/": "^yes$"}, commands=["sleep$"])
    hook(early, "30-mounts", "mounts", hasBindMounts=True)
    pods = configured(f'[runtime.defaults]\nhooks_dirs = ["{early}", "{late}"]\n')
    plain = running(pods, handler)
    assert [line for line in record.read_text().splitlines() if line[:1].isdigit()] == [
        "10-all all"
    ]
    assert plain in record.read_text()
    pods.cri.remove(plain)
    assert record.read_text().count("10-all all") == 2
    record.unlink()
    running(pods, handler, pod=lambda config: config.annotations.update({"example.com/a": "yes"}))
    assert [line for line in record.read_text().splitlines() if line[:1].isdigit()] == [
        "10-all all",
        "20-some some",
    ]
    (early / "05-new.json").write_text('{\n  "version": "1.0.0",\n  "hook": nothing\n}')
    config = pods.config()
    sandbox = pods.cri.run(config, handler=handler)
    wanted = container("c", ["sleep", "1000"])
    refused(
        lambda: pods.cri.create(sandbox, wanted, config),
        grpc.StatusCode.FAILED_PRECONDITION,
        f"OCI hook {early}/05-new.json:3:11: is not JSON",
    )
    (early / "05-new.json").unlink()
    pods.cri.create(sandbox, wanted, config)


@BOTH
def test_a_base_specification_is_below_what_the_pod_asks_for(
    configured: Configured, tmp_path: Path, handler: str
) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("of the node")
    base = {
        "ociVersion": "1.2.0",
        "hostname": "mine",
        "process": {
            "cwd": "/nowhere",
            "args": ["false"],
            "user": {"uid": 4000, "gid": 4000, "umask": 0o077},
            "env": ["BASE=1", "TERM=dumb"],
            "rlimits": [{"type": "RLIMIT_NOFILE", "soft": 333, "hard": 444}],
            "capabilities": {"bounding": ["CAP_KILL"], "effective": ["CAP_SYS_ADMIN"]},
        },
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/run", "type": "tmpfs", "source": "tmpfs"},
            {
                "destination": "/shared",
                "type": "bind",
                "source": str(shared),
                "options": ["rbind", "ro"],
            },
        ],
        "linux": {"namespaces": [{"type": "mount"}], "seccomp": {"defaultAction": "SCMP_ACT_KILL"}},
    }
    (tmp_path / "base.json").write_text(json.dumps(base))
    pods = configured(f'[runtime.handlers.{handler}]\nbase_runtime_spec = "{tmp_path}/base.json"\n')
    one = running(pods, handler)
    assert shell(pods, one, "echo $BASE; cat /shared/file") == "1\nof the node"
    assert int(status(pods, one)["CapBnd"], 16) == 1 << 5
    assert status(pods, one)["Umask"] == "0077"
    assert status(pods, one)["Uid"].split() == ["0"] * 4
    limits = shell(pods, one, "cat /proc/1/limits")
    assert [line.split()[-3:-1] for line in limits.splitlines() if "open files" in line] == [
        ["333", "444"]
    ]
    assert "/run " not in shell(pods, one, "cat /proc/mounts | cut -d' ' -f2 | sed 's/$/ /'")


def test_a_memory_limit_that_is_too_low_is_refused(configured: Configured) -> None:
    pods = configured("[runtime.handlers.crun]\nmin_memory_bytes = 12582912\n")
    config = pods.config()
    sandbox = pods.cri.run(config)
    wanted = container("c", ["sleep", "1000"])
    wanted.linux.resources.memory_limit_in_bytes = 4 << 20
    refused(
        lambda: pods.cri.create(sandbox, wanted, config),
        grpc.StatusCode.INVALID_ARGUMENT,
        "is below the 12582912 that runtime handler",
    )
    wanted.linux.resources.memory_limit_in_bytes = 12 << 20
    pods.cri.create(sandbox, wanted, config)


def test_missing_sources_that_are_refused_are_not_made(
    configured: Configured, tmp_path: Path
) -> None:
    pods = configured(
        f'[runtime.defaults]\nabsent_mount_sources_to_reject = ["{tmp_path}/refused"]\n'
    )
    config = pods.config()
    sandbox = pods.cri.run(config)
    wanted = container("c", ["sleep", "1000"])
    wanted.mounts.add(host_path=f"{tmp_path}/./refused/", container_path="/a")
    refused(
        lambda: pods.cri.create(sandbox, wanted, config),
        grpc.StatusCode.INVALID_ARGUMENT,
        "the path is in runtime.defaults.absent_mount_sources_to_reject",
    )
    assert not (tmp_path / "refused").exists()
    (tmp_path / "refused").mkdir()
    wanted.mounts.add(host_path=f"{tmp_path}/made", container_path="/b")
    pods.cri.create(sandbox, wanted, config)
    assert (tmp_path / "made").is_dir()


WORKLOAD = f"""
[runtime.workloads.management]
activation_annotation = "target.example.com/management"
annotation_prefix = "resources.example.com"
allowed_annotations = ["{SHM}"]
cpu_shares = 300
cpuset_cpus = "0"
"""


def test_a_workload_gives_resources_and_annotations(configured: Configured) -> None:
    pods = configured(WORKLOAD)

    def pod(config: api.PodSandboxConfig) -> None:
        config.annotations["target.example.com/management"] = "{}"
        config.annotations["resources.example.com/own"] = '{"cpushares": 500, "cpulimit": 250}'
        config.annotations[SHM] = "2Mi"

    config = pods.config()
    pod(config)
    sandbox = pods.cri.run(config)
    own, other = container("own", ["sleep", "1000"]), container("other", ["sleep", "1000"])
    for wanted in (own, other):
        wanted.linux.resources.cpu_shares = 1024
    ids = [pods.cri.create(sandbox, wanted, config) for wanted in (own, other)]
    assert pods.cri.create(sandbox, other, config) == ids[1]  # a repeat is the same request
    for one in ids:
        pods.cri.start(one)
    assert "2048" in shell(pods, ids[0], "df -k /dev/shm | tail -1").split()
    found = [pods.cri.status(one).resources.linux for one in ids]
    assert [(one.cpu_shares, one.cpu_quota, one.cpuset_cpus) for one in found] == [
        (500, 25_000, "0"),
        (300, 0, "0"),
    ]
    plain = running(pods, pod=lambda one: one.annotations.update({SHM: "2Mi"}))
    assert "65536" in shell(pods, plain, "df -k /dev/shm | tail -1").split()
    assert pods.cri.status(plain).resources.linux.cpu_shares == 0


@pytest.mark.parametrize("text", ["500", '{"cpushares": "many"}', '{"memory": 1}', "{"])
def test_wrong_resources_of_a_workload_are_refused(configured: Configured, text: str) -> None:
    pods = configured(WORKLOAD)
    config = pods.config()
    config.annotations["target.example.com/management"] = ""
    config.annotations["resources.example.com/c"] = text
    sandbox = pods.cri.run(config)
    refused(
        lambda: pods.cri.create(sandbox, container("c", ["sleep", "1000"]), config),
        grpc.StatusCode.INVALID_ARGUMENT,
        "annotation resources.example.com/c: ",
    )


def test_output_goes_to_the_journal_and_to_the_file(configured: Configured) -> None:
    place = Path("/run/systemd/journal/socket")
    place.parent.mkdir(parents=True, exist_ok=True)
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as journal:
        journal.bind(str(place))
        journal.settimeout(20)
        try:
            pods = configured("[runtime]\nlog_to_journald = true\n")
            sandbox, config = pods.sandbox()
            wanted = container("talker", ["sh", "-c", "echo said; exec sleep 1000"])
            wanted.log_path = "talker.log"
            one = pods.cri.create(sandbox, wanted, config)
            pods.cri.start(one)
            entry = b""
            while b"said" not in entry:
                entry = journal.recv(1 << 16)
            assert f"CONTAINER_ID_FULL={one}".encode() in entry.splitlines()
            assert b"CONTAINER_NAME=talker" in entry.splitlines()
            assert pods.log(one) == "said\n"
        finally:
            place.unlink()
