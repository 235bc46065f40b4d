"""What a bundle says of its model in words: the model card."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

_METRICS = {
    "accuracy": "accuracy on the test images",
    "reference_accuracy": "accuracy of the reference on them",
    "top1_agreement": "same top class as the reference",
    "snr_db": "signal-to-noise ratio of the outputs, dB",
    "max_logit_difference": "largest difference of an output, share of the range",
    "ece": "calibration error",
}
_CAVEAT = (
    "Measured on the test images of the data it was trained on; on other images it may be worse. A release tests "
    "itself on its golden samples, which tell whether the file runs as it did, not whether it is right."
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
        *_form_lines(manifest),
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


def _first_line(manifest: Mapping[str, Any]) -> str:
    made = f"{manifest['target']}, {manifest['precision']}, file `{manifest['model']}`"
    return f"For the device `{manifest['device']}`: {made}."


def _form_lines(manifest: Mapping[str, Any]) -> list[str]:
    compiled = manifest.get("compiled")
    if compiled is None:
        return []
    told = f"`{compiled['model']}` ({compiled['form']}), where it fits the board; `{compiled['record']}` says of what"
    return [f"- compiled form: {told}"]


def _metric_lines(verified: Mapping[str, Any]) -> list[str]:
    lines = [
        f"- {title}: {verified[key]:.4g}"
        for key, title in _METRICS.items()
        if isinstance(verified.get(key), int | float)
    ]
    return lines or ["- it was not compared with labels"]
