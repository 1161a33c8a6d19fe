"""The CNI network with plugins made of shell scripts: calls, failures, what a bad one may do."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import AgentError, CorruptError, InvalidRequestError, TimedOutError
from criagent.model.common import Protocol
from criagent.model.sandbox import (
    DnsConfig,
    PortMapping,
    Sandbox,
    SandboxId,
    SandboxMetadata,
    SandboxSpec,
)
from criagent.net.cni.network import CniConfig, CniNetwork
from criagent.net.pod_network import PodNetwork
from criagent.store.db import Database
from criagent.store.settings import SettingStore

NETNS = Path("/proc/self/ns/net")  # what a pinned namespace looks like
RESULT = '{"cniVersion":"1.0.0","ips":[{"address":"10.1.0.2/16"}]}'
SCRIPT = """#!/bin/sh
calls={log}
kind=${{0##*/}}
echo "$CNI_COMMAND $kind" >> $calls/order
cat > $calls/$CNI_COMMAND-$kind.json
env > $calls/$CNI_COMMAND-$kind.env
case $CNI_COMMAND in
ADD) {add} ;;
*) {other} ;;
esac
"""


class Node:
    """A directory of configurations, one of plugins, and what the plugins noted."""

    def __init__(self, root: Path) -> None:
        self.conf, self.bin, self.log = root / "net.d", root / "bin", root / "log"
        self.cache = root / "run" / "cni"
        for directory in (self.conf, self.bin, self.log):
            directory.mkdir()
        self.executor = ThreadPoolExecutor(2)
        self.database = Database.open(root / "state.db")

    def network(self, timeout_s: float = 30) -> CniNetwork:
        config = CniConfig(
            conf_dir=self.conf, bin_dirs=(self.bin,), timeout_s=timeout_s, cache_dir=self.cache
        )
        return CniNetwork(config, self.executor, SettingStore(self.database))

    def plugin(self, kind: str, add: str = f"echo '{RESULT}'", other: str = ":") -> None:
        program = self.bin / kind
        program.write_text(SCRIPT.format(log=self.log, add=add, other=other))
        program.chmod(0o755)

    def configure(self, *plugins: dict[str, Any], name: str = "10.conflist", **fields: Any) -> None:
        document = {"name": "net", "cniVersion": "1.0.0", "plugins": plugins, **fields}
        new = self.conf / "new"
        new.write_text(json.dumps(document))
        new.rename(self.conf / name)

    @property
    def order(self) -> list[str]:
        file = self.log / "order"
        return file.read_text().splitlines() if file.exists() else []

    def request(self, call: str) -> dict[str, Any]:
        return json.loads((self.log / f"{call}.json").read_text())

    def environment(self, call: str) -> dict[str, str]:
        lines = (self.log / f"{call}.env").read_text().splitlines()
        return dict(line.split("=", 1) for line in lines)


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    made = Node(tmp_path)
    yield made
    made.executor.shutdown()
    made.database.close()


def sandbox(**fields: Any) -> Sandbox:
    metadata = fields.pop("metadata", SandboxMetadata(name="web", uid="u-1", namespace="prod"))
    return Sandbox(
        id=SandboxId("c" * 64),
        spec=SandboxSpec(metadata=metadata, **fields),
        created_at_ns=1,
        boot_id="b",
        network_backend="cni",
    )


async def attached(network: CniNetwork, container: Sandbox) -> Sandbox:
    found = await network.attach(container, NETNS)
    return dataclasses.replace(container, addresses=found.addresses, cni_result=found.cni_result)


def test_it_is_a_pod_network(node: Node) -> None:
    network: PodNetwork = node.network()
    assert network.backend == "cni"


async def test_add_hands_each_result_to_the_next_plugin(node: Node) -> None:
    node.plugin("first")
    second = RESULT.replace("10.1.0.2", "10.1.0.3")
    node.plugin("second", add=f"echo '{second}'")
    node.configure({"type": "first", "mtu": 1400}, {"type": "second"})
    container = await attached(node.network(), sandbox())
    assert container.addresses == ("10.1.0.3",)
    assert node.order == ["ADD first", "ADD second"]
    assert node.request("ADD-first") == {
        "type": "first",
        "mtu": 1400,
        "name": "net",
        "cniVersion": "1.0.0",
    }
    assert node.request("ADD-second")["prevResult"] == json.loads(RESULT)


async def test_plugins_learn_the_pod_and_nothing_of_the_daemon(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NOTIFY_SOCKET", "/run/secret")
    node.plugin("first")
    node.configure({"type": "first"})
    await node.network().attach(sandbox(), NETNS)
    seen = node.environment("ADD-first")
    assert seen["CNI_ARGS"] == (
        "IgnoreUnknown=1;K8S_POD_NAMESPACE=prod;K8S_POD_NAME=web;"
        f"K8S_POD_INFRA_CONTAINER_ID={'c' * 64};K8S_POD_UID=u-1"
    )
    assert seen["CNI_CONTAINERID"] == "c" * 64
    assert seen["CNI_IFNAME"] == "eth0"
    assert seen["CNI_NETNS"] == str(NETNS)
    assert seen["CNI_PATH"] == str(node.bin)
    assert "NOTIFY_SOCKET" not in seen


async def test_only_declared_capabilities_are_passed(node: Node) -> None:
    for kind in ("none", "ports", "names"):
        node.plugin(kind)
    node.configure(
        {"type": "none"},
        {"type": "ports", "capabilities": {"portMappings": True, "dns": False, "ips": True}},
        {"type": "names", "capabilities": {"dns": True}},
    )
    mappings = (
        PortMapping(protocol=Protocol.UDP, container_port=53, host_port=5353, host_ip="192.0.2.1"),
        PortMapping(protocol=Protocol.TCP, container_port=80, host_port=0),
    )
    dns = DnsConfig(servers=("10.96.0.10",), searches=("a.b",), options=("ndots:5",))
    network = node.network()
    container = await attached(network, sandbox(port_mappings=mappings, dns=dns))
    await network.detach(container, NETNS)
    ports = [{"hostPort": 5353, "containerPort": 53, "protocol": "udp", "hostIP": "192.0.2.1"}]
    for verb in ("ADD", "DEL"):
        assert "runtimeConfig" not in node.request(f"{verb}-none")
        request = node.request(f"{verb}-ports")
        assert request["runtimeConfig"] == {"portMappings": ports}
        assert "capabilities" not in request
        assert node.request(f"{verb}-names")["runtimeConfig"] == {
            "dns": {"servers": ["10.96.0.10"], "searches": ["a.b"], "options": ["ndots:5"]}
        }


@pytest.mark.parametrize(
    ("annotations", "expected"),
    [
        ({"kubernetes.io/ingress-bandwidth": "10M"}, {"ingressRate": 10_000_000}),
        ({"kubernetes.io/egress-bandwidth": "1.5Mi"}, {"egressRate": 1_572_864}),
        (
            {"kubernetes.io/ingress-bandwidth": "1k", "kubernetes.io/egress-bandwidth": "1P"},
            {"ingressRate": 1000, "egressRate": 10**15},
        ),
    ],
)
async def test_bandwidth_annotations_reach_plugins_that_limit_it(
    node: Node, annotations: dict[str, str], expected: dict[str, int]
) -> None:
    node.plugin("none")
    node.plugin("limits")
    node.configure({"type": "none"}, {"type": "limits", "capabilities": {"bandwidth": True}})
    network = node.network()
    await network.detach(await attached(network, sandbox(annotations=annotations)), NETNS)
    bursts = {key.replace("Rate", "Burst"): 4294967295 for key in expected}
    for verb in ("ADD", "DEL"):
        assert "runtimeConfig" not in node.request(f"{verb}-none")
        config = node.request(f"{verb}-limits")["runtimeConfig"]
        assert config == {"bandwidth": expected | bursts}


@pytest.mark.parametrize("capable", [True, False])
async def test_bandwidth_that_is_none_fails_the_pod_by_the_annotation(
    node: Node, capable: bool
) -> None:
    node.plugin("limits")
    node.configure({"type": "limits", "capabilities": {"bandwidth": capable}})
    annotations = {"kubernetes.io/egress-bandwidth": "lots"}
    network = node.network()
    with pytest.raises(InvalidRequestError, match=r"kubernetes\.io/egress-bandwidth: 'lots'"):
        await network.attach(sandbox(annotations=annotations), NETNS)
    assert node.order == []
    # Such a pod of a former version is taken down nevertheless.
    await network.detach(sandbox(annotations=annotations), NETNS)
    assert node.order == ["DEL limits"]


async def test_the_pods_cgroup_and_the_nodes_range_reach_plugins(node: Node) -> None:
    node.plugin("first")
    capabilities = {"cgroupPath": True, "ipRanges": True}
    node.configure({"type": "first", "capabilities": capabilities})
    network = node.network()
    await network.attach(sandbox(cgroup_parent="/kubepods/pod1"), NETNS)
    given = {"cgroupPath": "/kubepods/pod1"}
    assert node.request("ADD-first")["runtimeConfig"] == given
    await network.set_pod_cidrs(["10.5.0.0/24", "fd00:5:0::/64"])
    ranges = [[{"subnet": "10.5.0.0/24"}], [{"subnet": "fd00:5::/64"}]]
    for again in (network, node.network()):  # another life of the daemon knows it, too
        await again.attach(sandbox(cgroup_parent="/kubepods/pod1"), NETNS)
        assert node.request("ADD-first")["runtimeConfig"] == given | {"ipRanges": ranges}
    with pytest.raises(InvalidRequestError, match=r"'10\.5\.0\.0/33' is not a network"):
        await network.set_pod_cidrs(["10.5.0.0/33"])


OLD_RESULT = {
    "cniVersion": "0.2.0",
    "ip4": {"ip": "10.1.0.2/16", "gateway": "10.1.0.1", "routes": [{"dst": "0.0.0.0/0"}]},
    "ip6": {"ip": "fd00::2/64"},
    "dns": {},
}


@pytest.mark.parametrize(
    "version", [None, "", "0.1.0", "0.2.0", "0.3.0", "0.4.0", "1.0.0", "1.1.0"]
)
@pytest.mark.parametrize("result", [OLD_RESULT, json.loads(RESULT)])
async def test_every_version_takes_results_of_every_other(
    node: Node, version: str | None, result: dict[str, Any]
) -> None:
    """The next plugin and DEL see them in their own version, as its library insists."""
    for kind in ("first", "second"):
        node.plugin(kind, add=f"echo '{json.dumps(result)}'")
    node.configure({"type": "first"}, {"type": "second"}, cniVersion=version or "")
    if version is None:
        file = node.conf / "10.conflist"
        document = json.loads(file.read_text())
        del document["cniVersion"]
        file.write_text(json.dumps(document))
    network = node.network()
    container = await attached(network, sandbox())
    await network.detach(container, NETNS)
    assert container.addresses == (("10.1.0.2", "fd00::2") if "ip4" in result else ("10.1.0.2",))
    used = node.request("ADD-second")["cniVersion"]
    assert used == (version or "0.3.1")
    previous = node.request("ADD-second")["prevResult"]
    assert previous["cniVersion"] == used
    if used < "0.3.0":
        assert previous["ip4"]["ip"] == "10.1.0.2/16"
        assert "ips" not in previous
    else:
        assert previous["ips"][0]["address"] == "10.1.0.2/16"
        assert previous["ips"][0].get("version") == ("4" if used < "1.0.0" else None)
        assert "ip4" not in previous
    deleted = node.request("DEL-first")
    assert deleted.get("prevResult") == (previous if used >= "0.4.0" else None)


async def test_del_goes_backwards_with_what_add_used(node: Node) -> None:
    node.plugin("first")
    node.plugin("second")
    node.configure({"type": "first", "mtu": 1400}, {"type": "second"})
    container = await attached(node.network(), sandbox())
    node.configure({"type": "second"}, name="00-other.conflist")
    await node.network().detach(container, None)
    assert node.order[2:] == ["DEL second", "DEL first"]
    request = node.request("DEL-first")
    assert (request["mtu"], request["prevResult"]) == (1400, json.loads(RESULT))
    assert node.environment("DEL-first")["CNI_NETNS"] == ""
    assert not node.cache.exists()


async def test_del_of_old_versions_has_no_result(node: Node) -> None:
    node.plugin("first")
    node.configure({"type": "first"}, cniVersion="0.3.1")
    network = node.network()
    await network.detach(await attached(network, sandbox()), NETNS)
    assert "prevResult" not in node.request("DEL-first")


async def test_del_of_a_namespace_that_is_gone_names_none(node: Node, tmp_path: Path) -> None:
    node.plugin("first")
    node.configure({"type": "first"})
    network = node.network()
    left = tmp_path / "net"
    left.touch()  # the file below a pin
    await network.detach(await attached(network, sandbox()), left)
    assert node.environment("DEL-first")["CNI_NETNS"] == ""


async def test_del_after_a_crash_knows_the_network_and_the_partial_result(node: Node) -> None:
    node.plugin("first")
    node.plugin("second", add='echo \'{"msg": "pool full"}\'; exit 1')
    node.configure({"type": "first"}, {"type": "second"})
    with pytest.raises(AgentError, match='CNI plugin "second" ADD: pool full'):
        await node.network().attach(sandbox(), NETNS)
    (node.conf / "10.conflist").unlink()
    await node.network().detach(
        sandbox(), NETNS
    )  # another life of the daemon, no result in the row
    assert node.order[2:] == ["DEL second", "DEL first"]
    assert node.request("DEL-first")["prevResult"] == json.loads(RESULT)


async def test_del_without_configuration_or_attachment_is_fine(node: Node) -> None:
    await node.network().detach(sandbox(), None)
    node.plugin("first")
    node.configure({"type": "first"})
    await node.network().detach(sandbox(), None)
    assert node.order == ["DEL first"]


async def test_a_failing_del_stops_no_other_and_is_told(node: Node) -> None:
    node.plugin("first")
    node.plugin("second", other="echo boom >&2; exit 1")
    node.configure({"type": "first"}, {"type": "second"})
    network = node.network()
    container = await attached(network, sandbox())
    with pytest.raises(AgentError, match='CNI plugin "second" DEL: boom'):
        await network.detach(container, NETNS)
    assert node.order[2:] == ["DEL second", "DEL first"]
    node.plugin("second")
    await network.detach(container, NETNS)


async def test_a_damaged_row_is_told(node: Node) -> None:
    with pytest.raises(CorruptError, match=f"sandbox {'c' * 64} is damaged"):
        await node.network().detach(dataclasses.replace(sandbox(), cni_result=b"{"), None)


async def test_many_sandboxes_come_and_go_at_once(node: Node) -> None:
    node.plugin("first")
    node.configure({"type": "first"})
    network = node.network()

    async def visit(number: int) -> None:
        container = dataclasses.replace(sandbox(), id=SandboxId(f"{number:064x}"))
        await network.detach(await attached(network, container), NETNS)

    await asyncio.gather(*(visit(number) for number in range(40)))
    assert sorted(node.order) == ["ADD first"] * 40 + ["DEL first"] * 40
    assert not node.cache.exists()


@pytest.mark.parametrize("text", ["a;K8S_POD_NAME=b", "a=b", "a\0b", "a\nb"])
async def test_metadata_that_would_break_cni_args_is_refused(node: Node, text: str) -> None:
    node.plugin("first")
    node.configure({"type": "first"})
    network = node.network()
    container = sandbox(metadata=SandboxMetadata(name=text, uid="u", namespace="n"))
    with pytest.raises(InvalidRequestError, match="K8S_POD_NAME"):
        await network.attach(container, NETNS)
    await network.detach(container, NETNS)
    assert "K8S_POD_NAME=" not in node.environment("DEL-first")["CNI_ARGS"]


class Group:
    """A plugin's process group: it is dead when no member holds the FIFO any more."""

    def __init__(self, path: Path) -> None:
        os.mkfifo(path)
        self._fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        self.hang = f"exec 9> {path}; sleep 1000 & sleep 1000"

    def await_death(self) -> None:
        os.set_blocking(self._fd, True)
        assert os.read(self._fd, 1) == b""
        os.close(self._fd)


