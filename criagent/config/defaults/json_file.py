# SPDX-License-Identifier: Apache-2.0
"""Reads a JSON file of the operator's; errors name the file, and the line or the key in it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TypeVar

import msgspec

T = TypeVar("T")


class FileError(ValueError):
    """A file cannot be used; the text begins with its path."""


def read_json(path: Path, kind: type[T], most: int) -> T:
    """The content of a file of at most `most` bytes. Raises FileError."""
    try:
        with path.open("rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise FileError(f"{path}: cannot be read: {error.strerror}") from None
    if len(data) > most:
        raise FileError(f"{path}: is larger than {most} bytes")
    try:
        return msgspec.json.decode(data, type=kind)
    except msgspec.ValidationError as error:
        raise FileError(f"{path}: {_key(str(error))}") from None
    except (msgspec.MsgspecError, UnicodeError, RecursionError) as error:
        raise FileError(f"{path}{_place(data, str(error))}") from None


def _key(text: str) -> str:
    """The key first: msgspec has it behind "at", as `$.hook.path`."""
    reason, at, place = text.rpartition(" - at `$")
    return f"{place.strip('`.')}: {reason}" if at else text


def _place(data: bytes, reason: str) -> str:
    """Line and column, which msgspec does not count."""
    try:
        json.loads(data)
    except json.JSONDecodeError as error:
        return f":{error.lineno}:{error.colno}: is not JSON: {error.msg}"
    except (ValueError, RecursionError):
        pass
    return f": is not JSON: {reason}"
