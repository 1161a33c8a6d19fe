# SPDX-License-Identifier: Apache-2.0
"""The node page of a made-up node with long and hostile names; its title becomes its width."""

from __future__ import annotations

from tests.unit.test_node_page import HOSTILE, made

_MEASURE = (
    "<script>addEventListener('load', () => document.title = "
    "document.documentElement.scrollWidth + ' of ' + innerWidth)</script>"
)

if __name__ == "__main__":
    print(made("registry.example/" + "long-name" * 12 + HOSTILE).replace("</body>", _MEASURE))
