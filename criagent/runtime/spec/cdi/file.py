# SPDX-License-Identifier: Apache-2.0
"""One CDI specification file: read with limits, checked, and turned into values.

The Container Device Interface (versions 0.3 to 1.1) names devices "vendor/class=name" and lists for
each the environment, device nodes, mounts, hooks and groups that a container gets with it. As in
its reference implementation, a file with an unknown field, or with a field that is newer than its
version, is refused as a whole.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Iterator
from typing import Any

import msgspec

VERSIONS = ("0.3.0", "0.4.0", "0.5.0", "0.6.0", "0.7.0", "0.8.0", "1.0.0", "1.1.0")
FILE_LIMIT = 4 << 20  # bytes; the largest that generators write are some hundred kilobytes
_VALUES_LIMIT = 200_000  # values of one file, those behind YAML aliases counted each time
_DEPTH_LIMIT = 32  # a device's innermost value is 6 deep
_MAX_ID = 2**31 - 1  # as in users.py: larger ones wrap round to root in some lower layer
_MAX_MAJOR, _MAX_MINOR = 2**12, 2**20  # of dev_t (include/linux/kdev_t.h)

_KIND = re.compile(r"[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?/[A-Za-z]([A-Za-z0-9_.-]*[A-Za-z0-9])?")
_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9_.:-]*[A-Za-z0-9])?")
_LONGEST_NAME = 253
_HOOKS = frozenset(
    "prestart createRuntime createContainer startContainer poststart poststop".split()
)


class SpecError(ValueError):
    """A file is not a valid CDI specification; the text is the reason, without the file's name."""


class _Strict(msgspec.Struct, frozen=True, forbid_unknown_fields=True, rename="camel"):
    pass


class DeviceNode(_Strict, frozen=True, kw_only=True):
    """A device node to create; missing fields come from the node at `host_path` or `path`."""

    path: str
    host_path: str = ""
    type: str = ""  # "b", "c", "u" (a character device too) or "p"
    major: int = 0
    minor: int = 0
    file_mode: int | None = None
    permissions: str = ""  # of "rwm"; "" = all, "none" = none
    uid: int | None = None
    gid: int | None = None


class Mount(_Strict, frozen=True, kw_only=True):
    """A mount to make; `options` as the OCI runtime understands them."""

    host_path: str
    container_path: str
    options: tuple[str, ...] = ()
    type: str = ""


class Hook(_Strict, frozen=True, kw_only=True):
    """A program of the node to run at a point of the container's life."""

    hook_name: str
    path: str
    args: tuple[str, ...] = ()
    env: tuple[str, ...] = ()
    timeout: int | None = None  # seconds


class IntelRdt(_Strict, frozen=True, kw_only=True):
    """Cache and memory bandwidth classes (resctrl)."""

    clos_id: str = msgspec.field(default="", name="closID")
    l3_cache_schema: str = msgspec.field(default="", name="l3CacheSchema")
    mem_bw_schema: str = ""
    schemata: tuple[str, ...] = ()
    enable_monitoring: bool = False
    enable_cmt: bool = msgspec.field(default=False, name="enableCMT")  # 0.7 to 1.0
    enable_mbm: bool = msgspec.field(default=False, name="enableMBM")


class NetDevice(_Strict, frozen=True, kw_only=True):
    """An interface of the node that moves into the container's network namespace."""

    host_interface_name: str
    name: str


class Edits(_Strict, frozen=True, kw_only=True):
    """The changes to a container."""

    env: tuple[str, ...] = ()
    device_nodes: tuple[DeviceNode, ...] = ()
    net_devices: tuple[NetDevice, ...] = ()
    hooks: tuple[Hook, ...] = ()
    mounts: tuple[Mount, ...] = ()
    intel_rdt: IntelRdt | None = None
    additional_gids: tuple[int, ...] = ()

    def __bool__(self) -> bool:
        return self != Edits()


class Device(_Strict, frozen=True, kw_only=True):
    """A device of a specification."""

    name: str | int  # unquoted digits are a number in YAML
    annotations: dict[str, str] = {}
    container_edits: Edits = Edits()


class Spec(_Strict, frozen=True, kw_only=True):
    """A whole file. `container_edits` apply with every device of it."""

    cdi_version: str
    kind: str
    annotations: dict[str, str] = {}
    devices: tuple[Device, ...]
    container_edits: Edits = Edits()


