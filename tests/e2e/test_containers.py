# SPDX-License-Identifier: Apache-2.0
"""Containers of every kind: handlers, users, mounts, signals, logs, statistics, shared PIDs."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import grpc
import pytest

from tests.support.cri_client import DEBIAN, api, container
from tests.support.pods import Pods
from tests.support.waiting import until

pytestmark = pytest.mark.root

HTTPD = "registry.k8s.io/e2e-test-images/httpd:2.4.39-4"


def test_runc_is_a_handler_like_crun(pods: Pods) -> None:
    config = pods.config()
    sandbox = pods.cri.run(config, handler="runc")
    container_id = pods.running(
        "sh", "-c", "trap 'exit 5' TERM; while :; do sleep 0.1; done", pod=(sandbox, config)
    )
    assert pods.cri.exec(container_id, "echo", "runc").stdout == b"runc\n"
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.exec(container_id, "sleep", "100", timeout=1)
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    pods.cri.stop(container_id, 20)
    assert pods.cri.status(container_id).exit_code == 5
    assert pods.cri.pod_status(sandbox).runtime_handler == "runc"
    assert Path(f"/run/criagent/runtime/runc/{container_id}").exists()
    pods.cri.remove(container_id)


@pytest.mark.parametrize(
    ("script", "code", "reason"),
    [
        ("exit 0", 0, "Completed"),
        ("exit 3", 3, "Error"),
        ("kill -9 $$", 137, "Error"),
    ],
)
def test_exit_codes_reasons_and_times(pods: Pods, script: str, code: int, reason: str) -> None:
    container_id = pods.running("sh", "-c", f"sh -c '{script}'; exit $?")
    until(lambda: pods.cri.status(container_id).state == api.CONTAINER_EXITED, "the exit")
    status = pods.cri.status(container_id)
    assert (status.exit_code, status.reason) == (code, reason)
    assert status.created_at < status.started_at < status.finished_at


def test_a_shared_pid_namespace_shows_no_file_of_the_host(pods: Pods) -> None:
    def shared(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.pid = api.POD
        config.linux.security_context.privileged = True

    def joins(config: api.ContainerConfig) -> None:
        config.linux.security_context.namespace_options.pid = api.POD
        config.linux.security_context.privileged = True

    sandbox = pods.sandbox(shared)
    container_id = pods.running(pod=sandbox, change=joins)
    other = pods.running("sleep", "4242", pod=sandbox, change=joins)
    listed = pods.cri.exec(container_id, "ls", "/proc/1/root/").stdout.split()
    assert set(listed) <= {b"catatonit", b"proc", b"dev"}
    assert b"4242" in pods.cri.exec(container_id, "ps", "-o", "args").stdout
    holder = pods.cri.exec(container_id, "cat", "/proc/1/status").stdout.decode()
    assert "Uid:\t65535" in holder
    assert "CapBnd:\t0000000000000000" in holder
    pods.cri.stop(other)


def test_the_death_of_a_holder_makes_the_sandbox_not_ready(pods: Pods) -> None:
    def shared(config: api.PodSandboxConfig) -> None:
        config.linux.security_context.namespace_options.pid = api.POD

    sandbox, _ = pods.sandbox(shared)
    pid = Path(f"/run/criagent/sandboxes/{sandbox}/holder/pidfile").read_text()
    os.kill(int(pid), 9)
    until(lambda: pods.cri.pod_status(sandbox).state == api.SANDBOX_NOTREADY, "NOTREADY")


def test_mounts_propagate_as_asked(pods: Pods, tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared], check=True)
    subprocess.run(["mount", "--make-shared", shared], check=True)

    def mounts(config: api.ContainerConfig) -> None:
        for name, mode in (("private", 0), ("slave", 1), ("both", 2)):
            config.mounts.add(container_path=f"/{name}", host_path=str(shared), propagation=mode)
        config.linux.security_context.privileged = True

    try:
        sandbox = pods.sandbox(lambda c: setattr(c.linux.security_context, "privileged", True))
        container_id = pods.running(pod=sandbox, change=mounts)
        (shared / "sub").mkdir()
        subprocess.run(["mount", "-t", "tmpfs", "tmpfs", shared / "sub"], check=True)
        (shared / "sub/file").write_text("x")
        seen = {
            name: pods.cri.exec(container_id, "ls", f"/{name}/sub").stdout
            for name in ("private", "slave", "both")
        }
        assert seen == {"private": b"", "slave": b"file\n", "both": b"file\n"}
        subprocess.run(["umount", shared / "sub"], check=True)
        pods.cri.exec(container_id, "mkdir", "/both/up")
        assert pods.cri.exec(container_id, "mount", "-t", "tmpfs", "t", "/both/up").exit_code == 0
        assert subprocess.run(["mountpoint", "-q", shared / "up"], check=False).returncode == 0
        pods.cri.exec(container_id, "umount", "/both/up")
        assert [m.propagation for m in pods.cri.status(container_id).mounts] == [0, 1, 2]
        pods.cri.stop_pod(sandbox[0])
        pods.cri.remove_pod(sandbox[0])
    finally:
        subprocess.run(["umount", "-R", shared], check=True)


def test_a_missing_host_directory_is_made_and_symlinks_are_followed(
    pods: Pods, tmp_path: Path
) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "real/file").write_text("found")
    (tmp_path / "link").symlink_to("real")

    def mounts(config: api.ContainerConfig) -> None:
        config.mounts.add(container_path="/made", host_path=str(tmp_path / "new/deep"))
        config.mounts.add(container_path="/link", host_path=str(tmp_path / "link"), readonly=True)

    container_id = pods.running(change=mounts)
    assert pods.cri.exec(container_id, "cat", "/link/file").stdout == b"found"
    assert pods.cri.exec(container_id, "touch", "/link/x").exit_code != 0
    assert pods.cri.exec(container_id, "touch", "/made/x").exit_code == 0
    assert (tmp_path / "new/deep/x").exists()


def test_the_rich_image_arrives_as_it_was_made(pods: Pods) -> None:
    container_id = pods.running(change=lambda c: setattr(c.image, "image", DEBIAN))
    script = """
    ls /srv/data /var/lib/app; stat -c '%a %u' /opt/owned; cat /opt/owned/added
    stat -c %h /srv/linked /srv/data/original; bash /usr/bin/through-link
    stat -c '%a' /srv/setuid; getfattr --only-values -n user.colour /srv/attributed; echo
    stat -c '%s' /srv/sparse; stat -c '%F %t:%T' /srv/null
    """
    found = pods.cri.exec(container_id, "bash", "-c", script).stdout.decode()
    assert found.split("\n")[:5] == ["/srv/data:", "original", "original-too", "", "/var/lib/app:"]
    assert found.split("\n")[5:] == [
        "new",
        "750 1234",
        "below an implied directory",
        "2",
        "2",
        "through",
        "4755",
        "blue",
        "1048576",
        "character special file 1:3",
        "",
    ]


def test_an_image_in_use_keeps_its_layers(pods: Pods) -> None:
    pods.cri.pull(HTTPD)
    sandbox = pods.sandbox()
    container_id = pods.running(pod=sandbox, change=lambda c: setattr(c.image, "image", HTTPD))
    pods.cri.remove_image(HTTPD)
    assert pods.cri.exec(container_id, "cat", "/www/index.html").stdout.startswith(b"<html>")
    assert pods.cri.status(container_id).image_id.startswith("sha256:")
    pods.cri.pull(HTTPD)  # and whole again: an export needs the blobs that went meanwhile
    command = ["python3", "-m", "criagent", "image", "export", "-", HTTPD]
    assert subprocess.run(command, capture_output=True, check=True).stdout
    pods.cri.remove_pod(sandbox[0])
    pods.cri.remove_image(HTTPD)


def test_statistics_tell_what_the_kernel_knows(pods: Pods) -> None:
    container_id = pods.running("sh", "-c", "head -c 3000000 /dev/zero > /big; sync; sleep 1000")

    def stats() -> api.ContainerStats:
        request = api.ContainerStatsRequest(container_id=container_id)
        return pods.cri.runtime.ContainerStats(request).stats

    until(lambda: stats().writable_layer.used_bytes.value > 2_900_000, "the count", 40)
    found = stats()
    assert found.attributes.id == container_id
    assert found.cpu.usage_core_nano_seconds.value > 0
    assert found.cpu.HasField("psi")
    if not Path("/sys/fs/cgroup/cgroup.controllers").read_text().count("memory"):
        assert not found.memory.HasField("usage_bytes")


def test_a_privileged_container_needs_a_privileged_pod_and_sees_devices(pods: Pods) -> None:
    def privileged(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
        config.linux.security_context.privileged = True

    container_id = pods.running(pod=pods.sandbox(privileged), change=privileged)
    assert b"fuse" in pods.cri.exec(container_id, "ls", "/dev").stdout
    plain = pods.running()
    assert b"fuse" not in pods.cri.exec(plain, "ls", "/dev").stdout
    status = pods.cri.exec(container_id, "cat", "/proc/self/status").stdout
    assert b"Seccomp:\t0" in status


def test_stdin_once_and_tty_are_created(pods: Pods) -> None:
    def tty(config: api.ContainerConfig) -> None:
        config.tty = config.stdin = True

    container_id = pods.running("sh", "-c", "tty; sleep 100", change=tty)
    until(lambda: "/dev/pts/0" in pods.log(container_id), "the name of the terminal")


def test_image_archives_go_out_and_come_back(pods: Pods) -> None:
    criagent = ["python3", "-m", "criagent", "image"]
    pods.cri.pull(HTTPD)
    archive = subprocess.run([*criagent, "export", "-", HTTPD], capture_output=True, check=True)
    before = {i.id: sorted(i.repo_tags) for i in pods.cri.images()}
    pods.cri.remove_image(HTTPD)
    done = subprocess.run(
        [*criagent, "import", "-"], input=archive.stdout, capture_output=True, check=True
    )
    assert done.stdout.decode().strip() == HTTPD
    assert {i.id: sorted(i.repo_tags) for i in pods.cri.images()} == before
    sandbox = pods.sandbox()
    container_id = pods.running(
        "cat", "/www/index.html", pod=sandbox, change=lambda c: setattr(c.image, "image", HTTPD)
    )
    until(lambda: "It works!" in pods.log(container_id), "its output")
    pods.cri.remove_pod(sandbox[0])
    pods.cri.remove_image(HTTPD)


def test_a_container_of_a_stopped_pod_cannot_start(pods: Pods) -> None:
    sandbox, config = pods.sandbox()
    container_id = pods.cri.create(sandbox, container("late", ["sleep", "1"]), config)
    pods.cri.stop_pod(sandbox)
    with pytest.raises(grpc.RpcError) as caught:
        pods.cri.start(container_id)
    assert caught.value.code() is grpc.StatusCode.FAILED_PRECONDITION


def test_sysctls_are_set_in_either_spelling(pods: Pods) -> None:
    def sysctls(config: api.PodSandboxConfig) -> None:
        config.linux.sysctls["net.ipv4.tcp_syncookies"] = "0"
        config.linux.sysctls["net/ipv4/ip_unprivileged_port_start"] = "1000"
        config.linux.sysctls["kernel.msgmax"] = "4096"

    container_id = pods.running(pod=pods.sandbox(sysctls))
    names = ("net/ipv4/tcp_syncookies", "net/ipv4/ip_unprivileged_port_start", "kernel/msgmax")
    found = pods.cri.exec(container_id, "cat", *(f"/proc/sys/{name}" for name in names)).stdout
    assert found.split() == [b"0", b"1000", b"4096"]
