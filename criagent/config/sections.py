"""The configuration: frozen sections with their defaults, and the reason for each number.

Read from /etc/criagent/config.toml and the drop-ins config.d/*.toml in name order, later files
winning key by key. `load` reports every problem of every file at once.
"""

from __future__ import annotations

import difflib
import math
import re
import tomllib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from ipaddress import ip_address, ip_network
from pathlib import Path
from typing import Any, Literal, get_args, get_origin, get_type_hints
from urllib.parse import urlsplit

import msgspec

from criagent.base import faults


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
    # Pods send from their own hardware and IP addresses only. Off for pods that route for others.
    anti_spoofing: bool = True
    unprivileged_ports: bool = True  # as containerd: a non-root process may listen on port 80
    unprivileged_icmp: bool = True  # as containerd: a process without capabilities may ping
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
    # What a failed pull has fetched stays so long for the next try, unless an image is removed, the
    # disk is full or the agent starts before. A day at most.
    retry_retention_s: float = 12 * 3600.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One OCI runtime."""

    path: Path
    type: Literal["crun", "runc"] = "crun"
    # for runtimes that bring devices of their own, such as those of virtual machines
    privileged_without_host_devices: bool = False


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
    exec_cgroup: bool = True  # ExecSync's time-out then kills what its command left, too
    exec_drain_s: float = 1.0  # how long output may trail the main process of an exec
    create_timeout_s: float = 240.0  # the kubelet's own limit for RunPodSandbox
    nofile_soft: int = 1024
    nofile_hard: int = 524288
    cdi_spec_dirs: tuple[Path, ...] = (Path("/etc/cdi"), Path("/var/run/cdi"))  # later ones win
    # what becomes of a VOLUME of an image: a directory of the node (containerd), one in the root
    # (CRI-O), nothing
    image_volumes: Literal["bind", "mkdir", "ignore"] = "bind"
    selinux: Literal["auto", "off"] = "auto"  # auto: labels where the kernel has SELinux on
    device_ownership_from_security_context: bool = False  # requested devices are the user's


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """Exec, attach and port-forward. The kubelet connects from this node."""

    address: str = "127.0.0.1"
    port: int = 0  # a free one; the URL names it
    url_host: str = ""  # in URLs; "" = the address, or loopback when it is a wildcard
    tls_cert: str = ""  # files of a certificate and its key; without them plain HTTP
    tls_key: str = ""
    idle_timeout_s: float = 4 * 3600.0  # as containerd's and the kubelet's
    creation_timeout_s: float = 30.0  # for a client to open the streams that it asked for


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
    # "/run/containerd/containerd.sock" is where cAdvisor in the kubelet looks for a containerd
    cadvisor_socket: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Debug:
    """For tests."""

    kill_at: str = ""  # a crash point of the code
    fail_at: tuple[str, ...] = ()  # steps and undos that fail once, see criagent/base/faults.py


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All sections."""

    storage: Storage = Storage()
    network: Network = Network()
    registry: Registry = Registry()
    runtime: Runtime = Runtime()
    streaming: Streaming = Streaming()
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
    return load_with_origins(path)[0]


def load_with_origins(path: Path) -> tuple[Config, dict[str, Path]]:
    """As `load`, with the file that each "section.key" was set in last; defaults are not in it."""
    problems: list[str] = []
    values: dict[str, dict[str, Any]] = {}
    origins: dict[str, Path] = {}  # where a key was set last
    for file in files(path, problems):
        try:
            document = tomllib.loads(file.read_text())
        except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as exc:
            problems.append(f"{file}: {exc}")
            continue
        for name, section in document.items():
            problems += [f"{file}: {text}" for text in _problems(name, section)]
            if isinstance(section, dict):
                _merge(values.setdefault(name, {}), section)
                origins |= {f"{name}.{key}": file for key in section}
    if problems:
        raise ConfigError(problems)
    if (runtime := values.get("runtime")) and "handlers" in runtime:
        runtime["handlers"] = _with_default_handlers(runtime["handlers"])
    config: Config = msgspec.convert(values, Config, dec_hook=_path)
    if found := _contradictions(config):
        raise ConfigError(
            [
                f"{next((origins[key] for key in keys if key in origins), path)}: {keys[0]}: {text}"
                for keys, text in found
            ]
        )
    return config, origins


def _merge(values: dict[str, Any], section: dict[str, Any]) -> None:
    """Later keys win. Handlers are merged by name, so that a file can add one."""
    handlers = {**values.get("handlers", {}), **_table(section.get("handlers"))}
    values.update(section)
    if "handlers" in section:
        values["handlers"] = handlers


