# SPDX-License-Identifier: Apache-2.0
"""SELinux labels of pods: one level (MCS) for each, process and file labels for its containers.

Types come from the policy's `lxc_contexts`, as in every container engine. A request replaces its
part of the label; a container's options take precedence over its pod's. Without SELinux in the
kernel everything here is "no label", and options are ignored: pods that carry them run on nodes of
every kind.
"""

from __future__ import annotations

import dataclasses
import errno
import random
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import Executor
from pathlib import Path

from criagent.base.aio import run_in
from criagent.base.errors import AgentError, InvalidRequestError
from criagent.kernel import selinux
from criagent.kernel.mount import mountinfo
from criagent.model.common import SELinuxOptions
from criagent.model.sandbox import Sandbox, SandboxSpec
from criagent.runtime.spec.inputs import ResolvedMount, SelinuxLabels
from criagent.runtime.spec.mounts.host_paths import LOCAL

_CONFIG = Path("/etc/selinux/config")
_CATEGORIES = 1024  # c0 to c1023 in the policies of all distributions
_LEVEL = re.compile(r"s[0-9]+(-s[0-9]+)?(:c[0-9]{1,4}([.,]c[0-9]{1,4})*)?")
_PART = re.compile(r"[A-Za-z0-9_.-]*")
_PRIVILEGED_TYPE = "spc_t"
# Directories of the node on whose labels the node itself depends.
_NEVER = frozenset(
    "/ /bin /boot /dev /etc /etc/passwd /etc/pki /etc/shadow /home /lib /lib64 /media /opt /proc "
    "/root /run /sbin /srv /sys /tmp /usr /var /var/lib /var/log".split()
)


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """A label in its parts."""

    user: str
    role: str
    type: str
    level: str

    @classmethod
    def parse(cls, text: str) -> Context:
        """Raises ValueError unless all four parts are present."""
        user, role, kind, level = text.strip().split(":", 3)
        return cls(user, role, kind, level)

    def __str__(self) -> str:
        return ":".join(dataclasses.astuple(self))


def validate_selinux(what: str, options: SELinuxOptions | None) -> None:
    """Raises InvalidRequestError for values that are invalid under any policy."""
    if options is None:
        return
    for name in ("user", "role", "type"):
        value = getattr(options, name)
        if not _PART.fullmatch(value):
            raise InvalidRequestError(
                f"{what}: selinux_options.{name} {value[:80]!r} is not a valid {name}"
            )
    if options.level and not _LEVEL.fullmatch(options.level):
        raise InvalidRequestError(
            f"{what}: selinux_options.level {options.level[:80]!r} does not have the form "
            "s0 or s0:c1,c2"
        )


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class Selinux:
    """Labels for pods; none without `process` and `file`, which `read_contexts` finds."""

    fs: Executor
    process: Context | None = None
    file: Context | None = None

    def level(self, spec: SandboxSpec, pods: Iterable[Sandbox]) -> str:
        """The level of a new pod: the requested one, or two categories that no other pod has."""
        if self.process is None:
            return ""
        if spec.security.selinux is not None and spec.security.selinux.level:
            return spec.security.selinux.level
        taken = {sandbox.selinux_level for sandbox in pods}
        while True:  # 523,776 pairs
            low, high = sorted(random.sample(range(_CATEGORIES), 2))
            level = f"s0:c{low},c{high}"
            if level not in taken:
                return level

    async def labels(
        self, sandbox: Sandbox, options: SELinuxOptions | None = None, *, privileged: bool = False
    ) -> SelinuxLabels | None:
        """Labels of a container of `sandbox`; None without SELinux.

        A privileged container runs as spc_t, which the policy does not confine. Raises
        InvalidRequestError for a label that the policy does not define.
        """
        labels = self.combined(sandbox, options, privileged=privileged)
        for label in () if labels is None else (labels.process, labels.mount):
            if not await run_in(self.fs, selinux.is_known, label):
                raise InvalidRequestError(
                    f"SELinux label {label} is not defined in the policy of this node"
                )
        return labels

    def combined(
        self, sandbox: Sandbox, options: SELinuxOptions | None, *, privileged: bool
    ) -> SelinuxLabels | None:
        """The same without reading the kernel's policy."""
        if self.process is None or self.file is None or not sandbox.selinux_level:
            return None
        process = dataclasses.replace(self.process, level=sandbox.selinux_level)
        file = dataclasses.replace(self.file, level=sandbox.selinux_level)
        for given in (sandbox.spec.security.selinux, options):
            process, file = _with(process, given), _with(file, _files_part(given))
        if privileged:
            process = dataclasses.replace(process, type=_PRIVILEGED_TYPE, level="s0")
        return SelinuxLabels(process=str(process), mount=str(file))

    async def relabel(self, mounts: Sequence[ResolvedMount], labels: SelinuxLabels | None) -> None:
        """Label the sources of mounts that request it, and nothing else of the node.

        Raises InvalidRequestError for a directory of the node itself, AgentError.
        """
        if labels is None:
            return
        for mount in mounts:
            if mount.request.selinux_relabel and mount.request.image is None:
                await run_in(self.fs, _relabel, mount, labels.mount)


def read_contexts(config: Path = _CONFIG) -> tuple[Context, Context] | None:
    """Process and file contexts for containers of the policy; None when it has none."""
    try:
        policy = _value(config.read_text(), "SELINUXTYPE")
        text = (config.parent / policy / "contexts" / "lxc_contexts").read_text()
        return Context.parse(_value(text, "process")), Context.parse(_value(text, "file"))
    except (OSError, ValueError):
        return None


def _value(text: str, key: str) -> str:
    """The value of the line `key = "value"`. Raises ValueError without one."""
    for line in text.splitlines():
        name, equals, value = line.partition("=")
        if equals and name.strip() == key:
            return value.strip().strip('"')
    raise ValueError(key)


def _with(context: Context, given: SELinuxOptions | None) -> Context:
    if given is None:
        return context
    parts = {
        name: value for name in ("user", "role", "type", "level") if (value := getattr(given, name))
    }
    return dataclasses.replace(context, **parts)


def _files_part(given: SELinuxOptions | None) -> SELinuxOptions | None:
    """Roles and types of options apply to processes only."""
    return None if given is None else SELinuxOptions(user=given.user, level=given.level)


def _relabel(mount: ResolvedMount, label: str) -> None:
    if mount.source in _NEVER or mount.source.startswith(("/proc/", "/sys/", "/dev/")):
        raise InvalidRequestError(
            f"mount {mount.request.container_path}: {mount.source} belongs to the node and is "
            "not relabelled; mount a separate directory, or leave selinux_relabel unset"
        )
    remote = [entry.target for entry in mountinfo() if entry.fstype not in LOCAL]
    if any(mount.source == top or mount.source.startswith(top + "/") for top in remote):
        return  # labels of a network file system belong to its server, which may not answer
    try:
        selinux.relabel(mount.source, label, frozenset(remote))
    except OSError as exc:
        if exc.errno == errno.EROFS:
            return  # files that cannot be written keep their label, as on any read-only medium
        raise AgentError(
            f"mount {mount.request.container_path}: {exc.filename or mount.source} cannot be "
            f"labelled {label}: {exc.strerror}"
        ) from exc
