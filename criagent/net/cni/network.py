# SPDX-License-Identifier: Apache-2.0
"""The CNI pod network: plugins of the node's configuration, run as child processes.

The configuration that was used and its result are stored in a file from before the first ADD, and
in the sandbox's row afterwards, so that DEL gets them whatever the directory contains by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from ipaddress import ip_network
from pathlib import Path
from typing import Any

import structlog

from criagent.base.aio import Background, run_in
from criagent.base.errors import AgentError, CorruptError, InvalidRequestError
from criagent.kernel import namespaces, netlink
from criagent.model.sandbox import Sandbox
from criagent.net import bandwidth
from criagent.net.cni import result as cni_result
from criagent.net.cni.capabilities import runtime_config
from criagent.net.cni.config import CniConfigError, NetworkList, find_plugin, load_first, parse
from criagent.net.cni.plugin import run_plugin
from criagent.net.pod_network import Attachment, NetworkCondition
from criagent.store.settings import SettingStore

_INTERFACE = "eth0"
_CIDR_SETTING = "cni_pod_cidrs"
_QUESTION_LIMIT_S = 10.0  # for STATUS and GC, for which no pod waits
_STATUS_EVERY_S = 4.0  # the kubelet asks for the condition every 5 s
_ARGUMENT = re.compile(r"[^;=\x00-\x1f]*")

Json = dict[str, Any]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CniConfig:
    """Values of the `network` section that this backend needs."""

    conf_dir: Path
    bin_dirs: tuple[Path, ...]
    timeout_s: float  # of one plugin
    cache_dir: Path  # attachments in progress; removed by a reboot


@dataclass(frozen=True, slots=True, kw_only=True)
class _Call:
    """One verb for all plugins of a network; `sandbox` is None for verbs of the network itself."""

    command: str
    network: NetworkList
    limit_s: float
    sandbox: Sandbox | None = None
    netns: Path | None = None


class CniNetwork:
    """Pods on whatever network the node's CNI configuration describes, or that of one `handler`."""

    def __init__(
        self, config: CniConfig, fs: Executor, settings: SettingStore, *, handler: str = ""
    ) -> None:
        self.backend = f"cni:{handler}" if handler else "cni"
        self._config = config
        self._fs = fs
        self._settings = settings
        self._seen: object = None
        self._loaded: NetworkList | None = None
        self._broken = "the configuration has not been read"
        self._status_problem = ""
        self._asking = Background("cni-status")
        self._status_at = 0.0

    @property
    def _pod_cidrs(self) -> list[str]:
        """The last value from the kubelet, also from before a restart of the agent."""
        given = self._settings.get(_CIDR_SETTING)
        return given.split(",") if given else []

    async def start(self) -> None:
        """Read the directory once; it may still be empty."""
        self.condition()
        await self._asking.wait()

    async def stop(self) -> None:
        """End a STATUS that is in progress; pods keep their network."""
        await self._asking.stop()

    def condition(self) -> NetworkCondition:
        """Ready while the directory's first configuration is usable; checked on each call.

        This is one stat per file and plugin, so the kubelet's next Status shows a change. STATUS of
        a 1.1.0 configuration runs in the background and counts from its answer on.
        """
        problem = self._look()
        if not problem and self._loaded is not None and self._loaded.knows("STATUS"):
            self._ask_status()
            problem = self._status_problem
        if problem:
            return NetworkCondition(
                ready=False, reason="NetworkPluginNotReady", message=f"cni: {problem}"
            )
        return NetworkCondition(ready=True)

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """Pass `cidrs` to plugins that declare `ipRanges`; otherwise the configuration's IPAM
        decides.

        Raises InvalidRequestError for a value that is not a network.
        """
        networks = []
        for cidr in cidrs:
            try:
                networks.append(str(ip_network(cidr)))
            except ValueError as exc:
                raise InvalidRequestError(
                    f"pod CIDR {cidr[:80]!r} is not a network: {exc}"
                ) from None
        await self._settings.put(_CIDR_SETTING, ",".join(networks))

    async def reserve(self, sandbox: Sandbox) -> None:
        """The plugins choose the addresses."""

    async def release(self, sandbox: Sandbox) -> None:
        """Nothing was reserved."""

    async def attach(
        self, sandbox: Sandbox, netns: Path, inside: netlink.RouteSocket | None = None
    ) -> Attachment:
        """ADD of every plugin in order; after a failure `detach` undoes what was done.

        Raises AgentError with the plugin's message, TimedOutError for one that hangs, and
        InvalidRequestError for metadata that CNI_ARGS cannot carry and for invalid bandwidth
        annotations, even when no plugin limits the pod.
        """
        del inside
        bandwidth.limits(sandbox.spec.annotations)
        for key, value in _arguments(sandbox):
            if not _ARGUMENT.fullmatch(value):
                raise InvalidRequestError(
                    f"{key} {value[:80]!r} contains a character that CNI_ARGS cannot carry"
                )
        problem = self._look()
        network = self._loaded
        if problem or network is None:
            raise AgentError(f"the pod network is not ready: {problem}")
        limit_s = self._config.timeout_s
        call = _Call(command="ADD", network=network, limit_s=limit_s, sandbox=sandbox, netns=netns)
        result: Json | None = None
        kept = _encode(network, result)
        for plugin in network.plugins:
            await run_in(self._fs, _keep, self._kept_file(sandbox), kept)
            output = await self._run(call, plugin, result)
            result = cni_result.parse_result(output, plugin["type"]) or result
            kept = _encode(network, result)
        await run_in(self._fs, _keep, self._kept_file(sandbox), kept)
        addresses = cni_result.addresses(result or {}, network.plugins[-1]["type"], _INTERFACE)
        return Attachment(addresses=addresses, cni_result=kept)

    async def detach(self, sandbox: Sandbox, netns: Path | None) -> None:
        """DEL of every plugin, the last one first; fine when the sandbox was never attached.

        All are called even if one fails; the first failure is raised as AgentError.
        """
        kept = sandbox.cni_result or await run_in(self._fs, _kept, self._kept_file(sandbox))
        if kept:
            network, result = _decode(kept, sandbox)
        elif self._look() or self._loaded is None:
            return
        else:
            network, result = (
                self._loaded,
                None,
            )  # the node has rebooted since ADD, if there was one
        if netns is not None and not namespaces.is_pinned(netns):
            netns = None
        limit_s = self._config.timeout_s
        call = _Call(command="DEL", network=network, limit_s=limit_s, sandbox=sandbox, netns=netns)
        failure: AgentError | None = None
        for plugin in reversed(network.plugins):
            try:
                await self._run(call, plugin, result if network.keeps_result_for_del else None)
            except AgentError as exc:
                log.warning("cni_del_failed", sandbox_id=sandbox.id, error=str(exc))
                failure = failure or exc
        if failure is not None:
            raise failure
        await run_in(self._fs, _forget, self._kept_file(sandbox))

    async def status(self) -> None:
        """STATUS of every plugin, if the version supports it. Raises AgentError."""
        network = self._loaded
        if network is not None and network.knows("STATUS"):
            call = _Call(command="STATUS", network=network, limit_s=_QUESTION_LIMIT_S)
            for plugin in network.plugins:
                await self._run(call, plugin, None)

    async def reconcile(self, live: Sequence[Sandbox]) -> None:
        """GC with the attachments that are still in use, if the version supports it."""
        network = self._loaded
        if network is None or not network.knows("GC"):
            return
        valid = [{"containerID": sandbox.id, "ifname": _INTERFACE} for sandbox in live]
        call = _Call(command="GC", network=network, limit_s=_QUESTION_LIMIT_S)
        for plugin in network.plugins:
            try:
                await self._run(call, {**plugin, "cni.dev/valid-attachments": valid}, None)
            except AgentError as exc:
                log.warning("cni_gc_failed", error=str(exc))

    def _look(self) -> str:
        """Why the network cannot be used, after a check of the directories; "" = it can."""
        seen = _fingerprint(self._config.conf_dir)
        if seen != self._seen:
            self._seen = seen
            self._status_at, self._status_problem = 0.0, "CNI STATUS has not finished yet"
            try:
                self._loaded, self._broken = load_first(self._config.conf_dir), ""
            except CniConfigError as exc:
                self._loaded, self._broken = None, str(exc)
        if self._loaded is None:
            return self._broken
        try:
            for plugin in self._loaded.plugins:
                find_plugin(plugin["type"], self._config.bin_dirs)
        except CniConfigError as exc:
            return str(exc)
        return ""

    def _ask_status(self) -> None:
        now = asyncio.get_running_loop().time()
        due = not self._status_at or now - self._status_at >= _STATUS_EVERY_S
        if due and not self._asking.running:
            self._status_at = now
            self._asking.start(self._keep_status)

    async def _keep_status(self) -> None:
        asked = self._seen
        problem = ""
        try:
            await self.status()
        except AgentError as exc:
            problem = str(exc)
        if asked == self._seen:  # otherwise the answer is about another configuration
            self._status_problem = problem

    def _kept_file(self, sandbox: Sandbox) -> Path:
        return self._config.cache_dir / f"{sandbox.id}.json"

    async def _run(self, call: _Call, plugin: Json, previous: Json | None) -> bytes:
        """One plugin's stdout. Raises AgentError with the plugin's message when it fails."""
        program = await run_in(self._fs, find_plugin, plugin["type"], self._config.bin_dirs)
        environment = {
            "CNI_COMMAND": call.command,
            "CNI_PATH": ":".join(str(path) for path in self._config.bin_dirs),
            "PATH": os.environ.get("PATH", os.defpath),
        }
        request = {**plugin, "name": call.network.name, "cniVersion": call.network.version}
        request.pop("capabilities", None)
        if call.sandbox is not None:
            arguments = [
                f"{key}={value}"
                for key, value in _arguments(call.sandbox)
                if _ARGUMENT.fullmatch(value)  # the rest was refused, and DEL runs without it
            ]
            environment |= {
                "CNI_CONTAINERID": call.sandbox.id,
                "CNI_NETNS": "" if call.netns is None else str(call.netns),
                "CNI_IFNAME": _INTERFACE,
                "CNI_ARGS": ";".join(["IgnoreUnknown=1", *arguments]),
            }
            add = call.command == "ADD"  # DEL of a pod that an earlier version accepted has to work
            if asked := runtime_config(plugin, call.sandbox, self._pod_cidrs, strict=add):
                request["runtimeConfig"] = asked
        if previous is not None:
            request["prevResult"] = cni_result.converted(previous, call.network.version)
        ended = await run_plugin(program, environment, request, call.limit_s)
        if ended.status:
            text = cni_result.failure_text(ended.stdout, ended.stderr)
            raise AgentError(f'CNI plugin "{plugin["type"]}" {call.command}: {text}')
        return ended.stdout


