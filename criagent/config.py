"""The configuration: frozen sections with their defaults, and the reason for each number.

Read from /etc/criagent/config.toml and the drop-ins config.d/*.toml in name order, later files
winning key by key. `load` reports every problem of every file at once.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, is_dataclass
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal

import msgspec


@dataclass(frozen=True, slots=True, kw_only=True)
class Storage:
    """Where things lie."""

    root: Path = Path("/var/lib/criagent")
    run_dir: Path = Path("/run/criagent")
    socket: Path = Path("/run/criagent/criagent.sock")


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Pod networking."""

    backend: Literal["builtin", "cni"] = "builtin"
    bridge: str = "cri0"
    pod_cidrs: tuple[str, ...] = ("10.88.0.0/16", "fd00:10:88::/64")
    mtu: int = 0  # 0 = of the default route
    unprivileged_ports: bool = True  # as containerd: a non-root process may listen on port 80
    cni_conf_dir: Path = Path("/etc/cni/net.d")
    cni_bin_dirs: tuple[Path, ...] = (Path("/opt/cni/bin"), Path("/usr/lib/cni"))
    cni_timeout_s: float = 120.0  # half of the kubelet's limit for RunPodSandbox


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Pulling images."""

    config_dirs: tuple[Path, ...] = (
        Path("/etc/criagent/certs.d"),
        Path("/etc/containerd/certs.d"),
        Path("/etc/docker/certs.d"),
    )
    docker_config: Path = Path("/root/.docker/config.json")
    max_parallel_blobs: int = 4  # more streams rarely help and hurt small registries
    range_bytes: int = 32 << 20  # a larger blob is fetched in parts of this size
    progress_timeout_s: float = 300.0  # without a byte for so long, a pull fails
    http_proxy: str = ""
    https_proxy: str = ""
    no_proxy: str = ""
    pinned_images: tuple[str, ...] = ()
    unpack_workers: int = 2


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One OCI runtime."""

    path: Path
    type: Literal["crun", "runc"] = "crun"


