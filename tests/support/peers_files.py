# SPDX-License-Identifier: Apache-2.0
"""Configuration files of containerd, CRI-O, Docker and containers' storage and registries."""

from __future__ import annotations

import json

CONTAINERD_2 = """
version = 2
oom_score = -999
[grpc]
max_recv_message_size = 33554432
[plugins."io.containerd.grpc.v1.cri"]
sandbox_image = "registry.example/pause:3.9"
ignore_image_defined_volumes = true
enable_cdi = false
[plugins."io.containerd.grpc.v1.cri".containerd]
default_runtime_name = "runc"
discard_unpacked_layers = true
snapshotter = "overlayfs"
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
runtime_type = "io.containerd.runc.v2"
privileged_without_host_devices = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
BinaryName = "/opt/bin/runc"
SystemdCgroup = true
[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.kata]
runtime_type = "io.containerd.kata.v2"
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."docker.io"]
endpoint = ["https://mirror.example.com", "http://10.0.0.1:5000"]
[plugins."io.containerd.grpc.v1.cri".registry.mirrors."*"]
endpoint = ["https://all.example.com"]
[plugins."io.containerd.grpc.v1.cri".registry.configs."mirror.example.com".tls]
insecure_skip_verify = true
[plugins."io.containerd.grpc.v1.cri".registry.configs."reg.example.com:8443".auth]
username = "robot"
password = "s3cret"
"""

CONTAINERD_4 = """
version = 4
imports = ["conf.d/*.toml"]
[plugins.'io.containerd.cri.v1.images']
snapshotter = 'stargz'
[plugins.'io.containerd.cri.v1.images'.registry]
config_path = '/etc/containerd/certs.d:/etc/docker/certs.d'
[plugins.'io.containerd.cri.v1.runtime']
enable_unprivileged_ports = false
[plugins.'io.containerd.cri.v1.runtime'.containerd]
default_runtime_name = 'kata'
[plugins.'io.containerd.cri.v1.runtime'.cni]
bin_dirs = ['/opt/cni/bin']
conf_dir = '/etc/cni/other.d'
[plugins.'io.containerd.nri.v1.nri']
plugin_request_timeout = '9s'
[plugins.'io.containerd.grpc.v1.cri']
stream_idle_timeout = '1h30m0s'
"""

CRIO = """
[crio]
storage_driver = "overlay"
[crio.api]
stream_address = "::1"
stream_port = "10010"
tls_min_version = "VersionTLS13"
tls_cipher_suites = ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"]
[crio.runtime]
default_runtime = "runc"
cgroup_manager = "systemd"
pids_limit = 1024
default_env = ["A=1", "=2"]
default_sysctls = ["net.ipv4.ping_group_range = 0   2147483647", "kernel.panic=1"]
default_capabilities = ["CHOWN", "KILL"]
add_inheritable_capabilities = true
additional_devices = ["/dev/fuse:/dev/fuse:rwm"]
allowed_devices = ["/dev/fuse"]
hooks_dir = ["/usr/share/containers/oci/hooks.d"]
log_to_journald = true
absent_mount_sources_to_reject = ["/etc/hostname"]
timezone = "Local"
min_injected_gomaxprocs = 4
selinux = true
default_ulimits = ["nofile=1000:2000", "core=0:0", "core", "what=1"]
[crio.runtime.runtimes.runc]
runtime_path = "/opt/runc"
runtime_type = "oci"
allowed_annotations = ["io.kubernetes.cri-o.Devices", "io.containers.trace-syscall"]
container_min_memory = "12 MiB"
[crio.runtime.workloads.management]
activation_annotation = "target.example.com/management"
annotation_prefix = "resources.example.com"
allowed_annotations = ["shm-size.crio.io"]
resources = { "cpushares" = 100, "cpuset" = "0-1", "cpulimit" = 5 }
[crio.runtime.runtimes.kata]
runtime_path = "/usr/bin/containerd-shim-kata-v2"
runtime_type = "vm"
[crio.image]
pinned_images = ["registry.example/pause:3"]
insecure_registries = ["reg.lan:5000", "10.0.0.0/8"]
signature_policy = "/etc/containers/policy.json"
[crio.network]
plugin_dirs = ["/usr/libexec/cni/"]
[crio.metrics]
enable_metrics = true
metrics_port = 9537
[crio.nri]
enable_nri = false
"""

DOCKER = json.dumps(
    {
        "registry-mirrors": ["https://mirror.example.com/"],
        "insecure-registries": ["reg.lan:5000", "10.0.0.0/8"],
        "exec-opts": ["native.cgroupdriver=systemd"],
        "log-driver": "json-file",
        "log-opts": {"max-size": "10m", "max-file": "3"},
        "storage-driver": "overlay2",
        "storage-opts": ["overlay2.size=10G"],
        "data-root": "/data/docker",
        "live-restore": True,
        "default-ulimits": {
            "nofile": {"Name": "nofile", "Hard": 64000, "Soft": 32000},
            "memlock": {"Name": "memlock", "Hard": -1, "Soft": -1},
        },
        "default-shm-size": "128M",
        "runtimes": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime", "runtimeArgs": []}},
        "default-runtime": "nvidia",
        "mtu": 1450,
        "bip": "10.1.0.1/24",
    }
)

REGISTRIES = """
unqualified-search-registries = ["docker.io", "quay.io"]
[[registry]]
prefix = "docker.io"
location = "docker.io"
[[registry.mirror]]
location = "mirror.lan/hub"
insecure = true
[[registry]]
location = "quay.io"
blocked = true
[[registry]]
prefix = "*.example.com"
location = "mirror.lan"
[[registry]]
prefix = "old.example.com"
location = "new.example.com/old"
[[registry]]
location = "reg.lan:5000"
insecure = true
[[registry.mirror]]
location = "digests.lan"
pull-from-mirror = "digest-only"
"""

STORAGE = """
[storage]
driver = "overlay"
graphroot = "/var/lib/containers/storage"
[storage.options]
additionalimagestores = ["/srv/images"]
[storage.options.overlay]
mount_program = "/usr/bin/fuse-overlayfs"
size = "5G"
"""