async def test_a_plugin_that_hangs_is_killed_with_its_group(node: Node, tmp_path: Path) -> None:
    group = Group(tmp_path / "held")
    node.plugin("first")
    node.plugin("second", add=group.hang)
    node.configure({"type": "first"}, {"type": "second"})
    network = node.network(timeout_s=3)
    with pytest.raises(TimedOutError, match=r'"second" did not end within 3 s and was killed'):
        await network.attach(sandbox(), NETNS)
    group.await_death()
    await network.detach(sandbox(), NETNS)
    assert node.order[2:] == ["DEL second", "DEL first"]


async def test_a_cancelled_call_leaves_no_process(node: Node, tmp_path: Path) -> None:
    group = Group(tmp_path / "held")
    started = tmp_path / "started"
    os.mkfifo(started)
    node.plugin("first", add=f"echo > {started}; {group.hang}")
    node.configure({"type": "first"})
    task = asyncio.create_task(node.network().attach(sandbox(), NETNS))
    await asyncio.to_thread(started.read_bytes)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    group.await_death()


async def test_a_plugin_that_reads_nothing_is_still_limited(node: Node) -> None:
    program = node.bin / "deaf"
    program.write_text("#!/bin/sh\nexec sleep 1000\n")
    program.chmod(0o755)
    node.configure({"type": "deaf", "pad": "x" * 500_000})
    with pytest.raises(TimedOutError):
        await node.network(timeout_s=0.2).attach(sandbox(), NETNS)


