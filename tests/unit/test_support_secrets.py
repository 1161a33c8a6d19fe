# SPDX-License-Identifier: Apache-2.0
"""What a support bundle leaves out: secrets of files, wherever they stand, and their like."""

from __future__ import annotations

import base64
import json
import tarfile
from pathlib import Path

import pytest

from criagent.cli.main import main
from criagent.cli.support.secrets import REMOVED, Cleaner, of_docker, of_hosts_toml


@pytest.mark.parametrize(
    ("text", "kept", "gone"),
    [
        ("proxy http://ann:pa55@proxy:3128/ used", "proxy:3128", "pa55"),
        ("Authorization: Bearer abc.def-ghi rest", "Authorization", "abc.def-ghi"),
        ('{"password": "hunter two", "name": "n"}', '"name": "n"', "hunter two"),
        ("REGISTRY_TOKEN=t0k3n other=1", "other=1", "t0k3n"),
        ("header Basic YTpiYw==", "header", "YTpiYw"),
        ('{"a": "{\\"token\\": \\"inner1\\"}"}', "token", "inner1"),
        (
            "-----BEGIN RSA PRIVATE KEY-----\nMIIx\nabc\n-----END RSA PRIVATE KEY-----\nok",
            "ok",
            "MIIx",
        ),
        ("-----BEGIN PRIVATE KEY-----\nMIIx", REMOVED, "MIIx"),
        ("api_key: k3y, next", "next", "k3y"),
    ],
)
def test_whatever_has_the_form_of_a_secret_is_removed(text: str, kept: str, gone: str) -> None:
    cleaned = Cleaner([]).clean(text)
    assert gone not in cleaned
    assert kept in cleaned
    assert REMOVED in cleaned


def test_ordinary_lines_stay_as_they_are() -> None:
    text = 'pod "kube-system/web" image registry:5000/app@sha256:abc, 3 tokens left, basic auth\n'
    assert Cleaner([]).clean(text) == text


def test_known_secrets_are_removed_in_every_spelling() -> None:
    secret = 'p"ss/wörd'
    cleaner = Cleaner([secret, "abc"])
    for text in (secret, json.dumps({"x": secret}), "p%22ss%2Fw%C3%B6rd"):
        assert REMOVED in cleaner.clean(f"at {text} end")
        assert "rd end" not in cleaner.clean(f"at {text} end")
    assert cleaner.clean("abc") == "abc"  # too short to look for


def test_the_files_of_registries_show_no_secret(tmp_path: Path) -> None:
    docker = tmp_path / "config.json"
    auth = base64.b64encode(b"ann:s3cret").decode()
    entries = {"reg:5000": {"auth": auth}, "two": {"identitytoken": "ident-1"}}
    docker.write_text(
        json.dumps({"auths": entries, "HttpHeaders": {"X": "header-1"}, "credsStore": "pass"})
    )
    shown, secrets = of_docker(docker)
    assert shown["auths"] == {"reg:5000": ["auth"], "two": ["identitytoken"]}
    assert shown["credsStore"] == "pass"
    assert {"s3cret", auth, "ident-1", "header-1"} <= set(secrets)
    hosts = tmp_path / "hosts.toml"
    hosts.write_text(
        'server = "https://reg"\nstrange = "odd-1"\n[host."https://bob:pw-1@mirror"]\n'
        'capabilities = ["pull"]\n[host."https://bob:pw-1@mirror".header]\n'
        f'x-key = "key-1"\nauthorization = ["Basic {auth}"]\n'
    )
    shown, secrets = of_hosts_toml(hosts)
    assert shown["server"] == "https://reg"
    (mirror,) = shown["host"].values()
    assert mirror == {"capabilities": ["pull"], "header": ["authorization", "x-key"]}
    assert {"odd-1", "pw-1", "key-1", auth, "s3cret"} <= set(secrets)


def test_a_bundle_of_a_node_without_an_agent_is_whole_and_clean(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    auth = base64.b64encode(b"ann:s3cret-1").decode()
    (tmp_path / "docker.json").write_text(json.dumps({"auths": {"r": {"auth": auth}}}))
    hosts = tmp_path / "certs.d" / "reg"
    hosts.mkdir(parents=True)
    (hosts / "hosts.toml").write_text('[host."https://m".header]\nx-key = "s3cret-2"\n')
    (tmp_path / "registries.conf").write_text('[aliases]\n"app" = "r.test/app"\n')
    config = tmp_path / "config.toml"
    config.write_text(
        f'[registry]\nregistries_conf = "{tmp_path}/registries.conf"\n'
        f'config_dirs = ["{tmp_path}/certs.d"]\n'
        f'docker_config = "{tmp_path}/docker.json"\n'
        'http_proxy = "http://ann:s3cret-3@proxy:1"\nno_proxy = "s3cret-1,s3cret-2"\n'
        '[telemetry]\nmetrics_address = ""\n'
    )
    bundle = tmp_path / "bundle.tar.gz"
    argv = ["--config", str(config), "--socket", str(tmp_path / "none"), "support-bundle"]
    assert main([*argv, "--file", str(bundle)]) == 0
    assert capsys.readouterr().out == f"{bundle}\n"
    assert bundle.stat().st_mode & 0o777 == 0o600
    content = {}
    with tarfile.open(bundle) as archive:
        for member in archive:
            file = archive.extractfile(member)
            assert file is not None
            content[member.name.partition("/")[2]] = file.read().decode()
    everything = "".join(content.values())
    for secret in ("s3cret-1", "s3cret-2", "s3cret-3", auth):
        assert secret not in everything
    assert "not running" in content["agent/unreachable.txt"]
    assert "proxy:1" in content["config/in-force.toml"]
    assert "r.test/app" in content["config/registries.json"]
    assert '"x-key"' in content["config/registries.json"]
    assert json.loads(content["doctor.json"])
    for name in ("README.txt", "kernel/uname.txt", "kernel/mounts.txt", "journal.txt"):
        assert content[name], name
    assert main([*argv, "--file", str(bundle)]) == 1  # nothing is overwritten
    assert "File exists" in capsys.readouterr().err
