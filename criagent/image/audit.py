"""fsck of images: rows against files. Synchronous, reads every blob; changes nothing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from criagent.image.blobs import BlobFiles
from criagent.image.digest import parse_digest
from criagent.model import Blob, Image, Snapshot

_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """One thing that is wrong, in words, with the object it concerns."""

    problem: str
    object: str
    repaired: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class State:
    """The rows to compare with the disk."""

    images: list[Image]
    blobs: list[Blob]
    snapshots: list[Snapshot]


@dataclass(slots=True)
class Broken:
    """Findings, and what has to go so that a pull makes it whole again."""

    findings: list[Finding] = field(default_factory=list)
    images: set[str] = field(default_factory=set)
    snapshots: set[str] = field(default_factory=set)
    blobs: set[str] = field(default_factory=set)

    def add(self, problem: str, name: str) -> None:
        self.findings.append(Finding(problem=problem, object=name))


def check(state: State, files: BlobFiles, tree: Callable[[Snapshot], Path]) -> Broken:
    """Everything that is wrong with images, blobs and layers."""
    broken = Broken()
    for blob in state.blobs:
        problem = _blob_problem(blob, files)
        if problem:
            broken.add(problem, f"blob {blob.digest}")
            broken.blobs.add(blob.digest)
    known = {blob.digest for blob in state.blobs}
    for digest, _ in files.all():
        if str(digest) not in known:
            broken.add("the blob belongs to no image", f"blob {digest}")
    layers = {s.key: s for s in state.snapshots if s.committed}
    for key, snapshot in layers.items():
        directory = tree(snapshot)
        if not directory.is_dir():
            broken.add("the layer's directory is missing", f"snapshot {snapshot.number} ({key})")
            broken.snapshots.add(key)
        elif snapshot.inodes and not any(directory.iterdir()):
            broken.add("the layer's directory is empty", f"snapshot {snapshot.number} ({key})")
            broken.snapshots.add(key)
    for image in state.images:
        _check_image(image, known - broken.blobs, layers.keys() - broken.snapshots, broken)
    return broken


def _check_image(image: Image, blobs: set[str], layers: set[str], broken: Broken) -> None:
    name = f"image {image.repo_tags[0] if image.repo_tags else image.id}"
    if image.id not in blobs or image.manifest_digest not in blobs:
        broken.add("its manifest or configuration is missing", name)
        broken.images.add(image.id)
    for layer in image.layers:
        if layer.chain_id not in layers:
            broken.add(f"its layer {layer.digest} is not unpacked", name)
            broken.images.add(image.id)
        elif layer.digest in broken.blobs:
            broken.add(f"the blob of its layer {layer.digest} is damaged", name)
            broken.images.add(image.id)


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
        return f"the file cannot be read: {exc.strerror}"
    return "" if hasher.hexdigest() == digest.hex else "the content does not match the digest"