async def test_a_daemon_that_a_plugin_leaves_behind_is_not_waited_for(node: Node) -> None:
    node.plugin("first", add=f"sleep 1000 & echo $! > {node.log}/pid; echo '{RESULT}'")
    node.configure({"type": "first"})
    container = await attached(node.network(), sandbox())
    os.kill(int((node.log / "pid").read_text()), 9)
    assert container.addresses == ("10.1.0.2",)


async def test_a_hundred_megabytes_of_output_are_refused_and_not_kept(node: Node) -> None:
    def peak_kib() -> int:
        text = Path("/proc/self/status").read_text()
        return int(text.partition("VmHWM:")[2].split()[0])

    node.plugin("first", add="head -c 100000000 /dev/zero")
    node.configure({"type": "first"})
    before = peak_kib()
    with pytest.raises(AgentError, match='CNI plugin "first" printed more than 1048576 bytes'):
        await node.network().attach(sandbox(), NETNS)
    assert peak_kib() - before < 20_000


@pytest.mark.parametrize(
    ("add", "words"),
    [
        (":", "printed invalid JSON"),
        ("echo '[]'", "something other than a JSON object"),
        ("echo '{}'", "has no ips"),
        ('echo \'{"ips":[{"address":"10.1.0.999/16"}]}\'', r"malformed address '10\.1\.0\.999/16'"),
        ('echo \'{"code":11,"msg":"no","details":"ip"}\'; exit 1', "ADD: no ip"),
        ("echo words >&2; exit 7", "ADD: words"),
        ("kill -9 $$", "ADD: failed with no output"),
    ],
)
async def test_a_bad_answer_is_told_by_the_plugins_name(node: Node, add: str, words: str) -> None:
    node.plugin("first", add=add)
    node.configure({"type": "first"})
    with pytest.raises(AgentError, match=f'CNI plugin "first".*{words}'):
        await node.network().attach(sandbox(), NETNS)