def _fingerprint(directory: Path) -> object:
    """Equal to the last value while no file of `directory` has changed."""
    found: list[tuple[str, int, int, int, int]] = []
    try:
        with os.scandir(directory) as entries:
            names = sorted(entry.name for entry in entries)
    except OSError:
        return None, directory
    for name in names:
        try:
            facts = os.stat(directory / name)
        except OSError:
            found.append((name, 0, 0, 0, 0))
        else:
            times = facts.st_mtime_ns, facts.st_ctime_ns
            found.append((name, *times, facts.st_size, facts.st_ino))
    return tuple(found)


def _arguments(sandbox: Sandbox) -> list[tuple[str, str]]:
    """CNI_ARGS as Kubernetes' plugins know them."""
    metadata = sandbox.spec.metadata
    return [
        ("K8S_POD_NAMESPACE", metadata.namespace),
        ("K8S_POD_NAME", metadata.name),
        ("K8S_POD_INFRA_CONTAINER_ID", sandbox.id),
        ("K8S_POD_UID", metadata.uid),
    ]


def _encode(network: NetworkList, result: Json | None) -> bytes:
    return json.dumps({"network": network.document, "result": result}).encode()


def _decode(kept: bytes, sandbox: Sandbox) -> tuple[NetworkList, Json | None]:
    try:
        document = json.loads(kept)
        return parse(document["network"], f"sandbox {sandbox.id}"), document["result"]
    except (ValueError, KeyError, TypeError, RecursionError) as exc:
        raise CorruptError(
            f"the stored CNI result of sandbox {sandbox.id} is damaged: {exc}"
        ) from None


def _keep(file: Path, data: bytes) -> None:
    new = file.with_suffix(".new")
    while True:
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            new.write_bytes(data)
        except FileNotFoundError:
            continue  # another sandbox's `_forget` has just removed the empty directory
        new.replace(file)
        return


def _kept(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except FileNotFoundError:
        return b""


def _forget(file: Path) -> None:
    file.unlink(missing_ok=True)
    with contextlib.suppress(OSError):  # it holds other files, or does not exist
        file.parent.rmdir()
