"""TFRecord files read at random, without TensorFlow.

A record is the length of its data (uint64, little-endian), the masked CRC-32C of that length
(uint32), the data, and the masked CRC-32C of the data, where mask(c) = (c rotated right by 15 bits)
+ 0xa282ead8 (TensorFlow, core/lib/io/record_writer.h). Nothing says where records begin: they are
found in one pass over the lengths, which reads 12 bytes of each record.
"""

from __future__ import annotations

import functools
import os
import pathlib
import struct
from collections.abc import Mapping
from typing import Any

import google_crc32c
import numpy as np
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from data import index
from data.random_access import RandomAccess

_HEADER = struct.Struct("<QI")
_CHECKSUM = struct.Struct("<I")


class TFRecords:
    """The records of a file, in its order: `records[i]` is the data of record i, as bytes.

    Args:
      path: of the file.
      index_folder: where the list of records is kept, see `index.cached`.

    Raises:
      ValueError: no TFRecord file, or one that is damaged or cut off; names the first bad record.
      OSError: it cannot be read.
    """

    def __init__(self, path: str | os.PathLike[str], index_folder: pathlib.Path):
        self.path = pathlib.Path(path)
        self._bytes = RandomAccess(self.path)
        if not len(self._bytes):
            raise ValueError(f"{self.path} is empty; it should be a TFRecord file")
        self.offsets = index.cached(index_folder, self.path, "tfrecords", self._list_offsets)

    def __len__(self) -> int:
        return len(self.offsets)

    def __getitem__(self, row: int) -> bytes:
        """Raises ValueError if the record does not match its checksum."""
        begin = int(self.offsets[row])
        length, _ = _HEADER.unpack(self._bytes[begin : begin + _HEADER.size])
        first = begin + _HEADER.size
        content = self._bytes[first : first + length + _CHECKSUM.size]
        data, (checksum,) = content[:length], _CHECKSUM.unpack(content[length:])
        if masked_crc(data) != checksum:
            raise ValueError(
                f"{self.path}: record {row} does not match its checksum; the file is damaged, "
                "fetch it again"
            )
        return data

    def _list_offsets(self) -> np.ndarray:
        """Where the records begin, int64 [n]."""
        offsets, at = [], 0
        while at < len(self._bytes):
            offsets.append(at)
            at = self._end(at, len(offsets) - 1)
        return np.array(offsets, np.int64)

    def _end(self, begin: int, row: int) -> int:
        """Where the record that begins at `begin` ends."""
        left = len(self._bytes) - begin
        if left >= _HEADER.size:
            header = self._bytes[begin : begin + _HEADER.size]
            length, checksum = _HEADER.unpack(header)
            if masked_crc(header[:8]) != checksum:
                what = "is no TFRecord file" if row == 0 else f"is damaged at record {row}"
                raise ValueError(f"{self.path} {what}: the length there has another checksum")
            size = _HEADER.size + length + _CHECKSUM.size
            if size <= left:
                return int(begin + size)
        raise ValueError(f"{self.path} is cut off in record {row}, {row} are whole; fetch it again")


def masked_crc(data: bytes) -> int:
    """The masked CRC-32C of TFRecord files."""
    crc: int = google_crc32c.value(data)
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


@functools.cache
def _example() -> Any:
    """The class of `tf.train.Example` (TensorFlow, core/example/feature.proto), in its own pool.

    An Example has Features, which map names to a Feature: a list of bytes, floats or integers.
    """
    kind = descriptor_pb2.FieldDescriptorProto
    file = descriptor_pb2.FileDescriptorProto(name="example", package="tf", syntax="proto3")
    lists = {"bytes": kind.TYPE_BYTES, "float": kind.TYPE_FLOAT, "int64": kind.TYPE_INT64}
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, (name, of) in enumerate(lists.items(), 1):
        title = f"{name.capitalize()}List"
        values = file.message_type.add(name=title)
        values.field.add(name="value", number=1, label=kind.LABEL_REPEATED, type=of)
        feature.field.add(
            **{"name": f"{name}_list", "number": number, "oneof_index": 0},
            **{"type": kind.TYPE_MESSAGE, "type_name": f".tf.{title}"},
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kind.TYPE_STRING)
    entry.field.add(name="value", number=2, type=kind.TYPE_MESSAGE, type_name=".tf.Feature")
    features.field.add(
        **{"name": "feature", "number": 1, "label": kind.LABEL_REPEATED},
        **{"type": kind.TYPE_MESSAGE, "type_name": ".tf.Features.FeatureEntry"},
    )
    example = file.message_type.add(name="Example")
    example.field.add(name="features", number=1, type=kind.TYPE_MESSAGE, type_name=".tf.Features")
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tf.Example"))


def features(data: bytes) -> Mapping[str, Any]:
    """The features of a serialised `tf.train.Example`: a list of integers, floats or bytes each.

    Raises:
      ValueError: the data are no Example.
    """
    try:
        example = _example().FromString(data)
    except DecodeError as error:
        raise ValueError("no tf.train.Example") from error
    return {
        name: getattr(feature, feature.WhichOneof("kind") or "int64_list").value
        for name, feature in example.features.feature.items()
    }


def stylegan_image(data: bytes) -> np.ndarray:
    """The picture uint8 [H, W, C] of a StyleGAN record: "shape" is C, H, W, "data" its levels.

    Raises:
      ValueError: another kind of record.
    """
    parts = features(data)
    shape, content = list(parts.get("shape", ())), list(parts.get("data", ()))
    if len(shape) != 3 or len(content) != 1 or not isinstance(content[0], bytes):
        raise ValueError(
            f"a record has the features {', '.join(sorted(parts)) or 'none'}; a StyleGAN record "
            "has shape (three numbers) and data (bytes)"
        )
    if min(shape) < 1 or functools.reduce(lambda a, b: a * b, shape) != len(content[0]):
        raise ValueError(f"a record has the shape {shape}, but {len(content[0])} levels")
    return np.frombuffer(content[0], np.uint8).reshape(shape).transpose(1, 2, 0)
