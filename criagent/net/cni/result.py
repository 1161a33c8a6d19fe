# SPDX-License-Identifier: Apache-2.0
"""What a CNI plugin prints (CNI specification 1.1.0, section 5), read with limits.

The plugins are the node's own, but their output is trusted no further than the sandbox's row:
addresses are parsed and written back in canonical form.
"""

from __future__ import annotations

import json
from ipaddress import ip_interface
from typing import Any

from criagent.base.errors import AgentError

LIMIT_BYTES = 1 << 20
_MAX_ADDRESSES = 64
_MAX_TEXT = 1000
_FAMILIES = {"4": "ip4", "6": "ip6"}  # values of `version`, and keys of results of 0.1 and 0.2

Json = dict[str, Any]


def parse_result(output: bytes, kind: str) -> Json:
    """The JSON object that plugin `kind` printed. Raises AgentError naming the plugin."""
    try:
        result = json.loads(output)
    except (ValueError, RecursionError):
        raise AgentError(f'CNI plugin "{kind}" printed invalid JSON: {output[:200]!r}') from None
    if not isinstance(result, dict):
        raise AgentError(f'CNI plugin "{kind}" printed something other than a JSON object')
    return result


def converted(result: Json, version: str) -> Json:
    """`result` in the format of `version`, whatever version wrote it.

    Before 0.3.0 a result has one address of each family in `ip4` and `ip6`; before 1.0.0 each entry
    of `ips` names its family. Malformed entries stay for `addresses` to refuse.
    """
    changed = {**result, "cniVersion": version}
    if version >= "0.3.0":
        old = [changed.pop(key, None) for key in _FAMILIES.values()]
        if not changed.get("ips"):
            old = [one for one in old if isinstance(one, dict)]
            if old:
                changed["ips"] = [
                    _without_none(address=o.get("ip"), gateway=o.get("gateway")) for o in old
                ]
                routes = [route for one in old for route in _list(one.get("routes"))]
                changed["routes"] = routes or _list(changed.get("routes"))
        ips = changed.get("ips")
        if isinstance(ips, list):
            changed["ips"] = [_entry(one, version) for one in ips]
    elif isinstance(changed.get("ips"), list):
        ips = changed.pop("ips")
        changed.pop("interfaces", None)
        routes = _list(changed.pop("routes", None))
        for one in reversed(ips):
            if family := _family(one):
                mine = [route for route in routes if _family(route, "dst") == family]
                changed[_FAMILIES[family]] = _without_none(
                    ip=one.get("address"), gateway=one.get("gateway"), routes=mine or None
                )
    return changed


def _entry(entry: Any, version: str) -> Any:
    if not isinstance(entry, dict):
        return entry
    changed = {key: value for key, value in entry.items() if key != "version"}
    if version < "1.0.0" and (family := _family(entry)):
        changed["version"] = family
    return changed


def _family(entry: Any, key: str = "address") -> str:
    text = entry.get(key) if isinstance(entry, dict) else None
    try:
        return str(ip_interface(text).version) if isinstance(text, str) else ""
    except ValueError:
        return ""


def _list(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []


def _without_none(**fields: Any) -> Json:
    return {key: value for key, value in fields.items() if value is not None}


def addresses(result: Json, kind: str, interface: str) -> tuple[str, ...]:
    """Addresses of the pod's `interface`, else those of other interfaces in the pod.

    Raises AgentError naming plugin `kind` for malformed, too many or no addresses.
    """
    who = f'the result of CNI plugin "{kind}"'
    entries = converted(result, "1.0.0").get("ips")
    if not isinstance(entries, list) or not entries:
        raise AgentError(f"{who} has no ips")
    if len(entries) > _MAX_ADDRESSES:
        raise AgentError(f"{who} has {len(entries)} ips; the limit is {_MAX_ADDRESSES}")
    wanted: list[str] = []
    others: list[str] = []
    for entry in entries:
        address = _address(entry, who)
        owner = _owner(entry, result.get("interfaces"), who)
        # Some plugins leave out the sandbox of the pod's interface, and runtimes go by its name.
        if owner is None or owner.get("name") == interface:
            wanted.append(address)
        elif owner.get("sandbox"):
            others.append(address)
    found = tuple(dict.fromkeys(wanted or others))
    if not found:
        raise AgentError(f"{who} has no ips on an interface of the pod")
    return found


def failure_text(output: bytes, errors: bytes) -> str:
    """Why a plugin failed: its error object, else its stderr."""
    try:
        answer = json.loads(output)
        text = f"{answer.get('msg', '')} {answer.get('details', '')}".strip()
    except (ValueError, AttributeError, RecursionError):
        text = ""
    return (text or errors.decode(errors="replace").strip() or "failed with no output")[:_MAX_TEXT]


def _address(entry: object, who: str) -> str:
    text = entry.get("address") if isinstance(entry, dict) else None
    try:
        if not isinstance(text, str) or "%" in text:  # a zone would be the host's
            raise ValueError
        return str(ip_interface(text).ip)
    except ValueError:
        raise AgentError(f"{who} has the malformed address {str(text)[:80]!r}") from None


def _owner(entry: Json, interfaces: object, who: str) -> Json | None:
    """The interface that the entry names, or None when it names none: then it is the pod's."""
    index = entry.get("interface")
    if index is None:
        return None
    listed = interfaces if isinstance(interfaces, list) else []
    if type(index) is not int or not 0 <= index < len(listed):
        raise AgentError(f"{who} refers to interface {str(index)[:20]!r}, which it does not list")
    if not isinstance(listed[index], dict):
        raise AgentError(f"{who} has a malformed interface")
    owner: Json = listed[index]
    return owner