@pytest.mark.parametrize(("content", "mode"), [("#!/nowhere", 0o755), ("", 0o755), ("x", 0o644)])
async def test_a_plugin_that_is_no_program_is_told(node: Node, content: str, mode: int) -> None:
    (node.bin / "first").write_text(content)
    (node.bin / "first").chmod(mode)
    node.configure({"type": "first"})
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(AgentError, match="first cannot be executed"):
        await node.network().attach(sandbox(), NETNS)
    assert len(os.listdir("/proc/self/fd")) == before


async def test_the_condition_follows_directory_and_plugins(node: Node) -> None:
    network = node.network()
    await network.start()

    def not_ready(words: str) -> None:
        condition = network.condition()
        assert (condition.ready, condition.reason) == (False, "NetworkPluginNotReady")
        assert words in condition.message

    not_ready(f"no network configuration in {node.conf}")
    with pytest.raises(AgentError, match="not ready: no network configuration"):
        await network.attach(sandbox(), NETNS)
    (node.conf / "10.conflist").write_text('{"name": ')
    not_ready("10.conflist is not valid JSON")
    node.configure({"type": "first"})
    not_ready(f'CNI plugin "first" is not in {node.bin}; install it')
    node.plugin("first")
    assert network.condition().ready
    (node.conf / "05-old.conf").symlink_to("nowhere")
    not_ready("05-old.conf cannot be read")
    (node.conf / "05-old.conf").unlink()
    assert network.condition().ready
    (node.bin / "first").unlink()
    not_ready('CNI plugin "first"')
    node.plugin("first")
    (node.conf / "10.conflist").unlink()
    not_ready("no network configuration")
    node.conf.rmdir()
    not_ready("no network configuration")
    await network.stop()


