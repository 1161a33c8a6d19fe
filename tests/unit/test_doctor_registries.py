# SPDX-License-Identifier: Apache-2.0
"""What `doctor` finds about registries.conf, credentials and policies, from real files."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from criagent.config.sections import Config, Registry
from criagent.doctor import registries
from criagent.doctor.finding import Finding


def found(folder: Path, **keys: Any) -> dict[str, Finding]:
    keys.setdefault("docker_config", folder / "none.json")
    config = Config(registry=Registry(**keys))
    findings = {one.name: one for one in registries.judge(registries.read(config), config)}
    assert all(bool(one.cure) == (one.level != "ok") for one in findings.values())
    return findings


def test_nothing_is_said_of_what_is_not_used(tmp_path: Path) -> None:
    assert found(tmp_path) == {}


def test_registries_conf(tmp_path: Path) -> None:
    file = tmp_path / "registries.conf"
    missing = found(tmp_path, registries_conf=str(file))["registries.conf"]
    assert (missing.level, missing.text) == ("warning", f"every pull fails: {file}: no such file")
    file.write_text('short-name-mode = "strict"\n')
    wrong = found(tmp_path, registries_conf=str(file))["registries.conf"]
    assert f"every pull fails: {file}: short-name-mode: must be one of" in wrong.text
    file.write_text("")
    assert found(tmp_path, registries_conf=str(file))["registries.conf"].level == "ok"


def test_credentials_and_their_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    file = tmp_path / "config.json"
    file.write_text("{s3cret")
    broken = found(tmp_path, docker_config=file)["credentials"]
    assert broken.level == "warning"
    assert str(file) in broken.text
    assert "s3cret" not in broken.text
    file.write_text(json.dumps({"credsStore": "gone", "credHelpers": {"r.test": "open"}}))
    program = tmp_path / "docker-credential-open"
    program.write_text("#!/bin/sh\n")
    program.chmod(0o777)
    findings = found(tmp_path, docker_config=file)
    assert findings.keys() == {"credential helper gone", "credential helper open"}
    gone = findings["credential helper gone"]
    assert (gone.level, gone.text) == (
        "warning",
        f"named by {file}: is not in the agent's PATH",
    )
    assert findings["credential helper open"].level == "warning"
    conf = tmp_path / "registries.conf"
    conf.write_text('credential-helpers = ["containers-auth.json", "gone"]\n')
    of_conf = found(tmp_path, registries_conf=str(conf))["credential helper gone"]
    assert of_conf.text == f"named by {conf}: is not in the agent's PATH"
    if os.getuid() == 0:
        program.chmod(0o755)
        findings = found(tmp_path, docker_config=file)
        assert findings["credential helper open"].level == "ok"


def test_the_directory_of_auth_files(tmp_path: Path) -> None:
    folder = tmp_path / "auth"
    assert "does not exist" in found(tmp_path, namespaced_auth_dir=str(folder))["auth files"].text
    folder.mkdir()
    folder.chmod(0o755)
    assert "others than root" in found(tmp_path, namespaced_auth_dir=str(folder))["auth files"].text
    folder.chmod(0o700)
    assert found(tmp_path, namespaced_auth_dir=str(folder)) == {}


@pytest.mark.parametrize(
    ("requirement", "problem"),
    [
        ({"type": "reject"}, ""),
        ({"type": "sigstoreSigned"}, "needs exactly one of keyPath"),
        ({"type": "sigstoreSigned", "keyPath": "/nowhere.pub"}, "/nowhere.pub: No such file"),
        ({"type": "sigstoreSigned", "keyData": "YQ=="}, "PEM"),
        ({"type": "signedBy"}, "signedBy needs GPG"),
    ],
)
def test_signature_policies(tmp_path: Path, requirement: dict[str, Any], problem: str) -> None:
    (tmp_path / "policies").mkdir()
    for file in (tmp_path / "policy.json", tmp_path / "policies" / "shop.json"):
        file.write_text(json.dumps({"default": [requirement]}))
    (tmp_path / "policies" / "shop.json").write_text('{"default": [{"type": "reject"}]}')
    config = Config(
        registry=Registry(
            docker_config=tmp_path / "none.json",
            signature_policy=str(tmp_path / "policy.json"),
            signature_policy_dir=str(tmp_path / "policies"),
        )
    )
    own, shop = registries.judge(registries.read(config), config)
    assert (own.level == "warning") == bool(problem)
    assert problem in own.text
    assert shop.level == "ok"


def test_a_directory_without_verifiers_admits_all(tmp_path: Path) -> None:
    for folder in (tmp_path, tmp_path / "none"):
        finding = found(folder, verifier_dir=str(folder / "programs"))["image verifiers"]
        assert "so every image is admitted" in finding.text
    (tmp_path / "programs").mkdir()
    (tmp_path / "programs" / "check").write_text("")
    assert found(tmp_path, verifier_dir=str(tmp_path / "programs")) == {}
