# SPDX-License-Identifier: Apache-2.0
"""nftables by libnftables, in this process: one text is one transaction (man 8 nft)."""

from __future__ import annotations

import ctypes
from ctypes import c_bool, c_char_p, c_int, c_void_p

from criagent.base.errors import AgentError, UnsupportedError

_MAX_TEXT = 500  # nft repeats the commands, which may be many


class Nftables:
    """A libnftables context, bound to the network namespace in which it was created; one thread.

    With `dry_run` the kernel checks the commands, and nothing is changed.
    """

    def __init__(self, *, dry_run: bool = False) -> None:
        try:
            library = ctypes.CDLL("libnftables.so.1")
        except OSError as exc:
            raise UnsupportedError("libnftables.so.1 is missing; install libnftables1") from exc
        library.nft_ctx_new.restype = c_void_p
        for name in ("nft_ctx_get_output_buffer", "nft_ctx_get_error_buffer"):
            getattr(library, name).restype = c_char_p
            getattr(library, name).argtypes = [c_void_p]
        library.nft_run_cmd_from_buffer.argtypes = [c_void_p, c_char_p]
        for name in ("nft_ctx_buffer_output", "nft_ctx_buffer_error"):
            getattr(library, name).argtypes = [c_void_p]
        library.nft_ctx_free.argtypes = [c_void_p]
        library.nft_run_cmd_from_buffer.restype = c_int
        library.nft_ctx_set_dry_run.argtypes = [c_void_p, c_bool]
        self._library = library
        self._context = c_void_p(library.nft_ctx_new(0))
        library.nft_ctx_buffer_output(self._context)
        library.nft_ctx_buffer_error(self._context)
        library.nft_ctx_set_dry_run(self._context, dry_run)

    def run(self, commands: str) -> str:
        """Apply `commands` as one transaction; returns their output.

        Raises AgentError with nft's errors, without the commands that they quote.
        """
        status = self._library.nft_run_cmd_from_buffer(self._context, commands.encode())
        output = (self._library.nft_ctx_get_output_buffer(self._context) or b"").decode()
        errors = (self._library.nft_ctx_get_error_buffer(self._context) or b"").decode()
        if status:
            lines = [line for line in errors.splitlines() if line.startswith("Error")]
            text = "; ".join(dict.fromkeys(lines)) or errors.strip()
            raise AgentError(f"nftables rejected a change: {text[:_MAX_TEXT]}")
        return output

    def close(self) -> None:
        """Free the context."""
        self._library.nft_ctx_free(self._context)
