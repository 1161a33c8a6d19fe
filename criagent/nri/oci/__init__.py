# SPDX-License-Identifier: Apache-2.0
"""OCI specifications as plugins see them, and what plugins change in them."""