def _with_default_handlers(handlers: dict[str, Any]) -> dict[str, Any]:
    """The default handlers stay unless a file says `NAME = false`; their keys may be set singly."""
    found: dict[str, Any] = {}
    for name, handler in _handlers().items():
        found[name] = {key.name: getattr(handler, key.name) for key in fields(handler)}
    for name, entry in handlers.items():
        found[name] = {**found.get(name, {}), **entry} if isinstance(entry, dict) else entry
    return {name: _plain(entry) for name, entry in found.items() if entry is not False}


def _plain(entry: Any) -> Any:
    if not isinstance(entry, dict):
        return entry
    return {key: str(value) if isinstance(value, Path) else value for key, value in entry.items()}


def _table(value: object) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _contradictions(config: Config) -> list[tuple[tuple[str, ...], str]]:
    """What only several keys together get wrong: those keys, and a text on the first of them."""
    runtime, storage = config.runtime, config.storage
    found: list[tuple[tuple[str, ...], str]] = []
    if runtime.default_handler not in runtime.handlers:
        keys = ("runtime.default_handler", "runtime.handlers")
        found.append((keys, f"{runtime.default_handler!r} is no handler"))
    if runtime.nofile_soft > runtime.nofile_hard:
        keys = ("runtime.nofile_soft", "runtime.nofile_hard")
        found.append((keys, f"{runtime.nofile_soft} is above nofile_hard {runtime.nofile_hard}"))
    streaming = config.streaming
    if bool(streaming.tls_cert) != bool(streaming.tls_key):
        keys = ("streaming.tls_cert", "streaming.tls_key")
        found.append((keys, "want a certificate and its key, or neither"))
    if config.telemetry.cadvisor_socket == str(storage.socket):
        keys = ("telemetry.cadvisor_socket", "storage.socket")
        found.append((keys, "is the socket of the CRI; want one of its own"))
    for key in ("tls_cert", "tls_key"):
        if (file := getattr(streaming, key)) and (problem := _unreadable(Path(file))):
            found.append(((f"streaming.{key}",), problem))
    if storage.root == storage.run_dir:
        keys = ("storage.run_dir", "storage.root")
        found.append((keys, "is the root directory too; want a directory on tmpfs of its own"))
    return found


def _unreadable(path: Path) -> str:
    try:
        with path.open("rb"):
            return ""
    except OSError as error:
        return f"{path} cannot be read: {error.strerror}"


def _path(kind: type, value: object) -> Path:
    if kind is not Path or not isinstance(value, str):
        raise NotImplementedError
    if not value.startswith("/") or "\0" in value:
        raise ValueError(f"want an absolute path, not {value!r}")
    return Path(value)


def files(path: Path, problems: list[str] | None = None) -> list[Path]:
    """The files that make the configuration of `path`, the winning one last.

    A main file that cannot be read is left out, and said in `problems`.
    """
    problems = [] if problems is None else problems
    main = []
    try:
        path.stat()
        main.append(path)
    except OSError as exc:
        if path != DEFAULT_PATH or not isinstance(exc, FileNotFoundError):
            missing = isinstance(exc, FileNotFoundError)
            problems.append(f"{path}: {'no such file' if missing else exc.strerror or exc}")
    return main + sorted((path.parent / "config.d").glob("*.toml"))


def _problems(name: str, section: object) -> list[str]:
    sections = {f.name: f for f in fields(Config)}
    if name not in sections:
        return [f"[{name}]: unknown section{_meant(name, sections)}; known are {sorted(sections)}"]
    default = getattr(Config(), name)
    if not isinstance(section, dict):
        return [f"{name}: want a section, not a value"]
    known = {f.name: f for f in fields(default)}
    found = []
    for key, value in section.items():
        if key not in known:
            found.append(f"{name}.{key}: unknown key{_meant(key, known)}")
            continue
        if key == "handlers" and isinstance(value, dict):
            found += _handler_problems(f"{name}.{key}", value)
            value = _with_default_handlers(value)  # noqa: PLW2901 - as it will be
        try:
            converted = msgspec.convert({key: value}, type(default), dec_hook=_path)
        except msgspec.ValidationError as exc:
            found.append(f"{name}.{key}: {_choices(type(default), key, value) or exc}")
            continue
        if (check := _CHECKS.get(key)) and (text := check(getattr(converted, key))):
            found.append(f"{name}.{key}: {text}")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            lowest_ok = value >= 0 if key in _MAY_BE_ZERO else value > 0
            if not (lowest_ok and math.isfinite(value)):
                above = "from 0 on" if key in _MAY_BE_ZERO else "above 0"
                found.append(f"{name}.{key}: want a number {above}, not {value}")
    return found


