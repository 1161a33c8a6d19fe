# SPDX-License-Identifier: Apache-2.0
"""The members of a support bundle, each a text. What cannot be read is a member's text as well."""

from __future__ import annotations

import argparse
import asyncio
import dataclasses
import json
import os
import shutil
import ssl
import urllib.request
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

from criagent.base.tokens import read_tokens
from criagent.cli.common import config_path
from criagent.cli.support import secrets
from criagent.config import registries_conf
from criagent.config.load import ConfigError, files, load, load_with_origins
from criagent.config.sections import Config, Telemetry
from criagent.config.text import effective_text
from criagent.version import VERSION

_LINES = "20000"  # of the journal
_MOST = 4 << 20
_MOST_OUTPUT = 32 << 20
_COMMAND_S = 60.0
_KERNEL_FILES = (
    "version", "uptime", "loadavg", "meminfo", "cpuinfo", "cgroups", "filesystems", "modules",
    "pressure/cpu", "pressure/memory", "pressure/io", "sys/kernel/pid_max",
    "sys/fs/inotify/max_user_instances", "sys/fs/inotify/max_user_watches", "sys/fs/file-nr",
    "sys/net/ipv4/ip_forward", "sys/net/ipv6/conf/all/forwarding",
    "sys/net/netfilter/nf_conntrack_count", "sys/net/netfilter/nf_conntrack_max",
    "sys/user/max_user_namespaces",
)  # fmt: skip
_COMMANDS = (
    ("df.txt", ("df", "-h", "-x", "overlay", "-x", "tmpfs")),
    ("addresses.txt", ("ip", "address")),
    ("routes.txt", ("ip", "route", "show", "table", "all")),
    ("unit.txt", ("systemctl", "status", "--no-pager", "--lines=0", "criagent")),
)
ABOUT = f"""A support bundle of criagent {VERSION}.

Configuration, findings of the doctor, state of the agent, its log and facts of the kernel. Names of
pods, images, registries and addresses of this node are in it. Credentials were removed; look
through the files before you pass them on.
"""


@dataclasses.dataclass(frozen=True, slots=True)
class Member:
    """A file of the bundle."""

    name: str
    text: str


def members(chosen: argparse.Namespace) -> Iterator[Member]:
    """Every member, cleaned of secrets."""
    try:
        config = load(config_path(chosen))
    except (ConfigError, OSError):
        config = Config()
    registries, known = _registries(config)
    for proxy in (config.registry.http_proxy, config.registry.https_proxy):
        known += secrets.of_url(proxy)
    cleaner = secrets.Cleaner(known)
    for member in _raw(chosen, config):
        yield Member(member.name, cleaner.clean(member.text))
    yield Member("config/registries.json", cleaner.clean(_json(registries)))


def _raw(chosen: argparse.Namespace, config: Config) -> Iterator[Member]:
    yield Member("README.txt", ABOUT)
    yield from _configuration(chosen)
    page = _tried(lambda: _metrics(config.telemetry))
    yield Member("doctor.json", _tried(lambda: _doctor(config, page)))
    yield from _agent(chosen)
    yield Member("metrics.txt", page)
    yield from _kernel()
    for name, command in _COMMANDS:
        yield Member(f"node/{name}", _tried(partial(_output, *command)))
    yield Member("journal.txt", _tried(lambda: _journal(chosen.since)))


def _configuration(chosen: argparse.Namespace) -> Iterator[Member]:
    path = config_path(chosen)
    try:
        text = effective_text(*load_with_origins(path))
    except ConfigError as error:
        text = "\n".join(map(str, error.problems)) + "\n"
    yield Member("config/in-force.toml", text)
    for file in files(path):
        yield Member(f"config/files/{file.name}", _tried(partial(_content, file)))


def _registries(config: Config) -> tuple[dict[str, Any], list[str]]:
    """hosts.toml, registries.conf and docker's file without secrets, and all secrets in them."""
    shown: dict[str, Any] = {}
    known: list[str] = []
    readers: list[tuple[Path, Callable[[Path], tuple[dict[str, Any], list[str]]]]] = [
        (config.registry.docker_config, secrets.of_docker)
    ]
    for directory in config.registry.config_dirs:
        readers += [
            (path, secrets.of_hosts_toml) for path in sorted(directory.glob("*/hosts.toml"))
        ]
    if conf := config.registry.registries_conf:
        readers += [(path, _without_secrets) for path in registries_conf.files(Path(conf))]
    for path, read in readers:
        try:
            shown[str(path)], found = read(path)
        except FileNotFoundError:
            continue
        except (OSError, ValueError, AttributeError, RecursionError) as error:
            shown[str(path)] = f"left out: {type(error).__name__}"
        else:
            known += found
    return shown, known


def _without_secrets(path: Path) -> tuple[dict[str, Any], list[str]]:
    return {"text": path.read_text()}, []


def _doctor(config: Config, page: str) -> str:
    """Its findings; `page` is what the address of the metrics answered."""
    from criagent.doctor import examine
    from criagent.doctor.metrics import MetricsFacts

    known = MetricsFacts(answers="agent") if "criagent_build_info" in page else None
    return _json([dataclasses.asdict(one) for one in examine(config, of_metrics=known)])


