# SPDX-License-Identifier: Apache-2.0
"""Security profiles from a registry in this process: pulled, listed, removed, kept, refused."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from criagent.base.errors import (
    CorruptError,
    InvalidRequestError,
    NotFoundError,
    RegistryDeniedError,
    RegistryError,
    SignatureRejectedError,
)
from criagent.config.sections import Config
from criagent.config.storage_section import Storage
from criagent.doctor import profiles as doctor_profiles
from criagent.image.documents.digest import parse_digest
from criagent.image.documents.manifest import EMPTY_CONFIG, OCI_INDEX, OCI_MANIFEST
from criagent.image.hosts.credentials import RegistryAuth
from criagent.image.policy.admission import Admission, Rules
from criagent.image.profiles.artifact import MAX_PROFILE, SECCOMP
from criagent.image.profiles.profiles import SecurityProfiles
from criagent.runtime.spec.security.seccomp_pulled import pulled_profile
from tests.support.image_node import ImageNode, findings
from tests.support.pulling import Json, Registry, TarPit, digest, entry

DENY = json.dumps(
    {
        "defaultAction": "SCMP_ACT_ALLOW",
        "syscalls": [{"names": ["chmod"], "action": "SCMP_ACT_ERRNO"}],
    }
).encode()
TAR = "application/vnd.oci.image.layer.v1.tar"  # as ORAS labels any file


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[ImageNode]:
    one = ImageNode(tmp_path)
    await one.start()
    yield one
    await one.close()


@pytest.fixture
async def profiles(node: ImageNode) -> AsyncIterator[SecurityProfiles]:
    one = profiles_of(node)
    yield one
    await one.close()


def profiles_of(
    node: ImageNode, limit_s: float = 30.0, rules: Rules | None = None
) -> SecurityProfiles:
    content = node.images.content
    return SecurityProfiles(
        store=node.profiles,
        content=content,
        client=node.client,
        admission=Admission(node.client, content.fs, rules or Rules()),
        collector=node.collector,
        check=pulled_profile,
        limit_s=limit_s,
    )


def artifact(registry: Registry, *layers: bytes, **fields: Any) -> str:
    """Publish an artifact of the seccomp kind, with `fields` of its manifest; its reference."""
    config = registry.put(b"{}")
    manifest: Json = {
        "schemaVersion": 2,
        "mediaType": OCI_MANIFEST,
        "config": {**config, "mediaType": SECCOMP},
        "layers": [{**registry.put(layer), "mediaType": TAR} for layer in layers],
    }
    return published(registry, {**manifest, **fields})


def published(registry: Registry, manifest: Json, kind: str = OCI_MANIFEST) -> str:
    content = json.dumps(manifest).encode()
    registry.put(content, kind)
    return f"127.0.0.1:{registry.port}/a/b@{digest(content)}"


async def test_a_profile_is_fetched_once_and_kept(
    registry: Registry, node: ImageNode, profiles: SecurityProfiles
) -> None:
    ref = artifact(registry, DENY)
    assert await profiles.pull(ref, None) is False
    assert profiles.document(ref) == DENY
    registry.asked.clear()
    assert await profiles.pull(ref, None) is True
    assert registry.asked == []
    await node.images.collect()
    assert profiles.document(ref) == DENY
    assert await findings(node) == []
    assert node.images.all() == []
    assert node.counted() == node.on_disk()


async def test_it_is_listed_with_every_reference_and_its_size(
    registry: Registry, profiles: SecurityProfiles
) -> None:
    ref = artifact(registry, DENY)
    tagged, other = ref.replace("@", ":1@"), ref.replace("/a/b", "/c/d")
    for text in (ref, tagged, other, ref):
        await profiles.pull(text, None)
    (found,) = profiles.all()
    assert found.refs == tuple(sorted((ref, tagged, other)))
    assert found.digest == ref.partition("@")[2]
    assert found.size == len(DENY) + len(registry.content[found.digest])


async def test_a_policy_is_asked_at_every_pull_for_the_namespace_of_the_pod(
    registry: Registry, node: ImageNode, tmp_path: Path
) -> None:
    (tmp_path / "shop.json").write_text('{"default": [{"type": "reject"}]}')
    profiles = profiles_of(node, rules=Rules(policy_dir=str(tmp_path)))
    ref = artifact(registry, DENY)
    with pytest.raises(SignatureRejectedError, match=r"shop\.json rejects it"):
        await profiles.pull(ref, None, "shop")
    assert profiles.all() == []
    assert not [one for one in registry.asked if f"/blobs/{digest(DENY)}" in one]
    assert await profiles.pull(ref, None, "lab") is False
    assert await profiles.pull(ref, None, "lab") is True
    with pytest.raises(SignatureRejectedError):
        await profiles.pull(ref, None, "shop")  # though it is here
    (tmp_path / "shop.json").write_text('{"default": [{"type": "insecureAcceptAnything"}]}')
    assert await profiles.pull(ref, None, "shop") is False
    await profiles.close()


async def test_a_verifier_program_decides_about_profiles(
    registry: Registry, node: ImageNode, tmp_path: Path
) -> None:
    program = tmp_path / "programs" / "judge"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\necho $2 $4 > {tmp_path}/asked\necho no\nexit 1\n")
    program.chmod(0o755)
    profiles = profiles_of(node, rules=Rules(verifier_dir=str(program.parent)))
    ref = artifact(registry, DENY)
    with pytest.raises(SignatureRejectedError, match="judge rejects it: no"):
        await profiles.pull(ref, None)
    assert (tmp_path / "asked").read_text().split() == [ref, ref.partition("@")[2]]
    assert profiles.all() == []
    await profiles.close()


async def test_profiles_that_lost_their_content_are_counted_and_found_by_the_doctor(
    registry: Registry, node: ImageNode, profiles: SecurityProfiles, tmp_path: Path
) -> None:
    config = Config(storage=Storage(root=node.top))
    assert profiles.states() == {"complete": 0.0, "incomplete": 0.0}
    whole, damaged = artifact(registry, DENY), artifact(registry, DENY + b" ")
    for ref in (whole, damaged):
        await profiles.pull(ref, None)
    assert profiles.states() == {"complete": 2.0, "incomplete": 0.0}
    facts = doctor_profiles.read(config)
    assert facts == doctor_profiles.ProfileFacts(count=2)
    lost = node.images.content.files.path(parse_digest(digest(DENY + b" ")))
    content = lost.read_bytes()
    lost.write_bytes(content[:-2])
    found = damaged.partition("@")[2]
    (finding,) = doctor_profiles.judge(doctor_profiles.read(config))
    assert finding.level == "warning"
    assert found in finding.text
    assert "image fsck --repair" in finding.cure
    lost.unlink()
    assert profiles.states() == {"complete": 1.0, "incomplete": 1.0}
    assert doctor_profiles.read(config).broken == (found,)
    damaged_rows = tmp_path / "other"
    damaged_rows.mkdir()
    assert doctor_profiles.read(Config(storage=Storage(root=damaged_rows))).count == 0
    (damaged_rows / "state.db").write_bytes(b"no database" * 100)
    (finding,) = doctor_profiles.judge(
        doctor_profiles.read(Config(storage=Storage(root=damaged_rows)))
    )
    assert (finding.level, "cannot be read" in finding.text) == ("warning", True)


async def test_callers_share_one_pull(registry: Registry, profiles: SecurityProfiles) -> None:
    ref = artifact(registry, DENY)
    assert await asyncio.gather(*(profiles.pull(ref, None) for _ in range(5))) == [False] * 5
    assert registry.blobs(DENY) == 1


async def test_removal_frees_its_blobs_and_may_be_repeated(
    registry: Registry, node: ImageNode, profiles: SecurityProfiles
) -> None:
    ref = artifact(registry, DENY)
    await profiles.pull(ref, None)
    for _ in range(2):
        await profiles.remove(ref.partition("@")[2])
    assert profiles.all() == []
    assert node.blob_files() == []
    with pytest.raises(NotFoundError, match="has not been pulled"):
        profiles.document(ref)
    with pytest.raises(InvalidRequestError):
        await profiles.remove(ref)
    assert await profiles.pull(ref, None) is False


async def test_a_document_that_two_profiles_share_stays_with_the_other(
    registry: Registry, profiles: SecurityProfiles
) -> None:
    one, two = artifact(registry, DENY), artifact(registry, DENY, annotations={"a": "b"})
    for ref in (one, two):
        await profiles.pull(ref, None)
    await profiles.remove(one.partition("@")[2])
    assert profiles.document(two) == DENY


async def test_the_collection_after_a_removal_leaves_it_alone(
    registry: Registry, node: ImageNode, profiles: SecurityProfiles
) -> None:
    ref = artifact(registry, DENY)
    await profiles.pull(ref, None)
    await node.images.remove("127.0.0.1/nothing:1")
    assert profiles.document(ref) == DENY


async def test_damage_is_found_and_the_next_pull_repairs_it(
    registry: Registry, node: ImageNode, profiles: SecurityProfiles
) -> None:
    ref = artifact(registry, DENY)
    await profiles.pull(ref, None)
    file = node.files.path(parse_digest(digest(DENY)))
    file.write_bytes(b"x" * len(DENY))
    with pytest.raises(CorruptError, match="damaged"):
        profiles.document(ref)
    found = await findings(node)
    assert any("security profile" in text for text in found), found
    await node.images.fsck(repair=True)
    with pytest.raises(NotFoundError, match="pull it again"):
        profiles.document(ref)
    assert await profiles.pull(ref, None) is False
    assert profiles.document(ref) == DENY
    assert await findings(node) == []


async def test_a_restart_keeps_it(registry: Registry, tmp_path: Path) -> None:
    first = ImageNode(tmp_path)
    await first.start()
    ref = artifact(registry, DENY)
    await profiles_of(first).pull(ref, None)
    await first.close()
    second = ImageNode(tmp_path)
    await second.start()
    try:
        again = profiles_of(second)
        assert [one.refs for one in again.all()] == [(ref,)]
        assert await again.pull(ref, None) is True
        assert again.document(ref) == DENY
    finally:
        await second.close()


async def test_the_type_may_be_beside_an_empty_configuration(
    registry: Registry, profiles: SecurityProfiles
) -> None:
    config = {**entry(b"{}"), "mediaType": EMPTY_CONFIG}
    ref = artifact(registry, DENY, config=config, artifactType=SECCOMP)
    assert await profiles.pull(ref, None) is False


def wrong(registry: Registry) -> dict[str, tuple[str, str]]:
    """References of what is no profile, with the reason, by name."""
    empty, apparmor = {**entry(b"{}"), "mediaType": EMPTY_CONFIG}, SECCOMP.replace("sec", "app")
    notify = DENY.replace(b"SCMP_ACT_ERRNO", b"SCMP_ACT_NOTIFY")
    unknown = DENY.replace(b"SCMP_ACT_ERRNO", b"SCMP_ACT_SHRUG")
    image = {**entry(b"{}"), "mediaType": "application/vnd.oci.image.config.v1+json"}
    far = {**entry(DENY), "mediaType": TAR, "urls": ["http://127.0.0.1:1/x"]}
    host = f"127.0.0.1:{registry.port}"
    return {
        "no digest": (f"{host}/a/b:1", "no digest"),
        "no registry": (f"a/b@{digest(DENY)}", "names no registry"),
        "no reference": ("", "it is empty"),
        "an image": (artifact(registry, DENY, config=image), "has the type"),
        "of no kind": (artifact(registry, DENY, config=empty), "has the type ''"),
        "another kind": (
            artifact(registry, DENY, config={**entry(b"{}"), "mediaType": apparmor}),
            "has the type",
        ),
        "two kinds": (artifact(registry, DENY, artifactType=apparmor), "artifactType"),
        "no layer": (artifact(registry), "0 layers"),
        "two layers": (artifact(registry, DENY, DENY), "2 layers"),
        "huge": (artifact(registry, b" " * (MAX_PROFILE + 1)), "the limit is"),
        "elsewhere": (artifact(registry, layers=[far]), "urls"),
        "an index": (
            published(registry, {"schemaVersion": 2, "manifests": []}, OCI_INDEX),
            "an index",
        ),
        "no manifest": (published(registry, {"schemaVersion": 2}), "malformed"),
        "an archive": (artifact(registry, b"\x1f\x8b\x08\x00"), "not a seccomp profile"),
        "not a profile": (artifact(registry, b'{"a": 1}'), "not a seccomp profile"),
        "an unknown action": (artifact(registry, unknown), "SCMP_ACT_SHRUG"),
        "a listener's action": (artifact(registry, notify), "listener"),
    }


async def test_what_is_no_profile_is_refused_for_good_and_leaves_nothing(
    registry: Registry, node: ImageNode, profiles: SecurityProfiles
) -> None:
    for what, (ref, why) in wrong(registry).items():
        with pytest.raises(InvalidRequestError) as caught:
            await profiles.pull(ref, None)
        assert str(caught.value).startswith("SecurityProfileInvalid: "), what
        assert why in str(caught.value), what
    assert profiles.all() == []
    await node.images.collect()
    assert node.blob_files() == []


async def test_content_of_another_digest_is_refused_and_may_be_tried_again(
    registry: Registry, node: ImageNode, profiles: SecurityProfiles
) -> None:
    ref = artifact(registry, DENY)
    registry.content[digest(DENY)] = DENY.replace(b"chmod", b"chown")
    with pytest.raises(CorruptError):
        await profiles.pull(ref, None)
    name = ref.partition("@")[2]
    manifest = registry.content[name]
    registry.content[name] = manifest + b" "
    with pytest.raises(CorruptError):
        await profiles.pull(ref, None)
    registry.content |= {name: manifest, digest(DENY): DENY}
    assert await profiles.pull(ref, None) is False


async def test_a_registry_that_is_silent_has_an_end(registry: Registry, node: ImageNode) -> None:
    ref = artifact(registry, DENY)
    pit = registry.hook = TarPit(DENY)
    one = profiles_of(node, limit_s=0.5)
    with pytest.raises(RegistryError, match="took longer"):
        await one.pull(ref, None)
    assert pit.reached.is_set()
    assert one.all() == []


async def test_credentials_are_sent_and_refusals_passed_on(
    registry: Registry, profiles: SecurityProfiles
) -> None:
    from aiohttp import web

    ref = artifact(registry, DENY)

    async def guard(request: web.BaseRequest) -> web.Response | None:
        if request.headers.get("Authorization") == "Basic dTpw":
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="x"'})

    registry.hook = guard
    with pytest.raises(RegistryDeniedError):
        await profiles.pull(ref, None)
    assert await profiles.pull(ref, RegistryAuth(username="u", password="p")) is False
