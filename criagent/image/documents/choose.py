# SPDX-License-Identifier: Apache-2.0
"""The manifest of an index for this machine, chosen like containerd (core/images, Manifest).

Entries with a fitting platform come first, the best one only. Entries without a platform are judged
by their configuration, in their order. Nested indexes are followed. The search does no I/O: it asks
for a document, and gets the content or the reason why it cannot be read.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass

from criagent.base.errors import AgentError, CorruptError, NotFoundError, UnsupportedError
from criagent.image.documents.digest import Digest
from criagent.image.documents.manifest import (
    ACCEPTED,
    Descriptor,
    Document,
    is_sound,
    parse_configuration,
    parse_document,
)
from criagent.image.documents.platforms import Platform, rank

_MAX_DEPTH = 4  # indexes below one another
_MAX_READ = 32  # documents of one search, without the configuration of the image that is chosen
_MAX_OFFERED = 20  # platforms that an error lists
_ATTESTATION = "vnd.docker.reference.type"  # BuildKit's mark of an attestation

# Errors that affect only an entry without a platform.
UNREADABLE = (NotFoundError, CorruptError, UnsupportedError)


@dataclass(frozen=True, slots=True)
class Wanted:
    """A document to read: a manifest or index, or else a configuration."""

    descriptor: Descriptor
    is_manifest: bool


@dataclass(frozen=True, slots=True)
class Answer:
    """The content of a document, verified, and the media type that it was served as."""

    content: bytes
    media_type: str = ""


@dataclass(frozen=True, slots=True)
class Found:
    """The manifest that was chosen; `content` is empty when it is the one at the top."""

    digest: Digest
    document: Document
    content: bytes = b""


class Search:
    """The search for the manifest for `host` at or below `top`, one document at a time."""

    def __init__(self, top: Document, digest: Digest, host: Platform) -> None:
        self._steps = _find(top, digest, host)

    def start(self) -> Wanted | Found:
        """The first document to read. Raises what `next` raises."""
        return self._step(lambda: next(self._steps))

    def next(self, answer: Answer | AgentError) -> Wanted | Found:
        """The document to read after `answer`, or the end of the search.

        Raises NotFoundError that lists the available platforms, CorruptError beyond the limits, and
        `answer` itself when it is the error of an entry that states the platform.
        """
        if isinstance(answer, AgentError):
            return self._step(lambda: self._steps.throw(answer))
        return self._step(lambda: self._steps.send(answer))

    def _step(self, go: Callable[[], Wanted]) -> Wanted | Found:
        try:
            return go()
        except StopIteration as stop:
            found: Found = stop.value
            return found


@dataclass(slots=True)
class _State:
    host: Platform
    read: int = 0
    failure: AgentError | None = None


def _find(top: Document, digest: Digest, host: Platform) -> Generator[Wanted, Answer, Found]:
    if not top.is_index:
        return Found(digest, top)
    state = _State(host)
    found = yield from _below(top, state, depth=1)
    if found is None:
        raise _none(top, state)
    return found[1]


def _below(
    index: Document, state: _State, depth: int
) -> Generator[Wanted, Answer, tuple[int, Found] | None]:
    """The best manifest below `index` with its rank."""
    if depth > _MAX_DEPTH:
        raise CorruptError(f"malformed index: indexes nest deeper than {_MAX_DEPTH} levels")
    best: tuple[int, Found] | None = None
    for fit, entry in _candidates(index, state.host):
        try:
            found = yield from _examine(entry, fit, state, depth)
        except UNREADABLE as exc:
            if fit is not None or state.read > _MAX_READ:
                raise
            state.failure = state.failure or exc
            continue
        if found is not None and (best is None or found[0] < best[0]):
            best = found
        if best is not None and (best[0] == 0 or fit is not None):
            break
    return best


def _examine(
    entry: Descriptor, fit: int | None, state: _State, depth: int
) -> Generator[Wanted, Answer, tuple[int, Found] | None]:
    answer = yield _read(state, entry, is_manifest=True)
    document = parse_document(answer.content, answer.media_type or entry.media_type)
    if document.is_index:
        return (yield from _below(document, state, depth + 1))
    if fit is None and document.config is not None:
        peeked = yield _read(state, document.config, is_manifest=False)
        fit = rank(parse_configuration(peeked.content).platform, state.host)
    return None if fit is None else (fit, Found(entry.parsed, document, answer.content))


def _read(state: _State, descriptor: Descriptor, *, is_manifest: bool) -> Wanted:
    state.read += 1
    if state.read > _MAX_READ:
        raise CorruptError(
            f"malformed index: none of the first {_MAX_READ} documents is for {state.host}"
        )
    return Wanted(descriptor, is_manifest)


def _candidates(index: Document, host: Platform) -> list[tuple[int | None, Descriptor]]:
    """Entries with a fitting platform, best first, then those without a platform."""
    stated: list[tuple[int, Descriptor]] = []
    unstated: list[tuple[int | None, Descriptor]] = []
    for entry in index.manifests or ():
        if not is_sound(entry) or is_attestation(entry) or entry.artifact_type:
            continue
        if entry.media_type and entry.media_type not in ACCEPTED:
            continue
        if entry.platform is None:
            unstated.append((None, entry))
        elif (fit := rank(entry.platform, host)) is not None:
            stated.append((fit, entry))
    stated.sort(key=lambda one: one[0])
    return [*stated, *unstated]


def is_attestation(entry: Descriptor) -> bool:
    """Whether an entry of an index is an attestation of another one."""
    if entry.platform is not None and entry.platform.normal[:2] == ("unknown", "unknown"):
        return True
    return _ATTESTATION in entry.annotations


def _none(top: Document, state: _State) -> NotFoundError:
    offered = dict.fromkeys(str(e.platform) for e in top.manifests or () if e.platform is not None)
    names = sorted(offered)[:_MAX_OFFERED]
    more = f" and {len(offered) - len(names)} more" if len(offered) > len(names) else ""
    text = (
        f"no image for platform {state.host}; the index offers {', '.join(names) or 'none'}{more}"
    )
    if state.failure is not None:
        text += f"; an entry without platform cannot be read: {str(state.failure)[:300]}"
    return NotFoundError(text)
