# SPDX-License-Identifier: Apache-2.0
"""containerd's config.toml, versions 2 to 4 (docs/cri/config.md there)."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from criagent.config.migrate.defaults import seccomp
from criagent.config.migrate.handlers import handler
from criagent.config.migrate.migration import Migration, Where, shown
from criagent.config.migrate.registry import EVERY, Server
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

# The plugins that the CRI's keys were in: all in one up to version 2, later in parts.
_ONE = "plugins/io.containerd.grpc.v1.cri"
_IMAGES = "plugins/io.containerd.cri.v1.images"
_RUNTIME = "plugins/io.containerd.cri.v1.runtime"
_NRI = "plugins/io.containerd.nri.v1.nri"
_VERIFIER = "plugins/io.containerd.image-verifier.v1.bindir"
_MAPPER = "plugins/io.containerd.snapshotter.v1.devmapper"

_OWN_ROOT = unneeded("the agent has directories of its own: storage.root and storage.run_dir")
_NO_PAUSE = unneeded("the agent has no pause container, and pulls no image for one")


def read(migration: Migration, document: Mapping[str, Any], file: Path) -> None:
    """Read one file. Its imports are read by the caller."""
    apply(migration, _TABLE, document, Where(file, ""))
    migration.take(Where(file, "(its pods use CNI)"), "network.backend", "cni")


def _mirrors(migration: Migration, where: Where, value: Any) -> None:
    for name, entry in value.items():
        endpoints = list(entry.get("endpoint", []))
        for url in endpoints:
            at = below(where, name)
            hosts = migration.registry(at, _registry(name), f"asks {url}")
            hosts.mirror(_endpoint(str(url)))


def _registry(name: str) -> str:
    return EVERY if name == "*" else name


def _endpoint(url: str) -> Server:
    """containerd's old endpoints have their path in front of /v2; hosts.toml has it likewise."""
    return Server(url if "://" in url else f"https://{url}")


def _host_configs(migration: Migration, where: Where, value: Any) -> None:
    for name, entry in value.items():
        at = below(where, name)
        if "auth" in entry:
            migration.left(
                below(at, "auth"),
                "credentials are not copied; put them into the file of registry.docker_config "
                f"(criagent reads Docker's format) under {shown(name)}",
            )
        if tls := entry.get("tls"):
            _tls(migration, below(at, "tls"), name, tls)


def _tls(migration: Migration, where: Where, name: str, tls: Mapping[str, Any]) -> None:
    """TLS settings are those of a server, whichever registries it is a mirror of."""
    servers = [
        mirror
        for hosts in migration.registries.values()
        for mirror in hosts.mirrors
        if mirror.url.split("://", 1)[1].split("/", 1)[0] == name
    ]
    for hosts in migration.registries.values():
        if any(server in hosts.mirrors for server in servers):
            migration.registry(where, hosts.name, f"TLS of {name}")
    if not servers:
        servers = [migration.registry(where, name, "TLS").server()]
    for server in servers:
        server.skip_verify = bool(tls.get("insecure_skip_verify"))
        server.ca = str(tls.get("ca_file") or "")
        server.client = (str(tls.get("cert_file") or ""), str(tls.get("key_file") or ""))


def _handlers(migration: Migration, where: Where, value: Any) -> None:
    for name, entry in value.items():
        at = below(where, name)
        kind = entry.get("runtime_type", "")
        options = entry.get("options", {})
        if kind in {"io.containerd.runc.v2", "io.containerd.runc.v1", ""}:
            program = options.get("BinaryName") or "runc"
        elif kind == "io.containerd.runsc.v1":
            program = "runsc"
        else:
            migration.left(at, f"{kind}: the agent runs OCI runtimes, not containerd's shims")
            continue
        handler(migration, at, name, program, entry)
        if "SystemdCgroup" in options:
            cgroups = "systemd" if options["SystemdCgroup"] else "cgroupfs"
            migration.take(below(at, "options", "SystemdCgroup"), "runtime.cgroup_driver", cgroups)
        apply(migration, _HANDLER, entry, at)


_HANDLER: dict[str, Rule] = {
    "runtime_type": unneeded("the handler's type"),
    "runtime_path": left("name the OCI runtime with BinaryName"),
    "options/BinaryName": unneeded("the handler's path"),
    "options/SystemdCgroup": unneeded("runtime.cgroup_driver"),
    "options/Root": left("the agent chooses the runtime's state directory"),
    "options/**": left("an option of containerd's shim", 0),
    "privileged_without_host_devices": unneeded("the handler's key of the same name"),
    "privileged_without_host_devices_all_devices_allowed": unneeded("the key of the same name"),
    "pod_annotations": unneeded("the handler's key of the same name"),
    "container_annotations": unneeded("the handler's key of the same name"),
    "cni_conf_dir": unneeded("the handler's key of the same name"),
    "sandboxer": left("sandboxes are the agent's own", "podsandbox"),
    "sandbox_mode": left("sandboxes are the agent's own", "podsandbox"),
    "io_type": left("logs are conmon's"),
    "cni_max_conf_num": unneeded("the first file in name order is used"),
    "disable_pause_image_pull": _NO_PAUSE,
    "base_runtime_spec": unneeded("the handler's key of the same name"),
    "cgroup_writable": left("pods ask for writable cgroups by cgroupMountMode"),
    "**": left("a key of containerd's handlers without a counterpart", 0),
}


