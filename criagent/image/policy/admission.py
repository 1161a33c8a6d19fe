# SPDX-License-Identifier: Apache-2.0
"""Whether an image may be pulled: the policy file for its pod's namespace, then the programs.

It is asked when the reference is resolved, before any layer is fetched. Files are read for each
pull, so that a change counts from the next pull on. Whatever cannot be decided rejects the image.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from concurrent.futures import Executor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from criagent.base.aio import run_in
from criagent.base.errors import (
    AgentError,
    CorruptError,
    InvalidRequestError,
    RegistryError,
    SignatureRejectedError,
)
from criagent.image.documents.reference import Reference
from criagent.image.policy import verifiers
from criagent.image.policy.document import Accept, Reject, SigstoreSigned, parse_policy
from criagent.image.registry import Progress, RegistryClient, Resolved, Session

if TYPE_CHECKING:
    from criagent.image.policy.signature import Signature
    from criagent.image.policy.sigstore import Trust

_LARGEST = 1 << 20  # bytes of a policy file
_UNNAMED = (
    "it has a bundle of cosign 3, which signs a digest and no name; set registry.sigstore_bundles "
    "= true to accept it, or sign with --new-bundle-format=false"
)
_NAMESPACE = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")  # a DNS label (RFC 1123)


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """An image that was resolved. `digests` are those of its index and its manifest."""

    reference: Reference
    top: Resolved
    digests: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Rules:
    """Settings of [registry]; "" = none of the kind."""

    policy: str = ""
    policy_dir: str = ""
    bundles: bool = False
    verifier_dir: str = ""
    verifier_timeout_s: float = 10.0


class Admission:
    """The rules of a node; without any everything is admitted."""

    def __init__(self, client: RegistryClient, fs: Executor, rules: Rules) -> None:
        self._client = client
        self._fs = fs
        self.rules = rules

    async def policy_for(self, namespace: str) -> str:
        """The policy file for pods of a namespace, "" when there is none.

        It is part of what makes two pulls the same: one for a namespace with laxer rules must not
        be joined by one with stricter ones.
        """
        if self.rules.policy_dir and _NAMESPACE.fullmatch(namespace):
            own = Path(self.rules.policy_dir) / f"{namespace}.json"
            if await run_in(self._fs, own.exists):
                return str(own)
        return self.rules.policy

    async def check(
        self, session: Session, subject: Subject, policy: str, progress: Progress
    ) -> None:
        """Raises SignatureRejectedError for an image that may not be pulled."""
        if policy:
            await self._check_policy(session, subject, Path(policy), progress)
        if self.rules.verifier_dir:
            await verifiers.check(
                Path(self.rules.verifier_dir),
                verifiers.Subject(
                    reference=str(subject.reference),
                    digest=str(subject.top.digest),
                    media_type=subject.top.media_type,
                    size=len(subject.top.content),
                ),
                self.rules.verifier_timeout_s,
            )

    async def _check_policy(
        self, session: Session, subject: Subject, file: Path, progress: Progress
    ) -> None:
        try:
            policy = parse_policy(await run_in(self._fs, _read, file))
        except (OSError, ValueError, AgentError) as error:
            raise SignatureRejectedError(
                f"{subject.reference}: the signature policy {file} cannot be used: {error}"
            ) from error
        name, requirements = policy.scope(subject.reference)
        for requirement in requirements:
            if isinstance(requirement, Accept):
                continue
            why = "reject"
            if not isinstance(requirement, Reject):
                assert isinstance(requirement, SigstoreSigned)
                why = await self._signed(session, subject, requirement, progress)
            if why:
                raise SignatureRejectedError(
                    f"{subject.reference}: the signature policy {file} rejects it "
                    f"(scope {name}): {why}"
                )

    async def _signed(
        self, session: Session, subject: Subject, requirement: SigstoreSigned, progress: Progress
    ) -> str:
        """Why no attached signature meets the requirement; "" when one does."""
        # cryptography takes 10 MB of memory: only for nodes with such a policy
        from criagent.image.policy.attachments import signatures
        from criagent.image.policy.sigstore import Trust

        try:
            trust = await run_in(self._fs, Trust.of, requirement)
        except (OSError, ValueError) as error:
            return f"its keys cannot be read: {error}"
        reasons = []
        for digest in dict.fromkeys(subject.digests):
            for found in await signatures(self._client, session, digest, progress):
                why = await run_in(self._fs, _problem, trust, found, subject)
                if not why:
                    return ""
                reasons.append(why)
            reasons += await self._bundled(session, subject, digest, (trust, progress))
            if "" in reasons:
                return ""
        return "; ".join(reasons[:5]) or "it has no signature"

    async def _bundled(
        self, session: Session, subject: Subject, digest: str, trusted: tuple[Trust, Progress]
    ) -> list[str]:
        """Why bundles of a digest do not count, in their order; "" for the first that does."""
        from criagent.image.policy.attachments import bundles

        trust, progress = trusted
        try:
            found = await bundles(self._client, session, digest, progress)
        except (RegistryError, CorruptError, InvalidRequestError) as error:
            return [f"its bundles cannot be read: {error}"]
        if found and not self.rules.bundles:
            return [_UNNAMED]
        reasons = []
        for one in found:
            reasons.append(await run_in(self._fs, _bundle_problem, trust, one, subject.digests))
            if not reasons[-1]:
                break
        return reasons


def _problem(trust: Trust, found: Signature, subject: Subject) -> str:
    from criagent.image.policy.signature import RejectedError
    from criagent.image.policy.sigstore import check

    try:
        check(trust, found, subject.reference, subject.digests)
    except RejectedError as error:
        return f"a signature does not count: {error}"
    except ValueError as error:
        return f"the authorities of the policy cannot be read: {error}"
    return ""


def _bundle_problem(trust: Trust, content: bytes, digests: Sequence[str]) -> str:
    from criagent.image.policy import bundle
    from criagent.image.policy.signature import RejectedError

    try:
        bundle.check(trust, content, digests)
    except RejectedError as error:
        return f"a bundle does not count: {error}"
    except ValueError as error:
        return f"the authorities of the policy cannot be read: {error}"
    return ""


def _read(file: Path) -> bytes:
    with file.open("rb") as stream:
        content = stream.read(_LARGEST + 1)
    if len(content) > _LARGEST:
        raise ValueError(f"it is larger than {_LARGEST} bytes")
    return content
