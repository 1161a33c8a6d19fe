# SPDX-License-Identifier: Apache-2.0
"""The keys of a handler, each with real containers of crun or runc."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api, container
from tests.support.pods import Pods
from tests.support.refusals import refused

pytestmark = pytest.mark.root

Configured = Callable[[str], Pods]


@pytest.fixture
def configured(pods: Pods) -> Iterator[Configured]:
    """Restarts the agent with a configuration; afterwards it has the usual one."""

    def restart(text: str) -> Pods:
        agent.stop()
        pods.cri.close()
        pods.cri = agent.start(text)
        return pods

    yield restart
    for sandbox in pods.cri.pods():
        pods.cri.remove_pod(sandbox.id)
    agent.stop()
    for name in ("slow", "mine"):
        shutil.rmtree(f"/run/criagent/runtime/{name}", ignore_errors=True)
    agent.start().close()


def privileged(config: api.PodSandboxConfig | api.ContainerConfig) -> None:
    config.linux.security_context.privileged = True


def oci(container_id: str) -> Any:
    file = Path("/run/criagent/containers", container_id, "config.json")
    return json.loads(file.read_text())


def recording(program: Path, record: Path, runtime: str, *before: str) -> None:
    """A program that notes its arguments and its cgroup, and is `runtime`."""
    lines = [f'echo "$(sed -n s/^0:://p /proc/self/cgroup) $*" >> {record}', *before]
    program.write_text("\n".join(["#!/bin/sh", *lines, f'exec {runtime} "$@"\n']))
    program.chmod(0o755)


RUNTIMES = pytest.mark.parametrize(
    ("kind", "path"), [("crun", "/usr/bin/crun"), ("runc", "/usr/sbin/runc")]
)


@RUNTIMES
def test_arguments_come_before_every_subcommand(
    configured: Configured, tmp_path: Path, kind: str, path: str
) -> None:
    program, record = tmp_path / "program", tmp_path / "record"
    recording(program, record, path)
    given = '["--debug"]' if kind == "runc" else '["--log-level", "error"]'
    pods = configured(
        f'[runtime.handlers.{kind}]\npath = "{program}"\ntype = "{kind}"\narguments = {given}\n'
    )
    config = pods.config()
    container_id = pods.running(pod=(pods.cri.run(config, handler=kind), config))
    assert pods.cri.exec(container_id, "true").exit_code == 0
    pods.cri.remove(container_id)
    shown = " ".join(json.loads(given))
    calls = [line.split(" ", 1)[1] for line in record.read_text().splitlines()]
    calls = [call for call in calls if container_id in call]
    assert [call for call in calls if not call.startswith(f"{shown} --root=")] == []
    for verb in ("create", "start", "exec", "delete"):
        assert any(f" {verb} " in call for call in calls), verb


@RUNTIMES
@pytest.mark.parametrize("place", ["agent", "container"])
def test_the_container_pays_for_the_program_of_an_exec(
    configured: Configured, tmp_path: Path, kind: str, path: str, place: str
) -> None:
    program, record = tmp_path / "program", tmp_path / "record"
    recording(program, record, path)
    pods = configured(
        f'[runtime.handlers.{kind}]\npath = "{program}"\ntype = "{kind}"\nexec_cgroup = "{place}"\n'
    )
    config = pods.config()
    container_id = pods.running(pod=(pods.cri.run(config, handler=kind), config))
    answer = pods.cri.exec(container_id, "sh", "-c", "echo said; exit 3")
    assert (answer.stdout, answer.exit_code) == (b"said\n", 3)
    (cgroup,) = {
        line.split(" ", 1)[0] for line in record.read_text().splitlines() if " exec " in line
    }
    assert (container_id in cgroup) == (place == "container")
    request = api.ExecSyncRequest(container_id=container_id, cmd=["sleep", "777"], timeout=1)
    refused(
        lambda: pods.cri.runtime.ExecSync(request, timeout=60),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "timed out after 1 s",
    )
    assert b"sleep 777" not in pods.cri.exec(container_id, "ps").stdout


def test_a_create_that_hangs_is_undone(configured: Configured, tmp_path: Path) -> None:
    program, record = tmp_path / "program", tmp_path / "record"
    hang = 'case "$*" in *" create "*) exec sleep 4321;; esac'
    recording(program, record, "/usr/bin/crun", hang)
    pods = configured(f'[runtime.handlers.slow]\npath = "{program}"\ncreate_timeout_s = 30\n')
    config = pods.config()
    sandbox = pods.cri.run(config, handler="slow")
    refused(
        lambda: pods.cri.create(sandbox, container("c", ("true",)), config),
        grpc.StatusCode.DEADLINE_EXCEEDED,
        "slow create took over 30 s; if the program only is slow, raise "
        "runtime.handlers.slow.create_timeout_s",
    )
    assert list(pods.cri.containers()) == []
    sleeping = [
        pid
        for pid in os.listdir("/proc")
        if pid.isdigit() and b"4321" in Path("/proc", pid, "cmdline").read_bytes()
    ]
    assert sleeping == []


def test_a_handler_gets_the_annotations_that_it_lists(configured: Configured) -> None:
    pods = configured(
        '[runtime.handlers.crun]\npod_annotations = ["org.example/*"]\n'
        'container_annotations = ["org.example/mine"]\n'
    )
    given = {"org.example/a": "1", "org.example/mine": "pod", "run.oci.hooks.stdout": "/x"}
    sandbox, config = pods.sandbox(lambda config: config.annotations.update(given))

    def annotated(config: api.ContainerConfig) -> None:
        config.annotations.update({"org.example/mine": "container", "org.example/b": "2"})

    container_id = pods.running(change=annotated, pod=(sandbox, config))
    wanted = {"org.example/a": "1", "org.example/mine": "container"}
    assert oci(container_id).get("annotations") == wanted
    configured("")
    assert "annotations" not in oci(pods.running(change=annotated, pod=(sandbox, config)))


@pytest.mark.parametrize("every", [False, True])
def test_devices_that_privileged_containers_may_open(configured: Configured, every: bool) -> None:
    pods = configured(
        "[runtime.handlers.crun]\nprivileged_without_host_devices = true\n"
        f"privileged_without_host_devices_all_devices_allowed = {str(every).lower()}\n"
    )
    container_id = pods.running(pod=pods.sandbox(privileged), change=privileged)
    rules = oci(container_id)["linux"]["resources"]["devices"]
    assert rules[0] == {"allow": every, "access": "rwm"}
    names = pods.cri.exec(container_id, "ls", "/dev").stdout.split()
    assert not {b"fuse", b"loop-control", b"kmsg"} & set(names)
    made = pods.cri.exec(container_id, "sh", "-c", "mknod /dev/kmsg c 1 11 && : < /dev/kmsg")
    assert (made.exit_code == 0) == every, made.stderr


def test_a_program_of_another_type_is_refused_by_name(configured: Configured) -> None:
    pods = configured('[runtime.handlers.mine]\npath = "/usr/sbin/runc"\n')
    refused(
        lambda: pods.cri.run(pods.config(), handler="mine"),
        grpc.StatusCode.FAILED_PRECONDITION,
        '/usr/sbin/runc is runc, and not of the type crun; set type = "runc" for the handler',
    )
    assert list(pods.cri.pods()) == []


def network(name: str, subnet: str) -> str:
    ipam = {"type": "host-local", "ranges": [[{"subnet": subnet}]], "dataDir": "/run/cni-keys"}
    plugin = {"type": "bridge", "bridge": name, "isGateway": True, "ipam": ipam}
    return json.dumps({"cniVersion": "1.0.0", "name": name, "plugins": [plugin]})


def test_pods_of_a_handler_have_its_network(configured: Configured, tmp_path: Path) -> None:
    for name, subnet in (("usual", "10.81.0.0/24"), ("own", "10.82.0.0/24")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "10.conflist").write_text(network(f"cni-{name}", subnet))
    common = f'[network]\nbackend = "cni"\ncni_conf_dir = "{tmp_path}/usual"\n'
    pods = configured(f'{common}[runtime.handlers.runc]\ncni_conf_dir = "{tmp_path}/own"\n')
    made = {handler: pods.cri.run(pods.config(), handler=handler) for handler in ("crun", "runc")}

    def address(cri: Cri, sandbox: str) -> str:
        return str(cri.pod_status(sandbox).network.ip)

    assert address(pods.cri, made["crun"]).startswith("10.81.0.")
    assert address(pods.cri, made["runc"]).startswith("10.82.0.")
    configured(common)  # the key is gone: the pod is still given back to its network
    of_runc = address(pods.cri, made["runc"])
    kept = Path("/run/cni-keys/cni-own", of_runc)
    assert kept.exists()
    pods.cri.remove_pod(made["runc"])
    assert not kept.exists()
    pods.cri.remove_pod(made["crun"])
    for name in ("cni-usual", "cni-own"):
        os.system(f"ip link del {name}")
