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

from criagent.config import checks, tls_suites
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
            Path("/etc/containers/certs.d"),
        ),
    )
    docker_config: Path = key(
        "File with registry credentials in Docker's format or Podman's (auth.json), used for pulls "
        "whose request carries none. A missing file means no credentials.",
        default=Path("/root/.docker/config.json"),
    )
    namespaced_auth_dir: str = key(
        "Directory of credentials for pods of single namespaces: NAMESPACE-SHA256.json, as CRI-O's "
        "credential provider for the kubelet writes them. A file is removed by the pull that reads "
        "it. Empty reads none.",
        default="",
        check=checks.optional_path,
    )
    credential_helper_timeout_s: float = key(
        "Limit in seconds for a credential helper (docker-credential-*) that "
        "registry.docker_config names. A pull whose helper takes longer fails.",
        default=30.0,
        check=checks.above_zero,
    )
    registries_conf: str = key(
        "File registries.conf of Podman and CRI-O, read with its drop-ins: mirrors, blocked "
        "registries, aliases and search registries of short names. What it says of an image comes "
        "before registry.config_dirs. Empty reads none; short names are then images of docker.io.",
        default="",
        check=checks.optional_path,
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
    sigstore_bundles: bool = key(
        "Also accept the signatures that cosign 3 attaches as bundles. They name the digest of an "
        "image and not its name, so signedIdentity of the policy is not checked for them.",
        default=False,
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
    tls_min_version: Literal["1.2", "1.3"] = key(
        "The oldest version of TLS that clients may use.",
        default="1.2",
    )
    tls_cipher_suites: tuple[str, ...] = key(
        "Cipher suites of TLS 1.2 by their IANA names, as in tlsCipherSuites of the kubelet; empty "
        "= those of OpenSSL's defaults. The suites of TLS 1.3 cannot be chosen.",
        default=(),
        check=tls_suites.check,
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
        "Address and port of the Prometheus metrics. Empty turns them off. An address other than "
        "loopback needs metrics_tls_cert and metrics_token_file, or metrics_insecure.",
        default="127.0.0.1:9880",
        check=checks.optional_address,
    )
    metrics_tls_cert: str = key(
        "Certificate chain (PEM) of metrics_address. It is read again when its file changes.",
        default="",
        check=checks.optional_path,
    )
    metrics_tls_key: str = key(
        "Private key (PEM) of metrics_tls_cert.", default="", check=checks.optional_path
    )
    metrics_token_file: str = key(
        "File with a token of at least 16 characters that every request to metrics_address has to "
        "carry as Authorization: Bearer TOKEN; several lines are several tokens. It is read again "
        "when it changes. /healthz needs none.",
        default="",
        check=checks.optional_path,
    )
    metrics_insecure: bool = key(
        "Serve metrics_address without TLS or without a token on an address other than loopback: "
        "whoever reaches it can read metrics and the node page.",
        default=False,
    )
    status_page: bool = key(
        "Serve an HTML page about pods, images and failed calls at / of metrics_address. Without a "
        "token every user and every pod on the node's network can read it.",
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
