# SPDX-License-Identifier: Apache-2.0
"""Which manifest of an index is chosen, without any registry: the search is fed by hand."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest

from criagent.base.errors import AgentError, CorruptError, NotFoundError, UnsupportedError
from criagent.image.documents.choose import UNREADABLE, Answer, Found, Search, Wanted
from criagent.image.documents.digest import digest_of
from criagent.image.documents.manifest import OCI_INDEX, OCI_MANIFEST, parse_document
from criagent.image.documents.platforms import Platform

Json = dict[str, Any]
AMD64 = Platform("amd64", "linux")
ARM64 = Platform("arm64", "linux", "v8")


class Store:
    """Documents by digest; `asked` keeps what was read."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.asked: list[str] = []

    def put(self, document: Json, **fields: Any) -> Json:
        content = json.dumps(document).encode()
        digest = "sha256:" + hashlib.sha256(content).hexdigest()
        self.content[digest] = content
        return {"digest": digest, "size": len(content), **fields}

    def image(self, name: str, platform: str | None = None, stated: str | None = None) -> Json:
        """An image whose configuration names `platform`, its entry `stated`."""
        config = self.put({"author": name, **(split(platform) if platform else {})})
        manifest = {"annotations": {"name": name}, "config": config, "layers": []}
        return self.put(manifest, **({"platform": split(stated)} if stated else {}))

    def index(self, *entries: Json, **fields: Any) -> Json:
        return self.put({"manifests": list(entries)}, mediaType=OCI_INDEX, **fields)

    def find(self, top: Json, host: Platform = AMD64) -> Found:
        content = self.content[top["digest"]]
        step = (search := Search(parse_document(content, ""), digest_of(content), host)).start()
        while isinstance(step, Wanted):
            self.asked.append(step.descriptor.digest)
            try:
                answer: Answer | AgentError = Answer(self.read(step.descriptor.digest))
            except UNREADABLE as exc:
                answer = exc
            step = search.next(answer)
        return step

    def read(self, digest: str) -> bytes:
        if digest not in self.content:
            raise NotFoundError(f"{digest} is not there")
        return self.content[digest]


def split(text: str) -> Json:
    system, architecture, variant = ([*text.split("/"), "", ""])[:3]
    return {"os": system, "architecture": architecture, "variant": variant}


@pytest.fixture
def store() -> Store:
    return Store()


def chosen(found: Found) -> str:
    return str(json.loads(found.content)["annotations"]["name"])


@pytest.mark.parametrize(
    ("stated", "host", "name"),
    [
        (["linux/arm64", "linux/amd64"], AMD64, "linux/amd64"),
        (["linux/amd64/v3", "linux/amd64"], AMD64, "linux/amd64"),
        (["linux/386", "linux/amd64"], AMD64, "linux/amd64"),
        (["linux/386"], AMD64, "linux/386"),
        (["Linux/x86_64"], AMD64, "Linux/x86_64"),
        (["windows/amd64", "linux/amd64"], AMD64, "linux/amd64"),
        (["unknown/unknown", "linux/amd64"], AMD64, "linux/amd64"),
        (["linux/arm/v7", "linux/aarch64", "linux/arm64/v9"], ARM64, "linux/aarch64"),
        (["linux/arm/v6", "linux/arm/v7"], ARM64, "linux/arm/v7"),
    ],
)
def test_the_best_platform_is_chosen(
    store: Store, stated: list[str], host: Platform, name: str
) -> None:
    entries = [store.image(one, stated=one) for one in stated]
    assert chosen(store.find(store.index(*entries), host)) == name
    assert len(store.asked) == 1  # a stated platform is believed


def test_of_equal_entries_the_first_is_chosen(store: Store) -> None:
    entries = [store.image(name, stated="linux/amd64") for name in ("first", "second")]
    assert chosen(store.find(store.index(*entries))) == "first"


def test_entries_without_platform_come_after_those_with(store: Store) -> None:
    unstated = store.image("unstated", "linux/amd64")
    stated = store.image("stated", stated="linux/386")
    assert chosen(store.find(store.index(unstated, stated))) == "stated"


def test_entries_without_platform_are_judged_by_their_configuration(store: Store) -> None:
    arm, old, mine = (
        store.image(name, name) for name in ("linux/arm64", "linux/386", "Linux/x86_64")
    )
    other = store.image("stated", stated="linux/arm64")
    assert chosen(store.find(store.index(arm, old, mine, other))) == "Linux/x86_64"
    assert chosen(store.find(store.index(old, arm))) == "linux/386"


