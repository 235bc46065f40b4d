"""What `edgeship models` shows to people: numbers they can read, rows of tables. Nothing here prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

LIST_COLUMNS = ("name", "variant", "parameters", "multiply-adds", "memory", "input", "top-1 %", "source")
LAYER_COLUMNS = ("layer", "type", "output", "parameters", "multiply-adds", "memory")

_PREFIXES = ((10**9, "G"), (10**6, "M"), (10**3, "k"))
_BINARY_PREFIXES = ((2**30, "GiB"), (2**20, "MiB"), (2**10, "KiB"))


def readable_count(count: int) -> str:
    """A number with a prefix.

    >>> readable_count(3_504_872), readable_count(300_774_272), readable_count(950)
    ('3.50 M', '300.8 M', '950')
    """
    for size, prefix in _PREFIXES:
        if count >= 0.9995 * size:
            value = count / size
            return f"{value:.{2 if value < 9.995 else 1}f} {prefix}"
    return str(count)


def readable_bytes(size_bytes: int) -> str:
    """A number with a binary prefix.

    >>> readable_bytes(2_516_582), readable_bytes(2048), readable_bytes(7)
    ('2.4 MiB', '2.0 KiB', '7 B')
    """
    for size, prefix in _BINARY_PREFIXES:
        if size_bytes >= 0.9995 * size:
            return f"{size_bytes / size:.1f} {prefix}"
    return f"{size_bytes} B"


def readable_shape(shape: Iterable[int]) -> str:
    """`224x224x3`."""
    return "x".join(map(str, shape))


def list_tables(rows: Sequence[Mapping[str, Any]]) -> tuple[dict[str, list[tuple[str, ...]]], list[str]]:
    """The networks as table rows by family, and the sources that their last column numbers.

    Args:
        rows: As `models.describe` gives them.
    """
    sources = list(dict.fromkeys(_cited(row) for row in rows))
    tables: dict[str, list[tuple[str, ...]]] = {}
    for row in rows:
        tables.setdefault(row["family"], []).append(
            (
                row["name"],
                row["variant"],
                readable_count(row["parameters"]),
                readable_count(row["multiply_adds"]),
                readable_bytes(row["peak_activation_bytes"]),
                readable_shape(row["resolution"] or row["input_shape"]),
                "-" if row["top1"] is None else f"{row['top1']:.1f}",
                f"{sources.index(_cited(row)) + 1}",
            )
        )
    return tables, sources


def _cited(row: Mapping[str, Any]) -> str:
    return f"{row['dataset']}: {row['source']}"


def fact_lines(facts: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A network's facts as pairs of a name and a text.

    Args:
        facts: As `models.describe` gives them.
    """
    kind = "uint8 RGB image" if facts["input_kind"] == "image" else "float32 features"
    top1 = "none" if facts["top1"] is None else f"{facts['top1']:.1f} % on {facts['dataset']}"
    chosen = [option for option, choice in facts["options"].items() if choice is True]
    refused = [f"{option} ({choice})" for option, choice in facts["options"].items() if choice is not True]
    float32, int8 = (readable_bytes(facts[f"size_bytes_{precision}"]) for precision in ("float32", "int8"))
    peak, peak_int8 = (readable_bytes(facts[f"peak_activation_bytes{suffix}"]) for suffix in ("", "_int8"))
    return [
        ("name", f"{facts['name']} ({facts['family']} {facts['variant']})"),
        ("paper", facts["paper"]),
        ("input", f"{readable_shape(facts['input_shape'])} {kind}"),
        ("classes", str(facts["num_classes"])),
        ("built with", _built_with(facts)),
        ("parameters", f"{facts['parameters']:,} ({facts['parameters_folded']:,} after folding)"),
        ("multiply-adds", f"{facts['multiply_adds']:,}"),
        ("memory", f"{peak} of activations at {facts['peak_activation_layer']}; {peak_int8} in int8"),
        ("file", f"about {float32}; {int8} in int8"),
        ("published top-1", f"{top1}; {facts['source']}"),
        ("options", ", ".join(chosen) or "none"),
        *([("without", ", ".join(refused))] if refused else []),
    ]


def _built_with(facts: Mapping[str, Any]) -> str:
    gates = "squeeze-and-excite" if facts["squeeze_excite"] else "no squeeze-and-excite"
    strides = "the paper's first strides" if facts["early_stride"] else "the first strides for small images"
    words = [f"width {facts['width']:g}", f"depth {facts['depth']:g}", facts["activation"], gates]
    return ", ".join([*words, *([strides] if facts["options"]["early_stride"] is True else [])])


def layer_rows(layers: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
    """The layers as rows under `LAYER_COLUMNS`; memory is that which is alive while the layer runs."""
    return [
        (
            layer["name"],
            layer["type"],
            readable_shape(layer["output_shape"]),
            f"{layer['parameters']:,}" if layer["parameters"] else "-",
            f"{layer['multiply_adds']:,}" if layer["multiply_adds"] else "-",
            "-" if layer["alive_bytes"] is None else readable_bytes(layer["alive_bytes"]),
        )
        for layer in layers
    ]


def member_lines(member: Mapping[str, Any]) -> list[tuple[str, str]]:
    """A family's member as pairs of a name and a text.

    Args:
        member: The fields of `models.scaling.Member`.
    """
    return [
        ("name", member["name"]),
        *([] if member["phi"] is None else [("phi", f"{member['phi']:g}")]),
        ("width", f"{member['width']:g}"),
        ("depth", f"{member['depth']:g}"),
        ("input", readable_shape(member["input_shape"])),
        ("classes", str(member["num_classes"])),
        ("parameters", f"{member['parameters']:,}"),
        ("multiply-adds", f"{member['multiply_adds']:,}"),
        (f"memory in {member['precision']}", readable_bytes(member["peak_activation_bytes"])),
        (f"file in {member['precision']}", readable_bytes(member["size_bytes"])),
    ]
