# SPDX-License-Identifier: Apache-2.0
"""Plugins of NRI's own repository: each does against this agent what its README says."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from tests.support import agent
from tests.support.cri_client import Cri, api
from tests.support.pods import Pods
from tests.support.waiting import until

PROGRAMS = Path("/opt/kubernetes")
RESCTRL = Path("/sys/fs/resctrl")
MANY = 300


class Running:
    """A plugin's process and its output."""

    def __init__(self, process: subprocess.Popen[bytes], log: Path) -> None:
        self.process = process
        self._log = log

    @property
    def output(self) -> str:
        return self._log.read_text(errors="replace")

    def says(self, text: str) -> None:
        until(lambda: text in self.output, f"{text!r} in {self.output[-2000:]}")


@contextmanager
def plugin(name: str, *arguments: str, log: Path, index: str = "10") -> Iterator[Running]:
    """The plugin, registered."""
    seen = agent.LOG.read_text().count("nri_plugin_registered")
    with log.open("wb") as output:
        process = subprocess.Popen(
            [PROGRAMS / name, *(["-idx", index] if index else []), *arguments],
            stdout=output,
            stderr=output,
        )
    running = Running(process, log)
    try:
        until(
            lambda: (
                agent.LOG.read_text().count("nri_plugin_registered") > seen
                or process.poll() is not None
            ),
            "the plugin's registration",
        )
        assert process.poll() is None, running.output
        yield running
    finally:
        process.kill()
        process.wait()


def annotated(pods: Pods, **annotations: object) -> tuple[str, api.PodSandboxConfig]:
    """A pod with annotations of the noderesource.dev domain, as JSON, which is YAML, too."""
    texts = {
        f"{key.replace('_', '-')}.noderesource.dev/pod": text
        if isinstance(text, str)
        else json.dumps(text)
        for key, text in annotations.items()
    }
    return pods.sandbox(lambda pod: pod.annotations.update(texts))


def specification(container_id: str) -> dict[str, object]:
    found: dict[str, object] = json.loads(
        Path(f"/run/criagent/containers/{container_id}/config.json").read_text()
    )
    return found


def test_template(pods: Pods, tmp_path: Path) -> None:
    with plugin("template", log=tmp_path / "log") as running:
        sandbox, config = pods.sandbox()
        container_id = pods.running(pod=(sandbox, config))
        pods.cri.stop(container_id)
        pods.cri.remove(container_id)
        pods.cri.remove_pod(sandbox)
        name = f"test/{config.metadata.name}"
        for text in (
            "Connected to criagent/",
            "Synchronized state with the runtime (0 pods, 0 containers)",
            f"Started pod {name}",
            f"Creating container {name}/",
            f"Created container {name}/",
            f"Starting container {name}/",
            f"Started container {name}/",
            f"Stopped container {name}/",
            f"Removed container {name}/",
            f"Stopped pod {name}",
            f"Removed pod {name}",
        ):
            running.says(text)
        agent.stop()
        running.says("Runtime shutting down...")
    agent.start().close()


def test_logger(pods: Pods, tmp_path: Path) -> None:
    """It subscribes to everything, and sets a variable and an annotation of each container."""
    words = ["-events", "all", "-add-env", "BY_LOGGER", "-add-annotation", "by-logger"]
    with plugin("logger", *words, log=tmp_path / "log") as running:
        container_id = pods.running()
        shown = pods.cri.exec(container_id, "sh", "-c", "echo $BY_LOGGER").stdout.decode().strip()
        assert shown == f"logger-pid-{running.process.pid}"
        assert specification(container_id)["annotations"] == {"by-logger": shown}
        pods.cri.runtime.UpdateContainerResources(
            api.UpdateContainerResourcesRequest(container_id=container_id)
        )
        for call in ("ValidateContainerAdjustment", "UpdateContainer", "PostUpdateContainer"):
            running.says(f"{call}: ")
        running.says(f"by-logger: {shown}")


