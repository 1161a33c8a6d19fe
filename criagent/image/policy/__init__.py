# SPDX-License-Identifier: Apache-2.0
"""Which images may be pulled: containers' policy.json with sigstore signatures, and programs."""
