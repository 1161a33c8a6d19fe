# SPDX-License-Identifier: Apache-2.0
"""The section about what containers have when their pods do not say otherwise."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from criagent.config import checks
from criagent.config.defaults import values
from criagent.config.keys import key


@dataclass(frozen=True, slots=True, kw_only=True)
class Defaults:
    """What containers have when their pods do not say otherwise."""

    sysctls: tuple[str, ...] = key(
        'Sysctls of pods as "NAME=VALUE", such as "net.core.somaxconn=1024". Those of a namespace '
        "that a pod shares with the node are left out for it; a sysctl of the pod wins.",
        default=(),
        check=values.sysctls,
    )
    shm_size_bytes: int = key(
        "Size of a pod's /dev/shm in bytes. What is written there counts as memory of the "
        "containers. An annotation can replace it (allowed_annotations of a handler).",
        default=64 << 20,  # as in containerd and CRI-O
        check=checks.above_zero,
    )
    time_zone: str = key(
        'Time zone of containers: a name such as "Europe/Berlin", or "local" for that of the node. '
        "It is mounted at /etc/localtime. Empty leaves that to the image.",
        default="",
        check=values.time_zone,
    )
    ulimits: tuple[str, ...] = key(
        'Resource limits of containers as "NAME=SOFT:HARD", such as "nproc=4096:8192" or '
        '"memlock=unlimited". nofile has its own keys in [runtime]. What is not listed is the '
        "agent's.",
        default=(),
        check=values.ulimits,
    )
    pids_limit: int = key(
        "Limit of processes and threads for each container, 0 = none. podPidsLimit of the kubelet "
        "limits whole pods.",
        default=0,
        check=checks.from_zero,
    )
    environment: tuple[str, ...] = key(
        'Environment variables of containers as "NAME=VALUE". Those of image and pod win.',
        default=(),
        check=values.environment,
    )
    min_gomaxprocs: int = key(
        "Set GOMAXPROCS in Burstable and BestEffort containers without a CPU limit to twice their "
        "CPU request, but to no less than this number. 0 = off. A variable of that name wins.",
        default=0,
        check=checks.from_zero,
    )
    capabilities: tuple[str, ...] = key(
        "Capabilities of containers that are not privileged, before those that the pod adds and "
        "drops. The default is that of containerd and Docker.",
        default=values.CAPABILITIES,
        check=values.capabilities,
    )
    inheritable_capabilities: bool = key(
        "Make the capabilities of containers inheritable as well, as CRI-O's "
        "add_inheritable_capabilities. A program with file capabilities then gets them for any "
        "user (CVE-2022-24769).",
        default=False,
    )
    unset_seccomp_profile: str = key(
        'Seccomp profile of containers whose request has none: "unconfined", "runtime/default", or '
        "the path of a profile. The kubelet's requests have one; set its seccompDefault. "
        "Privileged containers have none in any case.",
        default="unconfined",
        check=values.seccomp_profile,
    )
    devices: tuple[str, ...] = key(
        'Devices of every container as "HOST:CONTAINER:ACCESS", such as "/dev/fuse" or '
        '"/dev/sdc:/dev/xvdc:r". ACCESS is of the letters rwm.',
        default=(),
        check=values.devices,
    )
    hooks_dirs: tuple[Path, ...] = key(
        "Directories of OCI hooks (man 5 oci-hooks, schema 1.0.0), such as "
        "/usr/share/containers/oci/hooks.d. A file in a later directory replaces one of the same "
        "name. Hooks run as root of the node. Changed files count for the next container.",
        default=(),
        check=checks.stores,
    )
    absent_mount_sources_to_reject: tuple[str, ...] = key(
        "Paths of the node that are not made as directories when a mount names them and they do "
        'not exist: the container is refused. Set "/etc/hostname", for example.',
        default=(),
        check=values.absolute_paths,
    )
