# SPDX-License-Identifier: Apache-2.0
"""The section about sandboxes and containers, and the OCI runtimes that it names."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from criagent.config import checks
from criagent.config.defaults import values
from criagent.config.defaults.section import Defaults
from criagent.config.defaults.workloads import Workload
from criagent.config.keys import key, metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class Handler:
    """One OCI runtime."""

    path: Path = field(metadata=metadata("Absolute path of the program."))
    type: Literal["crun", "runc", "runsc", "wasm"] = key(
        "The runtime whose command line and features the program has. runsc is gVisor. wasm is a "
        "crun that runs WebAssembly modules. Use runc for other programs with its command line.",
        default="crun",
    )
    arguments: tuple[str, ...] = key(
        'Global arguments of the program, before the subcommand, such as ["--platform=kvm"] for '
        "runsc. Those that the agent gives itself are refused.",
        default=(),
    )
    privileged_without_host_devices: bool = key(
        "Give privileged containers only the devices that they request. Set it for runtimes that "
        "bring devices of their own, such as those of virtual machines.",
        default=False,
    )
    snapshotter: str = key(
        "Storage driver of the handler's images and containers, as in storage.driver; empty = that "
        "one. The default handler has storage.driver.",
        default="",
    )
    platform: str = key(
        "Platform of the images that are pulled for the handler, such as linux/arm64; empty = the "
        "node's own. The default handler has that.",
        default="",
    )
    privileged_without_host_devices_all_devices_allowed: bool = key(
        "With privileged_without_host_devices: let privileged containers open every device, though "
        "they get the nodes only of those that they request.",
        default=False,
    )
    exec_cgroup: Literal["agent", "container"] = key(
        "Where the program runs while it executes a command in a container: in the agent's cgroup, "
        "or in that of the container, which then pays for it, as with CRI-O's monitor_exec_cgroup "
        '= "container". The command itself is always in the cgroup of its container.',
        default="agent",
    )
    create_timeout_s: float = key(
        "Limit in seconds for the program's create, at least 30. 0 = runtime.create_timeout_s, "
        "which limits the whole creation and cannot be exceeded.",
        default=0.0,
    )
    cni_conf_dir: str = key(
        "Directory of the CNI configuration of pods with this handler; empty = "
        "network.cni_conf_dir. It needs network.backend cni.",
        default="",
    )
    pod_annotations: tuple[str, ...] = key(
        "Annotations of pods that the program gets with the pod's containers. * stands for any "
        'characters but "/", ? for one of them.',
        default=(),
    )
    container_annotations: tuple[str, ...] = key(
        "Annotations of containers that the program gets, with * and ? as in pod_annotations.",
        default=(),
    )
    allowed_annotations: tuple[str, ...] = key(
        "Annotations of pods that the agent obeys: runtime.criagent.io/shm-size is the size of "
        "/dev/shm, runtime.criagent.io/devices names devices of runtime.allowed_devices. CRI-O's "
        "names of both can be listed as well (docs/defaults.md). Whoever may create pods can set "
        "them.",
        default=(),
    )
    base_runtime_spec: str = key(
        "File with an OCI specification, in JSON, of which every container of the handler gets the "
        "parts that its pod does not decide; empty = none. It is read when the agent starts.",
        default="",
    )
    min_memory_bytes: int = key(
        "Containers with a lower memory limit are refused: their program could not even start. "
        "0 = off.",
        default=0,
    )


def default_handlers() -> dict[str, Handler]:
    """The handlers of Debian's packages."""
    return {
        "crun": Handler(path=Path("/usr/bin/crun")),
        "runc": Handler(path=Path("/usr/sbin/runc"), type="runc"),
    }


@dataclass(frozen=True, slots=True, kw_only=True)
class Runtime:
    """Sandboxes and containers."""

    handlers: dict[str, Handler] = field(
        default_factory=default_handlers,
        metadata=metadata(
            "OCI runtimes by the name that a RuntimeClass uses. A file adds a handler, or changes "
            "single keys of one; handlers.NAME = false removes one."
        ),
    )
    default_handler: str = key(
        "The handler of pods without a RuntimeClass. It must be one of runtime.handlers.",
        default="crun",
    )
    conmon: Path = key(
        "Path of conmon, the process that monitors each container.",
        default=Path("/usr/bin/conmon"),
    )
    catatonit: Path = key(
        "Path of catatonit, the first process of pods that share a PID namespace.",
        default=Path("/usr/bin/catatonit"),
    )
    cgroup_driver: Literal["auto", "systemd", "cgroupfs"] = key(
        "Who makes cgroups. auto takes systemd where systemd manages the system, else cgroupfs. It "
        "must match the kubelet's cgroupDriver; a kubelet since 1.28 can take it from the agent.",
        default="auto",
    )
    missing_controllers: Literal["error", "ignore"] = key(
        "What happens to a container with limits whose cgroup controller the node lacks: it fails, "
        "or it runs without these limits. Use ignore for test nodes only.",
        default="error",
    )
    exec_cgroup: bool = key(
        "Run each ExecSync command in a cgroup of its own, so that its timeout also kills the "
        "processes that the command left behind.",
        default=True,
    )
    exec_drain_s: float = key(
        "How long in seconds output is still read after the main process of an exec has ended. "
        "Raise it when output of background processes is cut off.",
        default=1.0,
        check=checks.from_zero,
    )
    create_timeout_s: float = key(
        "Limit in seconds for creating a sandbox or a container. What takes longer is undone. "
        "Raise it on slow nodes.",
        default=240.0,  # the kubelet's own limit for RunPodSandbox
        check=checks.above_zero,
    )
    nofile_soft: int = key(
        "Soft limit of open files (RLIMIT_NOFILE) of containers.",
        default=1024,
        check=checks.above_zero,
    )
    nofile_hard: int = key(
        "Hard limit of open files of containers, up to which a process can raise its soft limit.",
        default=524288,
        check=checks.above_zero,
    )
    cdi_spec_dirs: tuple[Path, ...] = key(
        "Directories of CDI device specifications; a later one hides equal devices of an earlier "
        "one. An empty list turns CDI off.",
        default=(Path("/etc/cdi"), Path("/var/run/cdi")),
    )
    image_volumes: Literal["bind", "mkdir", "ignore"] = key(
        "What a VOLUME of an image becomes: a directory of the node that is mounted (bind, as "
        "containerd), a directory in the container's root (mkdir, as CRI-O) or nothing (ignore).",
        default="bind",
    )
    selinux: Literal["auto", "off"] = key(
        "auto labels containers where the kernel has SELinux on; off runs them without labels.",
        default="auto",
    )
    device_ownership_from_security_context: bool = key(
        "Give the devices that a container requests to the user and group of its security "
        "context. Set it for KubeVirt, or DPDK without root.",
        default=False,
    )
    allowed_devices: tuple[str, ...] = key(
        "Devices of the node that pods may name in the annotation runtime.criagent.io/devices, "
        'where a handler or a workload allows it, such as "/dev/fuse".',
        default=(),
        check=values.device_paths,
    )
    log_to_journald: bool = key(
        "Write the output of containers to the journal of the node, too, beside the files of the "
        "kubelet.",
        default=False,
    )
    defaults: Defaults = Defaults()
    workloads: dict[str, Workload] = field(
        default_factory=dict,
        metadata=metadata(
            "Resources and allowed annotations of pods that an annotation marks, by a name for "
            "messages. A file adds a workload or replaces one."
        ),
    )
