# SPDX-License-Identifier: Apache-2.0
"""The error tree: one class for each decision that some caller makes.

The boundary (`cri/boundary.py`) maps classes to gRPC statuses; no other package knows a status
code. Texts are lower case, name the object and the cause, and end with the cure if there is one.
"""

from __future__ import annotations


class AgentError(Exception):
    """Anything that the agent refuses or fails to do; INTERNAL unless a subclass says otherwise."""


class InvalidRequestError(AgentError):
    """The request can never succeed unchanged: INVALID_ARGUMENT."""


class NotFoundError(AgentError):
    """The named object does not exist: NOT_FOUND."""


class AlreadyExistsError(AgentError):
    """The name is taken by an object with a different configuration: ALREADY_EXISTS."""


class NameReservedError(AlreadyExistsError):
    """Another attempt still owns the name; the text names its stage."""


class WrongStateError(AgentError):
    """The object is not in a state that allows the call: FAILED_PRECONDITION."""


class UnsupportedError(AgentError):
    """This build, kernel or node cannot do it: UNIMPLEMENTED."""


class UnavailableError(AgentError):
    """Not recovered yet, or shutting down; the caller should try again: UNAVAILABLE."""


class ExhaustedError(AgentError):
    """A limited resource (addresses, disk, tokens) is used up: RESOURCE_EXHAUSTED."""


class TimedOutError(AgentError):
    """Work exceeded its own time limit: DEADLINE_EXCEEDED."""


class NotPermittedError(AgentError):
    """The kernel or a security module denies it to the agent: PERMISSION_DENIED."""


class CorruptError(AgentError):
    """Content does not match its digest or size: DATA_LOSS."""


class RegistryError(AgentError):
    """A registry failed or could not be reached: UNKNOWN with the prefix that the kubelet reads.

    `url` is redacted (no credentials, no query); `codes` are the registry's error codes.
    `transient` says that the same request may succeed later, `retry_after_s` when the server allows
    a retry.
    """

    def __init__(
        self,
        text: str,
        *,
        method: str = "",
        url: str = "",
        status: int = 0,
        codes: tuple[str, ...] = (),
        transient: bool = False,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(text)
        self.method = method
        self.url = url
        self.status = status
        self.codes = codes
        self.transient = transient
        self.retry_after_s = retry_after_s


class RegistryDeniedError(RegistryError):
    """The registry refused the credentials, or requires some: PERMISSION_DENIED."""


class SignatureRejectedError(AgentError):
    """The policy of the node does not admit the image: UNKNOWN with the kubelet's prefix for it."""


class RegistryUnreachableError(RegistryError):
    """A host could not be connected to: UNKNOWN, as RegistryError."""


class RegistrySilentError(RegistryUnreachableError):
    """A host took the request and has not answered in time: UNKNOWN, as RegistryError."""
