# SPDX-License-Identifier: Apache-2.0
"""criagent config migrate: each kind of file, and nothing of it lost without a text."""

from __future__ import annotations

import json
import tomllib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from criagent.cli.main import main
from criagent.config.load import load
from criagent.config.migrate.migration import Migration, Verdict
from criagent.config.migrate.output import outputs
from criagent.config.migrate.sources import READERS, SourceError, migrated
from criagent.image.hosts.hosts_toml import HostsDirectory
from tests.support.peers_files import CONTAINERD_2, CONTAINERD_4, CRIO, DOCKER, REGISTRIES, STORAGE


def read(tmp_path: Path, name: str, text: str) -> tuple[Migration, dict[str, Any]]:
    """What a file of this text gives, and its settings by section as the written file has them."""
    file = tmp_path / name
    file.write_text(text)
    migration = migrated([file])
    drop_in = outputs(migration).get("config.d/50-migrated.toml", "")
    return migration, tomllib.loads(drop_in)


def left(migration: Migration) -> dict[str, str]:
    return {finding.where.key: finding.text for finding in migration.of(Verdict.LEFT)}


def test_containerd_with_all_in_one_plugin(tmp_path: Path) -> None:
    migration, document = read(tmp_path, "config.toml", CONTAINERD_2)
    assert document == {
        "limits": {"grpc_message_bytes": 33554432},
        "storage": {"driver": "overlay", "keep_blobs": False},
        "network": {"backend": "cni"},
        "runtime": {
            "image_volumes": "ignore",
            "cdi_spec_dirs": [],
            "cgroup_driver": "systemd",
            "default_handler": "runc",
            "handlers": {
                "runc": {
                    "path": "/opt/bin/runc",
                    "type": "runc",
                    "privileged_without_host_devices": True,
                }
            },
        },
    }
    cri = "plugins.'io.containerd.grpc.v1.cri'"
    assert left(migration).keys() == {
        "oom_score",
        f"{cri}.containerd.runtimes.kata",
        f"{cri}.registry.configs.'reg.example.com:8443'.auth",
    }


def test_containerds_mirrors_are_asked_in_their_order(tmp_path: Path) -> None:
    migration, _ = read(tmp_path, "config.toml", CONTAINERD_2)
    for name, text in outputs(migration).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    hosts = HostsDirectory([tmp_path / "certs.d"])
    assert [(host.url, host.skip_verify) for host in hosts.hosts("docker.io")] == [
        ("https://mirror.example.com", True),
        ("http://10.0.0.1:5000", False),
        ("https://registry-1.docker.io", False),
    ]
    assert [host.url for host in hosts.hosts("quay.io")] == [
        "https://all.example.com",
        "https://quay.io",
    ]


def test_no_secret_is_printed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "config.toml"
    file.write_text(CONTAINERD_2)
    for options in (["--all"], ["--json"]):
        assert main(["config", "migrate", str(file), *options]) == 0
        assert "s3cret" not in "".join(capsys.readouterr())


def test_containerd_with_imports_of_which_the_last_wins(tmp_path: Path) -> None:
    (tmp_path / "conf.d").mkdir()
    (tmp_path / "conf.d" / "50.toml").write_text(
        "[plugins.'io.containerd.cri.v1.runtime'.cni]\nconf_dir = '/etc/cni/drop-in.d'\n"
    )
    migration, document = read(tmp_path, "config.toml", CONTAINERD_4)
    assert document["network"] == {
        "backend": "cni",
        "cni_conf_dir": "/etc/cni/drop-in.d",
        "cni_bin_dirs": ["/opt/cni/bin"],
        "unprivileged_ports": False,
    }
    assert document["nri"] == {"plugin_request_timeout": "9s"}
    assert document["streaming"] == {"idle_timeout_s": 5400.0}
    assert document["registry"]["config_dirs"] == ["/etc/containerd/certs.d", "/etc/docker/certs.d"]
    texts = left(migration)
    assert "not lazily" in texts["plugins.'io.containerd.cri.v1.images'.snapshotter"]
    name = "plugins.'io.containerd.cri.v1.runtime'.containerd.default_runtime_name"
    assert texts[name] == "runtime.default_handler: 'kata' is not a handler"


