# SPDX-License-Identifier: Apache-2.0
"""The OCI runtime specification of a container: a pure function of facts, well under 1 ms.

The structure follows containerd's CRI plug-in, so that workloads find the same environment. Nothing
that an image or a pod can write freely (labels, annotations) is included, unless the handler lists
it: runtimes and systemd act on annotation keys (CVE-2024-3154, CVE-2023-6476).
"""

from __future__ import annotations

from collections.abc import Sequence

from criagent.base.errors import InvalidRequestError
from criagent.model.container import ContainerSpec, KeyValue
from criagent.model.image import ImageConfig
from criagent.runtime.node.facts import NodeFacts
from criagent.runtime.spec.cdi.apply import apply_cdi
from criagent.runtime.spec.devices import device_nodes, device_rules
from criagent.runtime.spec.gomaxprocs import gomaxprocs
from criagent.runtime.spec.id_mappings import oci_mappings
from criagent.runtime.spec.inputs import (
    ContainerNamespaces,
    OciObject,
    PodFiles,
    ResolvedDevice,
    ResolvedMount,
    SpecInputs,
)
from criagent.runtime.spec.limits import default_pids, resources_to_oci
from criagent.runtime.spec.mounts.oci import oci_mounts, own_cgroup_namespace, rootfs_propagation
from criagent.runtime.spec.security.capabilities import capability_sets
from criagent.runtime.spec.security.masked_paths import masked_paths, readonly_paths

__all__ = [
    "ContainerNamespaces",
    "NodeFacts",
    "OciObject",
    "PodFiles",
    "ResolvedDevice",
    "ResolvedMount",
    "SpecInputs",
    "build_spec",
    "oci_namespaces",
    "process_spec",
]

# Every field used here exists in it, except id mappings of mounts (1.1), which are written only
# for a runtime whose features have them. runc 1.1 and crun 1.x accept it.
OCI_VERSION = "1.0.2"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TERM = "TERM=xterm"


def build_spec(inputs: SpecInputs) -> OciObject:
    """The content of config.json.

    Raises InvalidRequestError when there is no command or the environment cannot be encoded in
    JSON, UnsupportedError when a limit needs a cgroup controller that the node lacks.
    """
    spec = inputs.container.spec
    security = spec.security
    made: OciObject = {
        "ociVersion": OCI_VERSION,
        "process": _process(inputs),
        "root": {"path": str(inputs.rootfs), "readonly": security.readonly_rootfs},
        "mounts": oci_mounts(inputs),
        "linux": _linux(inputs),
    }
    if inputs.own_kernel:
        made["hostname"] = inputs.hostname  # the pod's UTS namespace is one of the node's kernel
    if inputs.annotations:
        made["annotations"] = dict(inputs.annotations)
    if inputs.base is not None:
        from criagent.runtime.spec.base import with_base  # few handlers have one

        made = with_base(made, inputs.base)
    for stage, hook in inputs.hooks:
        made.setdefault("hooks", {}).setdefault(stage, []).append(hook)
    return apply_cdi(made, inputs.cdi)


def process_spec(process: OciObject, args: Sequence[str], *, tty: bool) -> OciObject:
    """The process of an exec: the container's process with other arguments.

    User, capabilities, limits and labels are those of the container's main process, so the runtime
    parses none of them (CVE-2026-30892). Raises InvalidRequestError for an empty command.
    """
    if not args or not args[0]:
        raise InvalidRequestError("exec: the command is empty")
    if any("\0" in arg for arg in args):
        raise InvalidRequestError("exec: an argument contains a NUL byte")
    environment = list(process["env"])
    if tty:
        environment = _merge_env([_TERM], environment)
    kept = {key: value for key, value in process.items() if key != "consoleSize"}
    return {**kept, "args": list(args), "env": environment, "terminal": tty}


def oci_namespaces(namespaces: ContainerNamespaces, *, cgroup: bool) -> list[OciObject]:
    """The namespace list: a new mount namespace, pinned ones by path, the node's by omission."""
    result: list[OciObject] = [{"type": "mount"}]
    for kind in ("user", "network", "ipc", "uts"):
        if (path := getattr(namespaces, kind)) is not None:
            result.append({"type": kind, "path": str(path)})
    if namespaces.pid == "new":
        result.append({"type": "pid"})
    elif namespaces.pid is not None:
        result.append({"type": "pid", "path": str(namespaces.pid)})
    if cgroup:
        result.append({"type": "cgroup"})
    return result


def _process(inputs: SpecInputs) -> OciObject:
    spec, node, user = inputs.container.spec, inputs.node, inputs.user
    process: OciObject = {
        "terminal": spec.tty,
        "user": {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.groups)},
        "args": container_args(spec, inputs.image.config),
        "env": _env(inputs),
        "cwd": container_cwd(spec, inputs.image.config),
        "capabilities": capability_sets(
            spec.security,
            node.capabilities,
            inputs.default_capabilities,
            inheritable=node.defaults.inheritable_capabilities,
        ),
        "rlimits": _rlimits(inputs),
        "noNewPrivileges": spec.security.no_new_privs,
        "oomScoreAdj": clamp_oom(spec.resources.oom_score_adj, node.oom_score_floor),
    }
    if inputs.apparmor:
        process["apparmorProfile"] = inputs.apparmor
    if inputs.selinux is not None:
        process["selinuxLabel"] = inputs.selinux.process
    return process


