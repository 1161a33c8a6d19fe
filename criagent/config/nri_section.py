# SPDX-License-Identifier: Apache-2.0
"""The section about NRI plugins. Keys and defaults are those of containerd."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from criagent.config import checks
from criagent.config.keys import key, metadata


@dataclass(frozen=True, slots=True, kw_only=True)
class DefaultValidator:
    """The built-in validator of what NRI plugins change in containers."""

    enable: bool = key(
        "Validate every new container, even without a plugin.",
        default=False,
    )
    reject_oci_hook_adjustment: bool = key(
        "Reject containers into which a plugin injects OCI hooks.",
        default=False,
    )
    reject_runtime_default_seccomp_adjustment: bool = key(
        "Reject containers with the default seccomp profile if a plugin replaces it.",
        default=False,
    )
    reject_unconfined_seccomp_adjustment: bool = key(
        "Reject containers without a seccomp profile if a plugin gives them one.",
        default=False,
    )
    reject_custom_seccomp_adjustment: bool = key(
        "Reject containers with a seccomp profile of their own if a plugin replaces it.",
        default=False,
    )
    reject_namespace_adjustment: bool = key(
        "Reject containers whose namespaces a plugin changes.",
        default=False,
    )
    reject_sysctl_adjustment: bool = key(
        "Reject containers whose sysctls a plugin changes.",
        default=False,
    )
    required_plugins: tuple[str, ...] = key(
        "Plugins without which no container is created, by NAME or INDEX-NAME. Static pods are "
        "concerned, too.",
        default=(),
    )
    tolerate_missing_plugins_annotation: str = key(
        "Annotation by which a pod tolerates that required plugins are missing. When empty, none "
        "can.",
        default="",
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Nri:
    """Plugins of the Node Resource Interface (NRI), which adjust containers and follow pods."""

    disable: bool = key(
        "Serve no plugins.",
        default=False,
    )
    socket_path: Path = key(
        "Unix socket to which plugins connect. Only root can use it. Set another one when "
        "containerd or CRI-O serves plugins on the same node.",
        default=Path("/var/run/nri/nri.sock"),
        check=checks.socket_path,
    )
    plugin_path: Path = key(
        "Directory of programs, called INDEX-NAME, that the agent starts as plugins.",
        default=Path("/opt/nri/plugins"),
    )
    plugin_config_path: Path = key(
        "Directory of the configurations of those programs: INDEX-NAME.conf, or else NAME.conf.",
        default=Path("/etc/nri/conf.d"),
    )
    plugin_registration_timeout: str = key(
        "Limit for a plugin to register, and to take in the pods and containers there are, such as "
        '"5s" or "500ms". Pods that are made meanwhile wait for it.',
        default="5s",
        check=checks.duration,
    )
    plugin_request_timeout: str = key(
        'Limit for a plugin to answer a call, such as "2s" or "500ms". A pod waits so long for a '
        "plugin that does not answer.",
        default="2s",
        check=checks.duration,
    )
    disable_connections: bool = key(
        "Serve no socket: only programs of plugin_path are plugins.",
        default=False,
    )
    default_validator: DefaultValidator = field(
        default=DefaultValidator(),
        metadata=metadata(
            "The built-in validator; its keys are those of the table nri.default_validator."
        ),
    )
