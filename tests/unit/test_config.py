"""Configuration: everything wrong is told at once, with file and key."""

from __future__ import annotations

from pathlib import Path

import pytest

from criagent.config import Config, ConfigError, default_text, load


def problems(path: Path) -> list[str]:
    with pytest.raises(ConfigError) as caught:
        load(path)
    return caught.value.problems


def test_the_default_text_with_every_key_set_equals_the_defaults(tmp_path: Path) -> None:
    file = tmp_path / "config.toml"
    lines = default_text().splitlines()
    file.write_text("\n".join(line.removeprefix("# ") for line in lines))
    assert load(file) == Config()


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


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ('network.pod_cidrs = ["10.0.0.0/33"]', "network.pod_cidrs"),
        ('network.pod_cidrs = ["10.0.0.0/16", "10.1.0.0/16"]', "network.pod_cidrs"),
        ("network.pod_cidrs = []", "network.pod_cidrs"),
        ('network.bridge = "a-name-that-is-too-long"', "network.bridge"),
        ('network.backend = "calico"', "network.backend"),
        ('telemetry.metrics_address = "0.0.0.0:80"', "telemetry.metrics_address"),
        ('telemetry.metrics_address = "127.0.0.1:99999"', "telemetry.metrics_address"),
        ('runtime.default_handler = "kata"', "runtime.default_handler"),
        ('runtime.handlers.x = { path = "/bin/x", typ = "crun" }', "runtime.handlers.x.typ"),
        ('runtime.cgroup_driver = "v1"', "runtime.cgroup_driver"),
        ("registry = 3", "registry"),
    ],
)
def test_bad_values_name_their_key(tmp_path: Path, text: str, key: str) -> None:
    (tmp_path / "config.toml").write_text(text)
    assert all(key in problem for problem in problems(tmp_path / "config.toml"))