def _meant(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f"; did you mean {close[0]!r}?" if close else ""


def _choices(section: type, key: str, value: object) -> str:
    """What a key with a list of values takes; "" for other keys."""
    hint = get_type_hints(section)[key]
    if get_origin(hint) is not Literal:
        return ""
    choices = get_args(hint)
    text = ", ".join(repr(choice) for choice in choices)
    return f"want one of {text}, not {value!r}{_meant(str(value), choices)}"


def _handler_problems(name: str, handlers: dict[str, Any]) -> list[str]:
    known = {f.name for f in fields(Handler)}
    return [
        f"{name}.{handler}.{key}: unknown key{_meant(key, known)}"
        for handler, entry in handlers.items()
        if isinstance(entry, dict)
        for key in entry
        if key not in known
    ]


def check_cidrs(cidrs: Sequence[str]) -> str:
    """What is wrong with them as pod networks, also when the kubelet tells them; "" = nothing."""
    for cidr in cidrs:
        try:
            ip_network(cidr)
        except ValueError as exc:
            return f"{cidr[:80]!r} is no network: {str(exc)[:200]}"
        if ip_network(cidr).num_addresses < _FEWEST_ADDRESSES:
            return f"{cidr!r} has no room for pods beside its gateway"
    versions = [ip_network(cidr).version for cidr in cidrs]
    if not versions or len(set(versions)) < len(versions):
        return "want one network, or one of IPv4 and one of IPv6"
    return ""


def _check_bridge(name: str) -> str:
    # "all" and "default" are directories of their own beside the interfaces' sysctls
    taken = name in {".", "..", "all", "default", "lo"}
    good = re.fullmatch(r"[A-Za-z0-9_.-]{1,15}", name) and not taken
    return "" if good else f"{name!r} is no free interface name of at most 15 characters"


def _check_address(address: str) -> str:
    if not address:
        return ""
    host, colon, port = address.rpartition(":")
    try:
        loopback = host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        loopback = False
    number = int(port) if re.fullmatch(r"[0-9]{1,5}", port) else 0
    if not colon or not loopback or not 0 < number < 65536:
        return f'{address!r} is no loopback address with a port, such as "127.0.0.1:9880"'
    return ""


def _check_socket(path: Path) -> str:
    # sun_path of man 7 unix, with its closing zero
    size = len(str(path).encode())
    return "" if size <= 107 else f"is {size} bytes long; a socket's path has room for 107"


def _check_cadvisor_socket(path: str) -> str:
    if path and not path.startswith("/"):
        return f"want an absolute path, not {path!r}"
    return _check_socket(Path(path))


def _check_mtu(mtu: int) -> str:
    if mtu == 0 or 1280 <= mtu <= 65535:  # IPv6 needs 1280 (RFC 8200 section 5)
        return ""
    return f"want 0, or a size from 1280 to 65535, not {mtu}"


def _check_endpoint(url: str) -> str:
    if not url:
        return ""
    try:
        parts = urlsplit(url)
        good = parts.scheme in {"http", "https"} and bool(parts.hostname) and parts.port != 0
    except ValueError:
        good = False
    return "" if good else 'want a URL such as "http://127.0.0.1:4318/v1/traces"'


_LONGEST_RETENTION_S = 23 * 3600  # with the time between two collections, within a day
_MAY_BE_ZERO = frozenset({"port", "mtu", "exec_drain_s", "shutdown_s", "retry_retention_s"})
_FEWEST_ADDRESSES = 4  # network, gateway, a pod, broadcast


def _check_retention(seconds: float) -> str:
    if not 0 <= seconds <= _LONGEST_RETENTION_S:
        return f"want 0 to {_LONGEST_RETENTION_S} seconds, not {seconds}"
    return ""


def _check_port(port: int) -> str:
    return "" if 0 <= port < 65536 else f"{port} is not within 0..65535"


def _check_listen_address(address: str) -> str:
    try:
        ip_address(address)
    except ValueError:
        return f"{address!r} is no IP address"
    return ""


def _check_url_host(host: str) -> str:
    if not host or re.fullmatch(r"[A-Za-z0-9]([A-Za-z0-9.-]{0,251}[A-Za-z0-9])?", host):
        return ""
    return _check_listen_address(host) and f"{host!r} is no host name and no IP address"


def _check_faults(entries: Sequence[str]) -> str:
    try:
        for entry in entries:
            faults.failure(entry)
    except ValueError as exc:
        return str(exc)
    return ""


_CHECKS: dict[str, Callable[[Any], str]] = {
    "port": _check_port,
    "address": _check_listen_address,
    "url_host": _check_url_host,
    "socket": _check_socket,
    "mtu": _check_mtu,
    "otlp_endpoint": _check_endpoint,
    "pod_cidrs": check_cidrs,
    "bridge": _check_bridge,
    "metrics_address": _check_address,
    "cadvisor_socket": _check_cadvisor_socket,
    "fail_at": _check_faults,
    "retry_retention_s": _check_retention,
}
