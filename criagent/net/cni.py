"""The CNI pod network: plugins of the node's configuration, run as child processes.

The configuration that was used and its result are kept in the sandbox's row, so that DEL gets them
whatever the directory says by then. A plugin that hangs is killed with its process group.
"""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any

import structlog

from criagent.aio import finish, run_in
from criagent.child import Child, PipeReader, spawn
from criagent.errors import AgentError, InvalidRequestError, TimedOutError
from criagent.model import Sandbox
from criagent.net.cni_config import (
    CniConfigError,
    NetworkList,
    find_plugin,
    load_first,
    parse,
)
from criagent.net.pod_network import Attachment, NetworkCondition

_INTERFACE = "eth0"
_RESULT_LIMIT = 1 << 20
_MAX_ADDRESSES = 64

Json = dict[str, Any]

log: structlog.stdlib.BoundLogger = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class CniConfig:
    """Values of the `network` section that this backend needs."""

    conf_dir: Path
    bin_dirs: tuple[Path, ...]
    timeout_s: float
    cache_dir: Path


class CniNetwork:
    """Pods on whatever network the node's CNI configuration describes."""

    backend = "cni"

    def __init__(self, config: CniConfig, fs: Executor) -> None:
        self._config = config
        self._fs = fs
        self._seen: tuple[object, ...] | None = None
        self._current: NetworkList | None = None
        self._problem = ""

    async def start(self) -> None:
        """Read the directory once; it may still be empty."""
        self.condition()

    async def stop(self) -> None:
        """Nothing runs in the background."""

    def condition(self) -> NetworkCondition:
        """Ready while the directory's first configuration can be used; looks at each call.

        One stat per file, so the kubelet's next Status shows a change.
        """
        seen = _fingerprint(self._config.conf_dir)
        if seen != self._seen:
            self._seen = seen
            try:
                self._current = load_first(self._config.conf_dir)
                for plugin in self._current.plugins:
                    find_plugin(plugin["type"], self._config.bin_dirs)
                self._problem = ""
            except CniConfigError as exc:
                self._current, self._problem = None, str(exc)
                self._seen = None  # a plugin may be installed without a change here
        if self._current is None:
            return NetworkCondition(
                ready=False, reason="NetworkPluginNotReady", message=f"cni: {self._problem}"
            )
        return NetworkCondition(ready=True)

    async def set_pod_cidrs(self, cidrs: Sequence[str]) -> None:
        """Checked and otherwise left alone: the configuration's IPAM decides.

        Raises InvalidRequestError for what is no network.
        """
        for cidr in cidrs:
            try:
                ip_network(cidr)
            except ValueError as exc:
                raise InvalidRequestError(f"pod CIDR {cidr[:80]!r} is no network: {exc}") from None

    async def attach(self, box: Sandbox, netns: Path) -> Attachment:
        """ADD of every plugin in order. Raises AgentError with the plugin's words."""
        if not self.condition().ready or self._current is None:
            raise AgentError(f"the pod network is not ready: {self._problem}")
        network = self._current
        result: Json | None = None
        try:
            for plugin in network.plugins:
                answer = await self._run("ADD", box, netns, network, plugin, result)
                result = answer or result
            addresses = result_addresses(result or {})
        except BaseException:
            kept = _encode(network, result)
            await finish(self._delete(box, netns, kept))
            raise
        return Attachment(addresses=addresses, cni_result=_encode(network, result))

    async def detach(self, box: Sandbox, netns: Path | None) -> None:
        """DEL of every plugin, the last one first; fine when it was never attached."""
        kept = box.cni_result
        if not kept:
            if self._current is None:
                return
            kept = _encode(self._current, None)  # a crash in the midst of ADD kept no result
        await self._delete(box, netns, kept)

    async def check(self, box: Sandbox, netns: Path) -> None:
        """CHECK of every plugin. Raises AgentError with the words of the one that complains."""
        network, result = _decode(box.cni_result)
        if network.version >= "0.4.0":
            for plugin in network.plugins:
                await self._run("CHECK", box, netns, network, plugin, result)

    async def status(self) -> None:
        """STATUS of every plugin, where the configuration's version has it. Raises AgentError."""
        network = self._current
        if network is not None and network.version >= "1.1.0":
            for plugin in network.plugins:
                await self._run("STATUS", None, None, network, plugin, None)

    async def reconcile(self, live: Sequence[Sandbox]) -> None:
        """GC with the attachments that are still wanted, where the version has it."""
        network = self._current
        if network is None or network.version < "1.1.0":
            return
        valid = [{"containerID": box.id, "ifname": _INTERFACE} for box in live]
        for plugin in network.plugins:
            extended = {**plugin, "cni.dev/valid-attachments": valid}
            try:
                await self._run("GC", None, None, network, extended, None)
            except AgentError as exc:
                log.info("cni_gc_failed", plugin=plugin["type"], error=str(exc))

    async def _delete(self, box: Sandbox, netns: Path | None, kept: bytes) -> None:
        network, result = _decode(kept)
        for plugin in reversed(network.plugins):
            await self._run("DEL", box, netns, network, plugin, result)

    async def _run(
        self,
        command: str,
        box: Sandbox | None,
        netns: Path | None,
        network: NetworkList,
        plugin: Json,
        previous: Json | None,
    ) -> Json | None:
        program = await run_in(self._fs, find_plugin, plugin["type"], self._config.bin_dirs)
        environment = {
            "CNI_COMMAND": command,
            "CNI_PATH": ":".join(str(path) for path in self._config.bin_dirs),
            "PATH": os.environ.get("PATH", os.defpath),
        }
        if box is not None:
            metadata = box.spec.metadata
            environment |= {
                "CNI_CONTAINERID": box.id,
                "CNI_NETNS": "" if netns is None else str(netns),
                "CNI_IFNAME": _INTERFACE,
                "CNI_ARGS": ";".join(
                    (
                        "IgnoreUnknown=1",
                        f"K8S_POD_NAMESPACE={metadata.namespace}",
                        f"K8S_POD_NAME={metadata.name}",
                        f"K8S_POD_INFRA_CONTAINER_ID={box.id}",
                        f"K8S_POD_UID={metadata.uid}",
                    )
                ),
            }
        request = {**plugin, "name": network.name, "cniVersion": network.version}
        if box is not None and (arguments := _capability_arguments(plugin, box)):
            request["runtimeConfig"] = arguments
        request.pop("capabilities", None)
        if previous is not None:
            request["prevResult"] = previous
        status, output, errors = await self._execute(program, environment, request)
        if status:
            raise AgentError(f'CNI plugin "{plugin["type"]}" {command}: {_words(output, errors)}')
        return _result(output, plugin["type"]) if command == "ADD" else None

    async def _execute(
        self, program: Path, environment: dict[str, str], request: Json
    ) -> tuple[int, bytes, bytes]:
        out_read, out_write = os.pipe()
        err_read, err_write = os.pipe()
        output = PipeReader(out_read, limit=_RESULT_LIMIT)
        errors = PipeReader(err_read, limit=1 << 14)
        in_read, in_write = os.pipe()
        try:
            try:
                child = spawn(
                    [program],
                    stdin=in_read,
                    stdout=out_write,
                    stderr=err_write,
                    env=environment,
                    new_session=True,
                )
            finally:
                for fd in (in_read, out_write, err_write):
                    os.close(fd)
            status = await self._ended(child, in_write, request, output)
            errors.drain()
            if output.dropped:
                raise AgentError(
                    f'CNI plugin "{program.name}" printed more than {_RESULT_LIMIT} bytes'
                )
            return status, bytes(output.data), bytes(errors.data)
        except TimeoutError:
            raise TimedOutError(
                f'CNI plugin "{program.name}" did not end within '
                f"{self._config.timeout_s:.0f} s; it was killed"
            ) from None
        finally:
            output.close()
            errors.close()

    async def _ended(self, child: Child, stdin: int, request: Json, output: PipeReader) -> int:
        """Feed the plugin and await it; its whole process group is dead when this fails."""
        try:
            async with asyncio.timeout(self._config.timeout_s):
                await run_in(self._fs, _feed, stdin, json.dumps(request).encode())
                await output.ended()
                return await child.wait()
        finally:
            if child.running:
                child.kill_group()
                await finish(child.wait())