def _images() -> dict[str, Rule]:
    return {
        "snapshotter": to("storage.driver", driver),
        "disable_snapshot_annotations": unneeded("only for remote snapshotters"),
        "discard_unpacked_layers": if_on("storage.keep_blobs", new=False),
        "max_concurrent_downloads": to("registry.max_parallel_blobs", number, 3),
        "max_concurrent_unpacks": to("registry.unpack_workers", number, 1),
        "concurrent_layer_fetch_buffer": unneeded("large blobs are pulled in ranges anyway"),
        "image_pull_progress_timeout": to("registry.progress_timeout_s", seconds, "5m0s"),
        "image_pull_with_sync_fs": unneeded("pulled layers are always on disk"),
        "use_local_image_pull": unneeded("there is one way to pull"),
        "stats_collect_period": unneeded("usage is counted by events"),
        "pinned_images/sandbox": _NO_PAUSE,
        "registry/config_path": to("registry.config_dirs", _directories),
        "registry/mirrors": _mirrors,
        "registry/configs": _host_configs,
        "registry/auths": _auths,
        "registry/headers/**": left("put headers into hosts.toml of the registry that needs them"),
        "image_decryption/**": left("encrypted layers cannot be pulled", "node"),
    }


def _auths(migration: Migration, where: Where, _value: object) -> None:
    migration.left(
        where, "credentials are not copied; put them into the file of registry.docker_config"
    )


def _directories(value: Any) -> list[str]:
    return [part for part in str(value).split(":") if part]


def _runtime() -> dict[str, Rule]:
    return {
        "enable_selinux": _selinux,
        "selinux_category_range": left("categories are 0 to 1023", 1024),
        "max_container_log_line_size": left(
            "conmon writes a long line in parts of at most 8 KiB", 16384
        ),
        "disable_apparmor": left("AppArmor is used where the kernel has it"),
        "restrict_oom_score_adj": left("the agent runs as root and sets oom_score_adj as asked"),
        "disable_cgroup": left("containers always have cgroups"),
        "disable_proc_mount": unneeded("the pod decides, by procMount"),
        "unset_seccomp_profile": seccomp,
        "tolerate_missing_hugetlb_controller": unneeded("limits that are not set are not missed"),
        "disable_hugetlb_controller": unneeded("limits that are not set are not missed"),
        "device_ownership_from_security_context": to(
            "runtime.device_ownership_from_security_context"
        ),
        "ignore_image_defined_volumes": if_on("runtime.image_volumes", "ignore"),
        "netns_mounts_under_state_dir": unneeded("they are in storage.run_dir"),
        "enable_unprivileged_ports": to("network.unprivileged_ports"),
        "enable_unprivileged_icmp": to("network.unprivileged_icmp"),
        "enable_cdi": if_off("runtime.cdi_spec_dirs", []),
        "cdi_spec_dirs": to("runtime.cdi_spec_dirs"),
        "drain_exec_sync_io_timeout": to("runtime.exec_drain_s", seconds, "0s", "0"),
        "ignore_deprecation_warnings": unneeded("the agent has no such warnings"),
        "stats_collect_period": unneeded("usage is read when it is asked for"),
        "stats_retention_period": unneeded("usage is read when it is asked for"),
        "enable_criu": unneeded("checkpoints work where CRIU is installed"),
        "sandbox_image": _NO_PAUSE,
        "image_pull_progress_timeout": to("registry.progress_timeout_s", seconds, "5m0s"),
        "systemd_cgroup": if_on("runtime.cgroup_driver", "systemd"),
        "containerd/default_runtime_name": to("runtime.default_handler"),
        "containerd/runtimes": _handlers,
        "containerd/ignore_blockio_not_enabled_errors": unneeded("the agent has no such classes"),
        "containerd/ignore_rdt_not_enabled_errors": unneeded("RDT is left to NRI plugins"),
        "cni/bin_dir": to("network.cni_bin_dirs", lambda value: [value]),
        "cni/bin_dirs": to("network.cni_bin_dirs"),
        "cni/conf_dir": to("network.cni_conf_dir"),
        "cni/max_conf_num": unneeded("the first file in name order is used"),
        "cni/setup_serially": unneeded("a network has one list of plugins, called in order"),
        "cni/conf_template": left("let the network add-on write its configuration"),
        "cni/ip_pref": left("the first address of the network is the pod's first"),
        "cni/use_internal_loopback": unneeded("the agent sets up loopback itself"),
    }


def _selinux(migration: Migration, where: Where, value: Any) -> None:
    migration.take(where, "runtime.selinux", "auto" if value else "off")


