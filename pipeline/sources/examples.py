"""Labelled images in `tf.train.Example` records, read by protobuf alone.

Two layouts are known: that of the ImageNet scripts of TensorFlow (`image/encoded`, `image/class/label` from 1,
`image/class/text`, `image/filename`) and that of TensorFlow Datasets (`image`, `label` from 0, `file_name`).
"""

from __future__ import annotations

import functools
from dataclasses import dataclass
from typing import Any

from pipeline.errors import DataError


@dataclass(frozen=True, slots=True)
class Layout:
    """What the features are called.

    Args:
        image: The bytes of a JPEG or PNG file.
        label: A whole number.
        first_label: The number of the first class.
        text: The name of the class; may be missing.
        filename: May be missing.
    """

    image: str
    label: str
    first_label: int
    text: str
    filename: str


IMAGENET = Layout("image/encoded", "image/class/label", 1, "image/class/text", "image/filename")
TFDS = Layout("image", "label", 0, "label/text", "file_name")
_LAYOUTS = (IMAGENET, TFDS)


@dataclass(frozen=True, slots=True)
class LabelledImage:
    """What a record says.

    Args:
        encoded: The bytes of the image's file.
        label: As stored.
        first_label: The number of the first class in a record of this layout.
        text: The name of the class; empty where the record has none.
        filename: Empty where the record has none.
    """

    encoded: bytes
    label: int
    first_label: int
    text: str
    filename: str


def parse_example(record: bytes, layout: Layout | None = None) -> LabelledImage:
    """Reads a record.

    Args:
        record: A serialized `tf.train.Example`.
        layout: What the features are called; None takes the one that fits.

    Raises:
        DataError: The record is none, or has no image or no label. The message is the reason alone.
    """
    from google.protobuf.message import DecodeError

    try:
        features = _example_class().FromString(record).features.feature
    except DecodeError as error:
        raise DataError("it is no tf.train.Example") from error
    if layout is None:
        layout = next((known for known in _LAYOUTS if known.image in features and known.label in features), None)
    if layout is None or layout.image not in features or layout.label not in features:
        expected = " or ".join(f"{known.image} and {known.label}" for known in ((layout,) if layout else _LAYOUTS))
        raise DataError(f"it has the features {', '.join(sorted(features)[:20]) or '(none)'}: expected {expected}")
    images, labels = features[layout.image].bytes_list.value, features[layout.label].int64_list.value
    if len(images) != 1:
        raise DataError(f"{layout.image} has {len(images)} byte strings: expected one, the file of an image")
    if len(labels) != 1:
        raise DataError(f"{layout.label} has {len(labels)} whole numbers: expected one")
    return LabelledImage(
        encoded=images[0],
        label=labels[0],
        first_label=layout.first_label,
        text=_text(features, layout.text),
        filename=_text(features, layout.filename),
    )


def _text(features: Any, name: str) -> str:
    values = features[name].bytes_list.value if name in features else ()
    return str(values[0].decode(errors="backslashreplace")).strip() if values else ""


@functools.cache
def _example_class() -> Any:
    """The class of `tf.train.Example` messages, made in a pool of its own: TensorFlow registers its own."""
    from google.protobuf import descriptor_pb2, descriptor_pool, message_factory

    file = descriptor_pb2.FileDescriptorProto(name="example.proto", package="edgeship", syntax="proto3")
    field = descriptor_pb2.FieldDescriptorProto
    for name, kind in (
        ("BytesList", field.TYPE_BYTES),
        ("FloatList", field.TYPE_FLOAT),
        ("Int64List", field.TYPE_INT64),
    ):
        file.message_type.add(name=name).field.add(name="value", number=1, type=kind, label=field.LABEL_REPEATED)
    feature = file.message_type.add(name="Feature")
    feature.oneof_decl.add(name="kind")
    for number, name in enumerate(("bytes_list", "float_list", "int64_list"), start=1):
        type_name = f".edgeship.{name.title().replace('_', '')}"
        feature.field.add(
            name=name,
            number=number,
            type=field.TYPE_MESSAGE,
            type_name=type_name,
            label=field.LABEL_OPTIONAL,
            oneof_index=0,
        )
    features = file.message_type.add(name="Features")
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=field.TYPE_STRING, label=field.LABEL_OPTIONAL)
    entry.field.add(
        name="value", number=2, type=field.TYPE_MESSAGE, type_name=".edgeship.Feature", label=field.LABEL_OPTIONAL
    )
    features.field.add(
        name="feature",
        number=1,
        type=field.TYPE_MESSAGE,
        type_name=".edgeship.Features.FeatureEntry",
        label=field.LABEL_REPEATED,
    )
    example = file.message_type.add(name="Example")
    example.field.add(
        name="features", number=1, type=field.TYPE_MESSAGE, type_name=".edgeship.Features", label=field.LABEL_OPTIONAL
    )
    pool = descriptor_pool.DescriptorPool()
    pool.Add(file)
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("edgeship.Example"))