def result_addresses(result: Json) -> tuple[str, ...]:
    """Addresses of the pod's interface. Raises AgentError for malformed or missing ones."""
    interfaces = result.get("interfaces")
    found = []
    entries = result.get("ips")
    if not isinstance(entries, list) or not entries or len(entries) > _MAX_ADDRESSES:
        raise AgentError("the CNI result has no ips, or too many")
    for entry in entries:
        text = entry.get("address") if isinstance(entry, dict) else None
        try:
            address = ip_address(str(text).partition("/")[0])
        except ValueError:
            raise AgentError(
                f"the CNI result has the malformed address {str(text)[:80]!r}"
            ) from None
        index = entry.get("interface")
        if isinstance(interfaces, list) and isinstance(index, int):
            if not 0 <= index < len(interfaces):
                raise AgentError(f"the CNI result names interface {index}, which it does not list")
            if not interfaces[index].get("sandbox"):
                continue  # an address of the host's end
        found.append(str(address))
    return tuple(found)


def _fingerprint(directory: Path) -> tuple[object, ...]:
    try:
        return tuple(
            sorted(
                (entry.name, facts.st_mtime_ns, facts.st_size, facts.st_ino)
                for entry in os.scandir(directory)
                for facts in (entry.stat(),)
            )
        )
    except OSError:
        return ()


