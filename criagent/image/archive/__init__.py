# SPDX-License-Identifier: Apache-2.0
"""Image archives: OCI layouts (image-layout.md) and `docker save` tars.

`sniff` refuses other files by their first bytes, `read` runs in the unpack worker and takes blobs,
`images` builds the rows, `write` exports.
"""