async def test_a_change_beside_a_dangling_link_is_seen(node: Node) -> None:
    node.plugin("first")
    node.plugin("second")
    node.configure({"type": "first"})
    (node.conf / "99-gone.conf").symlink_to("nowhere")
    network = node.network()
    assert network.condition().ready
    node.configure({"type": "second"})
    await network.attach(sandbox(), NETNS)
    assert node.order == ["ADD second"]


async def test_status_counts_where_the_version_has_it(node: Node) -> None:
    node.plugin("first", other='echo \'{"code":50,"msg":"no daemon"}\'; exit 1')
    node.configure({"type": "first"}, cniVersion="1.1.0")
    network = node.network()
    await network.start()
    assert network.condition().message == 'cni: CNI plugin "first" STATUS: no daemon'
    assert node.order == ["STATUS first"]  # not at every look
    node.plugin("first")
    node.configure({"type": "first"}, cniVersion="1.1.0")
    assert "has not finished" in network.condition().message
    await network.start()
    assert network.condition().ready


async def test_a_hanging_status_ends_with_the_network(node: Node, tmp_path: Path) -> None:
    group = Group(tmp_path / "held")
    started = tmp_path / "started"
    os.mkfifo(started)
    node.plugin("first", other=f"echo > {started}; {group.hang}")
    node.configure({"type": "first"}, cniVersion="1.1.0")
    network = node.network()
    assert not network.condition().ready
    await asyncio.to_thread(started.read_bytes)
    await network.stop()
    group.await_death()