def _capability_arguments(plugin: Json, box: Sandbox) -> Json:
    """runtimeConfig: what the plugin declares and the pod asks for (CNI conventions.md)."""
    declared = plugin.get("capabilities")
    declared = declared if isinstance(declared, dict) else {}
    arguments: Json = {}
    ports = [
        {
            "hostPort": mapping.host_port,
            "containerPort": mapping.container_port,
            "protocol": mapping.protocol.name.lower(),
            "hostIP": mapping.host_ip,
        }
        for mapping in box.spec.port_mappings
        if mapping.host_port
    ]
    if declared.get("portMappings") and ports:
        arguments["portMappings"] = ports
    if declared.get("dns") and box.spec.dns is not None:
        dns = box.spec.dns
        arguments["dns"] = {
            "servers": list(dns.servers),
            "searches": list(dns.searches),
            "options": list(dns.options),
        }
    if declared.get("io.kubernetes.cri.pod-annotations"):
        arguments["io.kubernetes.cri.pod-annotations"] = box.spec.annotations
    return arguments


def _encode(network: NetworkList, result: Json | None) -> bytes:
    return json.dumps({"network": network.document, "result": result}).encode()


def _decode(kept: bytes) -> tuple[NetworkList, Json | None]:
    document = json.loads(kept)
    return parse(document["network"], "the sandbox's row"), document["result"]


def _result(output: bytes, kind: str) -> Json:
    try:
        result = json.loads(output)
    except (ValueError, RecursionError):
        raise AgentError(f'CNI plugin "{kind}" printed no JSON: {output[:200]!r}') from None
    if not isinstance(result, dict):
        raise AgentError(f'CNI plugin "{kind}" printed no JSON object')
    return result


def _words(output: bytes, errors: bytes) -> str:
    """The plugin's own words: the error object of the specification, or its stderr."""
    try:
        answer = json.loads(output)
        text = f"{answer.get('msg', '')} {answer.get('details', '')}".strip()
    except (ValueError, AttributeError, RecursionError):
        text = ""
    return (text or errors.decode(errors="replace").strip() or "failed without a word")[:1000]


def _feed(fd: int, data: bytes) -> None:
    try:
        with os.fdopen(fd, "wb") as pipe:
            pipe.write(data)
    except BrokenPipeError:
        pass  # its exit status tells
