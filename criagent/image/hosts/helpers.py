# SPDX-License-Identifier: Apache-2.0
"""docker-credential-* programs (docker-credential-helpers, its README has the protocol).

    PROGRAM get          the server on standard input; the answer {"Username", "Secret"}

A user name of `<token>` says that the secret is an identity token. An error is a text on standard
output and another exit status than 0. Nothing that a program prints reaches a text or a log but
such an error, since anything else may be a secret.
"""

from __future__ import annotations

import json
import os
import shutil
import stat
from pathlib import Path

from criagent.base.errors import RegistryDeniedError
from criagent.base.text import bounded
from criagent.image.hosts.auth_file import Credentials, Helper
from criagent.process import child

_LARGEST = 64 << 10  # bytes of an answer
_SHOWN = 200  # characters of a program's error
_IDENTITY = "<token>"  # as the user name
_NOT_FOUND = "credentials not found in native keychain"  # docker-credential-helpers, error.go


async def ask(helper: Helper, limit_s: float) -> Credentials | None:
    """The credentials of the server, None when the program has none for it.

    Raises RegistryDeniedError that names the program and the file that names it.
    """
    program = _found(helper)
    try:
        ended = await child.run(
            [program, "get"],
            stdin=f"{helper.server}\n".encode(),
            limit_s=limit_s,
            keep=_LARGEST + 1,
            options=child.Options(env=os.environ, new_session=True),
        )
    except TimeoutError:
        raise _failed(
            helper,
            f"has not answered for {limit_s:g} s; repair it, or raise "
            "registry.credential_helper_timeout_s",
        ) from None
    except OSError as error:
        raise _failed(helper, f"cannot be run: {error.strerror}") from None
    if ended.status:
        if _NOT_FOUND in ended.output:
            return None
        raise _failed(helper, f"failed with exit status {ended.status}{_said(ended.output)}")
    return _credentials(helper, ended.stdout)


def located(name: str) -> tuple[Path | None, str]:
    """The program docker-credential-NAME in the agent's PATH, and what is wrong with it."""
    found = shutil.which(f"docker-credential-{name}")
    if found is None:
        return None, "is not in the agent's PATH; install it, or take its name out of the file"
    path = Path(found)
    try:
        status = path.stat()
    except OSError as error:
        return path, f"cannot be examined: {error.strerror}"
    if status.st_uid != 0:
        return path, f"belongs to uid {status.st_uid} and not to root; run chown root {path}"
    if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        return path, f"can be written by others than root; run chmod go-w {path}"
    return path, ""


def _found(helper: Helper) -> Path:
    path, problem = located(helper.name)
    if path is None or problem:
        raise _failed(helper, problem)
    return path


def _credentials(helper: Helper, answer: bytes) -> Credentials | None:
    wanted = "answered something else than its JSON object of Username and Secret"
    try:
        document = json.loads(answer) if len(answer) <= _LARGEST else None
    except (ValueError, RecursionError):
        document = None
    if not isinstance(document, dict):
        raise _failed(helper, wanted)
    username, secret = document.get("Username"), document.get("Secret")
    if not isinstance(username, str) or not isinstance(secret, str):
        raise _failed(helper, wanted)
    if not secret:
        return None
    if username == _IDENTITY:
        return Credentials(identity_token=secret)
    return Credentials(username=username, password=secret)


def _said(output: str) -> str:
    """An error's text; not what looks like an answer, with a secret in it."""
    line = output.strip().partition("\n")[0]
    return f": {bounded(line, _SHOWN)}" if line and "{" not in output else ""


def _failed(helper: Helper, text: str) -> RegistryDeniedError:
    return RegistryDeniedError(
        f"credentials for {helper.server}: {helper.program}, which {helper.file} names, {text}",
        status=401,  # what the registry answered that wanted them
    )
