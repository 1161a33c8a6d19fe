# SPDX-License-Identifier: Apache-2.0
"""The address of the agent's metrics: whether another program answers there."""

from __future__ import annotations

import http.client
import ssl
from collections.abc import Iterator
from dataclasses import dataclass

from criagent.config.sections import Config
from criagent.doctor.finding import Finding, fine, warning

_NAME = "metrics"
_LIMIT_S = 2.0
_LIMIT = 1 << 20  # bytes of the page that are looked at


@dataclass(frozen=True, slots=True, kw_only=True)
class MetricsFacts:
    """Who answers at telemetry.metrics_address: "" = nobody, "agent" or "other"."""

    answers: str = ""


def read(config: Config) -> MetricsFacts:
    """Request the page, on one connection."""
    address = config.telemetry.metrics_address
    if not address:
        return MetricsFacts()
    host, _, port = address.rpartition(":")
    place = host.strip("[]"), int(port)
    connection = http.client.HTTPConnection(*place, timeout=_LIMIT_S)
    if config.telemetry.metrics_tls_cert:
        context = ssl.create_default_context()
        context.check_hostname, context.verify_mode = False, ssl.CERT_NONE  # nothing is sent
        connection = http.client.HTTPSConnection(*place, timeout=_LIMIT_S, context=context)
    try:
        connection.connect()
    except ssl.SSLError:
        return MetricsFacts(answers="other")
    except OSError:
        return MetricsFacts()
    return MetricsFacts(answers="agent" if _is_agent(connection) else "other")


def _is_agent(connection: http.client.HTTPConnection) -> bool:
    """By the page, or by what it asks of a client without a token. Closes the connection."""
    try:
        connection.request("GET", "/metrics")
        response = connection.getresponse()
        asked = response.headers.get("WWW-Authenticate", "")
        return "criagent" in asked or b"criagent_" in response.read(_LIMIT)
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


def judge(facts: MetricsFacts, config: Config) -> Iterator[Finding]:
    """Findings on `facts`; none while nobody answers."""
    address = config.telemetry.metrics_address
    if facts.answers == "agent":
        yield fine(_NAME, f"served at {address}")
    elif facts.answers:
        port = address.rpartition(":")[2]
        yield warning(
            _NAME,
            f"another program listens on {address}, so the agent serves no metrics there",
            f"find it (ss -Hltnp 'sport = :{port}') and stop it, or change "
            "telemetry.metrics_address; the agent tries again by itself",
        )