def test_a_bad_entry_without_platform_costs_itself_only(store: Store) -> None:
    bad = [
        {"digest": "sha256:" + "0" * 64, "size": 1},
        {"digest": "md5:x", "size": 1},
        {"digest": "sha256:" + "1" * 64, "size": -1},
        store.put({"fsLayers": []}),
        store.put({"layers": 5}),
        store.put({"config": {"digest": "sha256:" + "2" * 64, "size": 1}}),
        store.put({"config": store.put({"rootfs": 5}), "layers": []}),
        store.image("no platform"),
    ]
    mine = store.image("mine", "linux/amd64")
    assert chosen(store.find(store.index(*bad, mine))) == "mine"


def test_the_entry_that_states_the_platform_must_be_there(store: Store) -> None:
    missing = {"digest": "sha256:" + "0" * 64, "size": 1, "platform": split("linux/amd64")}
    with pytest.raises(NotFoundError, match="is not there"):
        store.find(store.index(missing, store.image("x", "linux/amd64")))


def test_attestations_and_artifacts_are_never_chosen(store: Store) -> None:
    marked = {"vnd.docker.reference.type": "attestation-manifest"}
    entries = [
        {**store.image("a", "linux/amd64"), "annotations": marked},
        {**store.image("b", stated="linux/amd64"), "annotations": marked},
        {**store.image("c", "linux/amd64"), "artifactType": "application/vnd.example"},
        {**store.image("d", "linux/amd64"), "mediaType": "application/vnd.oci.artifact.v1+json"},
        {**store.image("e", stated="unknown/unknown"), "mediaType": OCI_MANIFEST},
    ]
    with pytest.raises(NotFoundError, match="no image for platform linux/amd64"):
        store.find(store.index(*entries))
    assert store.asked == []


def test_indexes_within_an_index_are_followed(store: Store) -> None:
    arm = store.index(store.image("arm", stated="linux/arm64"))
    inner = store.index(store.image("mine", stated="linux/amd64"))
    assert chosen(store.find(store.index(arm, inner))) == "mine"
    stated = {**inner, "platform": split("linux/amd64")}
    assert chosen(store.find(store.index(stated))) == "mine"


def test_nesting_is_limited(store: Store) -> None:
    top = store.index(store.image("mine", stated="linux/amd64"))
    for _ in range(3):
        top = store.index(top)
    assert chosen(store.find(top)) == "mine"
    with pytest.raises(NotFoundError, match="nest deeper than 4"):
        store.find(store.index(top))


def test_how_much_is_read_is_limited(store: Store) -> None:
    entries = [store.image(f"arm {number}", "linux/arm64") for number in range(900)]
    with pytest.raises(CorruptError, match="first 32 documents"):
        store.find(store.index(*entries))
    assert len(store.asked) == 32


def test_how_much_is_read_is_limited_also_of_what_is_missing(store: Store) -> None:
    entries = [{"digest": f"sha256:{number:064x}", "size": 1} for number in range(900)]
    with pytest.raises(CorruptError, match="first 32 documents"):
        store.find(store.index(*entries))


def test_an_index_of_indexes_does_not_multiply_the_work(store: Store) -> None:
    level = [store.image(f"arm {number}", "linux/arm64") for number in range(20)]
    for depth in range(3):
        level = [store.index(*level, annotations={"a": f"{depth} {n}"}) for n in range(20)]
    with pytest.raises(CorruptError, match="first 32 documents"):
        store.find(store.index(*level))


def test_the_error_names_what_there_is_up_to_a_limit(store: Store) -> None:
    entries = [store.image(str(n), stated=f"linux/arch{n:03}") for n in range(100)]
    with pytest.raises(NotFoundError) as caught:
        store.find(store.index(*entries))
    text = str(caught.value)
    assert "linux/arch000" in text
    assert "and 80 more" in text
    long = store.image("long", stated="o" * 5000 + "/" + "a" * 5000)
    with pytest.raises(NotFoundError) as caught:
        store.find(store.index(long))
    assert len(str(caught.value)) < 400


def test_a_manifest_at_the_top_is_taken_as_it_is(store: Store) -> None:
    top = store.image("other", "linux/arm64")
    assert str(store.find(top).digest) == top["digest"]
    assert store.asked == []


def test_schema_1_at_the_top_says_what_to_do(store: Store) -> None:
    with pytest.raises(UnsupportedError, match="push it again"):
        store.find(store.put({"schemaVersion": 1, "fsLayers": []}))