def _env(inputs: SpecInputs) -> list[str]:
    defaults, spec = inputs.node.defaults, inputs.container.spec
    given = defaults.environment
    if inputs.base is not None:
        given = (*given, *inputs.base.process.env)  # the handler's is closer to the container
    env = container_env(spec, inputs.image.config, inputs.hostname, given)
    if defaults.min_gomaxprocs and defaults.workloads.of(inputs.sandbox.spec) is None:
        env += gomaxprocs(
            env,
            least=defaults.min_gomaxprocs,
            resources=inputs.container.resources,
            cgroup_parent=inputs.sandbox.spec.cgroup_parent,
        )
    return env


def _rlimits(inputs: SpecInputs) -> list[OciObject]:
    node = inputs.node
    limits = {"RLIMIT_NOFILE": node.nofile}
    limits |= {limit.type: (limit.soft, limit.hard) for limit in node.defaults.ulimits}
    if inputs.base is not None:
        limits |= {limit.type: (limit.soft, limit.hard) for limit in inputs.base.process.rlimits}
    return [{"type": kind, "soft": soft, "hard": hard} for kind, (soft, hard) in limits.items()]


def _linux(inputs: SpecInputs) -> OciObject:
    spec, node = inputs.container.spec, inputs.node
    security, userns = spec.security, inputs.sandbox.spec.security.namespaces.pod_userns
    resources = resources_to_oci(
        inputs.container.resources,
        controllers=node.controllers,
        missing=node.missing_controllers,
        swap=node.swap,
    )
    if limit := node.defaults.pids_limit:
        resources |= default_pids(limit, inputs.container.resources, node)
    resources["devices"] = device_rules(inputs.devices, all_devices=inputs.all_devices)
    linux: OciObject = {
        "cgroupsPath": inputs.cgroups_path,
        "namespaces": oci_namespaces(
            inputs.namespaces, cgroup=own_cgroup_namespace(security, userns)
        ),
        "resources": resources,
        "devices": device_nodes(inputs.devices),
        "maskedPaths": masked_paths(security, node.thermal_paths, userns=userns is not None),
        "readonlyPaths": readonly_paths(security, userns=userns is not None),
    }
    if userns is not None:
        linux["uidMappings"] = oci_mappings(userns.uids)
        linux["gidMappings"] = oci_mappings(userns.gids)
    if propagation := rootfs_propagation(inputs.mounts):
        linux["rootfsPropagation"] = propagation
    if inputs.seccomp is not None:
        linux["seccomp"] = inputs.seccomp
    if inputs.selinux is not None:
        linux["mountLabel"] = inputs.selinux.mount
    return linux


def container_args(spec: ContainerSpec, image: ImageConfig) -> list[str]:
    """Command and arguments as Kubernetes defines them: a command replaces both of the image's."""
    if spec.command:
        args = [*spec.command, *spec.args]
    else:
        args = [*image.entrypoint, *(spec.args or image.cmd)]
    if not args or not args[0]:
        raise InvalidRequestError(
            f'container "{spec.metadata.name}": no command: the image "{spec.image}" '
            "has neither entrypoint nor cmd; set command"
        )
    if any("\0" in arg for arg in args):
        raise InvalidRequestError(
            f'container "{spec.metadata.name}": an argument contains a NUL byte'
        )
    return args


def container_env(
    spec: ContainerSpec, image: ImageConfig, hostname: str, defaults: Sequence[str] = ()
) -> list[str]:
    """Defaults, of which `defaults` are the operator's, the image's variables, then the request's;
    later values replace earlier ones.
    """
    first = [_PATH, *([_TERM] if spec.tty else []), f"HOSTNAME={hostname}", *defaults]
    from_image = [entry for entry in image.env if _usable(entry)]
    return _merge_env(first, from_image, [_env_entry(item) for item in spec.envs])


def container_cwd(spec: ContainerSpec, image: ImageConfig) -> str:
    """The working directory; one that leads through a file descriptor is refused."""
    cwd = spec.working_dir or image.working_dir or "/"
    if not cwd.startswith("/"):
        cwd = "/" + cwd
    if "\0" in cwd or ("/fd/" in cwd + "/" and "/proc/" in cwd):  # CVE-2024-21626
        raise InvalidRequestError(
            f'container "{spec.metadata.name}": working directory {cwd[:200]!r} leads through /proc'
        )
    return cwd


def clamp_oom(score: int, floor: int) -> int:
    """`score` raised to the lowest value that the node may set."""
    return max(score, floor)


def _merge_env(*layers: Sequence[str]) -> list[str]:
    merged: dict[str, str] = {}
    for layer in layers:
        for entry in layer:
            merged[entry.partition("=")[0]] = entry
    return list(merged.values())


def _usable(entry: str) -> bool:
    """Whether an image's variable is valid; invalid ones are left out, as the shell does."""
    return "=" in entry and not entry.startswith("=") and "\0" not in entry


def _env_entry(item: KeyValue) -> str:
    try:
        value = item.value.decode("utf-8")
    except UnicodeDecodeError as error:
        raise InvalidRequestError(
            f'environment variable "{item.key}": the value is not UTF-8 (byte '
            f"{error.start}), which OCI runtimes require; mount it as a file instead"
        ) from error
    return f"{item.key}={value}"
