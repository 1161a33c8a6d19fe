# SPDX-License-Identifier: Apache-2.0
"""fsck of images: compares rows with files. Synchronous, reads every blob; changes nothing.

Of an unpacked layer it compares what was noted when it was unpacked: the number of names, the bytes
of regular files, and a digest of types, owners, modes, sizes, times and attributes. Content that
was changed without leaving a trace in these is found by `layer_contents.py`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from criagent.base.os_errors import of_the_agent
from criagent.image.blobs import BlobFiles
from criagent.image.documents.digest import parse_digest
from criagent.image.snapshots.keys import damaged_origin
from criagent.image.snapshots.numbers import split
from criagent.model.image import Blob, Image, PulledProfile, Snapshot

_CHUNK = 1 << 20
_NAMED = 5  # containers that a finding names


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One problem as text, with its object.

    `key` is what a repair drops: the blob's digest, or the layer's driver and chain ID.
    """

    problem: str
    object: str
    repaired: bool = False
    key: str = ""
    read_only: bool = False  # it is in an additional store

    def used_by(self, containers: Sequence[str]) -> Finding:
        """The same for a layer, with the containers that use it."""
        if not containers:
            return self
        names = ", ".join(container[:13] for container in containers[:_NAMED])
        more = f" and {len(containers) - _NAMED} more" if len(containers) > _NAMED else ""
        return dataclasses.replace(
            self, problem=f"{self.problem}; recreate the containers that use it: {names}{more}"
        )

    def repaired_unless(self, busy: set[str]) -> Finding:
        """The same after a repair, which leaves out whatever is `busy`."""
        if self.read_only:
            return self
        if self.key not in busy:
            return dataclasses.replace(self, repaired=True)
        return dataclasses.replace(
            self, problem=f"{self.problem}; a pull uses it: repair again when the pull has ended"
        )


def removed(image_id: str, why: str) -> Finding:
    """An image that a repair could not restore."""
    return Finding(
        problem=f"it could not be restored ({why}), and was removed; pull or import it again",
        object=f"image {image_id}",
        repaired=True,
    )


def key(layer: Snapshot) -> str:
    """What tells a layer from those of all drivers: driver and chain ID, or the latter alone."""
    return key_of(layer.driver, layer.key)


def key_of(driver: str, chain_id: str) -> str:
    """The same of a driver and a chain ID."""
    return f"{driver} {chain_id}".strip()


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The rows to compare with the disk; `unowned` blobs wait for a retry or a collection."""

    images: list[Image]
    blobs: list[Blob]
    snapshots: list[Snapshot]  # of every storage driver
    unowned: frozenset[str] = frozenset()
    lent: Sequence[Snapshot] = ()  # of additional stores
    profiles: Sequence[PulledProfile] = ()

    @property
    def layers(self) -> dict[str, Snapshot]:
        """The committed layers that a pull would find, by driver and chain ID."""
        return {key(s): s for s in self.snapshots if s.committed and not damaged_origin(s.key)}


@dataclass(slots=True)
class Broken:
    """Findings, and what to drop so that a pull restores it."""

    findings: list[Finding] = field(default_factory=list)
    images: set[tuple[str, str]] = field(default_factory=set)  # ids, each with a driver
    snapshots: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)

    def add(self, problem: str, name: str, key: str = "") -> None:
        self.findings.append(Finding(problem=problem, object=name, key=key))


def check(state: State, files: BlobFiles, layer_problems: Mapping[str, str]) -> Broken:
    """Every problem of images, blobs and layers; `layer_problems` by `key`, "" = none."""
    broken = Broken()
    for blob in state.blobs:
        problem = _blob_problem(blob, files)
        if problem:
            broken.add(problem, f"blob {blob.digest}", blob.digest)
            broken.blobs.add(blob.digest)
    known = {blob.digest for blob in state.blobs}
    expected = known | state.unowned
    for digest, _ in files.all():
        if str(digest) not in expected:
            broken.add("the blob belongs to no image", f"blob {digest}")
    layers = state.layers
    for name, snapshot in layers.items():
        if problem := layer_problems[name]:
            broken.add(problem, f"snapshot {snapshot.number} ({name})", name)
            broken.snapshots.add(name)
    for layer in state.lent:
        if key(layer) not in layers and (problem := layer_problems[key(layer)]):
            store, number = split(layer.number)
            broken.findings.append(
                Finding(
                    problem=f"{problem}; make the store again",
                    object=f"layer {number} of additional store {store}",
                    read_only=True,
                )
            )
    rows = _by_driver([*layers.values(), *state.lent])
    whole = _by_driver(
        layer
        for layer in (*layers.values(), *state.lent)
        if key(layer) not in broken.snapshots or layer in state.lent
    )
    for image in state.images:
        _check_documents(image, known - broken.blobs, broken)
        for driver in _drivers(image, rows):
            _check_layers(image, driver, whole.get(driver, set()), broken)
    for profile in state.profiles:
        _check_profile(profile, known - broken.blobs, broken)
    return broken


def _by_driver(layers: Iterable[Snapshot]) -> dict[str, set[str]]:
    """Chain IDs."""
    found: dict[str, set[str]] = {}
    for layer in layers:
        found.setdefault(layer.driver, set()).add(layer.key)
    return found


def _drivers(image: Image, rows: Mapping[str, set[str]]) -> list[str]:
    """The drivers for which the image was unpacked, or else the one with most of its layers.

    Others may have some of its layers, which it shares with images that were unpacked for them.
    """
    chains = {layer.chain_id for layer in image.layers}
    found = [driver for driver in sorted(rows) if chains <= rows[driver]]
    return found or [max(["", *rows], key=lambda driver: len(chains & rows.get(driver, set())))]


def _check_documents(image: Image, blobs: set[str], broken: Broken) -> None:
    if image.id not in blobs or image.manifest_digest not in blobs:
        broken.add("its manifest or configuration is missing", _name(image))
        broken.images.add((image.id, ""))


def _check_layers(image: Image, driver: str, layers: set[str], broken: Broken) -> None:
    of_driver = f" for {driver}" if driver else ""
    for layer in image.layers:
        if layer.chain_id not in layers:
            broken.add(f"its layer {layer.digest} is not unpacked{of_driver}", _name(image))
            broken.images.add((image.id, driver))
        elif layer.digest in broken.blobs:
            broken.add(f"the blob of its layer {layer.digest} is damaged", _name(image))
            broken.images.add((image.id, driver))


def _name(image: Image) -> str:
    return f"image {(*image.all_tags, image.id)[0]}"


def _check_profile(profile: PulledProfile, blobs: set[str], broken: Broken) -> None:
    for needed in (profile.digest, profile.layer):
        if needed not in blobs:
            what = "its content is missing or damaged; the next PullSecurityProfile fetches it"
            broken.add(what, f"security profile {profile.digest}", needed)


def _blob_problem(blob: Blob, files: BlobFiles) -> str:
    digest = parse_digest(blob.digest)
    hasher = digest.hasher()
    try:
        with files.path(digest).open("rb") as file:
            while chunk := file.read(_CHUNK):
                hasher.update(chunk)
    except FileNotFoundError:
        return "the file is missing"
    except OSError as exc:
        if of_the_agent(exc):
            raise
        return f"the file cannot be read: {exc.strerror}"
    return "" if hasher.hexdigest() == digest.hex else "the content does not match the digest"
