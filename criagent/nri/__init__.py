# SPDX-License-Identifier: Apache-2.0
"""The Node Resource Interface: plugins that adjust containers and follow pods (docs/nri.md)."""