def is_device_name(text: str) -> bool:
    """Whether `text` is "vendor/class=name"."""
    kind, _, name = text.partition("=")
    return _is(_KIND, kind) and _is(_NAME, name)


def parse(data: bytes, *, yaml: bool) -> Spec:
    """The checked specification in `data`. Raises SpecError."""
    try:
        document = _from_yaml(data) if yaml else msgspec.json.decode(data)
        spec = msgspec.convert(_plain(document, [_VALUES_LIMIT], _DEPTH_LIMIT), Spec)
    except (msgspec.DecodeError, UnicodeDecodeError) as exc:
        raise SpecError(str(exc)) from None
    except RecursionError:
        raise SpecError("is nested too deeply") from None
    _check(spec)
    return spec


def _from_yaml(data: bytes) -> object:
    import yaml  # 20 ms that a node without YAML files never spends

    try:
        return yaml.load(data.decode(), Loader=_yaml_loader())  # noqa: S506 - a SafeLoader
    except yaml.YAMLError as exc:
        raise SpecError(" ".join(str(exc).split())) from None
    except (ValueError, OverflowError) as exc:  # such as a date of the 13th month
        raise SpecError(f"is not a YAML document: {exc}") from None


@functools.cache
def _yaml_loader() -> Any:
    import yaml

    base: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

    class Loader(base):  # type: ignore[misc] # its base is known at run time only
        """Without merge keys: a few lines of nested ones grow to any size."""

        def flatten_mapping(self, node: Any) -> None:
            if any(key.tag == "tag:yaml.org,2002:merge" for key, _ in node.value):
                raise yaml.YAMLError("merge keys (<<) are not supported")

    return Loader


def _plain(value: Any, budget: list[int], depth: int) -> Any:
    """`value` without its nulls, which mean "not given". Raises SpecError if huge."""
    budget[0] -= 1
    if budget[0] < 0 or depth < 0:
        raise SpecError(f"has more than {_VALUES_LIMIT} values or is nested too deeply")
    if isinstance(value, dict):
        return {
            key: _plain(item, budget, depth - 1) for key, item in value.items() if item is not None
        }
    if isinstance(value, list):
        return [_plain(item, budget, depth - 1) for item in value]
    return value


def _check(spec: Spec) -> None:
    version = spec.cdi_version.removeprefix("v")
    if version not in VERSIONS:
        raise SpecError(f"cdiVersion {spec.cdi_version[:20]!r} is not one of {', '.join(VERSIONS)}")
    if not _is(_KIND, spec.kind):
        raise SpecError(f"kind {spec.kind[:80]!r} does not have the form vendor/class")
    if not spec.devices:
        raise SpecError("has no devices")
    needed, what = max(_newer_parts(spec), default=("", ""), key=lambda pair: _order(pair[0]))
    if needed and _order(version) < _order(needed):
        raise SpecError(f"cdiVersion is {version}, but {what} requires {needed}")
    _check_edits(spec.container_edits, version)
    seen: set[str] = set()
    for device in spec.devices:
        name = str(device.name)
        if not _is(_NAME, name):
            raise SpecError(f"device name {name[:80]!r} is invalid")
        if name in seen:
            raise SpecError(f'device "{name}" is defined twice')
        if not device.container_edits:
            raise SpecError(f'device "{name}" has no containerEdits')
        seen.add(name)
        try:
            _check_edits(device.container_edits, version)
        except SpecError as exc:
            raise SpecError(f'device "{name}": {exc}') from None


def _newer_parts(spec: Spec) -> Iterator[tuple[str, str]]:
    """Each part that a later version introduced, with that version (CDI specification, "Released
    versions").
    """
    if "." in spec.kind.partition("/")[2]:
        yield "0.6.0", "a dot in the class"
    if spec.annotations or any(device.annotations for device in spec.devices):
        yield "0.6.0", "annotations"
    if any(str(device.name)[0:1].isdigit() for device in spec.devices):
        yield "0.5.0", "a device name that starts with a digit"
    for edits in (spec.container_edits, *(device.container_edits for device in spec.devices)):
        if any(mount.type for mount in edits.mounts):
            yield "0.4.0", "type of a mount"
        if any(node.host_path for node in edits.device_nodes):
            yield "0.5.0", "hostPath of a device node"
        if edits.intel_rdt is not None:
            yield "0.7.0", "intelRdt"
            if edits.intel_rdt.schemata or edits.intel_rdt.enable_monitoring:
                yield "1.1.0", "schemata or enableMonitoring"
        if edits.additional_gids:
            yield "0.7.0", "additionalGids"
        if edits.net_devices:
            yield "1.1.0", "netDevices"


