# SPDX-License-Identifier: Apache-2.0
from google.protobuf.internal import containers as _containers
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from collections.abc import Iterable as _Iterable, Mapping as _Mapping
from typing import ClassVar as _ClassVar, Optional as _Optional, Union as _Union

DESCRIPTOR: _descriptor.FileDescriptor

class InfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class InfoResponse(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class DebugRequest(_message.Message):
    __slots__ = ("objects",)
    OBJECTS_FIELD_NUMBER: _ClassVar[int]
    objects: bool
    def __init__(self, objects: _Optional[bool] = ...) -> None: ...

class DebugResponse(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class ReloadRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class ReloadResponse(_message.Message):
    __slots__ = ("changed", "need_restart")
    CHANGED_FIELD_NUMBER: _ClassVar[int]
    NEED_RESTART_FIELD_NUMBER: _ClassVar[int]
    changed: _containers.RepeatedScalarFieldContainer[str]
    need_restart: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, changed: _Optional[_Iterable[str]] = ..., need_restart: _Optional[_Iterable[str]] = ...) -> None: ...

class StorageInfoRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class StorageInfoResponse(_message.Message):
    __slots__ = ("json",)
    JSON_FIELD_NUMBER: _ClassVar[int]
    json: str
    def __init__(self, json: _Optional[str] = ...) -> None: ...

class ImportImagesRequest(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class ImportedImage(_message.Message):
    __slots__ = ("id", "tags", "digests")
    ID_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    DIGESTS_FIELD_NUMBER: _ClassVar[int]
    id: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    digests: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ..., digests: _Optional[_Iterable[str]] = ...) -> None: ...

class SkippedEntry(_message.Message):
    __slots__ = ("entry", "reason")
    ENTRY_FIELD_NUMBER: _ClassVar[int]
    REASON_FIELD_NUMBER: _ClassVar[int]
    entry: str
    reason: str
    def __init__(self, entry: _Optional[str] = ..., reason: _Optional[str] = ...) -> None: ...

class ImportImagesResponse(_message.Message):
    __slots__ = ("images", "skipped")
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    SKIPPED_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedCompositeFieldContainer[ImportedImage]
    skipped: _containers.RepeatedCompositeFieldContainer[SkippedEntry]
    def __init__(self, images: _Optional[_Iterable[_Union[ImportedImage, _Mapping]]] = ..., skipped: _Optional[_Iterable[_Union[SkippedEntry, _Mapping]]] = ...) -> None: ...

class ExportImagesRequest(_message.Message):
    __slots__ = ("images",)
    IMAGES_FIELD_NUMBER: _ClassVar[int]
    images: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, images: _Optional[_Iterable[str]] = ...) -> None: ...

class ExportImagesResponse(_message.Message):
    __slots__ = ("chunk",)
    CHUNK_FIELD_NUMBER: _ClassVar[int]
    chunk: bytes
    def __init__(self, chunk: _Optional[bytes] = ...) -> None: ...

class TagImageRequest(_message.Message):
    __slots__ = ("image", "tag")
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    TAG_FIELD_NUMBER: _ClassVar[int]
    image: str
    tag: str
    def __init__(self, image: _Optional[str] = ..., tag: _Optional[str] = ...) -> None: ...

class TagImageResponse(_message.Message):
    __slots__ = ("id", "tags")
    ID_FIELD_NUMBER: _ClassVar[int]
    TAGS_FIELD_NUMBER: _ClassVar[int]
    id: str
    tags: _containers.RepeatedScalarFieldContainer[str]
    def __init__(self, id: _Optional[str] = ..., tags: _Optional[_Iterable[str]] = ...) -> None: ...

class FsckRequest(_message.Message):
    __slots__ = ("repair", "contents")
    REPAIR_FIELD_NUMBER: _ClassVar[int]
    CONTENTS_FIELD_NUMBER: _ClassVar[int]
    repair: bool
    contents: str
    def __init__(self, repair: _Optional[bool] = ..., contents: _Optional[str] = ...) -> None: ...

class Finding(_message.Message):
    __slots__ = ("problem", "object", "repaired")
    PROBLEM_FIELD_NUMBER: _ClassVar[int]
    OBJECT_FIELD_NUMBER: _ClassVar[int]
    REPAIRED_FIELD_NUMBER: _ClassVar[int]
    problem: str
    object: str
    repaired: bool
    def __init__(self, problem: _Optional[str] = ..., object: _Optional[str] = ..., repaired: _Optional[bool] = ...) -> None: ...

class FsckResponse(_message.Message):
    __slots__ = ("findings", "layers_compared", "not_compared")
    FINDINGS_FIELD_NUMBER: _ClassVar[int]
    LAYERS_COMPARED_FIELD_NUMBER: _ClassVar[int]
    NOT_COMPARED_FIELD_NUMBER: _ClassVar[int]
    findings: _containers.RepeatedCompositeFieldContainer[Finding]
    layers_compared: int
    not_compared: _containers.RepeatedCompositeFieldContainer[Finding]
    def __init__(self, findings: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ..., layers_compared: _Optional[int] = ..., not_compared: _Optional[_Iterable[_Union[Finding, _Mapping]]] = ...) -> None: ...

class PullProgressRequest(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: str
    def __init__(self, image: _Optional[str] = ...) -> None: ...

class PullProgressResponse(_message.Message):
    __slots__ = ("received_bytes", "expected_bytes")
    RECEIVED_BYTES_FIELD_NUMBER: _ClassVar[int]
    EXPECTED_BYTES_FIELD_NUMBER: _ClassVar[int]
    received_bytes: int
    expected_bytes: int
    def __init__(self, received_bytes: _Optional[int] = ..., expected_bytes: _Optional[int] = ...) -> None: ...

class PruneRequest(_message.Message):
    __slots__ = ()
    def __init__(self) -> None: ...

class PruneResponse(_message.Message):
    __slots__ = ("freed_bytes", "blobs", "snapshots")
    FREED_BYTES_FIELD_NUMBER: _ClassVar[int]
    BLOBS_FIELD_NUMBER: _ClassVar[int]
    SNAPSHOTS_FIELD_NUMBER: _ClassVar[int]
    freed_bytes: int
    blobs: int
    snapshots: int
    def __init__(self, freed_bytes: _Optional[int] = ..., blobs: _Optional[int] = ..., snapshots: _Optional[int] = ...) -> None: ...

class RemoveImageNameRequest(_message.Message):
    __slots__ = ("image",)
    IMAGE_FIELD_NUMBER: _ClassVar[int]
    image: str
    def __init__(self, image: _Optional[str] = ...) -> None: ...

class RemoveImageNameResponse(_message.Message):
    __slots__ = ("names", "removed_id")
    NAMES_FIELD_NUMBER: _ClassVar[int]
    REMOVED_ID_FIELD_NUMBER: _ClassVar[int]
    names: _containers.RepeatedScalarFieldContainer[str]
    removed_id: str
    def __init__(self, names: _Optional[_Iterable[str]] = ..., removed_id: _Optional[str] = ...) -> None: ...
