"""Measures what compiling saves at a start, and writes `compiling.json` and `compiling.md`.

    .venv/bin/python docs/results/compiling.py [--models DIR] [--starts 15]

Three networks with random weights, 224x224 and 1,000 classes, in float32 and int8: a start does not depend on what a
network has learned. Each form is started beside the model itself, in processes of their own, in turns. Vela's part is
predicted. `--models` keeps the exports, so that a second run does without them; rows are written as they come, and
`--resume` keeps those that are there.
"""

from __future__ import annotations

import argparse
import datetime
import json
import os
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path
from typing import Any

from devices.compiled import Form
from devices.errors import DeviceError
from devices.loading import CONFIDENCE
from devices.profile import load_profile
from pipeline.compilation import compile_file
from pipeline.compilation_text import parity_sentence
from pipeline.errors import EdgeshipError
from pipeline.executor import child_environment
from pipeline.vela import cpu_operations

RESULT = Path(__file__).with_suffix(".json")
PAGE = Path(__file__).with_suffix(".md")
NETWORKS = ("mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")
PRECISIONS = ("float32", "int8")
FORMS: dict[Form, tuple[str, str]] = {
    "xnnpack_cache": ("litert", ".tflite"),
    "ort": ("onnxruntime", ".onnx"),
    "openvino_blob": ("openvino", ".xml"),
}
NPU = "imx93"


def main() -> None:
    """Exports what is missing, compiles, measures, writes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=Path, help="directory of the exports; a temporary one by default")
    parser.add_argument("--starts", type=int, default=15, help="of each form")
    parser.add_argument("--resume", action="store_true", help="keep the rows that are there")
    parser.add_argument("--page-only", action="store_true", help="write the page from the rows that are there")
    parser.add_argument("--export", nargs=2, metavar=("NETWORK", "DIR"), help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.export:
        export(arguments.export[0], Path(arguments.export[1]))
        return
    known = json.loads(RESULT.read_text(encoding="utf-8"))["rows"] if RESULT.is_file() else []
    rows: list[dict[str, Any]] = known if arguments.resume or arguments.page_only else []
    if not arguments.page_only:
        with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
            measure(arguments.models or Path(scratch), arguments.starts, rows)
    PAGE.write_text(page(rows), encoding="utf-8")


def measure(models: Path, starts: int, rows: list[dict[str, Any]]) -> None:
    """Adds the rows that are missing."""
    done = {(row["network"], row["precision"], row["form"]) for row in rows}
    for network in NETWORKS:
        if not (models / network / "openvino" / PRECISIONS[-1] / "model.xml").is_file():
            command = [sys.executable, __file__, "--export", network, str(models)]
            subprocess.run(command, env=child_environment("tensorflow"), check=True)
        for precision in PRECISIONS:
            for form, (target, suffix) in FORMS.items():
                if (network, precision, form) not in done:
                    path = models / network / target / precision / f"model{suffix}"
                    rows.append({"network": network, "precision": precision, **row(path, form, "local", starts)})
                    write(rows)
        if (network, "int8", "vela") not in done:
            path = models / network / "litert" / "int8" / "model.tflite"
            rows.append({"network": network, "precision": "int8", **row(path, "vela", NPU, 0)})
            write(rows)


def row(path: Path, form: Form, device: str, starts: int) -> dict[str, Any]:
    """One file in one form; `error` where it can't be made."""
    with tempfile.TemporaryDirectory(prefix="edgeship-") as scratch:
        try:
            made = compile_file(path, load_profile(device), Path(scratch), form=form, pairs=starts, tell=_nobody)
        except (EdgeshipError, DeviceError) as error:
            return {"form": form, "device": device, "error": error.message}
    found = {"form": form, "device": device, "load_average": os.getloadavg()[0], **made.model_dump(mode="json")}
    print(json.dumps({name: found[name] for name in ("form", "seconds", "notes")}), path, flush=True)
    if made.measured:
        print(made.measured.verdict, flush=True)
    return found


def export(network: str, directory: Path) -> None:
    """Writes one network in all runtimes and precisions."""
    import keras
    import numpy as np

    import models
    from pipeline.quantization.random_network import enliven, random_images
    from pipeline.samples import calibration_input_file
    from pipeline.saved_model import write_saved_model
    from pipeline.stages.export import ExportStage

    keras.utils.set_random_seed(0)
    net = models.build(network, input_shape=(224, 224, 3), num_classes=1000, dropout=0.0, drop_path=0.0)
    images = random_images(64, (224, 224))
    enliven(net, images[:16])
    calibrate = directory / network / "calibrate"
    calibrate.mkdir(parents=True)
    write_saved_model(net, calibrate)
    np.save(calibrate / calibration_input_file(0), images)
    for target, _ in FORMS.values():
        for precision in PRECISIONS:
            folder = directory / network / target / precision
            folder.mkdir(parents=True)
            ExportStage(target=target, precision=precision).run({"calibrate": calibrate}, folder, _nobody)  # type: ignore[arg-type]


