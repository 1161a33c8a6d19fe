"""Image archives: OCI layouts (image-layout.md) and `docker save` tars.

`sniff` refuses what is none by its first bytes, `read` runs in the unpack worker and takes blobs,
`images` makes rows of what was taken, `write` exports.
"""
