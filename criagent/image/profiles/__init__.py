# SPDX-License-Identifier: Apache-2.0
"""Security profiles from registries (KEP-6061)."""
