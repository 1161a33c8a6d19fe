# SPDX-License-Identifier: Apache-2.0
"""Who may read the metrics, by the configuration."""

from __future__ import annotations

from pathlib import Path

from criagent.base.errors import UnavailableError
from criagent.config.sections import Telemetry
from criagent.telemetry.metrics_server import Access


def metrics_access(section: Telemetry) -> Access:
    """The certificate and the tokens, as far as there are any; their modules are loaded then.

    Raises UnavailableError for files that cannot be used.
    """
    certificate = tokens = None
    try:
        if section.metrics_tls_cert:
            from criagent.base.certificate import Certificate

            certificate = Certificate(Path(section.metrics_tls_cert), Path(section.metrics_tls_key))
        if section.metrics_token_file:
            from criagent.base.tokens import TokenFile

            tokens = TokenFile(Path(section.metrics_token_file))
    except (OSError, ValueError) as exc:
        raise UnavailableError(
            "metrics cannot be served: telemetry.metrics_tls_cert, metrics_tls_key or "
            f"metrics_token_file cannot be used: {exc}"
        ) from exc
    return Access(certificate, tokens)
