"""Compiling a model file or the exports of a recipe, with the stand-in."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from click.testing import CliRunner

import pipeline.executor
from devices.compiled import MANIFEST, CompiledManifest, Form
from devices.compiling import compiled_case
from devices.errors import DeviceError
from devices.profile import DeviceProfile, load_profile
from devices.profile_parts import EthosU
from pipeline import compilation
from pipeline.cli import main
from pipeline.compilation import compile_beside, compile_file, form_of, plain_case
from pipeline.errors import GateError, InputError
from pipeline.recipe import load_recipes
from pipeline.runner import run_recipe
from pipeline.stages.compile import binding_facts, forms_for
from tests.conftest import Workplace

FAKE = load_profile("fake")
NPU = EthosU(accelerator="ethos-u65-256", system_config="Ethos_U65_High_End", memory_mode="Dedicated_Sram_384KB")


def write_model(path: Path, seed: int = 0) -> Path:
    random = np.random.default_rng(seed)
    with path.open("wb") as stream:
        np.savez(
            stream,
            weights=random.normal(size=(48, 3)).astype(np.float32),
            bias=np.zeros(3, np.float32),
            shape=np.array([4, 4, 3]),
            kind="float32",
        )
    return path


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return write_model(tmp_path / "model.fake")


def tell(event: Any) -> None:
    del event


class Choice(NamedTuple):
    """A file, a device and what is asked for."""

    id: str
    suffix: str
    asked: Form | None
    expected: str
    has_npu: bool = False
    device: str = "local"


CHOICES = [
    Choice("LiteRT", ".tflite", None, "xnnpack_cache"),
    Choice("ONNX Runtime", ".onnx", None, "ort"),
    Choice("OpenVINO", ".xml", None, "openvino_blob"),
    Choice("LiteRT for an NPU", ".tflite", None, "vela", has_npu=True),
    Choice("LiteRT beside an NPU", ".tflite", "xnnpack_cache", "xnnpack_cache", has_npu=True),
    Choice("ONNX Runtime beside an NPU", ".onnx", None, "ort", has_npu=True),
]


@pytest.mark.parametrize("choice", CHOICES, ids=lambda choice: choice.id)
def test_the_form_follows_from_runtime_and_device(choice: Choice, tmp_path: Path) -> None:
    (tmp_path / f"model{choice.suffix}").touch()
    profile = load_profile(choice.device).model_copy(update={"ethos_u": NPU if choice.has_npu else None})

    assert form_of(tmp_path / f"model{choice.suffix}", profile, choice.asked) == choice.expected


REFUSED = [
    Choice("no NPU", ".tflite", "vela", "local has no Ethos-U in its profile"),
    Choice("another runtime's form", ".onnx", "openvino_blob", "of a .onnx file can be made ort"),
    Choice("no such runtime on the device", ".onnx", None, "fake has no onnxruntime", device="fake"),
    Choice("no model", ".txt", None, "expected one of"),
]


@pytest.mark.parametrize("choice", REFUSED, ids=lambda choice: choice.id)
def test_what_can_not_be_is_refused(choice: Choice, tmp_path: Path) -> None:
    (tmp_path / f"model{choice.suffix}").touch()

    with pytest.raises(InputError, match=choice.expected):
        form_of(tmp_path / f"model{choice.suffix}", load_profile(choice.device), choice.asked)


def test_it_appears_whole_beside_the_model(model: Path) -> None:
    directory, manifest = compile_beside(model, FAKE, None, form="fake", pairs=6, tell=tell)

    assert directory == model.parent / "model-fake-fake"
    assert sorted(path.name for path in directory.iterdir()) == ["compiled.fake", MANIFEST]
    assert CompiledManifest.model_validate_json((directory / MANIFEST).read_text()) == manifest
    assert manifest.parity is not None
    assert manifest.parity["bit_equal"] is True
    assert manifest.measured is not None
    assert manifest.measured.starts == 6
    assert sorted(path.name for path in model.parent.iterdir()) == ["model-fake-fake", "model.fake"]


def test_one_that_is_there_is_replaced_and_anything_else_is_left_alone(model: Path, tmp_path: Path) -> None:
    compile_beside(model, FAKE, tmp_path / "out", form="fake", pairs=0, tell=tell)
    write_model(model, seed=1)
    _, manifest = compile_beside(model, FAKE, tmp_path / "out", form="fake", pairs=0, tell=tell)
    assert manifest.measured_reason == "no starts were asked for"
    assert (tmp_path / "out" / "compiled.fake").read_bytes() == model.read_bytes()

    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").touch()
    with pytest.raises(InputError, match="holds no compiled model"):
        compile_beside(model, FAKE, tmp_path / "mine", form="fake", pairs=0, tell=tell)
    assert [path.name for path in (tmp_path / "mine").iterdir()] == ["thesis.txt"]


def test_an_artifact_of_the_store_is_not_added_to(model: Path) -> None:
    (model.parent / "manifest.json").write_text("{}")

    with pytest.raises(InputError, match="Give --out DIR"):
        compile_beside(model, FAKE, None, form="fake", pairs=0, tell=tell)


def test_a_failure_leaves_nothing(model: Path, tmp_path: Path) -> None:
    lacking = FAKE.model_copy(update={"transport": FAKE.transport.model_copy(update={"die_on": "compile"})})

    with pytest.raises(DeviceError, match="ended by SIGSEGV while it worked on 'compile'"):
        compile_beside(model, lacking, tmp_path / "out", form="fake", pairs=0, tell=tell)

    assert [path.name for path in tmp_path.iterdir()] == ["model.fake"]


def test_other_answers_than_the_models_fail(model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = compilation.compile_on

    def wrong(profile: DeviceProfile, case: Any, form: Form, out_dir: Path) -> CompiledManifest:
        manifest = real(profile, case, form, out_dir)
        made = write_model(out_dir / manifest.files[0].name, seed=1)
        return manifest.model_copy(update={"files": (compilation.file_record(made),)})

    monkeypatch.setattr(compilation, "compile_on", wrong)

    with pytest.raises(GateError, match=r"answers otherwise than the model itself: .*max_logit_difference") as caught:
        compile_beside(model, FAKE, tmp_path / "out", form="fake", pairs=0, tell=tell)

    assert caught.value.exit_code == 1
    assert not (tmp_path / "out").exists()


def test_this_machine_compiles_for_another_only_what_suits_any(model: Path, tmp_path: Path) -> None:
    board = load_profile("raspberry-pi-4")

    with pytest.raises(InputError, match="raspberry-pi-4 compiles it itself: leave --here out"):
        compile_file(model, board, tmp_path, form="fake", here=True, tell=tell)


def test_the_model_it_was_made_of_is_told_by_its_digest(model: Path, tmp_path: Path) -> None:
    directory, manifest = compile_beside(model, FAKE, None, form="fake", pairs=0, tell=tell)
    case = compiled_case(directory / "compiled.fake", manifest, label="compiled")

    found = plain_case(case, model)
    assert found is not None
    assert found.path == str(model)
    assert plain_case(case, tmp_path / "none.fake") is None
    assert plain_case(case, write_model(tmp_path / "other.fake", seed=1)) is None


@pytest.mark.slow
def test_bench_shows_and_records_what_a_start_gains(model: Path, tmp_path: Path) -> None:
    directory, _ = compile_beside(model, FAKE, None, form="fake", pairs=0, tell=tell)
    common = [
        "--device",
        "fake",
        "--min-count",
        "20",
        "--min-time",
        "0",
        "--starts",
        "6",
        "--results",
        str(tmp_path / "r"),
    ]

    shown = CliRunner().invoke(main, ["bench", str(directory), *common])
    printed = CliRunner().invoke(main, ["bench", str(model), str(directory / "compiled.fake"), *common, "--json"])

    assert shown.exit_code == 0, shown.output
    assert "of each, in turns)" in shown.stdout
    assert "from a new process to the first answer: " in shown.stdout
    plain, compiled = json.loads(printed.stdout)["cases"]
    assert (plain["compiled"], plain["loading"]) == (None, None)
    assert compiled["compiled"] == "fake"
    assert compiled["loading"]["starts"] == 6
    recorded = [json.loads(line)["case"]["loading"] for line in (tmp_path / "r").read_text().splitlines()]
    assert [record is None for record in recorded] == [False, True, False]


def test_bench_says_where_the_model_is_missing(model: Path, tmp_path: Path) -> None:
    directory, _ = compile_beside(model, FAKE, tmp_path / "far" / "away" / "out", form="fake", pairs=0, tell=tell)
    (directory / "compiled.fake").chmod(0o444)
    model.unlink()
    arguments = ["--device", "fake", "--min-count", "20", "--min-time", "0", "--results", str(tmp_path / "r"), "--json"]

    # The stand-in's compiled form is the model again, and would be found for it.
    manifest = json.loads((directory / MANIFEST).read_text())
    manifest["source"][0]["sha256"] = "0" * 64
    (directory / MANIFEST).write_text(json.dumps(manifest))
    outcome = CliRunner().invoke(main, ["bench", str(directory), *arguments])

    assert outcome.exit_code == 0, outcome.output
    assert any(
        "model.fake, which it was made of, is not at hand" in each for each in json.loads(outcome.stdout)["warnings"]
    )


def test_the_command_compiles_a_model(model: Path) -> None:
    outcome = CliRunner().invoke(main, ["compile", str(model), "--device", "fake", "--starts", "6", "--json"])

    assert outcome.exit_code == 0, outcome.output
    printed = json.loads(outcome.stdout)
    assert Path(printed["path"]).is_file()
    assert printed["form"] == "fake"
    assert printed["measured"]["label"] == "simulated"
    assert printed["predicted"] is None


class Usage(NamedTuple):
    """Options that do not go together."""

    id: str
    arguments: tuple[str, ...]
    expected: str


USAGES = [
    Usage("--set with a model", ("model.fake", "--set", "a=1"), "--set changes a recipe"),
    Usage("two forms of a model", ("model.fake", "--form", "ort", "--form", "vela"), "one form at a time"),
    Usage("--out with a recipe", ("tiny.yaml", "--out", "x"), "--out is for a model file"),
    Usage("--here with a recipe", ("tiny.yaml", "--here"), "--here is for a model file"),
    Usage("no such model", ("none.tflite",), "There is no model file none.tflite"),
    Usage("no such device", ("model.fake", "--device", "raspbery-pi-4"), "did you mean 'raspberry-pi-4'"),
]


@pytest.mark.parametrize("usage", USAGES, ids=lambda usage: usage.id)
def test_usage(usage: Usage, workplace: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(workplace.directory)
    write_model(workplace.directory / "model.fake")

    outcome = CliRunner().invoke(main, ["compile", *usage.arguments])

    assert outcome.exit_code == 2
    assert usage.expected in outcome.output


@pytest.mark.slow
def test_a_recipe_compiles_what_it_names_and_then_takes_it_from_the_store(
    finished: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(finished.directory)
    arguments = ["run", "tiny.yaml", "--set", "compile={forms: [fake], starts: 6}", "--json"]

    first = CliRunner().invoke(main, arguments)
    assert first.exit_code == 0, first.output
    report = json.loads(first.stdout)
    assert [(row["device"], row["target"], row["precision"], row["form"]) for row in report["compiled"]] == [
        ("fake", "fake", artifact["precision"], "fake") for artifact in report["artifacts"]
    ]
    for row in report["compiled"]:
        assert Path(row["path"]).is_file()
        assert row["measured"]["verdict"] in (finished.runs / "tiny" / "report.md").read_text()
    assert [stage["cached"] for stage in report["stages"] if stage["name"].startswith("compile/")] == [False] * 3

    monkeypatch.setattr(pipeline.executor.StageExecutor, "run", None)
    again = CliRunner().invoke(main, arguments)
    assert again.exit_code == 0, again.output
    assert all(stage["cached"] for stage in json.loads(again.stdout)["stages"])


def test_the_command_compiles_a_recipe(finished: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(finished.directory)

    outcome = CliRunner().invoke(main, ["compile", "tiny.yaml", "--device", "fake", "--starts", "0"])

    assert outcome.exit_code == 0, outcome.output
    assert "3 compiled files; report: runs/tiny/report.md" in outcome.stdout


@pytest.mark.slow
def test_a_device_that_changed_gets_another_file(finished: Workplace, monkeypatch: pytest.MonkeyPatch) -> None:
    from devices.transports.fake import FakeAgent
    from pipeline.artifacts import ArtifactStore

    recipe = load_recipes(finished.recipe, ["compile={forms: [fake], starts: 0}"])[0]
    monkeypatch.chdir(finished.directory)
    keys = []
    own = FakeAgent._own_facts
    for version in ("1", "2"):
        facts = {"runtimes": {"fake": {"runtime": "fake", "version": version}}}
        monkeypatch.setattr(FakeAgent, "_own_facts", lambda agent, facts=facts: {**own(agent), **facts})
        result = run_recipe(recipe, ArtifactStore(finished.store), until="compile", tell=tell)
        keys.append({name: each.manifest.key for name, each in result.artifacts.items() if name.startswith("compile/")})

    assert len(keys[0]) == 3
    assert not set(keys[0].values()) & set(keys[1].values())


def test_a_device_that_does_not_answer_loses_its_compiled_files_only(
    finished: Workplace, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(finished.directory)
    dead = tmp_path / "dead.yaml"
    dead.write_text("extends: fake\nname: dead\ntransport: {kind: fake, die_on: facts}\n")

    outcome = CliRunner().invoke(
        main, ["compile", "tiny.yaml", "--device", str(dead), "--starts", "0", "--json"]
    )  # fmt: skip

    assert outcome.exit_code == 3
    report = json.loads(outcome.stdout)
    assert report["compiled"] == []
    assert "ended by SIGSEGV while it worked on 'facts'" in report["failures"][0]


def test_a_recipe_is_not_compiled_unless_it_asks(finished: Workplace) -> None:
    assert load_recipes(finished.recipe)[0].compile.forms == ()


class Suiting(NamedTuple):
    """An export, and what it becomes."""

    target: str
    precision: str
    has_npu: bool
    expected: list[str]


SUITING = [
    Suiting("litert", "float32", False, ["xnnpack_cache"]),
    Suiting("litert", "int8", False, ["xnnpack_cache"]),
    Suiting("litert", "int8", True, ["xnnpack_cache", "vela"]),
    Suiting("litert", "float32", True, ["xnnpack_cache"]),
    Suiting("onnxruntime", "int8", True, ["ort"]),
    Suiting("openvino", "int8", True, []),
]


@pytest.mark.parametrize("suiting", SUITING, ids=lambda each: f"{each.target} {each.precision} {each.has_npu}")
def test_a_recipe_compiles_what_suits_each_device(suiting: Suiting) -> None:
    board = load_profile("local").model_copy(
        update={"ethos_u": NPU if suiting.has_npu else None, "runtimes": {"litert": "", "onnxruntime": ""}}
    )
    wanted: tuple[Form, ...] = ("xnnpack_cache", "ort", "openvino_blob", "vela")

    assert forms_for(suiting.target, suiting.precision, board, wanted) == suiting.expected


def test_of_the_facts_only_those_count_that_a_file_is_bound_to() -> None:
    facts = {"architecture": "aarch64", "cpu_model": "Cortex-A72", "cpu_features": ["asimd"], "load_average": [1, 2, 3],
             "runtimes": {"onnxruntime": {"runtime": "onnxruntime", "version": "1.31.0"}}}  # fmt: skip

    assert binding_facts(facts) == {
        "architecture": "aarch64",
        "cpu_model": "Cortex-A72",
        "cpu_features": ["asimd"],
        "runtimes": {"onnxruntime": "1.31.0"},
    }
