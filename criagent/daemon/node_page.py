# SPDX-License-Identifier: Apache-2.0
"""`/` of the metrics address: what `info`, `pods`, `ps` and `images` show, as one HTML page.

It has no script and loads nothing. Names come from images, registries and pods, so each text is
made printable, cut and escaped. It shows no label, annotation, argument or variable of a container.
"""

from __future__ import annotations

import asyncio
import html
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from criagent.base.text import bounded
from criagent.cri.boundary import FailedCall
from criagent.cri.report import AgentReport
from criagent.daemon.wiring.shared import Stores
from criagent.model.container import ContainerState
from criagent.model.sandbox import SandboxState

_LIMIT_S = 5.0
_MOST = 500  # entries of a table
_TEXT = 400  # characters of a cell
_SHORT = 13  # of an id

Entry = Sequence[object]

_STYLE = """
:root{color-scheme:light dark;font:15px/1.4 system-ui,sans-serif}
body{margin:0 auto;max-width:75rem;padding:0 1rem 2rem}
h1{font-size:1.4rem}h2{font-size:1.1rem;margin:1.6rem 0 .4rem}
table{border-collapse:collapse;width:100%}
th,td{text-align:left;vertical-align:top;padding:.25rem .6rem .25rem 0;
border-bottom:1px solid #8884;overflow-wrap:anywhere;min-width:6.5em}
.bad{color:#c22;font-weight:600}.none{opacity:.7}
@media (max-width:40rem){thead{display:none}tr{display:block;padding:.4rem 0;
border-bottom:1px solid #8888}td{display:block;border:0;padding:.1rem 0}td:empty{display:none}
td::before{content:attr(data-name) ": ";opacity:.7}}
"""


class NodePage:
    """Builds the page in the reader's thread; only the report is made on the event loop."""

    def __init__(
        self,
        *,
        report: AgentReport,
        stores: Stores,
        failures: Callable[[], Sequence[FailedCall]],
        loop: asyncio.AbstractEventLoop,
    ) -> None:
        self._report = report
        self._stores = stores
        self._failures = failures
        self._loop = loop

    def __call__(self) -> str:
        """The page of this moment. Raises TimeoutError while the event loop is held up."""
        document = asyncio.run_coroutine_threadsafe(self._report.document(), self._loop)
        return page(
            document.result(_LIMIT_S),
            pods=self._pods(),
            containers=self._containers(),
            images=self._images(),
            failures=self._failures(),
        )

    def _pods(self) -> list[Entry]:
        found = [one for one in self._stores.sandboxes.all() if one.visible]
        return [
            (
                one.spec.metadata.name,
                one.spec.metadata.namespace,
                "Ready" if one.state is SandboxState.READY else "NotReady",
                one.id[:_SHORT],
            )
            for one in sorted(found, key=lambda one: one.spec.metadata.key)
        ]

    def _containers(self) -> list[Entry]:
        pods = {one.id: one.spec.metadata for one in self._stores.sandboxes.all()}
        entries: list[Entry] = []
        for one in self._stores.containers.all():
            if one.visible:
                pod = pods.get(one.sandbox_id)
                state = one.state.name.capitalize()
                if one.state is ContainerState.EXITED:
                    state = f"{state} ({one.exit_code})"
                name = f"{pod.namespace}/{pod.name}" if pod else ""
                own = one.spec.metadata
                entries.append((own.name, name, state, own.attempt, one.id[:_SHORT]))
        return sorted(entries, key=lambda entry: (str(entry[1]), str(entry[0])))

    def _images(self) -> list[Entry]:
        found = [
            (", ".join(one.repo_tags) or one.id[:_SHORT], f"{one.size / 1e6:.1f} MB")
            for one in self._stores.images.all()
        ]
        return [*sorted(found)]


def page(
    report: dict[str, Any],
    *,
    pods: Sequence[Entry],
    containers: Sequence[Entry],
    images: Sequence[Entry],
    failures: Iterable[FailedCall],
) -> str:
    """The whole document."""
    conditions = [
        (one["type"], "yes" if one["status"] else "NO", one["reason"], one["message"])
        for one in report["conditions"]
    ]
    handlers = [
        (one["name"], one["version"], one["path"], one["problem"]) for one in report["handlers"]
    ]
    storage = report["storage"]
    figures = [
        ("Pods ready", f"{report['sandboxes']['ready']} of {report['sandboxes']['total']}"),
        *((f"Containers {state}", number) for state, number in report["containers"].items()),
        ("Images", report["images"]),
        ("Storage driver", storage["driver"]),
        ("Used by images and containers", f"{storage['used_bytes'] / 1e6:.1f} MB"),
        ("Cgroup driver", report["cgroup_driver"]),
        ("Network", report["network"]["backend"]),
    ]
    failed = [
        (_clock(one.at), one.rpc, one.code, one.subject, one.text) for one in reversed([*failures])
    ]
    body = [
        _table("Conditions", ("Condition", "True", "Reason", "Message"), conditions),
        _table("Figures", ("Figure", "Value"), figures),
        _table("Handlers", ("Handler", "Version", "Program", "Problem"), handlers),
        _table("Last failed calls", ("Time", "Call", "Status", "Subject", "Text"), failed),
        _table("Pods", ("Pod", "Namespace", "State", "Id"), pods),
        _table("Containers", ("Container", "Pod", "State", "Attempt", "Id"), containers),
        _table("Images", ("Image", "Size"), images),
    ]
    version = _text(report["version"])
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>criagent</title><style>{_STYLE}</style></head><body>"
        f"<h1>criagent {version}</h1>"
        f"<p>As of {_clock(time.time())}. For scrapers: /metrics, /healthz.</p>"
        f"{''.join(body)}</body></html>\n"
    )


def _table(title: str, head: Sequence[str], entries: Sequence[Entry]) -> str:
    if not entries:
        return f'<h2>{title}</h2><p class="none">none</p>'
    cells = "".join(f"<th>{name}</th>" for name in head)
    lines = [
        "<tr>"
        + "".join(
            f'<td data-name="{name}"{_class(value)}>{_text(value)}</td>'
            for name, value in zip(head, entry, strict=True)
        )
        + "</tr>"
        for entry in entries[:_MOST]
    ]
    more = f"<p>and {len(entries) - _MOST} more</p>" if len(entries) > _MOST else ""
    return (
        f"<h2>{title}</h2><table><thead><tr>{cells}</tr></thead>"
        f"<tbody>{''.join(lines)}</tbody></table>{more}"
    )


def _class(value: object) -> str:
    return ' class="bad"' if value in {"NO", "NotReady"} else ""


def _text(value: object) -> str:
    return html.escape(bounded(str(value), _TEXT))


def _clock(at: float) -> str:
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(at))