def _handlers() -> dict[str, Handler]:
    return {
        "crun": Handler(path=Path("/usr/bin/crun")),
        "runc": Handler(path=Path("/usr/sbin/runc"), type="runc"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Running containers."""

    handlers: dict[str, Handler] = field(default_factory=_handlers)
    default_handler: str = "crun"
    conmon: Path = Path("/usr/bin/conmon")
    catatonit: Path = Path("/usr/bin/catatonit")
    cgroup_driver: Literal["auto", "systemd", "cgroupfs"] = "auto"
    missing_controllers: Literal["error", "ignore"] = "error"
    exec_cgroup: bool = True
    exec_drain_s: float = 1.0  # how long output may trail the main process of an exec
    create_timeout_s: float = 240.0  # the kubelet's own limit for RunPodSandbox
    nofile_soft: int = 1024
    nofile_hard: int = 524288


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Sizes and times of the daemon itself."""

    grpc_message_bytes: int = 16 << 20  # what kubelet and crictl use
    shutdown_s: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """What the daemon tells about itself."""

    otlp_endpoint: str = ""
    metrics_address: str = "127.0.0.1:9880"


@dataclass(frozen=True, slots=True, kw_only=True)
class Debug:
    """For tests."""

    kill_at: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All sections."""

    storage: Storage = Storage()
    network: Network = Network()
    registry: Registry = Registry()
    runtime: Runtime = Runtime()
    limits: Limits = Limits()
    telemetry: Telemetry = Telemetry()
    debug: Debug = Debug()


class ConfigError(Exception):
    """`problems` lists each file and key with what is wrong there."""

    def __init__(self, problems: list[str]) -> None:
        super().__init__("\n".join(problems))
        self.problems = problems


DEFAULT_PATH = Path("/etc/criagent/config.toml")


def load(path: Path) -> Config:
    """The configuration of `path` and its drop-ins; the defaults when the default file is missing.

    Raises ConfigError with every problem found.
    """
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    if path != DEFAULT_PATH and not path.exists():
        problems.append(f"{path}: no such file")
    for file in _files(path):
        try:
            document = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
            problems.append(f"{file}: {exc}")
            continue
        for name, section in document.items():
            problems += [f"{file}: {text}" for text in _problems(name, section)]
            if isinstance(section, dict):
                values.setdefault(name, {}).update(section)
    if problems:
        raise ConfigError(problems)
    config: Config = msgspec.convert(values, Config, dec_hook=_path)
    if config.runtime.default_handler not in config.runtime.handlers:
        raise ConfigError(
            [f"{path}: runtime.default_handler: {config.runtime.default_handler!r} is no handler"]
        )
    return config


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise NotImplementedError
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"want an absolute path, not {value!r}")
    return Path(value)


def _files(path: Path) -> list[Path]:
    main = [path] if path.exists() else []
    return main + sorted((path.parent / "config.d").glob("*.toml"))


def _problems(name: str, section: object) -> list[str]:
    sections = {f.name: f for f in fields(Config)}
    if name not in sections:
        return [f"[{name}]: unknown section; known are {sorted(sections)}"]
    default = getattr(Config(), name)
    if not isinstance(section, dict):
        return [f"{name}: want a section, not a value"]
    known = {f.name: f for f in fields(default)}
    found = []
    for key, value in section.items():
        if key not in known:
            found.append(f"{name}.{key}: unknown key")
            continue
        if key == "handlers" and isinstance(value, dict):
            found += _handler_problems(f"{name}.{key}", value)
        try:
            converted = msgspec.convert({key: value}, type(default), dec_hook=_path)
        except msgspec.ValidationError as exc:
            found.append(f"{name}.{key}: {exc}")
            continue
        if (check := _CHECKS.get(key)) and (text := check(getattr(converted, key))):
            found.append(f"{name}.{key}: {text}")
        elif isinstance(value, int | float) and not isinstance(value, bool) and value < 0:
            found.append(f"{name}.{key}: want a number from 0 on, not {value}")
    return found


def _handler_problems(name: str, handlers: dict[str, Any]) -> list[str]:
    known = {f.name for f in fields(Handler)}
    return [
        f"{name}.{handler}.{key}: unknown key"
        for handler, entry in handlers.items()
        if isinstance(entry, dict)
        for key in entry
        if key not in known
    ]


def _check_cidrs(cidrs: tuple[str, ...]) -> str:
    for cidr in cidrs:
        try:
            ip_network(cidr)
        except ValueError as exc:
            return f"{cidr!r} is no network: {exc}"
    versions = [ip_network(cidr).version for cidr in cidrs]
    if not versions or len(set(versions)) < len(versions):
        return "want one network, or one of IPv4 and one of IPv6"
    return ""


def _check_bridge(name: str) -> str:
    good = re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name)
    return "" if good else f"{name!r} is no interface name of at most 15 characters"


def _check_address(address: str) -> str:
    if not address:
        return ""
    host, colon, port = address.rpartition(":")
    try:
        loopback = host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    if not colon or not loopback or not port.isdigit() or not 0 < int(port) < 65536:
        return f'{address!r} is no loopback address with a port, such as "127.0.0.1:9880"'
    return ""


_CHECKS: dict[str, Callable[[Any], str]] = {
    "pod_cidrs": _check_cidrs,
    "bridge": _check_bridge,
    "metrics_address": _check_address,
}


def default_text() -> str:
    """The default configuration as TOML; every key is commented out."""
    lines: list[str] = []
    for section in fields(Config):
        value = getattr(Config(), section.name)
        lines.append(f"[{section.name}]")
        for key in fields(value):
            item = getattr(value, key.name)
            if isinstance(item, dict):
                lines += [f"# {key.name}.{name} = {_toml(entry)}" for name, entry in item.items()]
            else:
                lines.append(f"# {key.name} = {_toml(item)}")
        lines.append("")
    return "\n".join(lines)


def _toml(value: object) -> str:
    if is_dataclass(value):
        pairs = ", ".join(f"{f.name} = {_toml(getattr(value, f.name))}" for f in fields(value))
        return f"{{ {pairs} }}"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, tuple):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    if isinstance(value, int | float):
        return str(value)
    return '"' + str(value) + '"'
