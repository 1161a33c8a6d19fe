# SPDX-License-Identifier: Apache-2.0
"""Bundles of cosign 3: found as referrers, verified by the keys and the log of a policy."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from hypothesis import given
from hypothesis import strategies as st

from criagent.base.errors import SignatureRejectedError
from criagent.image.policy import bundle as bundle_module
from criagent.image.policy.admission import Rules
from criagent.image.policy.document import SigstoreSigned
from criagent.image.policy.signature import RejectedError
from criagent.image.policy.sigstore import Trust
from tests.support import bundles, signing
from tests.support.pulling import SMALL, Node, Registry, digest, name

KEY, LOG = signing.new_key(), signing.new_key()


@pytest.fixture
async def registry() -> AsyncIterator[Registry]:
    one = Registry()
    await one.start()
    one.image(SMALL)
    yield one
    await one.stop()


@pytest.fixture
async def node(tmp_path: Path) -> AsyncIterator[Node]:
    one = Node(tmp_path, rules=Rules(policy=str(tmp_path / "policy.json"), bundles=True))
    yield one
    await one.close()


def policy(folder: Path, **fields: Any) -> None:
    """One key is trusted, unless the fields say otherwise."""
    if "fulcio" not in fields:
        fields["keyData"] = bundles.encoded(signing.pem(KEY))
    requirement = {"type": "sigstoreSigned", **fields}
    (folder / "policy.json").write_text(json.dumps({"default": [requirement]}))


def image_digest(registry: Registry) -> str:
    return digest(registry.content["1"])


def attach(registry: Registry, *contents: bytes, api: bool = True) -> None:
    """Publish bundles as referrers, by the call for them or at the tag that stands for it."""
    listed = []
    for content in contents:
        manifest, blobs = bundles.referrer(content)
        for blob in blobs:
            registry.put(blob)
        listed.append({**registry.put(manifest, signing.OCI_MANIFEST), "mediaType": "x"})
    index = json.dumps({"schemaVersion": 2, "manifests": listed}).encode()
    if not api:
        registry.put(index, "", image_digest(registry).replace(":", "-"))

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if "/referrers/" not in request.path:
            return None
        return web.Response(body=index) if api else web.Response(status=404)

    registry.hook = hook


def signed(registry: Registry, **change: Any) -> bytes:
    """A bundle for the registry's image by KEY."""
    payload = bundles.statement(
        change.get("digest", image_digest(registry)), change.get("kind", bundles.SIGN)
    )
    made = bundles.envelope(change.get("key", KEY), payload, change.get("type", bundles.STATEMENT))
    return bundles.bundle(change.get("material"), dsseEnvelope=made)


async def rejected(node: Node, registry: Registry) -> str:
    with pytest.raises(SignatureRejectedError) as caught:
        await node.pull(name(registry))
    return str(caught.value)


@pytest.mark.parametrize("api", [True, False])
async def test_a_bundle_by_the_policys_key(
    node: Node, registry: Registry, tmp_path: Path, api: bool
) -> None:
    policy(tmp_path)
    attach(registry, signed(registry, key=signing.new_key()), signed(registry), api=api)
    image = await node.pull(name(registry))
    assert image.repo_tags == (name(registry),)


