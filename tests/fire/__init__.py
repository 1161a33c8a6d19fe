# SPDX-License-Identifier: Apache-2.0
"""Every verb of the CRI while the node fails: no descriptor, no memory, a full or a broken disk."""
