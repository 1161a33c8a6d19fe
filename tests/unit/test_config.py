# SPDX-License-Identifier: Apache-2.0
"""Configuration: everything wrong is told at once, with file and key."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import pytest

from criagent.config import checks, keys
from criagent.config.keys import about
from criagent.config.load import ConfigError, load, load_with_origins, problems_of
from criagent.config.runtime_section import Handler
from criagent.config.sections import Config
from criagent.config.text import default_text, effective_text, reference_text


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


def test_the_default_text_with_every_key_set_equals_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text(re.sub("^#(?=[a-z])", "", default_text(), flags=re.MULTILINE))
    config, origins = load_with_origins(file)
    assert config == Config()
    assert set(origins) == {f"{name}.{field.name}" for name, _, field in every_key(Config())}


def every_key(value: Any, name: str = "") -> Iterator[tuple[str, Any, Any]]:
    """Dotted section, the section, and the field of each key."""
    within = keys.subsections(type(value))
    for field in fields(value):
        below = f"{name}.{field.name}".lstrip(".")
        if field.name in within:
            yield from every_key(getattr(value, field.name), below)
        else:
            yield name, value, field


def test_a_section_within_a_section_is_read_key_by_key(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    main, drop_in = tmp_path / "config.toml", tmp_path / "config.d" / "10.toml"
    main.write_text('[storage]\ndriver = "native"\n[storage.native]\nreflink = "never"\n')
    drop_in.write_text('[storage]\ndriver = "auto"\n[storage.native]\n')
    config, origins = load_with_origins(main)
    assert (config.storage.driver, config.storage.native.reflink) == ("auto", "never")
    assert origins["storage.native.reflink"] == main
    main.write_text('[storage.native]\nreflinks = "auto"\n')
    assert problems(main) == [
        f"{main}: storage.native.reflinks: unknown key; did you mean 'reflink'?"
    ]
    main.write_text('[storage.native]\nreflink = "yes"\n')
    assert "storage.native.reflink: must be one of 'auto', 'always', 'never'" in problems(main)[0]
    main.write_text("[storage]\nnative = true\n")
    assert problems(main) == [f"{main}: storage.native: must be a section, not a value"]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Other:
    port: str = keys.key("As streaming.port, of another kind.", default="")
    address: str = keys.key("As streaming.address.", default="")
    mtu: int = keys.key(
        "As network.mtu, with a check of its own.", default=1, check=checks.above_zero
    )
    socket: Path = keys.key("As storage.socket.", default=Path("/x"))
    handlers: dict[str, int] | None = keys.key("As runtime.handlers.", default=None)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Whole:
    other: _Other = _Other()


def test_a_key_has_its_own_check_and_none_of_a_key_with_its_name() -> None:
    values = {
        "port": "not a number",
        "address": "not an address",
        "mtu": 68,
        "socket": "/" + 200 * "x",
        "handlers": {"x": 1},
    }
    assert problems_of({"other": values}, _Whole) == []
    assert problems_of({"other": {"mtu": 0}}, _Whole) == [
        "other.mtu: must be greater than 0, not 0"
    ]


def test_each_key_has_its_sentence_and_each_number_its_check() -> None:
    for place, section, field in every_key(Config()):
        name, value = f"{place}.{field.name}", getattr(section, field.name)
        text, check = about(field).text, about(field).check
        assert re.fullmatch(r"[A-Za-z].*[.]", text), name
        if isinstance(value, int | float) and not isinstance(value, bool):
            assert check is not None, name
        if check is not None:
            check(value)
    for field in fields(Handler):
        assert about(field).text.endswith("."), field.name
        assert about(field).check is None, "load does not run checks of handlers' keys"


def test_a_missing_default_file_means_the_defaults_but_a_named_one_must_be_there(
    tmp_path: Path,
) -> None:
    assert problems(tmp_path / "none.toml") == [f"{tmp_path}/none.toml: no such file"]


def test_drop_ins_win_key_by_key_in_name_order(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.toml").write_text('[network]\nbridge = "a0"\nmtu = 1400\n')
    (tmp_path / "config.d" / "20.toml").write_text('[network]\nbridge = "c0"\n')
    (tmp_path / "config.d" / "10.toml").write_text('[network]\nbridge = "b0"\n')
    network = load(tmp_path / "config.toml").network
    assert (network.bridge, network.mtu) == ("c0", 1400)


def test_all_problems_of_all_files_are_listed(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.toml").write_text(
        '[netwrok]\n[network]\nbrigde = "x"\nmtu = "big"\n[storage]\nroot = "relative"\n'
    )
    (tmp_path / "config.d" / "a.toml").write_text("this is no TOML")
    (tmp_path / "config.d" / "b.toml").write_text("[limits]\nshutdown_s = -1\n")
    found = problems(tmp_path / "config.toml")
    assert len(found) == 6
    for file, key in (
        ("config.toml", "[netwrok]"),
        ("config.toml", "network.brigde"),
        ("config.toml", "network.mtu"),
        ("config.toml", "storage.root"),
        ("a.toml", ""),
        ("b.toml", "limits.shutdown_s"),
    ):
        assert any(file in text and key in text for text in found), (file, key, found)


BAD_OF_HANDLERS = [
    ('arguments = ["--root=/x"]', "arguments: '--root=/x' is not allowed"),
    ('arguments = ["-root", "/x"]', "arguments"),
    ('arguments = ["--systemd-cgroup"]', "arguments: '--systemd-cgroup' is not allowed"),
    ('arguments = ["--cgroup-manager=disabled"]', "arguments"),
    ('arguments = ["--ignore-cgroups"]', "arguments"),
    ('arguments = ["--log", "/x"]', "arguments"),
    ('arguments = ["run"]', "arguments: 'run' is a subcommand"),
    ('arguments = [""]', "arguments"),
    ("create_timeout_s = 29.5", "create_timeout_s: must be 0, or 30 or more"),
    ("create_timeout_s = -1", "create_timeout_s"),
    ("create_timeout_s = inf", "create_timeout_s"),
    ("create_timeout_s = 300", "create_timeout_s: 300.0 is above runtime.create_timeout_s 240"),
    ('cni_conf_dir = "/etc/cni/x"', "cni_conf_dir: needs network.backend"),
    ('cni_conf_dir = "etc"', "cni_conf_dir: must be an absolute path"),
    ('pod_annotations = ["*"]', "pod_annotations: '*' would let every pod choose"),
    ('pod_annotations = ["run.*"]', "pod_annotations: 'run.*' covers run.oci.*"),
    ('container_annotations = ["org.systemd.property.?"]', "container_annotations"),
    ('container_annotations = ["[a]"]', "container_annotations"),
    (
        "privileged_without_host_devices_all_devices_allowed = true",
        "privileged_without_host_devices_all_devices_allowed: needs",
    ),
]


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('network.pod_cidrs = ["10.0.0.0/33"]', "network.pod_cidrs"),
        ('network.pod_cidrs = ["10.0.0.0/16", "10.1.0.0/16"]', "network.pod_cidrs"),
        ("network.pod_cidrs = []", "network.pod_cidrs"),
        ('network.bridge = "a-name-that-is-too-long"', "network.bridge"),
        ('network.backend = "calico"', "network.backend"),
        ('telemetry.metrics_address = "0.0.0.0:80"', "telemetry.metrics_address"),
        ('debug.fail_at = ["sandbox-run:row=ENOSUCH"]', "debug.fail_at"),
        ('telemetry.metrics_address = "127.0.0.1:99999"', "telemetry.metrics_address"),
        ('runtime.default_handler = "kata"', "runtime.default_handler"),
        ('runtime.handlers.x = { path = "/bin/x", typ = "crun" }', "runtime.handlers.x.typ"),
        ('runtime.cgroup_driver = "v1"', "runtime.cgroup_driver"),
        ("registry = 3", "registry"),
        ('storage.rot = "/x"', "storage.rot"),
        ("telemetry.otlp_endpoint = 4318", "telemetry.otlp_endpoint"),
        ('telemetry.otlp_endpoint = "127.0.0.1:4318"', "telemetry.otlp_endpoint"),
        ('telemetry.otlp_endpoint = "http://[::1/x"', "telemetry.otlp_endpoint"),
        ('telemetry.metrics_address = "127.0.0.1"', "telemetry.metrics_address"),
        ('telemetry.metrics_address = "127.0.0.1:²"', "telemetry.metrics_address"),
        ('network.bridge = ".."', "network.bridge"),
        ('network.bridge = "all"', "network.bridge"),
        ('network.bridge = "a/b"', "network.bridge"),
        ('network.pod_cidrs = ["10.0.0.1/16"]', "network.pod_cidrs"),
        ('network.pod_cidrs = ["10.0.0.0/32"]', "network.pod_cidrs"),
        ("network.mtu = 68", "network.mtu"),
        ("network.mtu = -1", "network.mtu"),
        ("network.cni_timeout_s = nan", "network.cni_timeout_s"),
        ("limits.shutdown_s = inf", "limits.shutdown_s"),
        ("limits.grpc_message_bytes = true", "limits.grpc_message_bytes"),
        ("registry.max_parallel_blobs = 0", "registry.max_parallel_blobs"),
        ("registry.retry_retention_s = 86400", "registry.retry_retention_s"),
        ("registry.retry_retention_s = -1", "registry.retry_retention_s"),
        ("registry.unpack_workers = 0", "registry.unpack_workers"),
        ("registry.range_bytes = 1.5", "registry.range_bytes"),
        ("runtime.nofile_soft = 600000", "runtime.nofile_soft"),
        *((f"runtime.handlers.crun.{text}", f"crun.{key}") for text, key in BAD_OF_HANDLERS),
        ('runtime.handlers.x = { type = "crun" }', "runtime.handlers"),
        ('runtime.handlers.x = { path = "bin/x" }', "runtime.handlers"),
        ('runtime.conmon = "conmon"', "runtime.conmon"),
        ('network.cni_bin_dirs = ["/a", "b"]', "network.cni_bin_dirs"),
        ('storage.run_dir = "/var/lib/criagent"', "storage.run_dir"),
        ('storage.containers_root = "apart"', "storage.containers_root"),
        ('storage.containers_root = "/var/lib/criagent/"', "storage.containers_root"),
        ('storage.containers_root = "/var/lib/criagent/snapshots/x"', "storage.containers_root"),
        ('storage.containers_root = "/run/criagent/x"', "storage.containers_root"),
        (
            'storage.driver = "btrfs"\nstorage.containers_root = "/mnt"',
            "storage.containers_root",
        ),
        (
            '[storage]\ndriver = "native"\ncontainers_root = "/mnt"\nnative.reflink = "always"',
            "storage.native.reflink",
        ),
        (f'storage.socket = "/{"x" * 107}"', "storage.socket"),
    ],
)
def test_bad_values_name_their_key(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert all(key in problem for problem in problems(tmp_path / "config.toml"))


@pytest.mark.parametrize(
    "text",
    [
        'telemetry.metrics_address = ""',
        'storage.driver = "overlay2"',
        'storage.driver = "native"',
        'telemetry.metrics_address = "[::1]:9880"',
        'telemetry.metrics_address = "localhost:1"',
        'telemetry.otlp_endpoint = "https://collector.example:4318/v1/traces"',
        'network.pod_cidrs = ["fd00::/64"]',
        "network.mtu = 1280",
        "limits.shutdown_s = 0",
        "runtime.nofile_hard = 1024",
        'runtime.handlers.mine = { path = "/opt/crun" }\nruntime.default_handler = "mine"',
        'storage.driver = "btrfs"\n[runtime.handlers.crun]\nsnapshotter = "btrfs"',
        '[runtime.handlers.runc]\nsnapshotter = "overlay2"',
        '[runtime.handlers.runc]\nplatform = "linux/arm/v7"',
        f'storage.socket = "/{"x" * 106}"',
        'runtime.handlers.crun.arguments = ["--debug", "--log-level", "error"]',
        'runtime.handlers.crun.pod_annotations = ["run.oci.handler", "io.*/x", "org.example"]',
        "runtime.handlers.crun.create_timeout_s = 30",
        '[runtime.handlers.runc]\ncni_conf_dir = "/x"\n[network]\nbackend = "cni"',
    ],
)
def test_good_values_are_taken(tmp_path: Path, text: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    load(tmp_path / "config.toml")


def test_keys_that_contradict_each_other_name_the_file_that_set_them(tmp_path: Path) -> None:
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.toml").write_text('[runtime]\ndefault_handler = "kata"\n')
    (tmp_path / "config.d" / "50.toml").write_text("[runtime]\nnofile_hard = 10\n")
    handler, limit = problems(tmp_path / "config.toml")
    assert handler.startswith(f"{tmp_path}/config.toml: runtime.default_handler")
    assert limit.startswith(f"{tmp_path}/config.d/50.toml: runtime.nofile_soft")


def test_a_file_that_cannot_be_read_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "config.toml").mkdir()
    assert "config.toml" in problems(tmp_path / "config.toml")[0]
    (tmp_path / "file").write_text("")
    assert "file/config.toml" in problems(tmp_path / "file" / "config.toml")[0]
    (tmp_path / "binary.toml").write_bytes(b"\xff\xfe")
    assert "binary.toml" in problems(tmp_path / "binary.toml")[0]


def test_the_files_made_of_the_sections_are_up_to_date() -> None:
    root = Path(__file__).parents[2]  # `make reference` writes them
    assert (root / "deploy" / "config.toml").read_text() == default_text()
    assert (root / "docs" / "configuration.md").read_text() == reference_text()


def test_a_handler_is_added_changed_or_taken_away_by_name(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    file.write_text('[runtime.handlers.youki]\npath = "/usr/bin/youki"\n')
    found = load(file).runtime.handlers
    assert sorted(found) == ["crun", "runc", "youki"]
    assert found["runc"] == Config().runtime.handlers["runc"]
    (tmp_path / "config.d").mkdir()
    (tmp_path / "config.d" / "1.toml").write_text('[runtime.handlers.runc]\npath = "/opt/runc"\n')
    (tmp_path / "config.d" / "2.toml").write_text("[runtime.handlers]\ncrun = false\n")
    (tmp_path / "config.d" / "3.toml").write_text('[runtime]\ndefault_handler = "runc"\n')
    found = load(file).runtime.handlers
    assert sorted(found) == ["runc", "youki"]
    assert (found["runc"].path, found["runc"].type) == (Path("/opt/runc"), "runc")


@pytest.mark.parametrize(
    ("text", "hint"),
    [
        ('[network]\nbackend = "calico"', "must be one of 'builtin', 'cni', not 'calico'"),
        ('[runtime]\ncgroup_driver = "sytemd"', "did you mean 'systemd'?"),
        ('[network]\nbrigde = "x"', "did you mean 'bridge'?"),
        ("[netwrok]", "did you mean 'network'?"),
        ('storage.driver = "aufs"', "never part of the Linux kernel"),
        ('storage.driver = "vfs"', "must be one of 'auto', 'overlay', "),
        ('storage.driver = "nativ"', "did you mean 'native'?"),
        ('[runtime.handlers.crun]\npaht = "/x"', "did you mean 'path'?"),
        ('[runtime.handlers.runc]\nsnapshotter = "nativ"', "did you mean 'native'?"),
        ('[runtime.handlers.runc]\nsnapshotter = "auto"', "name a driver, or remove the key"),
        ('[runtime.handlers.crun]\nsnapshotter = "native"', "crun is the default handler"),
        ('[runtime.handlers.crun]\nplatform = "linux/arm64"', "has the node's platform"),
        ('[runtime.handlers.runc]\nplatform = "arm64"', "must be linux/ARCHITECTURE"),
        ('[runtime.handlers.runc]\nplatform = "windows/amd64"', "must be linux/ARCHITECTURE"),
        (
            'storage.containers_root = "/mnt"\n[runtime.handlers.runc]\nsnapshotter = "zfs"',
            "cannot leave their file system or pool; remove one of the keys",
        ),
        (
            '[streaming]\ntls_cert = "/nosuch"\ntls_key = "/nosuch"',
            "/nosuch cannot be read: No such",
        ),
    ],
)
def test_mistakes_are_answered_with_what_would_be_right(
    tmp_path: Path, text: str, hint: str
) -> None:
    file = tmp_path / "config.toml"
    file.write_text(text)
    assert any(hint in problem for problem in problems(file)), problems(file)


def test_the_configuration_in_force_is_shown_with_its_files(tmp_path: Path) -> None:
    file, drop_in = tmp_path / "config.toml", tmp_path / "config.d" / "1.toml"
    drop_in.parent.mkdir()
    file.write_text('[network]\nmtu = 1400\nbridge = "a0"\n')
    drop_in.write_text('[network]\nbridge = "b0"\n')
    config, origins = load_with_origins(file)
    text = effective_text(config, origins)
    assert f"mtu = 1400  # {file}\n" in text
    assert f'bridge = "b0"  # {drop_in}\n' in text
    assert 'backend = "builtin"\n' in text
    file.write_text(text)
    drop_in.unlink()
    assert load(file) == config