def _check_edits(edits: Edits, version: str) -> None:
    _check_env("env", edits.env)
    for node in edits.device_nodes:
        _check_node(node)
    for mount in edits.mounts:
        _check_path("hostPath of a mount", mount.host_path)
        _check_path("containerPath", mount.container_path)
        _check_text("mount options", mount.type, *mount.options)
    for hook in edits.hooks:
        _check_hook(hook)
    for gid in edits.additional_gids:
        _check_id("additionalGids", gid)
    for device in edits.net_devices:
        for text in (device.host_interface_name, device.name):
            if not re.fullmatch(r"[^\s/:\0]{1,15}", text) or text in {".", ".."}:
                raise SpecError(f"netDevices: {text[:40]!r} is not an interface name")
    if edits.intel_rdt is not None:
        _check_rdt(edits.intel_rdt, version)


def _check_env(what: str, env: tuple[str, ...]) -> None:
    _check_text(what, *env)
    for entry in env:
        if entry.find("=") <= 0:
            raise SpecError(f"{what}: {entry[:80]!r} does not have the form NAME=VALUE")


def _check_node(node: DeviceNode) -> None:
    _check_path("path of a device node", node.path)
    if node.host_path:
        _check_path("hostPath of a device node", node.host_path)
    if node.type not in {"", "b", "c", "u", "p"}:
        raise SpecError(
            f"device node {node.path}: type {node.type[:20]!r} is not one of b, c, u, p"
        )
    if node.permissions != "none" and not set(node.permissions) <= set("rwm"):
        raise SpecError(
            f"device node {node.path}: permissions {node.permissions[:20]!r} contain "
            "characters other than r, w and m"
        )
    if not (0 <= node.major < _MAX_MAJOR and 0 <= node.minor < _MAX_MINOR):
        raise SpecError(
            f"device node {node.path}: {node.major}:{node.minor} is not a valid device number"
        )
    if node.file_mode is not None and not 0 <= node.file_mode < 2**32:
        raise SpecError(f"device node {node.path}: fileMode {node.file_mode} is not a valid mode")
    for number in (node.uid, node.gid):
        if number is not None:
            _check_id(f"device node {node.path}", number)


def _check_hook(hook: Hook) -> None:
    if hook.hook_name not in _HOOKS:
        raise SpecError(
            f"hookName {hook.hook_name[:40]!r} is not one of {', '.join(sorted(_HOOKS))}"
        )
    _check_path(f"path of hook {hook.hook_name}", hook.path)
    _check_text(f"args of hook {hook.path}", *hook.args)
    _check_env(f"env of hook {hook.path}", hook.env)
    if hook.timeout is not None and not 0 < hook.timeout <= _MAX_ID:
        raise SpecError(f"hook {hook.path}: timeout {hook.timeout} is not greater than 0")


def _check_rdt(rdt: IntelRdt, version: str) -> None:
    name = rdt.clos_id
    if name != "/" and (name in {".", ".."} or len(name) > 255 or "/" in name or "\n" in name):
        raise SpecError(f"intelRdt: closID {name[:40]!r} is invalid")
    if (rdt.enable_cmt or rdt.enable_mbm) and _order(version) >= _order("1.1.0"):
        raise SpecError("intelRdt: enableCMT and enableMBM were removed in 1.1.0")
    _check_text("intelRdt", name, rdt.l3_cache_schema, rdt.mem_bw_schema, *rdt.schemata)


def _check_path(what: str, path: str) -> None:
    if not path.startswith("/") or ".." in path.split("/"):
        raise SpecError(f'{what}: {path[:200]!r} is not an absolute path without "." and ".."')
    _check_text(what, path)


def _check_text(what: str, *texts: str) -> None:
    for text in texts:
        if "\0" in text:
            raise SpecError(f"{what}: {text[:80]!r} contains a NUL byte")


def _check_id(what: str, number: int) -> None:
    if not 0 <= number <= _MAX_ID:
        raise SpecError(f"{what}: id {number} is not between 0 and {_MAX_ID}")


def _is(pattern: re.Pattern[str], text: str) -> bool:
    return len(text) <= _LONGEST_NAME and pattern.fullmatch(text) is not None


def _order(version: str) -> tuple[int, ...]:
    return tuple(int(part) for part in version.split(".") if part)