async def test_a_bundle_of_the_manifest_itself(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    policy(tmp_path)
    made = bundles.message(KEY, registry.content["1"])
    attach(registry, bundles.bundle(messageSignature=made))
    await node.pull(name(registry))


async def test_bundles_count_only_where_they_are_wanted(registry: Registry, tmp_path: Path) -> None:
    policy(tmp_path)
    attach(registry, signed(registry))
    node = Node(tmp_path, rules=Rules(policy=str(tmp_path / "policy.json")))
    text = await rejected(node, registry)
    assert "it has a bundle of cosign 3, which signs a digest and no name" in text
    assert "registry.sigstore_bundles = true" in text
    await node.close()


def in_pages(registry: Registry, count: int, *contents: bytes, link: str = "") -> None:
    """Publish bundles on the last of so many pages of the list of referrers."""
    entries = []
    for content in contents:
        manifest, blobs = bundles.referrer(content)
        for blob in blobs:
            registry.put(blob)
        entries.append({**registry.put(manifest, signing.OCI_MANIFEST), "mediaType": "x"})

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        if "/referrers/" not in request.path:
            return None
        page = int(request.query.get("last", "1"))
        listed = json.dumps({"manifests": entries if page == count else []}).encode()
        following = link or f"{request.path}?last={page + 1}"
        fields = {"Link": f'<{following}>; rel="next"'} if page < count else {}
        return web.Response(body=listed, headers=fields)

    registry.hook = hook


@pytest.mark.parametrize("link", ["", "http://inside.test{path}?last=3", "{path}?last=3&n=1"])
async def test_a_bundle_on_a_later_page(
    node: Node, registry: Registry, tmp_path: Path, link: str
) -> None:
    """The link may name a host that only the registry's own network knows."""
    policy(tmp_path)
    place = f"/v2/a/b/referrers/{image_digest(registry)}"
    in_pages(registry, 3, signed(registry), link=link.format(path=place))
    await node.pull(name(registry))


@pytest.mark.parametrize(
    ("link", "why"),
    [
        ("", "on more than 32 pages"),
        ("/v2/other/referrers/x", "a list of a/b goes on outside of it"),
        ("http://[", "a list of a/b goes on outside of it"),
    ],
)
async def test_a_list_that_does_not_end_or_leads_away(
    node: Node, registry: Registry, tmp_path: Path, link: str, why: str
) -> None:
    policy(tmp_path)
    in_pages(registry, 1000, signed(registry), link=link)
    assert why in await rejected(node, registry)
    assert sum("/referrers/" in path for path in registry.asked) <= 32


OTHER = "sha256:" + "0" * 64


@pytest.mark.parametrize(
    ("make", "why"),
    [
        (lambda r: signed(r, key=signing.new_key()), "no key of the policy made it"),
        (lambda r: signed(r, digest=OTHER), f"it is for {OTHER}"),
        (lambda r: signed(r, kind="https://slsa.dev/provenance/v1"), "no signature"),
        (lambda r: signed(r, type="text/plain"), "its envelope has a 'text/plain'"),
        (
            lambda r: signed(r).replace(b'"payload": "', b'"payload": "AAAA'),
            "no key of the policy made it",
        ),
        (lambda _: b"{}", "its bundle cannot be read"),
        (lambda _: bundles.bundle(), "its bundle has no signature"),
        (lambda _: bundles.bundle(messageSignature=bundles.message(KEY, b"x")), "it is for SHA2"),
        (
            lambda r: bundles.bundle(
                messageSignature=bundles.message(signing.new_key(), r.content["1"])
            ),
            "no key of the policy made it",
        ),
    ],
    ids=range(9),
)
async def test_bundles_that_do_not_count(
    node: Node,
    registry: Registry,
    tmp_path: Path,
    make: Callable[[Registry], bytes],
    why: str,
) -> None:
    policy(tmp_path)
    attach(registry, make(registry))
    assert why in await rejected(node, registry)


def rekor_2(entry: Any) -> Any:
    """As the second version of the log has it: without a promise and a time."""
    gone = {"inclusionPromise", "integratedTime"}
    kept = {key: value for key, value in entry.items() if key not in gone}
    return {**kept, "kindVersion": {"kind": "dsse", "version": "0.0.2"}}


async def test_the_log_is_verified_if_the_policy_has_its_key(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    policy(tmp_path, rekorPublicKeyData=bundles.encoded(signing.pem(LOG)))
    made = bundles.envelope(KEY, bundles.statement(image_digest(registry)))
    again = bundles.envelope(KEY, bundles.statement(image_digest(registry)))  # another signature
    key, other = signing.pem(KEY), signing.pem(signing.new_key())
    for entries, why in (
        ([], "it has no entry of Rekor"),
        ([bundles.log_entry(signing.new_key(), made, key)], "no key of Rekor"),
        ([bundles.log_entry(LOG, made, key, payload=b"else")], "about another signature"),
        ([bundles.log_entry(LOG, again, key)], "about another signature"),
        ([bundles.log_entry(LOG, made, other)], "names a key that the policy does not have"),
        (
            [{**bundles.log_entry(LOG, made, key), "integratedTime": "7"}],
            "no key of Rekor",
        ),
        (
            [{**bundles.log_entry(LOG, made, key), "inclusionPromise": None}],
            "no SignedEntryTimestamp",
        ),
        (
            [rekor_2(bundles.log_entry(LOG, made, key))],
            "its entry is one of Rekor 2 (dsse 0.0.2), which gives no time of its own",
        ),
    ):
        attach(registry, bundles.bundle({"tlogEntries": entries}, dsseEnvelope=made))
        assert why in await rejected(node, registry)
    entry = bundles.log_entry(LOG, made, key)
    attach(registry, bundles.bundle({"tlogEntries": [entry]}, dsseEnvelope=made))
    await node.pull(name(registry))


async def test_a_certificate_of_fulcio(node: Node, registry: Registry, tmp_path: Path) -> None:
    fulcio = signing.Authority()
    policy(
        tmp_path,
        rekorPublicKeyData=bundles.encoded(signing.pem(LOG)),
        fulcio={
            "caData": bundles.encoded(fulcio.pem),
            "oidcIssuer": signing.ISSUER,
            "subjectEmail": signing.MAIL,
        },
    )
    made = bundles.envelope(KEY, bundles.statement(image_digest(registry)))

    def certified(certificate: bytes, logged: bytes) -> bytes:
        material = {
            "certificate": {"rawBytes": bundles.der(certificate)},
            "tlogEntries": [bundles.log_entry(LOG, made, logged)],
        }
        return bundles.bundle(material, dsseEnvelope=made)

    good, eve = fulcio.issued(KEY), fulcio.issued(KEY, mail="eve@example.com")
    attach(registry, certified(eve, eve))
    assert "its certificate is for 'eve@example.com'" in await rejected(node, registry)
    attach(registry, certified(good, fulcio.issued(KEY)))
    assert "names another certificate" in await rejected(node, registry)
    foreign = signing.Authority().issued(KEY)
    attach(registry, certified(foreign, foreign))
    assert "no authority of the policy" in await rejected(node, registry)
    attach(registry, signed(registry))
    assert "it has no entry of Rekor" in await rejected(node, registry)
    attach(registry, certified(good, good))
    await node.pull(name(registry))


async def test_a_registry_whose_referrers_fail_has_no_signature_to_accept(
    node: Node, registry: Registry, tmp_path: Path
) -> None:
    policy(tmp_path)

    async def hook(request: web.BaseRequest) -> web.StreamResponse | None:
        return web.Response(status=403) if "/referrers/" in request.path else None

    registry.hook = hook
    assert "its bundles cannot be read: " in await rejected(node, registry)


_TRUST = Trust.of(SigstoreSigned(key_data=signing.pem(KEY)))
_JSON: Any = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda one: (
        st.lists(one, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                [
                    "publicKey",
                    "certificate",
                    "rawBytes",
                    "tlogEntries",
                    "payload",
                    "payloadType",
                    "signatures",
                    "sig",
                    "messageDigest",
                    "algorithm",
                    "digest",
                    "signature",
                ]
            ),
            one,
            max_size=5,
        )
    ),
    max_leaves=20,
)


@given(_JSON, _JSON, _JSON)
def test_any_bundle_is_rejected_in_words(material: Any, envelope: Any, message: Any) -> None:
    document = {
        "mediaType": "x",
        "verificationMaterial": material,
        "dsseEnvelope": envelope,
        "messageSignature": message,
    }
    with contextlib.suppress(RejectedError):
        bundle_module.check(_TRUST, json.dumps(document).encode(), ["sha256:" + "0" * 64])
        pytest.fail("it was accepted")
