# SPDX-License-Identifier: Apache-2.0
"""CRI-O's crio.conf and crio.conf.d (man 5 crio.conf)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from criagent.config.defaults import values
from criagent.config.migrate import defaults
from criagent.config.migrate.handlers import handler
from criagent.config.migrate.migration import Migration, Where, shown
from criagent.config.migrate.rules import (
    Rule,
    apply,
    below,
    driver,
    if_off,
    if_on,
    left,
    number,
    seconds,
    size_bytes,
    to,
    unneeded,
)

_OWN = unneeded("the agent has directories and sockets of its own")
_NO_PAUSE = unneeded("the agent has no pause container, and pulls no image for one")


def read(migration: Migration, document: Mapping[str, Any], file: Path) -> None:
    """Read one file; drop-ins are read by the caller, the last one first."""
    apply(migration, _TABLE, document, Where(file, ""))
    migration.take(Where(file, "(its pods use CNI)"), "network.backend", "cni")


def _runtimes(migration: Migration, where: Where, value: Any) -> None:
    for name, entry in value.items():
        at = below(where, name)
        kind = entry.get("runtime_type") or "oci"
        if kind != "oci":
            migration.left(at, f"runtime_type {shown(kind)}: the agent runs OCI runtimes only")
            continue
        program = entry.get("runtime_path") or name
        handler(migration, at, name, program, entry)
        apply(migration, _HANDLER, entry, at)


_HANDLER: dict[str, Rule] = {
    "runtime_path": unneeded("the handler's path"),
    "runtime_type": unneeded("the handler's type"),
    "runtime_root": left("the agent chooses the runtime's state directory", "/run/crun"),
    "privileged_without_host_devices": unneeded("the handler's key of the same name"),
    "allowed_annotations": unneeded("the handler's key of the same name"),
    "monitor_path": to("runtime.conmon"),
    "monitor_cgroup": unneeded("conmon is in the pod's cgroup"),
    "monitor_env": unneeded("conmon gets the environment it needs"),
    "monitor_exec_cgroup": unneeded("the handler's exec_cgroup"),
    "container_min_memory": unneeded("the handler's min_memory_bytes"),
    "hostnetwork_disable_selinux": unneeded("SELinux labels follow the pod's security context"),
    "**": left("a key of CRI-O's runtimes without a counterpart", 0),
}


def _selinux(migration: Migration, where: Where, value: Any) -> None:
    migration.take(where, "runtime.selinux", "auto" if value else "off")


def _ulimits(migration: Migration, where: Where, value: Any) -> None:
    found = []
    for limit in value:
        try:
            found.append(defaults.parsed_ulimit(str(limit)))
        except ValueError:
            migration.left(where, f'{shown(limit)}: is not "NAME=SOFT:HARD"')
    defaults.ulimits(migration, where, found)


def _time_zone(value: object) -> str:
    return "local" if str(value).lower() == "local" else str(value)


def _tls_version(value: object) -> str:
    """ "1.2" for "VersionTLS12". Raises ValueError."""
    return {"VersionTLS12": "1.2", "VersionTLS13": "1.3"}.get(str(value), str(value))


def _metrics(migration: Migration, where: Where, value: Any) -> None:
    if not value.get("enable_metrics"):
        migration.default(where)
        return
    host, port = value.get("metrics_host", "127.0.0.1"), value.get("metrics_port", 9090)
    migration.take(where, "telemetry.metrics_address", f"{host}:{port}")
    for key, own in (("metrics_cert", "metrics_tls_cert"), ("metrics_key", "metrics_tls_key")):
        if value.get(key):
            migration.take(below(where, key), f"telemetry.{own}", value[key])
    if value.get("metrics_socket"):
        migration.left(below(where, "metrics_socket"), "metrics are served over TCP only")


def _tracing(migration: Migration, where: Where, value: Any) -> None:
    if value.get("enable_tracing"):
        endpoint = value.get("tracing_endpoint", "127.0.0.1:4317")
        migration.left(
            where,
            f"{shown(endpoint)} is OTLP over gRPC; set telemetry.otlp_endpoint to the collector's "
            "URL for OTLP over HTTP",
        )
    else:
        migration.default(where)


def _insecure(migration: Migration, where: Where, value: Any) -> None:
    for name in value:
        if "/" in str(name):
            migration.left(where, f"{shown(name)}: settings are for a host, not for a network")
        else:
            migration.registry(where, str(name), "HTTPS is not verified, HTTP allowed").insecure()


_RUNTIME: dict[str, Rule] = {
    "default_ulimits": _ulimits,
    "conmon": to("runtime.conmon"),
    "conmon_cgroup": unneeded("conmon is in the pod's cgroup"),
    "conmon_env": unneeded("conmon gets the environment it needs"),
    "selinux": _selinux,
    "cgroup_manager": to("runtime.cgroup_driver"),
    "cdi_spec_dirs": to("runtime.cdi_spec_dirs"),
    "device_ownership_from_security_context": to("runtime.device_ownership_from_security_context"),
    "default_runtime": to("runtime.default_handler"),
    "runtimes": _runtimes,
    "default_env": defaults.each("runtime.defaults.environment", values.variable),
    "default_sysctls": defaults.each("runtime.defaults.sysctls", values.sysctl),
    "default_capabilities": defaults.each("runtime.defaults.capabilities", values.capability),
    "additional_devices": defaults.each("runtime.defaults.devices", values.device),
    "allowed_devices": to("runtime.allowed_devices"),
    "default_mounts_file": left("mount what all containers need by a base_runtime_spec"),
    "hooks_dir": to("runtime.defaults.hooks_dirs"),
    "pids_limit": to("runtime.defaults.pids_limit", number, -1, 0),
    "log_size_max": left("the kubelet rotates logs", -1),
    "log_to_journald": if_on("runtime.log_to_journald", new=True),
    "log_level": left("set --log-level in a drop-in of criagent.service", "info"),
    "log_filter": left("logs are JSON lines in the journal"),
    "seccomp_profile": left("RuntimeDefault is the agent's own profile; use Localhost profiles"),
    "privileged_seccomp_profile": left("privileged containers have no seccomp profile"),
    "apparmor_profile": left("use Localhost profiles", "crio-default"),
    "uid_mappings": left("user namespaces are the pods' own (hostUsers: false)"),
    "gid_mappings": left("user namespaces are the pods' own (hostUsers: false)"),
    "absent_mount_sources_to_reject": to("runtime.defaults.absent_mount_sources_to_reject"),
    "bind_mount_prefix": left("mounts are as the pod names them"),
    "read_only": left("set readOnlyRootFilesystem in the pods"),
    "no_pivot": left("the root file system is always pivoted"),
    "timezone": to("runtime.defaults.time_zone", _time_zone),
    "decryption_keys_path": left("encrypted layers cannot be pulled", "/etc/crio/keys/"),
    "infra_ctr_cpuset": left("the agent has no pause container"),
    "shared_cpuset": left("annotations of CRI-O are not obeyed"),
    "irqbalance_config_file": left("use an NRI plugin", "/etc/sysconfig/irqbalance"),
    "irqbalance_config_restore_file": left(
        "use an NRI plugin", "/etc/sysconfig/orig_irq_banned_cpus"
    ),
    "blockio_config_file": left("use an NRI plugin"),
    "rdt_config_file": left("use an NRI plugin"),
    "separate_pull_cgroup": left("layers are unpacked in the agent's own cgroup"),
    "min_injected_gomaxprocs": to("runtime.defaults.min_gomaxprocs", number, 0),
    "add_inheritable_capabilities": if_on("runtime.defaults.inheritable_capabilities", new=True),
    "disable_hostport_mapping": left("hostPorts belong to the CNI plugins"),
    "workloads": defaults.workloads,
    "minimum_mappable_uid": left("user namespaces have ranges of their own", -1),
    "minimum_mappable_gid": left("user namespaces have ranges of their own", -1),
    "additional_artifact_stores": left("see storage.additional_stores"),
    "ctr_stop_timeout": unneeded("the kubelet sends the grace period of each stop"),
    "drop_infra_ctr": _NO_PAUSE,
    "enable_criu_support": unneeded("checkpoints work where CRIU is installed"),
    "enable_pod_events": unneeded("events are always sent"),
    "hostnetwork_disable_selinux": unneeded("SELinux labels follow the pod's security context"),
    "**": _OWN,
}


def _all() -> dict[str, Rule]:
    table: dict[str, Rule] = {f"crio/runtime/{key}": rule for key, rule in _RUNTIME.items()}
    table |= {
        f"crio/nri/{name}": to(f"nri.{own}")
        for name, own in {
            "nri_listen": "socket_path",
            "nri_plugin_dir": "plugin_path",
            "nri_plugin_config_dir": "plugin_config_path",
            "nri_disable_connections": "disable_connections",
            "nri_plugin_registration_timeout": "plugin_registration_timeout",
            "nri_plugin_request_timeout": "plugin_request_timeout",
        }.items()
    }
    validator = "crio/nri/default_validator"
    table[f"{validator}/nri_enable_default_validator"] = to("nri.default_validator.enable")
    for key in (
        "reject_oci_hook_adjustment",
        "reject_runtime_default_seccomp_adjustment",
        "reject_unconfined_seccomp_adjustment",
        "reject_custom_seccomp_adjustment",
        "reject_namespace_adjustment",
        "required_plugins",
        "tolerate_missing_plugins_annotation",
    ):
        table[f"{validator}/nri_validator_{key}"] = to(f"nri.default_validator.{key}")
    return table | _REST


_SHORT = (
    "set short-name-mode and unqualified-search-registries in registries.conf, and its path as "
    "registry.registries_conf; without that, a name without a registry is one of docker.io"
)

_REST: dict[str, Rule] = {
    "crio/storage_driver": to("storage.driver", driver),
    "crio/storage_option": left("see docs/storage.md for how the driver is set up"),
    "crio/imagestore": left("images are in storage.root"),
    "crio/api/stream_address": to("streaming.address"),
    "crio/api/stream_port": to("streaming.port", number, "0"),
    "crio/api/stream_enable_tls": unneeded("TLS is on when streaming.tls_cert is set"),
    "crio/api/stream_tls_cert": to("streaming.tls_cert"),
    "crio/api/stream_tls_key": to("streaming.tls_key"),
    "crio/api/stream_tls_ca": left("clients show no certificates: their URL has a token"),
    "crio/api/tls_min_version": to("streaming.tls_min_version", _tls_version),
    "crio/api/tls_cipher_suites": to("streaming.tls_cipher_suites"),
    "crio/api/stream_idle_timeout": to("streaming.idle_timeout_s", seconds),
    "crio/api/grpc_max_recv_msg_size": to("limits.grpc_message_bytes", size_bytes, 83886080),
    "crio/api/grpc_max_send_msg_size": unneeded("limits.grpc_message_bytes is for both ways"),
    "crio/api/listen": unneeded("the kubelet is given storage.socket instead"),
    "crio/nri/enable_nri": if_off("nri.disable", new=True),
    "crio/image/pinned_images": to("registry.pinned_images"),
    "crio/image/image_volumes": to("runtime.image_volumes"),
    "crio/image/global_auth_file": to("registry.docker_config"),
    "crio/image/namespaced_auth_dir": to("registry.namespaced_auth_dir"),
    "crio/image/insecure_registries": _insecure,
    "crio/image/pull_progress_timeout": to("registry.progress_timeout_s", seconds, "0s"),
    "crio/image/signature_policy": to("registry.signature_policy"),
    "crio/image/signature_policy_dir": to("registry.signature_policy_dir"),
    "crio/image/short_name_mode": left(_SHORT, "enforcing"),
    "crio/image/registries": left(_SHORT),
    "crio/image/default_transport": left("images are pulled from registries", "docker://"),
    "crio/image/pause_image": _NO_PAUSE,
    "crio/image/pause_image_auth_file": _NO_PAUSE,
    "crio/image/pause_command": _NO_PAUSE,
    "crio/image/big_files_temporary_dir": _OWN,
    "crio/image/auto_reload_registries": unneeded("files are read again when they changed"),
    "crio/image/oci_artifact_mount_support": unneeded("the pod decides, by an image volume"),
    "crio/network/network_dir": to("network.cni_conf_dir"),
    "crio/network/plugin_dirs": to("network.cni_bin_dirs"),
    "crio/network/plugin_dir": to("network.cni_bin_dirs", lambda value: [value]),
    "crio/network/cni_default_network": left("the first file in name order is used"),
    "crio/network/cni_status_grace_period": left("the kubelet sees the network's state", "0s"),
    "crio/metrics": _metrics,
    "crio/tracing": _tracing,
    "crio/stats/**": unneeded("usage is read when it is asked for"),
    "crio/**": _OWN,
}

_TABLE: dict[str, Rule] = _all()
