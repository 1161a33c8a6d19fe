# SPDX-License-Identifier: Apache-2.0
"""proto/cri/v1/api.proto says exactly what the table of the interface says."""

from __future__ import annotations

import csv
from pathlib import Path

from google.protobuf.descriptor import Descriptor, EnumDescriptor, FieldDescriptor

from criagent._proto import api_pb2

TABLE = Path(__file__).parents[1] / "vectors" / "cri-v1.tsv"

Row = tuple[str, str, str, str, str, str]


def test_descriptors_equal_the_table() -> None:
    with TABLE.open() as file:
        rows = {
            tuple(value or "" for value in row.values())
            for row in csv.DictReader(file, delimiter="\t")
        }
    assert rows == set(described())


def described() -> list[Row]:
    file = api_pb2.DESCRIPTOR
    assert file.package == "runtime.v1"
    rows: list[Row] = []
    for service in file.services_by_name.values():
        for method in service.methods:
            kind = "server-stream" if method.server_streaming else "unary"
            types = f"{method.input_type.name} -> {method.output_type.name}"
            rows.append(("rpc", service.name, method.name, "", types, kind))
    for message in file.message_types_by_name.values():
        rows += of_message(message)
    for enum in file.enum_types_by_name.values():
        rows += of_enum(enum, enum.name)
    return rows


def of_message(message: Descriptor) -> list[Row]:
    rows: list[Row] = [("message", message.name, "", "", "", "")]
    for field in message.fields:
        rows.append(
            ("field", message.name, field.name, str(field.number), type_of(field), label(field))
        )
    for enum in message.enum_types:
        rows += of_enum(enum, f"{message.name}.{enum.name}")
    return rows


def of_enum(enum: EnumDescriptor, name: str) -> list[Row]:
    return [
        ("enum", name, value.name, str(value.number), "enum_value", "") for value in enum.values
    ]


def type_of(field: FieldDescriptor) -> str:
    if is_map(field):
        assert field.message_type is not None
        entry = field.message_type.fields_by_name
        return f"map<{type_of(entry['key'])},{type_of(entry['value'])}>"
    if field.message_type is not None:
        return str(field.message_type.name)
    if field.enum_type is not None:
        return str(field.enum_type.name)
    names = {
        FieldDescriptor.TYPE_STRING: "string",
        FieldDescriptor.TYPE_BYTES: "bytes",
        FieldDescriptor.TYPE_BOOL: "bool",
        FieldDescriptor.TYPE_INT32: "int32",
        FieldDescriptor.TYPE_INT64: "int64",
        FieldDescriptor.TYPE_UINT32: "uint32",
        FieldDescriptor.TYPE_UINT64: "uint64",
        FieldDescriptor.TYPE_DOUBLE: "double",
    }
    return names[field.type]


def label(field: FieldDescriptor) -> str:
    if is_map(field):
        return "map"
    if field.is_repeated:
        return "repeated"
    options = field.GetOptions()
    if options.deprecated:
        return "deprecated"
    return "debug_redact" if options.debug_redact else ""


def is_map(field: FieldDescriptor) -> bool:
    return field.message_type is not None and bool(field.message_type.GetOptions().map_entry)