def _agent(chosen: argparse.Namespace) -> Iterator[Member]:
    """State of the agent over its socket; an agent that is gone is a text."""
    import grpc

    from criagent._proto import admin_pb2, admin_pb2_grpc
    from criagent.cli.agent import UnreachableError, connection

    try:
        with connection(chosen) as channel:
            admin = admin_pb2_grpc.AdminStub(channel)
            for name, call, request in (
                ("info", admin.Info, admin_pb2.InfoRequest()),
                ("storage", admin.StorageInfo, admin_pb2.StorageInfoRequest()),
                ("debug", admin.Debug, admin_pb2.DebugRequest(objects=True)),
            ):
                try:
                    text = _json(json.loads(call(request, timeout=30).json))
                except grpc.RpcError as error:
                    text = f"{error.details()}\n"
                yield Member(f"agent/{name}.json", text)
            yield from _lists(channel)
    except (grpc.RpcError, UnreachableError) as error:
        yield Member("agent/unreachable.txt", f"{error}\n")


def _lists(channel: Any) -> Iterator[Member]:
    """Names, states and times; labels and annotations of pods may hold anything and stay here."""
    from criagent.cli.containers.calls import Calls
    from criagent.cli.containers.found import all_containers, all_pods

    calls = Calls(channel)
    pods = [
        {
            "id": pod.id,
            "name": pod.metadata.name,
            "namespace": pod.metadata.namespace,
            "attempt": pod.metadata.attempt,
            "state": pod.state,
            "created_at": pod.created_at,
            "runtime_handler": pod.runtime_handler,
        }
        for pod in all_pods(calls)
    ]
    containers = [
        {
            "id": one.id,
            "pod": one.pod_sandbox_id,
            "name": one.metadata.name,
            "attempt": one.metadata.attempt,
            "state": one.state,
            "image": one.image.user_specified_image or one.image.image,
            "created_at": one.created_at,
        }
        for one in all_containers(calls)
    ]
    yield Member("agent/pods.json", _json(pods))
    yield Member("agent/containers.json", _json(containers))


def _metrics(section: Telemetry) -> str:
    if not section.metrics_address:
        return "telemetry.metrics_address is empty: there are none\n"
    host, _, port = section.metrics_address.rpartition(":")
    host = {"0.0.0.0": "127.0.0.1", "[::]": "[::1]"}.get(host, host)  # noqa: S104 - not bound here
    scheme = "https" if section.metrics_tls_cert else "http"
    request = urllib.request.Request(f"{scheme}://{host}:{port}/metrics")  # noqa: S310 - see above
    if section.metrics_token_file:
        (token, *_) = read_tokens(Path(section.metrics_token_file))
        request.add_header("Authorization", f"Bearer {token.decode()}")
    trust = ssl.create_default_context(cafile=section.metrics_tls_cert or None)
    trust.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # no root has to be in the file
    trust.check_hostname = False  # it is this node, whatever the certificate calls it
    opener = urllib.request.build_opener(
        urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=trust)
    )
    with opener.open(request, timeout=10) as answer:
        data: bytes = answer.read(_MOST)
    return data.decode(errors="replace")


def _kernel() -> Iterator[Member]:
    system = os.uname()
    yield Member("kernel/uname.txt", " ".join((*system,)) + "\n")
    yield Member("kernel/os-release.txt", _tried(lambda: _content(Path("/etc/os-release"))))
    for name in _KERNEL_FILES:
        path = Path("/proc") / name
        if path.exists():
            member = f"kernel/{name.replace('/', '-')}.txt"
            yield Member(member, _tried(partial(_content, path)))
    yield Member("kernel/mounts.txt", _tried(_mounts))


def _mounts() -> str:
    """Type, place and source; options may name users."""
    lines = []
    for line in Path("/proc/self/mounts").read_text().splitlines():
        source, place, kind = line.split(" ")[:3]
        lines.append(f"{kind} {place} {source}\n")
    return "".join(lines)


def _journal(since: str) -> str:
    return _output(
        "journalctl", "--no-pager", "--output=short-iso-precise", f"--lines={_LINES}",
        f"--since={since}", "--unit=criagent", "--unit=criagent-monitors",
    )  # fmt: skip


def unreadable_time(since: str) -> str:
    """What journalctl says of a time that it cannot read; "" = it can, or is not there."""
    said = _output("journalctl", "--no-pager", "--quiet", "--lines=0", f"--since={since}")
    return said.strip() if said.startswith("Failed to parse timestamp") else ""


def _output(*command: str) -> str:
    from criagent.process import child

    program = shutil.which(command[0])
    if program is None:
        return f"{command[0]} is not installed\n"
    argv = [program, *command[1:]]
    ended = asyncio.run(child.run(argv, limit_s=_COMMAND_S, keep=_MOST_OUTPUT))
    return ended.output + ended.errors


def _content(path: Path) -> str:
    with path.open("rb") as file:
        return file.read(_MOST).decode(errors="replace")


def _tried(read: Callable[[], str]) -> str:
    try:
        return read()
    except Exception as error:  # noqa: BLE001 - one missing fact must not cost the others
        return f"not read: {type(error).__name__}: {error}\n"


def _json(document: Any) -> str:
    return json.dumps(document, indent=2) + "\n"