def test_crio(tmp_path: Path) -> None:
    migration, document = read(tmp_path, "crio.conf", CRIO)
    assert document == {
        "storage": {"driver": "overlay"},
        "streaming": {
            "address": "::1",
            "port": 10010,
            "tls_min_version": "1.3",
            "tls_cipher_suites": ["TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256"],
        },
        "runtime": {
            "cgroup_driver": "systemd",
            "default_handler": "runc",
            "nofile_soft": 1000,
            "nofile_hard": 2000,
            "handlers": {
                "runc": {
                    "path": "/opt/runc",
                    "type": "runc",
                    "min_memory_bytes": 12 << 20,
                    "allowed_annotations": ["io.kubernetes.cri-o.Devices"],
                }
            },
            "allowed_devices": ["/dev/fuse"],
            "log_to_journald": True,
            "defaults": {
                "pids_limit": 1024,
                "environment": ["A=1"],
                "sysctls": ["net.ipv4.ping_group_range = 0   2147483647"],
                "capabilities": ["CHOWN", "KILL"],
                "inheritable_capabilities": True,
                "devices": ["/dev/fuse:/dev/fuse:rwm"],
                "hooks_dirs": ["/usr/share/containers/oci/hooks.d"],
                "absent_mount_sources_to_reject": ["/etc/hostname"],
                "time_zone": "local",
                "min_gomaxprocs": 4,
                "ulimits": ["core=0:0"],
            },
            "workloads": {
                "management": {
                    "activation_annotation": "target.example.com/management",
                    "annotation_prefix": "resources.example.com",
                    "allowed_annotations": ["shm-size.crio.io"],
                    "cpu_shares": 100,
                    "cpuset_cpus": "0-1",
                }
            },
        },
        "registry": {
            "pinned_images": ["registry.example/pause:3"],
            "signature_policy": "/etc/containers/policy.json",
        },
        "network": {"backend": "cni", "cni_bin_dirs": ["/usr/libexec/cni/"]},
        "telemetry": {"metrics_address": "127.0.0.1:9537"},
        "nri": {"disable": True},
    }
    assert left(migration).keys() == {
        "crio.runtime.default_env",
        "crio.runtime.default_sysctls",
        "crio.runtime.default_ulimits",
        "crio.runtime.workloads.management.resources.cpulimit",
        "crio.runtime.runtimes.runc.allowed_annotations",
        "crio.runtime.runtimes.kata",
        "crio.image.insecure_registries",
    }


def test_drop_ins_of_crio_without_the_main_file(tmp_path: Path) -> None:
    folder = tmp_path / "crio.conf.d"
    folder.mkdir()
    (folder / "10-crio.conf").write_text('[crio.runtime]\ndefault_runtime = "crun"\n')
    (folder / "20-node.conf").write_text('[crio.runtime]\ndefault_runtime = "runc"\n')
    migration = migrated([tmp_path / "crio.conf"])
    assert migration.changed()["runtime.default_handler"] == "runc"
    text = left(migration)["crio.runtime.default_runtime"]
    assert text.startswith('"crun": runtime.default_handler is "runc" already, by ')


def test_docker(tmp_path: Path) -> None:
    migration, document = read(tmp_path, "daemon.json", DOCKER)
    assert document == {
        "storage": {"driver": "overlay", "container_limit_bytes": 10 << 30},
        "runtime": {
            "cgroup_driver": "systemd",
            "default_handler": "nvidia",
            "nofile_soft": 32000,
            "nofile_hard": 64000,
            "defaults": {"ulimits": ["memlock=-1:-1"], "shm_size_bytes": 128 << 20},
            "handlers": {"nvidia": {"path": "/usr/bin/nvidia-container-runtime", "type": "runc"}},
        },
        "network": {"mtu": 1450},
    }
    assert left(migration).keys() == {
        "insecure-registries",
        "log-opts.max-size",
        "log-opts.max-file",
        "bip",
    }
    assert outputs(migration)["certs.d/reg.lan_5000_/hosts.toml"].splitlines() == [
        'server = "http://reg.lan:5000"',
        "",
        '[host."https://reg.lan:5000"]',
        '  capabilities = ["pull", "resolve"]',
        "  skip_verify = true",
    ]


