# SPDX-License-Identifier: Apache-2.0
"""The storage drivers: one module each, or a package for one that needs more."""
