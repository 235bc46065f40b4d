"""Compiled files of real runtimes: what they answer, what makes them unusable, what Vela says."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest

from devices.compiled import MANIFEST, Form, find_compiled
from devices.compiling import compiled_case
from devices.errors import CompiledMisfitError, ModelRejectedError
from devices.measurement import BenchmarkSettings, Case, SampleFile, benchmark, predict, profile_case
from devices.profile import load_profile
from devices.transports.local import LocalDevice
from pipeline.compilation import compile_file
from pipeline.errors import UnsupportedModelError
from pipeline.targets import inspect_model
from tests.conftest import Exports, Workplace

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]

LOCAL, IMX93 = load_profile("local"), load_profile("imx93")
SETTINGS = BenchmarkSettings(warm_up_count=3, warm_up_time_s=0, min_count=20, min_time_s=0)


class File(NamedTuple):
    """An export and what it becomes."""

    form: Form
    target: str
    suffix: str
    precision: str

    def path(self, exports: Exports) -> Path:
        return exports.folder(self.target, self.precision) / f"model{self.suffix}"


FILES = [
    File(form, target, suffix, precision)
    for form, target, suffix in (
        ("xnnpack_cache", "litert", ".tflite"),
        ("ort", "onnxruntime", ".onnx"),
        ("openvino_blob", "openvino", ".xml"),
    )
    for precision in ("float32", "float16", "int8")
]


def tell(event: Any) -> None:
    del event


def compiled(path: Path, out: Path, form: Form, **how: Any) -> Case:
    out.mkdir(parents=True)
    compile_file(path, how.pop("profile", LOCAL), out, form=form, tell=tell, **{"pairs": 0, **how})
    found = find_compiled(out)
    assert found is not None
    return compiled_case(*found, label=form)


@pytest.mark.parametrize("file", FILES, ids=lambda file: f"{file.form} {file.precision}")
def test_it_answers_to_the_bit_what_the_model_answers(file: File, exports: Exports, tmp_path: Path) -> None:
    case = compiled(file.path(exports), tmp_path / "out", file.form)

    assert case.compiled is not None
    assert case.compiled.parity is not None
    assert case.compiled.parity["bit_equal"]
    assert case.compiled.source[0].sha256 == inspect_model(file.path(exports)).sha256


# ONNX Runtime writes the constants of an .ort file in an order of the moment; what it answers is the same.
@pytest.mark.parametrize("file", [each for each in FILES[::3] if each.form != "ort"], ids=lambda file: file.form)
def test_compiling_twice_gives_the_same_bytes(file: File, exports: Exports, tmp_path: Path) -> None:
    first, second = (compiled(file.path(exports), tmp_path / name, file.form) for name in ("first", "second"))

    assert Path(first.path).read_bytes() == Path(second.path).read_bytes()


@pytest.mark.parametrize("file", FILES[::3], ids=lambda file: file.form)
def test_it_is_measured_beside_the_model(file: File, exports: Exports, tmp_path: Path) -> None:
    plain = Case(id="plain", runtime=file.target, path=str(file.path(exports)))
    case = compiled(file.path(exports), tmp_path / "out", file.form, pairs=6)

    result = benchmark(LOCAL, [plain, case], SETTINGS)

    assert [each.error for each in result.cases] == [None, None]
    assert result.cases[0].model == result.cases[1].model, "inputs and outputs are the same, in the same order"
    assert case.compiled is not None
    assert case.compiled.measured is not None
    assert case.compiled.measured.starts == 6
    assert case.compiled.measured.label == "measured"
    assert case.compiled.measured.plain.load_ms > 0
    assert case.compiled.measured.ratios["load_ms"].interval is not None


@pytest.mark.parametrize("file", FILES[::3], ids=lambda file: file.form)
def test_it_is_refused_on_the_host_for_what_it_does_not_fit(
    file: File, exports: Exports, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = compiled(file.path(exports), tmp_path / "out", file.form)
    assert case.compiled is not None
    manifest, sent = case.compiled, []
    monkeypatch.setattr(LocalDevice, "put", lambda device, path: sent.append(path))  # noqa: ARG005
    processor = manifest.processor
    assert processor.cpu_features is not None
    others = [
        manifest.model_copy(update={"version": "1.0.0"}),
        manifest.model_copy(update={"processor": processor.model_copy(update={"architecture": "aarch64"})}),
        manifest.model_copy(
            update={"processor": processor.model_copy(update={"cpu_features": (*processor.cpu_features, "amx_fp99")})}
        ),
    ]

    for other, expected in zip(others, ("1.0.0, and the device has", "made for aarch64", "amx_fp99"), strict=True):
        error = benchmark(LOCAL, [case.model_copy(update={"compiled": other})], SETTINGS).cases[0].error
        assert error is not None
        assert (error.kind, error.exit_code) == ("CompiledMisfitError", 2)
        assert expected in error.message
    assert not sent


def answer(case: Case, images: Path, out: Path) -> Any:
    found = predict(LOCAL, case, [SampleFile(path=str(images))], None, str(out))
    return np.load(found.outputs[0].path)


def test_a_cache_of_other_weights_would_answer_for_the_wrong_model(exports: Exports, tmp_path: Path) -> None:
    """Why a cache is never loaded without both digests: XNNPACK does not notice."""
    path = exports.folder("litert", "float32") / "model.tflite"
    np.save(tmp_path / "images.npy", np.random.default_rng(0).integers(0, 256, (2, 32, 32, 3), np.uint8))
    case = compiled(path, tmp_path / "out", "xnnpack_cache")
    right = answer(case, tmp_path / "images.npy", tmp_path / "right")

    # The same network with other weights: those of its largest constants are doubled.
    content = bytearray(path.read_bytes())
    middle = len(content) // 2 - len(content) // 2 % 4
    doubled = np.frombuffer(bytes(content[middle : middle + 4000]), np.float32) * 2
    content[middle : middle + 4000] = doubled.tobytes()
    model = Path(case.path).with_suffix(".tflite")
    other = tmp_path / "other.tflite"
    other.write_bytes(content)
    wanted = answer(Case(id="other", runtime="litert", path=str(other)), tmp_path / "images.npy", tmp_path / "wanted")
    assert not np.array_equal(wanted, right)
    shutil.copyfile(other, model)

    with pytest.raises(ModelRejectedError, match="it is another file"):
        answer(case, tmp_path / "images.npy", tmp_path / "refused")
    believed = case.model_copy(update={"weights_sha256": inspect_model(model).sha256})
    wrong = answer(believed, tmp_path / "images.npy", tmp_path / "wrong")
    assert np.array_equal(wrong, right)
    with pytest.raises(ModelRejectedError, match="was changed after it was compiled"):
        find_compiled(tmp_path / "out")


def test_a_cache_that_xnnpack_can_not_use_is_not_made_anew_in_silence(exports: Exports, tmp_path: Path) -> None:
    case = compiled(exports.folder("litert", "float32") / "model.tflite", tmp_path / "out", "xnnpack_cache")
    cache = Path(case.path)
    content = cache.read_bytes()
    cache.write_bytes(content[: len(content) // 2])
    half = case.model_copy(update={"sha256": inspect_digest(cache)})

    error = benchmark(LOCAL, [half], SETTINGS).cases[0].error

    assert error is not None
    assert "could not use the cache" in error.message
    assert "compile the model for this device again" in error.message


def inspect_digest(path: Path) -> str:
    from devices.compiled import digest_of

    return digest_of(path)


def test_a_damaged_blob_is_an_error_of_the_case(exports: Exports, tmp_path: Path) -> None:
    case = compiled(exports.folder("openvino", "float32") / "model.xml", tmp_path / "out", "openvino_blob")
    Path(case.path).write_bytes(b"blob" * 100)

    error = benchmark(LOCAL, [case.model_copy(update={"sha256": None})], SETTINGS).cases[0].error

    assert error is not None
    assert error.kind == "ModelRejectedError"


def test_for_any_processor_the_optimizations_are_the_extended_ones(exports: Exports, tmp_path: Path) -> None:
    path = exports.folder("onnxruntime", "float32") / "model.onnx"
    here = compiled(path, tmp_path / "here", "ort", profile=load_profile("raspberry-pi-4"), here=True).compiled
    own = compiled(path, tmp_path / "own", "ort").compiled
    assert here is not None
    assert own is not None

    assert (here.level, here.made_on, here.device) == ("extended", "host", "raspberry-pi-4")
    assert (here.processor.architecture, here.processor.cpu_features) == (None, None)
    assert "suit every processor" in here.notes[0]
    assert here.measured is None
    assert (own.level, own.made_on) == ("all", "device")
    assert own.processor.cpu_features
    facts = {"architecture": "aarch64", "runtimes": {"onnxruntime": {"version": here.version}}}
    assert here.misfits(facts) == []
    assert len(own.misfits(facts)) == 1


def test_where_operations_run_is_asked_of_the_model_itself(exports: Exports, tmp_path: Path) -> None:
    case = compiled(exports.folder("openvino", "int8") / "model.xml", tmp_path / "out", "openvino_blob")

    with pytest.raises(Exception, match="profile the model that it was made of"):
        profile_case(LOCAL, case)


def test_vela_places_an_int8_network_on_the_npu(exports: Exports, tmp_path: Path) -> None:
    path = exports.folder("litert", "int8") / "model.tflite"
    cases = [compiled(path, tmp_path / name, "vela", profile=IMX93) for name in ("first", "second")]

    assert Path(cases[0].path).read_bytes() == Path(cases[1].path).read_bytes()
    operations = inspect_model(Path(cases[0].path)).operations
    assert operations["CUSTOM:ethos-u"] >= 1
    assert "CONV_2D" not in operations
    manifest = cases[0].compiled
    assert manifest is not None
    assert manifest.predicted is not None
    assert manifest.measured is None
    assert manifest.parity is None
    found = manifest.predicted
    assert found["label"] == "predicted"
    assert found["accelerator"] == "Ethos_U65_256"
    assert found["cycles"]["total"] > 0
    assert 0 < found["sram_used_kb"] <= 384
    assert 0.9 < found["npu_share"] < 1
    # Those of the file that are left are those that Vela says stay on the CPU.
    left = {name: count for name, count in operations.items() if name != "CUSTOM:ethos-u"}
    assert {row["operation"] for row in found["on_cpu"]} == set(left)
    assert all(row["reason"] for row in found["on_cpu"])


def test_vela_takes_no_floats(exports: Exports, tmp_path: Path) -> None:
    path = exports.folder("litert", "float32") / "model.tflite"

    with pytest.raises(UnsupportedModelError, match="holds float32, but an Ethos-U computes in integers"):
        compile_file(path, IMX93, tmp_path, form="vela", tell=tell)

    assert not list(tmp_path.iterdir())


def test_bench_refuses_what_vela_made(exports: Exports, module_workplace: Workplace) -> None:
    path = exports.folder("litert", "int8") / "model.tflite"
    out = module_workplace.directory / "npu"
    made = module_workplace.edgeship("compile", path, "--device", "imx93", "--out", out)
    assert made.code == 0, made.stderr
    assert "Predicted by Vela for Ethos_U65_256" in made.stdout
    assert "Not measured: the file runs on the Ethos-U alone" in made.stdout
    shutil.copyfile(out / "model_vela.tflite", module_workplace.directory / "bare.tflite")

    for target in (out, module_workplace.directory / "bare.tflite"):
        refused = module_workplace.edgeship("bench", target)
        assert refused.code == 2
        assert "delegate" in refused.stderr
        assert not refused.stdout


def test_bench_of_a_compiled_file_from_the_command_line(exports: Exports, module_workplace: Workplace) -> None:
    path = exports.folder("openvino", "int8") / "model.xml"
    out = module_workplace.directory / "blob"
    made = module_workplace.edgeship("compile", path, "--starts", "0", "--out", out, "--json")
    assert made.code == 0, made.stderr
    assert made.json()["form"] == "openvino_blob"

    measured = module_workplace.edgeship("bench", path, out, "--min-count", "20", "--min-time", "0", "--precision", "0",
                                         "--starts", "6", "--json")  # fmt: skip
    assert measured.code == 0, measured.stderr
    assert [case["compiled"] for case in measured.json()["cases"]] == [None, "openvino_blob"]
    assert measured.json()["cases"][1]["loading"]["starts"] == 6

    manifest = json.loads((out / MANIFEST).read_text())
    (out / MANIFEST).write_text(json.dumps({**manifest, "version": "2020.1.0"}))
    refused = module_workplace.edgeship("bench", out)
    assert refused.code == CompiledMisfitError.exit_code == 2
    assert "was made by openvino 2020.1.0, and the device has openvino" in refused.stderr