def test_registries(tmp_path: Path) -> None:
    migration, document = read(tmp_path, "registries.conf", REGISTRIES)
    assert document == {}
    for name, text in outputs(migration).items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    hosts = HostsDirectory([tmp_path / "certs.d"])
    found = {
        name: [(host.url + host.api, "resolve" in host.capabilities) for host in hosts.hosts(name)]
        for name in ("docker.io", "old.example.com", "reg.lan:5000")
    }
    assert found == {
        "docker.io": [
            ("https://mirror.lan/v2/hub", True),
            ("http://mirror.lan/v2/hub", True),
            ("https://registry-1.docker.io/v2", True),
        ],
        "old.example.com": [("https://new.example.com/v2/old", True)],
        "reg.lan:5000": [
            ("https://digests.lan/v2", False),
            ("https://reg.lan:5000/v2", True),
            ("http://reg.lan:5000/v2", True),
        ],
    }
    assert left(migration).keys() == {
        "unqualified-search-registries",
        '[[registry]] "quay.io".blocked',
        '[[registry]] "*.example.com"',
    }


def test_storage(tmp_path: Path) -> None:
    migration, document = read(tmp_path, "storage.conf", STORAGE)
    assert document == {"storage": {"driver": "fuse-overlayfs", "container_limit_bytes": 5 << 30}}
    assert left(migration).keys() == {"storage.options.additionalimagestores"}


@pytest.mark.parametrize("kind", READERS)
def test_an_unknown_key_is_said(tmp_path: Path, kind: str) -> None:
    file = tmp_path / "any"
    file.write_text('[one]\ntwo = "three"\n')
    assert left(migrated([file], kind))["one.two"] == '"three": this version does not know the key'


def test_what_is_written_is_a_configuration(tmp_path: Path, capsys: Any) -> None:
    file, folder = tmp_path / "config.toml", tmp_path / "etc"
    file.write_text(CONTAINERD_2)
    (folder / "config.d").mkdir(parents=True)
    (folder / "config.toml").write_text("")
    for _ in range(2):  # a second time changes nothing
        assert main(["config", "migrate", str(file), "--write", str(folder)]) == 0
        assert f"wrote {folder}/certs.d/docker.io/hosts.toml" in capsys.readouterr().out
    config = load(folder / "config.toml")
    assert (config.network.backend, config.storage.keep_blobs) == ("cni", False)


def test_defaults_and_workloads_that_are_written_are_a_configuration(tmp_path: Path) -> None:
    file, folder = tmp_path / "crio.conf", tmp_path / "etc"
    file.write_text(CRIO)
    folder.mkdir()
    (folder / "config.toml").write_text("")
    assert main(["config", "migrate", str(file), "--write", str(folder)]) == 0
    runtime = load(folder / "config.toml").runtime
    assert runtime.defaults.pids_limit == 1024
    assert runtime.workloads["management"].cpuset_cpus == "0-1"
    assert runtime.handlers["runc"].min_memory_bytes == 12 << 20


@pytest.mark.parametrize("text", ["", '{"mounts": [}'])
def test_a_base_specification_that_cannot_be_read_is_left(tmp_path: Path, text: str) -> None:
    base = tmp_path / "base.json"
    if text:
        base.write_text(text)
    migration, document = read(
        tmp_path,
        "config.toml",
        "version = 3\n[plugins.'io.containerd.cri.v1.runtime']\n"
        "unset_seccomp_profile = 'docker/default'\n"
        "[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]\n"
        f"base_runtime_spec = '{base}'\n",
    )
    assert document["network"] == {"backend": "cni"}
    assert document["runtime"]["defaults"] == {"unset_seccomp_profile": "runtime/default"}
    assert [key.rpartition(".")[2] for key in left(migration)] == ["base_runtime_spec"]