async def test_gc_names_the_attachments_that_are_wanted(node: Node) -> None:
    node.plugin("first", other="exit 1")  # a complaint stops nothing
    node.plugin("second")
    node.configure({"type": "first"}, {"type": "second"}, cniVersion="1.1.0")
    network = node.network()
    network.condition()
    await network.reconcile([sandbox()])
    assert [line for line in node.order if line.startswith("GC")] == ["GC first", "GC second"]
    wanted = [{"containerID": "c" * 64, "ifname": "eth0"}]
    assert node.request("GC-second")["cni.dev/valid-attachments"] == wanted
    assert "CNI_CONTAINERID" not in node.environment("GC-second")
    await network.stop()


@pytest.mark.parametrize("fields", [{"cniVersion": "1.0.0"}, {"disableGC": True}])
async def test_gc_is_not_called_where_it_is_unknown_or_off(
    node: Node, fields: dict[str, Any]
) -> None:
    node.plugin("first")
    node.configure({"type": "first"}, **{"cniVersion": "1.1.0", **fields})
    network = node.network()
    await network.start()
    await network.reconcile([])
    assert "GC first" not in node.order


async def test_pod_cidrs_are_checked(node: Node) -> None:
    network = node.network()
    await network.set_pod_cidrs(["10.244.1.0/24", "fd00:1::/64"])
    await network.set_pod_cidrs([])
    with pytest.raises(InvalidRequestError, match="pod CIDR 'x' is not a network"):
        await network.set_pod_cidrs(["x"])