def _nobody(event: Any) -> None:
    """Progress goes nowhere."""
    del event


def write(rows: list[dict[str, Any]]) -> None:
    """Writes the rows."""
    record = {"date": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%d"), "rows": rows}
    RESULT.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


def page(rows: list[dict[str, Any]]) -> str:
    """Returns `compiling.md`."""
    measured = [row for row in rows if row.get("measured")]
    predicted = [row for row in rows if row.get("predicted")]
    failed = [row for row in rows if row.get("error")]
    starts = sorted({row["measured"]["starts"] for row in measured})
    loads = [row["load_average"] for row in measured]
    processor = measured[0]["processor"]
    intro = (
        f"Written by `docs/results/compiling.py`. Networks with random weights, 224x224, 1,000 classes, one thread; "
        f"{' or '.join(map(str, starts))} starts of each form, each in a process of its own, the compiled form and the "
        f"model itself in turns. Times are medians in milliseconds, `measured`. A ratio is of the compiled form to the "
        f"model, with the exact {CONFIDENCE:.0%} interval of paired ratios (Hodges and Lehmann, as in decision 14); in "
        f"bold where the interval excludes 1. **Load** is from the file to a model that is ready, without the import "
        f"of the runtime; **start** is import, load and first inference together. The machine had other work meanwhile "
        f"(load average {min(loads):.1f} to {max(loads):.1f} on 2 cores), so that times are too long; ratios are of "
        f"starts beside each other. All files are in the page cache: a start after the board's own reads them from its "
        f"storage besides."
    )
    features = ", ".join(processor["cpu_features"])
    made_by = f"Processor: {processor['cpu_model']}, with {features}."
    parts = ["# What compiling saves", "", textwrap.fill(intro, 118), "", textwrap.fill(made_by, 118), ""]
    for form in FORMS:
        own = [row for row in measured if row["form"] == form]
        if own:
            parts += [f"## {form} ({own[0]['package']} {own[0]['version']})", "", *_table(own), ""]
    parts += ["## vela (predicted)", "", *_predictions(predicted), ""]
    parts += [f"- {row['network']} {row['precision']} {row['form']}: {row['error']}" for row in failed]
    return "\n".join(parts).rstrip() + "\n"


def _table(rows: list[dict[str, Any]]) -> list[str]:
    lines = [
        "| network | precision | load | compiled | ratio | start | compiled | ratio | inference | KiB | answers |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found, plain, compiled = row["measured"], row["measured"]["plain"], row["measured"]["compiled"]
        before, after = (sum(file["size_bytes"] for file in row[name]) / 1024 for name in ("source", "files"))
        cells = [
            *(row["network"], row["precision"]),
            *(f"{plain['load_ms']:.1f}", f"{compiled['load_ms']:.1f}", _ratio(found["ratios"]["load_ms"])),
            *(f"{plain['start_ms']:.0f}", f"{compiled['start_ms']:.0f}", _ratio(found["ratios"]["start_ms"])),
            *(_ratio(found["ratios"]["latency_ms"]), f"{before:,.0f} -> {after:,.0f}"),
            "equal to the bit" if row["parity"]["bit_equal"] else parity_sentence(row["parity"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


def _ratio(found: dict[str, Any]) -> str:
    if found["interval"] is None:
        return f"{found['ratio']:.2f}"
    text = f"{found['ratio']:.2f} ({found['interval'][0]:.2f} to {found['interval'][1]:.2f})"
    return text if found["verdict"] == "can't tell" else f"**{text}**"


def _predictions(rows: list[dict[str, Any]]) -> list[str]:
    if not rows:
        return ["None."]
    first = rows[0]["predicted"]
    intro = (
        f"By ethos-u-vela {rows[0]['version']} for {first['accelerator']}, {first['system_config']}, "
        f"{first['memory_mode']}, at {first['clock_mhz']:.0f} MHz. Nothing here was measured; times are of the NPU, "
        f"without the operations on the CPU."
    )
    lines = [
        textwrap.fill(intro, 118),
        "",
        "| network | ms | per second | cycles | SRAM, KiB | DRAM, KiB | operations on the NPU | on the CPU |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        found = row["predicted"]
        cells = [
            *(row["network"], f"{found['inference_ms']:.2f}", f"{found['inferences_per_s']:.0f}"),
            *(f"{found['cycles']['total']:,}", f"{found['sram_used_kb']:.0f}", f"{found['dram_used_kb']:,.0f}"),
            *(f"{found['npu_operations']} ({100 * found['npu_share']:.1f} %)", cpu_operations(found)),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    return lines


if __name__ == "__main__":
    main()
