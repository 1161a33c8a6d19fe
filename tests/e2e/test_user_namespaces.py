# SPDX-License-Identifier: Apache-2.0
"""Pods with user namespaces: ids on both sides, what the namespaces own, refusals, nothing left."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from urllib.request import urlopen

import grpc
import pytest

from criagent.config.storage_section import Storage
from criagent.image.snapshots.drivers.overlay import OverlayDriver
from criagent.runtime.pod.user_namespace_probe import probe_user_namespaces
from tests.support import agent
from tests.support.cri_client import DEBIAN, api, container
from tests.support.mapped import HOST, LENGTH, mapped, mapping, volume
from tests.support.mapped_pods import as_user, init, words
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

HTTPD = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"
NONEWPRIVS = "registry.k8s.io/e2e-test-images/nonewprivs:1.3"


def test_root_inside_is_nobody_of_the_node_outside(pods: Pods) -> None:
    container_id = pods.running(pod=pods.sandbox(mapped()))
    assert words(pods, container_id, "cat", "/proc/self/uid_map").split() == [
        "0",
        str(HOST),
        str(LENGTH),
    ]
    assert words(pods, container_id, "cat", "/proc/self/gid_map").split() == [
        "0",
        str(HOST),
        str(LENGTH),
    ]
    assert words(pods, container_id, "id", "-u") == "0"
    process = init(pods, container_id)
    assert (process.stat().st_uid, process.stat().st_gid) == (HOST, HOST)
    for kind in ("net", "ipc", "uts", "user", "pid", "mnt", "cgroup"):
        assert (process / "ns" / kind).readlink() != Path(f"/proc/self/ns/{kind}").readlink()
    user = pods.cri.status(container_id).user.linux
    assert (user.uid, user.gid, list(user.supplemental_groups)) == (0, 0, [0])
    options = pods.cri.pod_status(pods.cri.pods()[0].id).linux.namespaces.options
    assert options.userns_options.uids == [mapping()]


def test_files_of_the_image_and_of_the_pod_have_the_owners_they_should(pods: Pods) -> None:
    image = lambda config: setattr(config.image, "image", DEBIAN)  # noqa: E731
    container_id = pods.running("sleep", "1000", change=image, pod=pods.sandbox(mapped()))
    assert words(pods, container_id, "stat", "-c", "%u:%g", "/opt/owned/file") == "0:0"
    assert words(pods, container_id, "stat", "-c", "%u:%g", "/opt/owned") == "1234:1234"
    for path in ("/", "/etc/passwd", "/etc/resolv.conf", "/etc/hosts", "/etc/hostname", "/dev/shm"):
        assert words(pods, container_id, "stat", "-c", "%u:%g", path) == "0:0", path
    words(
        pods,
        container_id,
        "sh",
        "-c",
        "echo new > /srv/new; echo x >> /opt/owned/file; echo 1 > /dev/shm/a",
    )
    root = Path(f"/run/criagent/containers/{container_id}/rootfs")
    assert (root / "srv/new").stat().st_uid == HOST
    assert (root / "opt/owned").stat().st_uid == HOST + 1234
    assert (root / "opt/owned/file").stat().st_uid == HOST


def test_pods_of_different_ranges_share_an_image_that_stays_as_it_is(pods: Pods) -> None:
    def layers() -> list[tuple[str, int, int, int]]:
        top = Path("/var/lib/criagent/snapshots")
        return sorted(
            (str(path), *(path.lstat().st_uid, path.lstat().st_gid, path.lstat().st_mtime_ns))
            for tree in top.glob("*/fs")
            for path in tree.rglob("*")
        )

    before = layers()
    container_ids = []
    for host in (HOST, HOST + LENGTH, HOST + 2 * LENGTH):
        container_id = pods.running(pod=pods.sandbox(mapped(host)))
        words(pods, container_id, "sh", "-c", "chown 7:7 /etc/passwd && chmod 4755 /bin/busybox")
        assert words(pods, container_id, "stat", "-c", "%u", "/etc/group") == "0"
        path = Path(f"/run/criagent/containers/{container_id}/rootfs/etc")
        assert ((path / "passwd").stat().st_uid, (path / "group").stat().st_uid) == (host + 7, host)
        container_ids.append(container_id)
    plain = pods.running()
    assert words(pods, plain, "stat", "-c", "%u", "/etc/passwd") == "0"
    for container_id in container_ids:
        pods.cri.stop(container_id)
        pods.cri.remove(container_id)
    pods.cri.stop(plain)
    pods.cri.remove(plain)
    assert layers() == before


def test_sysctls_ping_and_ports_work_inside(pods: Pods) -> None:
    config = pods.config(hostname="mapped")
    mapped()(config)
    config.linux.sysctls.update(
        {"net.ipv4.tcp_syncookies": "0", "kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "11"}
    )
    config.linux.sysctls["net.core.somaxconn"] = "77"
    config.linux.sysctls["net.ipv4.ping_group_range"] = "5 2147483647"
    sandbox = pods.cri.run(config)
    container_id = pods.running(pod=(sandbox, config))
    assert words(pods, container_id, "cat", "/proc/sys/net/ipv4/tcp_syncookies") == "0"
    assert words(pods, container_id, "cat", "/proc/sys/kernel/shm_rmid_forced") == "1"
    assert words(pods, container_id, "cat", "/proc/sys/fs/mqueue/msg_max") == "11"
    assert words(pods, container_id, "hostname") == "mapped"
    assert words(pods, container_id, "cat", "/proc/sys/net/core/somaxconn") == "77"
    assert words(pods, container_id, "cat", "/proc/sys/net/ipv4/ping_group_range").split() == [
        "5",
        "65535",
    ]
    words(pods, container_id, "ping", "-c", "1", "-W", "5", "127.0.0.1")
    words(pods, container_id, "ping", "-c", "1", "-W", "5", "10.88.0.1")
    assert Path("/proc/sys/kernel/shm_rmid_forced").read_text() == "0\n"


def test_the_namespaces_are_the_pods_to_change(pods: Pods) -> None:
    def admin(config: api.ContainerConfig) -> None:
        config.linux.security_context.capabilities.add_capabilities.extend(
            ["SYS_ADMIN", "NET_ADMIN"]
        )
        config.linux.security_context.seccomp.profile_type = api.SecurityProfile.Unconfined

    container_id = pods.running(pod=pods.sandbox(mapped()), change=admin)
    for name, value in (("net/ipv4/ip_forward", "0"), ("kernel/msgmax", "7777")):
        words(pods, container_id, "sh", "-c", f"echo {value} > /proc/sys/{name}")
        assert words(pods, container_id, "cat", f"/proc/sys/{name}") == value
    words(pods, container_id, "hostname", "renamed")
    assert os.uname().nodename != "renamed"
    assert Path("/proc/sys/kernel/msgmax").read_text() != "7777\n"
    for name in ("kernel/core_pattern", "vm/swappiness", "fs/file-max"):
        assert pods.cri.exec(container_id, "sh", "-c", f"echo 1 > /proc/sys/{name}").exit_code != 0


def test_network_administration_inside_is_the_pods_alone(pods: Pods) -> None:
    def admin(config: api.ContainerConfig) -> None:
        config.linux.security_context.capabilities.add_capabilities.extend(["NET_ADMIN"])

    container_id = pods.running(pod=pods.sandbox(mapped()), change=admin)
    words(pods, container_id, "ip", "link", "add", "dummy7", "type", "bridge")
    assert not Path("/sys/class/net/dummy7").exists()


def test_a_shared_pid_namespace_is_in_the_user_namespace(pods: Pods) -> None:
    sandbox = pods.sandbox(mapped(pid=api.POD))

    def share(config: api.ContainerConfig) -> None:
        config.linux.security_context.namespace_options.pid = api.POD

    first = pods.running("sleep", "1234", change=share, pod=sandbox)
    second = pods.running("sleep", "5678", change=share, pod=sandbox)
    assert "sleep 1234" in words(pods, second, "ps")
    assert words(pods, first, "cat", "/proc/1/comm") == "catatonit"
    assert pods.cri.exec(second, "ls", "/proc/1/root/").exit_code != 0
    assert (init(pods, first) / "ns/pid").readlink() == (init(pods, second) / "ns/pid").readlink()


def test_a_debugger_sees_the_processes_of_its_target(pods: Pods) -> None:
    sandbox = pods.sandbox(mapped())
    target = pods.running("sleep", "4321", pod=sandbox)

    def debug(config: api.ContainerConfig) -> None:
        options = config.linux.security_context.namespace_options
        options.pid, options.target_id = api.TARGET, target

    container_id = pods.running(pod=sandbox, change=debug)
    assert "sleep 4321" in words(pods, container_id, "ps")
    assert init(pods, container_id).stat().st_uid == HOST


def test_a_terminal_and_a_user_of_the_image(pods: Pods) -> None:
    def change(config: api.ContainerConfig) -> None:
        config.tty = True
        config.linux.security_context.run_as_user.value = 33
        config.linux.security_context.run_as_group.value = 44

    container_id = pods.running(
        "sh", "-c", "id; sleep 1000", change=change, pod=pods.sandbox(mapped())
    )
    assert words(pods, container_id, "id", "-u") == "33"
    assert init(pods, container_id).stat().st_uid == HOST + 33
    user = pods.cri.status(container_id).user.linux
    assert (user.uid, user.gid) == (33, 44)


def test_privileged_is_privileged_in_its_namespace_only(pods: Pods) -> None:
    def powerful(config: api.PodSandboxConfig) -> None:
        mapped()(config)
        config.linux.security_context.privileged = True

    def change(config: api.ContainerConfig) -> None:
        config.linux.security_context.privileged = True

    container_id = pods.running(pod=pods.sandbox(powerful), change=change)
    words(pods, container_id, "mount", "-t", "tmpfs", "none", "/tmp")
    assert pods.cri.exec(container_id, "mknod", "/tmp/null", "c", "1", "3").exit_code != 0
    assert pods.cri.exec(container_id, "sh", "-c", "echo 1 > /proc/sys/kernel/sysrq").exit_code != 0
    assert pods.cri.exec(container_id, "sh", "-c", "echo 1 > /proc/sysrq-trigger").exit_code != 0
    for device in Path("/dev").iterdir():
        if device.is_block_device():
            assert pods.cri.exec(container_id, "stat", str(device)).exit_code != 0
            numbers = f"{os.major(device.stat().st_rdev)} {os.minor(device.stat().st_rdev)}"
            assert pods.cri.exec(container_id, "sh", "-c", f"mknod /x b {numbers}").exit_code != 0
    assert pods.cri.exec(container_id, "sh", "-c", "echo 1 > /dev/kmsg").exit_code != 0
    words(pods, container_id, "sh", "-c", "echo 1 > /dev/null && head -c 1 /dev/zero")


def test_hostile_programs_and_devices_gain_nothing(pods: Pods) -> None:
    container_id = pods.running(pod=pods.sandbox(mapped()))
    assert pods.cri.exec(container_id, "mknod", "/dev/sda", "b", "254", "0").exit_code != 0
    words(pods, container_id, "sh", "-c", "cp /bin/busybox /suid && chmod 4755 /suid")
    bundle = Path(f"/run/criagent/containers/{container_id}")
    assert (bundle / "rootfs/suid").stat().st_uid == HOST
    for command in (["ls", bundle], ["cat", bundle / "config.json"], [bundle / "rootfs/bin/ls"]):
        assert as_user(65534, *command) != 0, "a user of the node gets into a container's files"
    for command in (["ls", bundle], ["cat", bundle / "config.json"], ["touch", bundle / "new"]):
        assert as_user(HOST, *command) != 0, "the pod's root could get at its bundle"  # type: ignore[arg-type]


def test_setuid_programs_and_capabilities_of_the_image_work_within(pods: Pods) -> None:
    def setuid(config: api.ContainerConfig) -> None:
        config.image.image = NONEWPRIVS
        config.ClearField("command")

    pods.cri.pull(NONEWPRIVS)
    container_id = pods.running(change=setuid, pod=pods.sandbox(mapped()))
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    assert pods.log(container_id) == "Effective uid: 0\n"

    def debian(config: api.ContainerConfig) -> None:
        config.image.image = DEBIAN

    container_id = pods.running("sleep", "1000", change=debian, pod=pods.sandbox(mapped()))
    show = ("getfattr", "--absolute-names", "-n", "security.capability", "-e", "hex")
    in_image = words(pods, container_id, *show, "/srv/capable")
    assert "=0x0100000200200000" in in_image
    words(pods, container_id, "sh", "-c", "echo more >> /srv/new; exec 3>>/srv/owned")
    upper = Path(f"/run/criagent/containers/{container_id}/rootfs")
    words(pods, container_id, "bash", "-c", "exec 3<> /srv/data/original; echo changed >&3")
    assert (upper / "srv/data/original").stat().st_uid == HOST
    pods.cri.remove_pod(pods.cri.status(container_id).metadata.name and pods.cri.pods()[0].id)
    pods.cri.remove_image(NONEWPRIVS)


def test_requested_devices_are_there(pods: Pods) -> None:
    def change(config: api.ContainerConfig) -> None:
        config.devices.add(host_path="/dev/null", container_path="/dev/void", permissions="rwm")

    container_id = pods.running(pod=pods.sandbox(mapped()), change=change)
    words(pods, container_id, "sh", "-c", "echo 1 > /dev/void")


@pytest.mark.parametrize("handler", ["crun", "runc"])
def test_the_nodes_null_device_stays_roots(pods: Pods, handler: str) -> None:
    # The device is one for all test nodes of a machine, so the range is this test's own.
    host = LENGTH * random.randrange(1000, 60000)
    config = pods.config()
    mapped(host, pid=api.POD)(config)
    sandbox = pods.cri.run(config, handler=handler)
    for command in (["sleep", "1000"], ["true"]):
        container_id = pods.running(*command, pod=(sandbox, config))
        assert os.stat("/dev/null").st_uid != host
    container_id = pods.running(pod=(sandbox, config))
    pods.cri.exec(container_id, "true")
    subprocess.run(["crictl", "exec", container_id, "true"], check=True)
    assert os.stat("/dev/null").st_uid != host


def test_exec_attach_and_port_forward(pods: Pods) -> None:
    def change(config: api.ContainerConfig) -> None:
        config.image.image = HTTPD
        config.ClearField("command")

    def listens(config: api.ContainerConfig) -> None:
        config.stdin = config.stdin_once = True

    pods.cri.pull(HTTPD)
    sandbox = pods.sandbox(mapped())
    container_id = pods.running(pod=sandbox, change=change)
    script = "read line; echo got $line"
    reader = pods.running("sh", "-c", script, pod=sandbox, change=listens)
    done = subprocess.run(
        ["crictl", "exec", container_id, "id", "-u"], capture_output=True, check=True
    )
    assert done.stdout == b"0\n"
    done = subprocess.run(
        ["crictl", "exec", "-i", "--transport", "websocket", container_id, "cat"],
        input=b"through",
        capture_output=True,
        check=True,
    )
    assert done.stdout == b"through"
    done = subprocess.run(
        ["crictl", "attach", "-i", reader], input=b"line\n", capture_output=True, check=True
    )
    assert done.stdout == b"got line\n"
    with subprocess.Popen(
        ["crictl", "port-forward", sandbox[0], ":80"], stdout=subprocess.PIPE, text=True
    ) as forward:
        assert forward.stdout is not None
        port = forward.stdout.readline().split("127.0.0.1:")[1].split()[0]
        with urlopen(f"http://127.0.0.1:{port}/", timeout=10) as page:
            assert b"It works!" in page.read()
        forward.terminate()
    pods.cri.remove_pod(sandbox[0])
    pods.cri.remove_image(HTTPD)


def test_many_at_once(pods: Pods) -> None:
    configs = [pods.config() for _ in range(20)]
    for number, config in enumerate(configs):
        mapped(HOST + number * LENGTH)(config)
    with ThreadPoolExecutor(10) as threads:
        sandboxes = list(threads.map(pods.cri.run, configs))
    with ThreadPoolExecutor(10) as threads:
        both = zip(sandboxes, configs, strict=True)
        container_ids = list(threads.map(lambda sandbox: pods.running(pod=sandbox), both))
    owners = {init(pods, container_id).stat().st_uid for container_id in container_ids}
    assert owners == {HOST + number * LENGTH for number in range(20)}


def test_proc_is_masked_as_asked_for(pods: Pods) -> None:
    sandbox = pods.sandbox(mapped())

    def default(config: api.ContainerConfig) -> None:
        config.linux.security_context.masked_paths.extend(["/proc/kcore", "/proc/keys"])
        config.linux.security_context.readonly_paths.extend(["/proc/sys"])

    closed = pods.running(pod=sandbox, change=default)
    unmasked = pods.running(pod=sandbox)
    mounts = words(pods, closed, "cat", "/proc/mounts")
    assert " /proc/keys " in mounts
    assert " /proc/sys " in mounts
    assert " /proc/" not in words(pods, unmasked, "cat", "/proc/mounts")


def test_the_cgroup_is_below_the_parent(pods: Pods) -> None:
    def change(config: api.PodSandboxConfig) -> None:
        mapped()(config)
        config.linux.cgroup_parent = "/mapped-pod"

    os.makedirs("/sys/fs/cgroup/mapped-pod", exist_ok=True)
    sandbox = pods.sandbox(change)
    container_id = pods.running(pod=sandbox)
    assert f"0::/mapped-pod/{container_id}" in (init(pods, container_id) / "cgroup").read_text()
    request = api.ContainerStatsRequest(container_id=container_id)
    assert pods.cri.runtime.ContainerStats(request).stats.attributes.id == container_id
    pods.cri.remove_pod(sandbox[0])
    os.rmdir("/sys/fs/cgroup/mapped-pod")


def test_a_restart_adopts_the_pod(pods: Pods) -> None:
    sandbox = pods.sandbox(mapped(pid=api.POD))
    container_id = pods.running(pod=sandbox)
    agent.kill()
    pods.cri.close()
    pods.cri = agent.start()
    assert pods.cri.pod_status(sandbox[0]).state == api.SANDBOX_READY
    assert words(pods, container_id, "id", "-u") == "0"
    assert words(pods, pods.running(pod=sandbox), "cat", "/proc/self/uid_map").split()[1] == str(
        HOST
    )
    pods.cri.remove_pod(sandbox[0])


def test_the_handler_says_that_it_can(pods: Pods) -> None:
    status = pods.cri.runtime.Status(api.StatusRequest())
    features = {h.name: h.features.user_namespaces for h in status.runtime_handlers}
    assert all(features[name] for name in ("", "crun", "runc"))


@pytest.fixture
def agent_with_old_handler(pods: Pods, tmp_path: Path) -> Iterator[Pods]:
    """An agent with a handler "old", which is crun as it was before it told its features."""
    program = tmp_path / "old"
    program.write_text('#!/bin/sh\n[ "$1" != features ] || exit 1\nexec crun "$@"\n')
    program.chmod(0o755)
    agent.stop()
    pods.cri.close()
    handlers = {"crun": "/usr/bin/crun", "old": program}
    pods.cri = agent.start(
        "".join(f'[runtime.handlers.{name}]\npath = "{at}"\n' for name, at in handlers.items())
    )
    yield pods
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    agent.stop()
    agent.start().close()
    shutil.rmtree("/run/criagent/runtime/old")  # with what the program caches there


def test_a_handler_that_cannot_says_so_and_why(agent_with_old_handler: Pods) -> None:
    pods = agent_with_old_handler
    status = pods.cri.runtime.Status(api.StatusRequest())
    features = {h.name: h.features.user_namespaces for h in status.runtime_handlers}
    assert (features["old"], features["crun"]) == (False, True)
    config = pods.config()
    container_id = pods.running(pod=(pods.cri.run(config, handler="old"), config))
    assert words(pods, container_id, "id", "-u") == "0"
    config = pods.config()
    mapped()(config)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.run(config, handler="old")
    assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
    assert "reports no user namespaces" in (caught.value.details() or "")


async def test_the_probe_tells_what_a_file_system_can(tmp_path: Path) -> None:
    lower, scratch = tmp_path / "lower", tmp_path / "probe"
    lower.mkdir()
    with ThreadPoolExecutor(1) as threads:
        driver, foreign = (
            OverlayDriver(place, Storage(), threads) for place in (lower, Path("/etc"))
        )
        assert await probe_user_namespaces(driver.userns_problem, scratch) == ""
        of_overlay = await probe_user_namespaces(foreign.userns_problem, scratch)
    assert "/etc does not support id mapping" in of_overlay
    assert not scratch.exists()


BAD: dict[str, tuple[Callable[[api.PodSandboxConfig], None], str]] = {
    "no mapping": (
        lambda c: setattr(c.linux.security_context.namespace_options.userns_options, "mode", 0),
        "exactly one",
    ),
    "length 0": (mapped(length=0), "length 0"),
    "root of the node": (mapped(host=0), "root"),
    "too far": (mapped(host=4294967290), "exceed"),
    "processes of the node": (mapped(pid=api.NODE), "pid"),
    "IPC of the node": (mapped(ipc=api.NODE), "ipc"),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_refused(pods: Pods, case: str) -> None:
    change, text = BAD[case]
    with pytest.raises(grpc.RpcError) as caught:
        pods.sandbox(change)
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert text in (caught.value.details() or "")


def test_a_container_that_disagrees_with_its_pod_is_refused(pods: Pods, tmp_path: Path) -> None:
    def other(config: api.ContainerConfig) -> None:
        options = config.linux.security_context.namespace_options.userns_options
        options.mode = api.POD
        options.uids.append(mapping(HOST + 1))
        options.gids.append(mapping(HOST + 1))

    def outsider(config: api.ContainerConfig) -> None:
        config.linux.security_context.run_as_user.value = LENGTH

    own, plain = pods.sandbox(mapped()), pods.sandbox()
    for sandbox, change, text in (
        (own, other, "differs from the pod's"),
        (plain, other, "its pod has none"),
        (plain, volume(tmp_path), "need a pod with a user namespace"),
        (own, volume(tmp_path, HOST + 1), "differ from those of the pod"),
        (own, volume(tmp_path, propagation=api.PROPAGATION_BIDIRECTIONAL), "propagate"),
        (own, outsider, "outside the 65536"),
    ):
        config = container("refused", ["true"])
        change(config)
        with pytest.raises(grpc.RpcError) as caught:
            pods.cri.create(sandbox[0], config, sandbox[1])
        assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
        assert text in (caught.value.details() or "")
    assert pods.cri.containers() == []