def test_a_file_that_is_there_stays_and_nothing_is_written(tmp_path: Path, capsys: Any) -> None:
    file, folder = tmp_path / "config.toml", tmp_path / "etc"
    file.write_text(CONTAINERD_2)
    kept = folder / "certs.d" / "docker.io" / "hosts.toml"
    kept.parent.mkdir(parents=True)
    kept.write_text("# mine\n")
    assert main(["config", "migrate", str(file), "--write", str(folder)]) == 1
    assert capsys.readouterr().err == (
        f"{kept}: exists with another content; move it away; nothing was written\n"
    )
    assert kept.read_text() == "# mine\n"
    assert [path for path in folder.rglob("*") if path.is_file()] == [kept]


@pytest.mark.parametrize(
    ("name", "text", "problem"),
    [
        ("config.toml", "version = ", "Invalid value"),
        ("daemon.json", '{"mtu": ', "Expecting value"),
        ("daemon.json", "[" * 100_000, "Invalid"),
        ("config.toml", "\x00", "Invalid"),
        ("some.conf", "[servers]\nx = 1\n", "name its kind: --kind containerd, crio, docker"),
    ],
)
def test_a_file_that_cannot_be_read_is_named(
    tmp_path: Path, name: str, text: str, problem: str
) -> None:
    file = tmp_path / name
    file.write_text(text)
    with pytest.raises(SourceError, match=problem) as caught:
        migrated([file])
    assert str(caught.value).startswith(f"{file}: ")


def test_a_missing_file_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "migrate", str(tmp_path / "none.toml")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.toml: No such file or directory\n"


ANY = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=4), inner, max_size=2)
    ),
    max_leaves=5,
)
SECTIONS = (
    ("containerd", ("plugins", "io.containerd.grpc.v1.cri", "registry", "mirrors")),
    ("containerd", ("plugins", "io.containerd.grpc.v1.cri", "registry", "configs")),
    ("containerd", ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes")),
    ("containerd", ("plugins", "io.containerd.cri.v1.runtime", "containerd", "runtimes", "runc")),
    ("crio", ("crio", "runtime", "default_ulimits")),
    ("crio", ("crio", "runtime", "runtimes")),
    ("crio", ("crio", "metrics")),
    ("crio", ("crio", "image", "insecure_registries")),
    ("docker", ("registry-mirrors",)),
    ("docker", ("insecure-registries",)),
    ("docker", ("exec-opts",)),
    ("docker", ("runtimes",)),
    ("docker", ("default-ulimits",)),
    ("docker", ("default-ulimits", "nofile")),
    ("registries", ("registry",)),
    ("storage", ("storage",)),
    ("storage", ("storage", "options")),
)


@pytest.mark.parametrize(("kind", "path"), SECTIONS)
@given(value=ANY)
@settings(max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_sections_of_any_form_are_read_or_left(
    tmp_path: Path, kind: str, path: tuple[str, ...], value: object
) -> None:
    document: object = value
    for name in reversed(path):
        document = {name: document}
    file = tmp_path / "any.json"
    file.write_text(json.dumps(document))
    migration = migrated([file], kind)
    tomllib.loads(outputs(migration).get("config.d/50-migrated.toml", ""))


def test_values_of_a_wrong_type_are_left(tmp_path: Path) -> None:
    migration, _ = read(tmp_path, "daemon.json", '{"mtu": "big", "default-runtime": 5}')
    assert left(migration) == {
        "mtu": '"big": expected a number',
        "default-runtime": "5: runtime.default_handler: Expected `str`, got `int`"
        " - at `$.default_handler`",
    }