def test_logger_as_a_program_that_the_agent_starts(tmp_path: Path) -> None:
    folder, config = Path("/opt/nri/plugins"), Path("/etc/nri/conf.d")
    agent.stop()
    for path in (folder, config):
        path.mkdir(parents=True)
    (folder / "05-logger").symlink_to(PROGRAMS / "logger")
    text = f"logFile: {tmp_path}/log\nevents: [pod]\naddEnv: STARTED\n"
    (config / "logger.conf").write_text(text)
    try:
        cri = agent.start()
        log = tmp_path / "log"
        sandbox, _ = Pods(cri, tmp_path, "program").sandbox()
        until(lambda: f"id: {sandbox}" in log.read_text(), "the pod in the plugin's log")
        cri.remove_pod(sandbox)
        cri.close()
        agent.stop()
        assert not [p for p in Path("/proc").glob("[0-9]*/exe") if _is(p, PROGRAMS / "logger")]
    finally:
        (folder / "05-logger").unlink()
        (config / "logger.conf").unlink()
        for path in (folder, folder.parent, config, config.parent):
            path.rmdir()
        if not agent.running():
            agent.start().close()


def _is(link: Path, program: Path) -> bool:
    try:
        return link.samefile(program)
    except OSError:
        return False


def test_device_injector(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("injected")
    devices = [{"path": "/dev/zilch", "type": "c", "major": 1, "minor": 3, "file_mode": 0o666}]
    mounts = [
        {"source": f"{tmp_path}/file", "destination": "/file", "type": "bind", "options": ["bind"]}
    ]
    policy = {"policy": "SCHED_BATCH", "nice": 5}
    priority = {"class": "IOPRIO_CLASS_BE", "priority": 6}
    with plugin("device-injector", log=tmp_path / "log"):
        pod = annotated(
            pods,
            devices=devices,
            mounts=mounts,
            scheduling_policy=policy,
            io_priority=priority,
            sysctl={"net.ipv4.ip_default_ttl": "61"},
        )
        container_id = pods.running(pod=pod)
    shown = cri.exec(container_id, "sh", "-c", "cat /file; ls -l /dev/zilch; echo > /dev/zilch")
    assert shown.stdout.startswith(b"injected")
    assert b"1,   3" in shown.stdout
    assert not shown.exit_code
    pid = _init(container_id)
    assert os.sched_getscheduler(pid) == os.SCHED_BATCH
    shown = cri.exec(container_id, "cat", "/proc/sys/net/ipv4/ip_default_ttl")
    assert shown.stdout == b"61\n"


def _init(container_id: str) -> int:
    return int(Path(f"/run/criagent/containers/{container_id}/pidfile").read_text())


def test_device_injector_with_a_cdi_device(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    folder = Path("/etc/cdi")
    folder.mkdir(exist_ok=True)
    edits = {"env": ["FROM_CDI=yes"], "deviceNodes": [{"path": "/dev/full"}]}
    document = {
        "cdiVersion": "0.6.0",
        "kind": "example.com/nri",
        "devices": [{"name": "one", "containerEdits": edits}],
    }
    (folder / "nri.json").write_text(json.dumps(document))
    try:
        with plugin("device-injector", log=tmp_path / "log"):
            container_id = pods.running(pod=annotated(pods, cdi_devices=["example.com/nri=one"]))
            assert cri.exec(container_id, "sh", "-c", "echo $FROM_CDI").stdout == b"yes\n"
            with pytest.raises(grpc.RpcError, match=r"example\.com/nri=two"):
                pods.running(pod=annotated(pods, cdi_devices=["example.com/nri=two"]))
    finally:
        (folder / "nri.json").unlink()
        folder.rmdir()


def test_hook_injector(pods: Pods, tmp_path: Path) -> None:
    """It reads hooks of OCI's directory, and injects those whose annotation a pod has."""
    folder = Path("/usr/share/containers/oci/hooks.d")
    folder.mkdir(parents=True)
    hook = tmp_path / "hook"
    hook.write_text(f"#!/bin/sh\ncat > {tmp_path}/state\n")
    hook.chmod(0o755)
    document = {
        "version": "1.0.0",
        "hook": {"path": str(hook), "args": ["hook"]},
        "when": {"annotations": {"^hook-me$": "yes"}},
        "stages": ["createRuntime"],
    }
    (folder / "test.json").write_text(json.dumps(document))
    try:
        with plugin("hook-injector", "-disableWatch", log=tmp_path / "log"):
            pods.running()
            assert not (tmp_path / "state").exists()
            container_id = pods.running(
                pod=pods.sandbox(lambda pod: pod.annotations.update({"hook-me": "yes"}))
            )
            assert json.loads((tmp_path / "state").read_text())["id"] == container_id
    finally:
        (folder / "test.json").unlink()
        folder.rmdir()
        _remove_empty(folder.parent, Path("/usr/share/containers"))


def _remove_empty(*folders: Path) -> None:
    for folder in folders:
        if not any(folder.iterdir()):
            folder.rmdir()


def test_ulimit_adjuster(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    limits = json.dumps([{"type": "nofile", "soft": 123, "hard": 456}])
    with plugin("ulimit-adjuster", log=tmp_path / "log"):
        sandbox, config = pods.sandbox(
            lambda pod: pod.annotations.update(
                {"ulimits.noderesource.dev/container.limited": limits}
            )
        )
        container_id = pods.running(
            pod=(sandbox, config), change=lambda one: setattr(one.metadata, "name", "limited")
        )
    assert cri.exec(container_id, "sh", "-c", "ulimit -n; ulimit -Hn").stdout == b"123\n456\n"


def test_writable_cgroups(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    """It replaces a mount: in one answer it removes the old one and adds another."""
    mounts = Path("/proc/1/mountinfo")
    table = tmp_path / "mountinfo"
    table.write_text("1 0 0:1 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n")
    words = ["-host-mount-file", str(table)]
    with plugin("writable-cgroups", *words, log=tmp_path / "log"):
        container_id = pods.running(pod=annotated(pods, writable_cgroups="true"))
    shown = cri.exec(container_id, "cat", str(mounts)).stdout.decode()
    (line,) = [line for line in shown.splitlines() if " /sys/fs/cgroup " in line]
    assert line.split()[5].startswith("rw,")


def test_rdt(pods: Pods, tmp_path: Path) -> None:
    """A class of service reaches the container, or is refused where the node has no resctrl."""
    pod = pods.sandbox(
        lambda one: one.annotations.update({"closid.rdt.noderesource.dev/container.main": "gold"})
    )
    with plugin("rdt", log=tmp_path / "log") as running:
        pods.running(pod=pod, change=lambda one: setattr(one.metadata, "name", "other"))
        if RESCTRL.exists():
            container_id = pods.running(
                pod=pod, change=lambda one: setattr(one.metadata, "name", "main")
            )
            linux = specification(container_id)["linux"]
            assert isinstance(linux, dict)
            assert linux["intelRdt"]["closID"] == "gold"
        else:
            print(f"the node has no {RESCTRL}: its refusal is tested")
            with pytest.raises(grpc.RpcError, match="sets Intel RDT") as refusal:
                pods.running(pod=pod, change=lambda one: setattr(one.metadata, "name", "main"))
            assert refusal.value.code() is grpc.StatusCode.UNIMPLEMENTED
        running.says("Adjust closid")


def test_network_logger(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    with plugin("network-logger", log=tmp_path / "log") as running:
        sandbox, config = pods.sandbox()
        address = cri.pod_status(sandbox).network.ip
        pin = f"/run/criagent/sandboxes/{sandbox}/ns/net"
        running.says(f"Started pod test/{config.metadata.name}: namespace={pin} ips=[{address} ")
        cri.remove_pod(sandbox)
        running.says(f"Removed pod test/{config.metadata.name}: ips=[{address} ")


def test_network_device_injector(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    """It moves a link of the node into a pod, and back when the pod stops."""
    subprocess.run(["ip", "link", "add", "given0", "type", "veth", "peer", "given1"], check=True)
    try:
        with plugin("network-device-injector", log=tmp_path / "log"):
            wanted = json.dumps([{"name": "given0", "new_name": "net9"}])
            sandbox, config = pods.sandbox(
                lambda pod: pod.annotations.update({"netdevice.noderesource.dev/pod": wanted})
            )
            container_id = pods.running(pod=(sandbox, config))
            assert b"net9" in cri.exec(container_id, "ls", "/sys/class/net").stdout
            cri.stop_pod(sandbox)
            assert Path("/sys/class/net/given0").exists()
    finally:
        subprocess.run(["ip", "link", "del", "given1"], check=True)


def test_differ(pods: Pods, tmp_path: Path) -> None:
    """Two of its instances show what a plugin between them changed."""
    with plugin("differ", "-indices", "10,90", log=tmp_path / "log", index="") as running:
        with plugin("logger", "-add-env", "BETWEEN", log=tmp_path / "logger", index="50"):
            pods.running()
        running.says("BETWEEN=logger-pid-")


def test_v010_adapter(cri: Cri, pods: Pods, tmp_path: Path) -> None:
    """It calls plugins of NRI 0.1, which are programs, at starts and ends."""
    bin_folder, config = Path("/opt/nri/bin"), Path("/etc/nri")
    for folder in (bin_folder, config):
        folder.mkdir(parents=True)
    old = bin_folder / "old"
    old.write_text(f'#!/bin/sh\ncat >> {tmp_path}/calls\necho \'{{"version": "0.1"}}\'\n')
    old.chmod(0o755)
    (config / "conf.json").write_text('{"version": "0.1", "plugins": [{"type": "old"}]}')
    try:
        with plugin("v010-adapter", log=tmp_path / "log"):
            sandbox, pod = pods.sandbox()
            container_id = pods.running(pod=(sandbox, pod))
            cri.stop(container_id)
            cri.stop_pod(sandbox)
        decoder, text, calls = json.JSONDecoder(), (tmp_path / "calls").read_text(), []
        while text:
            call, end = decoder.raw_decode(text)
            calls.append((call["state"], call["id"]))
            text = text[end:]
        assert calls == [
            ("create", sandbox),
            ("create", container_id),
            ("delete", container_id),
            ("delete", sandbox),
        ]
    finally:
        old.unlink()
        (config / "conf.json").unlink()
        for folder in (bin_folder, bin_folder.parent, config):
            folder.rmdir()


def test_three_hundred_containers_at_once(pods: Pods, tmp_path: Path) -> None:
    sandbox, config = pods.sandbox()
    for _ in range(MANY):
        pods.running("sleep", "100000", pod=(sandbox, config))
    with plugin("template", log=tmp_path / "log") as running:
        running.says(f"Synchronized state with the runtime (1 pods, {MANY} containers)")
        pods.running(pod=(sandbox, config))
        running.says("Creating container")


@pytest.mark.parametrize("number", [signal.SIGSTOP, signal.SIGKILL])
def test_a_plugin_that_stops_or_dies(pods: Pods, tmp_path: Path, number: int) -> None:
    with plugin("logger", "-events", "all", log=tmp_path / "log") as running:
        pods.running()
        running.process.send_signal(number)
        pods.running()
        until(lambda: "nri_plugin_gone" in agent.LOG.read_text(), "the plugin to be let go")
    with plugin("logger", "-events", "all", log=tmp_path / "again") as running:
        pods.running()
        running.says("PostStartContainer")