_STREAMING: dict[str, Rule] = {
    "disable_tcp_service": unneeded("the CRI is served on its socket only"),
    "stream_server_address": to("streaming.address"),
    "stream_server_port": to("streaming.port", number),
    "stream_idle_timeout": to("streaming.idle_timeout_s", seconds, "4h0m0s"),
    "enable_tls_streaming": unneeded("TLS is on when streaming.tls_cert is set"),
    "x509_key_pair_streaming/tls_cert_file": to("streaming.tls_cert"),
    "x509_key_pair_streaming/tls_key_file": to("streaming.tls_key"),
}

_SHARED_NRI = (
    "disable",
    "socket_path",
    "plugin_path",
    "plugin_config_path",
    "plugin_registration_timeout",
    "plugin_request_timeout",
    "disable_connections",
)
_SHARED_VALIDATOR = (
    "enable",
    "reject_oci_hook_adjustment",
    "reject_runtime_default_seccomp_adjustment",
    "reject_unconfined_seccomp_adjustment",
    "reject_custom_seccomp_adjustment",
    "reject_namespace_adjustment",
    "reject_sysctl_adjustment",
    "required_plugins",
    "tolerate_missing_plugins_annotation",
)


def _all() -> dict[str, Rule]:
    table: dict[str, Rule] = {}
    for plugin, rules in (
        (_ONE, {**_runtime(), **_images(), **_STREAMING}),
        (_IMAGES, _images()),
        (_RUNTIME, _runtime()),
    ):
        table |= {f"{plugin}/{key}": rule for key, rule in rules.items()}
    table[f"{_ONE}/containerd/snapshotter"] = to("storage.driver", driver)
    table[f"{_ONE}/containerd/discard_unpacked_layers"] = if_on("storage.keep_blobs", new=False)
    table[f"{_ONE}/containerd/disable_snapshot_annotations"] = unneeded("no remote snapshotters")
    table |= {f"{_NRI}/{key}": to(f"nri.{key}") for key in _SHARED_NRI}
    table |= {
        f"{_NRI}/default_validator/{key}": to(f"nri.default_validator.{key}")
        for key in _SHARED_VALIDATOR
    }
    return table | _DAEMON


_DAEMON: dict[str, Rule] = {
    "version": unneeded("the format of the file"),
    "root": _OWN_ROOT,
    "state": _OWN_ROOT,
    "temp": _OWN_ROOT,
    "imports": unneeded("the files it names are read as well"),
    "disabled_plugins": unneeded("the agent has no plugins to disable"),
    "required_plugins": unneeded("the agent has no plugins to require"),
    "oom_score": left("set OOMScoreAdjust= in a drop-in of criagent.service", 0),
    "debug/level": left("set --log-level in a drop-in of criagent.service", "info"),
    "debug/**": left("logs are JSON lines in the journal"),
    "grpc/address": unneeded("the kubelet is given storage.socket instead"),
    "grpc/max_recv_message_size": to("limits.grpc_message_bytes", size_bytes, 16777216),
    "grpc/**": left("the CRI is served on a socket of root, not over TCP", 0, 16777216),
    "ttrpc/**": left("the agent has no ttrpc server", 0),
    "metrics/address": to("telemetry.metrics_address"),
    "metrics/grpc_histogram": unneeded("calls have histograms anyway"),
    "cgroup/path": left("set Slice= in a drop-in of criagent.service"),
    "timeouts/**": unneeded("time limits of containerd's own parts"),
    "proxy_plugins/**": left("snapshotters and content stores are not plugins; see storage.driver"),
    "stream_processors/**": unneeded("layers are decompressed by the agent's own worker"),
    "plugins/io.containerd.server.v1.grpc/max_recv_message_size": to(
        "limits.grpc_message_bytes", size_bytes, 16777216
    ),
    "plugins/io.containerd.server.v1.metrics/address": to("telemetry.metrics_address"),
    "plugins/io.containerd.server.v1.debug/**": unneeded("the agent has no debug socket"),
    f"{_MAPPER}/pool_name": to("storage.devmapper.pool"),
    f"{_MAPPER}/base_image_size": to("storage.devmapper.base_size_bytes", size_bytes),
    f"{_MAPPER}/fs_type": to("storage.devmapper.filesystem"),
    f"{_MAPPER}/discard_blocks": left("see storage.devmapper.discard"),
    f"{_MAPPER}/**": left("see docs/storage.md for how the driver is set up"),
    "plugins/io.containerd.tracing.processor.v1.otlp/endpoint": to("telemetry.otlp_endpoint"),
    f"{_VERIFIER}/bin_dir": to("registry.verifier_dir"),
    f"{_VERIFIER}/per_verifier_timeout": to("registry.verifier_timeout_s", seconds, "10s"),
    f"{_VERIFIER}/max_verifiers": left("at most 10 are run", 10),
    "plugins/io.containerd.service.v1.tasks-service/**": left("use an NRI plugin for RDT"),
    "plugins/*/**": unneeded("a plugin of containerd that the agent has no part for"),
}

_TABLE: dict[str, Rule] = _all()
