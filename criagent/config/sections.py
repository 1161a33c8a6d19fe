# SPDX-License-Identifier: Apache-2.0
"""The configuration: frozen sections, each key with its default, its sentence and its check.

The sentences are what `criagent config default` and docs/configuration.md print: `make reference`
writes both files again after a change here. They say what the key does, in which unit, and when to
change it. Comments here give the reasons for the numbers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from criagent.config import checks
from criagent.config.keys import key
from criagent.config.nri_section import Nri
from criagent.config.runtime_section import Runtime
from criagent.config.storage_section import Storage


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """Pod networking."""

    backend: Literal["builtin", "cni"] = key(
        "What connects pods: the agent's own bridge with hostPorts, or the CNI plugins of "
        "network.cni_conf_dir. Choose cni before the first start when the cluster has a network "
        "add-on such as Calico, Cilium or flannel.",
        default="builtin",
    )
    bridge: str = key(
        "Name of the bridge of the built-in network, at most 15 characters. Change it only when "
        "another program owns an interface of that name.",
        default="cri0",
        check=checks.interface_name,
    )
    pod_cidrs: tuple[str, ...] = key(
        "Address ranges of the built-in network: one range, or one for IPv4 and one for IPv6. A "
        "pod CIDR from the kubelet takes precedence. Change them when they overlap a network that "
        "the node must reach, or when they run out of addresses.",
        default=("10.88.0.0/16", "fd00:10:88::/64"),
        check=checks.cidrs,
    )
    mtu: int = key(
        "MTU of the built-in network in bytes, 1280 or more. 0 takes the MTU of the default route.",
        default=0,
        check=checks.mtu,
    )
    anti_spoofing: bool = key(
        "Drop packets that a pod sends from a hardware or IP address other than its own. Turn it "
        "off when pods route traffic for others. Built-in network only.",
        default=True,
    )
    unprivileged_ports: bool = key(
        "Let processes without privileges in pods listen on ports below 1024, as containerd does. "
        "A sysctl of the pod takes precedence.",
        default=True,
    )
    unprivileged_icmp: bool = key(
        "Let processes without capabilities in pods use ping, as containerd does. A sysctl of the "
        "pod takes precedence.",
        default=True,
    )
    cni_conf_dir: Path = key(
        "Directory of CNI network configurations; the first file in name order is used. Read when "
        "network.backend is cni.",
        default=Path("/etc/cni/net.d"),
    )
    cni_bin_dirs: tuple[Path, ...] = key(
        "Directories that are searched, in this order, for CNI plugins.",
        default=(Path("/opt/cni/bin"), Path("/usr/lib/cni")),
    )
    cni_timeout_s: float = key(
        "Limit in seconds for each call of a CNI plugin. Raise it when a plugin that waits for its "
        "control plane is stopped too early.",
        default=120.0,  # half of the kubelet's limit for RunPodSandbox
        check=checks.above_zero,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Registry:
    """Image pulls."""

    config_dirs: tuple[Path, ...] = key(
        "Directories of registry settings (HOST/hosts.toml: mirrors, certificates, headers). For "
        "each host the first directory that has settings is used.",
        default=(
            Path("/etc/criagent/certs.d"),
            Path("/etc/containerd/certs.d"),
            Path("/etc/docker/certs.d"),
        ),
    )
    docker_config: Path = key(
        "File with registry credentials in Docker's format, used for pulls whose request carries "
        "none. A missing file means no credentials.",
        default=Path("/root/.docker/config.json"),
    )
    max_parallel_blobs: int = key(
        "Number of blobs that one pull downloads at the same time. Lower it for small registries.",
        default=4,  # more streams rarely help and hurt small registries
        check=checks.above_zero,
    )
    range_bytes: int = key(
        "Size in bytes of the ranges in which large blobs are downloaded. A blob is split when it "
        "is larger than two ranges.",
        default=32 << 20,
        check=checks.above_zero,
    )
    progress_timeout_s: float = key(
        "A pull fails after this many seconds without a byte. Raise it for registries that fetch "
        "an image from elsewhere before they send it.",
        default=300.0,
        check=checks.above_zero,
    )
    http_proxy: str = key(
        "Proxy for registries over HTTP, as a URL. When empty, HTTP_PROXY of the agent's "
        "environment is used.",
        default="",
    )
    https_proxy: str = key(
        "Proxy for registries over HTTPS, as a URL. When empty, HTTPS_PROXY of the agent's "
        "environment is used.",
        default="",
    )
    no_proxy: str = key(
        "Hosts, domains and networks that are reached without a proxy, separated by commas. When "
        "empty, NO_PROXY of the agent's environment is used.",
        default="",
    )
    pinned_images: tuple[str, ...] = key(
        "Images that are reported to the kubelet as pinned, so that its garbage collection never "
        "removes them; the sandbox image of air-gapped nodes, for example.",
        default=(),
    )
    signature_policy: str = key(
        "File of the signature policy (policy.json of Podman and CRI-O): which images may be "
        "pulled, and with whose sigstore signatures. It is read for each pull. Empty admits all.",
        default="",
        check=checks.optional_path,
    )
    signature_policy_dir: str = key(
        "Directory of signature policies for single namespaces of the cluster: NAMESPACE.json "
        "there takes the place of registry.signature_policy for its pods.",
        default="",
        check=checks.optional_path,
    )
    verifier_dir: str = key(
        "Directory of programs that decide about each pull, called as containerd calls its image "
        "verifiers. All have to admit the image. Empty runs none.",
        default="",
        check=checks.optional_path,
    )
    verifier_timeout_s: float = key(
        "Limit in seconds for each program of registry.verifier_dir. A program that takes longer "
        "rejects the image.",
        default=10.0,
        check=checks.above_zero,
    )
    unpack_workers: int = key(
        "Number of processes that unpack layers at the same time. Raise it on nodes with many "
        "cores and fast disks.",
        default=2,
        check=checks.above_zero,
    )
    retry_retention_s: float = key(
        "How long in seconds the downloads of a failed pull are preserved for the next attempt, "
        "at most 82800 (23 hours). They go earlier when an image is removed, the disk is full or "
        "the agent starts. Lower it on nodes with small disks.",
        default=12 * 3600.0,
        check=checks.retention,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Streaming:
    """The server of exec, attach and port-forward, to which the kubelet connects from this node."""

    address: str = key(
        "IP address that the server listens on. Loopback is enough for the kubelet; set an address "
        "of the node only for clients elsewhere.",
        default="127.0.0.1",
        check=checks.listen_address,
    )
    port: int = key(
        "TCP port of the server. 0 takes a free one, which each URL names.",
        default=0,
        check=checks.port,
    )
    url_host: str = key(
        "Host name or address in the URLs that are handed out. When empty, it is the address, or "
        "loopback if the address is a wildcard.",
        default="",
        check=checks.url_host,
    )
    tls_cert: str = key(
        "File of the server's certificate (PEM). With tls_key it turns on TLS; a renewed file is "
        "used from the next URL on, without a restart.",
        default="",
    )
    tls_key: str = key(
        "File of the certificate's private key (PEM).",
        default="",
    )
    idle_timeout_s: float = key(
        "A session on which no byte moves for this many seconds is closed.",
        default=4 * 3600.0,  # as containerd's and the kubelet's
        check=checks.above_zero,
    )
    creation_timeout_s: float = key(
        "Limit in seconds for a client to open the streams that it requested.",
        default=30.0,
        check=checks.above_zero,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of the daemon itself."""

    grpc_message_bytes: int = key(
        "Largest CRI message in bytes, received or sent. The output of ExecSync is bounded by it, "
        "too. Raise it together with the clients' limit.",
        default=16 << 20,  # what kubelet and crictl use
        check=checks.above_zero,
    )
    shutdown_s: float = key(
        "How long in seconds a shutdown waits for the calls in progress before it cancels and "
        "undoes them. Containers keep running in any case.",
        default=30.0,
        check=checks.from_zero,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Telemetry:
    """Metrics and traces."""

    otlp_endpoint: str = key(
        "URL of an OTLP collector for traces over HTTP, such as "
        '"http://127.0.0.1:4318/v1/traces". It needs the otlp extra. Empty sends none.',
        default="",
        check=checks.endpoint,
    )
    log_level: Literal["debug", "info", "warning", "error", ""] = key(
        "Log level. Empty means the one of the command line, which is info by default.",
        default="",
    )
    metrics_address: str = key(
        "Loopback address and port of the Prometheus metrics. Empty turns them off.",
        default="127.0.0.1:9880",
        check=checks.loopback_address,
    )
    status_page: bool = key(
        "Serve an HTML page about pods, images and failed calls at / of metrics_address. Every "
        "user and every pod on the node's network can read it.",
        default=True,
    )
    cadvisor_socket: str = key(
        "Socket for cAdvisor in the kubelet, which fills /metrics/cadvisor and /stats/summary. Set "
        '"/run/containerd/containerd.sock", where it looks for containerd. Empty serves none.',
        default="",
        check=checks.optional_socket_path,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Debug:
    """Faults for tests of the agent; leave them empty on real nodes."""

    kill_at: str = key(
        "Name of a point in the code at which the agent kills itself.",
        default="",
    )
    fail_at: tuple[str, ...] = key(
        'Steps and undos that fail once, as "POINT" or "POINT=ERRNO" (criagent/base/faults.py).',
        default=(),
        check=checks.fault_points,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Config:
    """All sections."""

    storage: Storage = field(default_factory=Storage)
    network: Network = Network()
    registry: Registry = Registry()
    runtime: Runtime = Runtime()
    nri: Nri = Nri()
    streaming: Streaming = Streaming()
    limits: Limits = Limits()
    telemetry: Telemetry = Telemetry()
    debug: Debug = Debug()
