"""What a bundle says in words: the model card and the licences of what it was made with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from importlib import metadata
from typing import Any

_LONGEST_LICENCE = 80
_METRICS = {
    "accuracy": "accuracy on the test images",
    "reference_accuracy": "accuracy of the reference on them",
    "top1_agreement": "same top class as the reference",
    "snr_db": "signal-to-noise ratio of the outputs, dB",
    "max_logit_difference": "largest difference of an output, share of the range",
    "ece": "calibration error",
}
_RUNTIMES = {"litert": "ai-edge-litert", "onnxruntime": "onnxruntime", "openvino": "openvino"}

_CAVEAT = (
    "Measured on the test images of the data it was trained on; on other images it may be worse. A release tests "
    "itself on its golden samples, which tell whether the file runs as it did, not whether it is right."
)
_PACKAGES = (
    "The packages that the model file was made with, and its runtime, as they state their licences themselves. None of "
    "them is in this bundle."
)
_UNKNOWN = (
    "Edgeship does not know the licences of the training data and of imported weights: whoever passes this bundle on "
    "must."
)


def model_card(manifest: Mapping[str, Any], lineage: Sequence[Mapping[str, Any]], verified: Mapping[str, Any]) -> str:
    """Returns the model card, Markdown.

    Args:
        manifest: Of the release.
        lineage: See `pipeline.packaging.lineage_of`.
        verified: Metrics of the verification.
    """
    classes = manifest["classes"]
    lines = [
        f"# {manifest['name']}",
        "",
        _first_line(manifest),
        "",
        "## What it takes and gives",
        "",
        *(f"- input `{each['name']}`: {each['dtype']} {each['shape']}" for each in manifest["signature"]["inputs"]),
        *(
            f"- output `{each['name']}`: {each['dtype']} {each['shape']}, {each['kind']}"
            for each in manifest["signature"]["outputs"]
        ),
        f"- classes: {'none' if classes is None else f'{len(classes)}, see `labels.txt`'}",
        "",
        "## How good it is",
        "",
        *_metric_lines(verified),
        "",
        _CAVEAT,
        "",
        "## What it was made from",
        "",
        *(f"- {each['stage']} `{each['key']}`" for each in lineage),
        "",
        "`lineage.json` has the configuration, the code's digest and the tools' versions of each.",
    ]
    return "\n".join(lines) + "\n"


def licences(target: str, lineage: Sequence[Mapping[str, Any]]) -> str:
    """Returns the licences of the packages that made the model file and of the runtime, Markdown."""
    versions: dict[str, str] = {}
    for each in lineage:
        versions |= each["tools"]
    runtime = _RUNTIMES.get(target)
    if runtime is not None:
        versions.setdefault(runtime, _version(runtime))
    rows = [f"| {name} | {version} | {licence_of(name)} |" for name, version in sorted(versions.items())]
    return "\n".join(
        [
            "# Third-party licences",
            "",
            _PACKAGES,
            "",
            "| package | version | licence |",
            "|---|---|---|",
            *rows,
            "",
            _UNKNOWN,
        ]
    ) + "\n"  # fmt: skip


def licence_of(distribution: str) -> str:
    """Returns the licence that an installed package states, in a few words."""
    try:
        facts = metadata.metadata(distribution)
    except metadata.PackageNotFoundError:
        return "not stated (the package is not installed here)"
    expression = facts.get_all("License-Expression")
    if expression:
        return str(expression[0])
    classifiers = [
        text.rpartition(" :: ")[2]
        for text in facts.get_all("Classifier") or []
        if text.startswith("License ::") and text != "License :: OSI Approved"
    ]
    if classifiers:
        return ", ".join(classifiers)
    told = "".join(map(str, facts.get_all("License") or [])).strip()
    return told if told and len(told) <= _LONGEST_LICENCE and "\n" not in told else "not stated"


def _first_line(manifest: Mapping[str, Any]) -> str:
    made = f"{manifest['target']}, {manifest['precision']}, file `{manifest['model']}`"
    return f"For the device `{manifest['device']}`: {made}."


def _version(distribution: str) -> str:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "-"


def _metric_lines(verified: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {title}: {verified[key]:.4g}"
        for key, title in _METRICS.items()
        if isinstance(verified.get(key), int | float)
    ]
    return lines or ["- it was not compared with labels"]
