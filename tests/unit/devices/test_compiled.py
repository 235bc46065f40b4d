"""Whether a compiled file fits a device, by what its manifest and the device say."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import pytest

from devices.compiled import (
    MANIFEST,
    CompiledManifest,
    Processor,
    check_fits,
    digest_of,
    file_record,
    find_compiled,
)
from devices.errors import CompiledMisfitError, ModelRejectedError

X86: dict[str, Any] = {
    "architecture": "x86_64",
    "cpu_features": ["avx2", "avx512f", "avx512_vnni"],
    "runtimes": {
        "onnxruntime": {"runtime": "onnxruntime", "version": "1.31.0"},
        "openvino": {"runtime": "openvino", "version": "2026.4.0"},
        "ai-edge-litert": {"runtime": "litert", "version": "2.3.0"},
    },
}
PACKAGES = {
    "ort": ("onnxruntime", "1.31.0"),
    "openvino_blob": ("openvino", "2026.4.0"),
    "xnnpack_cache": ("ai-edge-litert", "2.3.0"),
    "vela": ("ethos-u-vela", "5.2.0"),
}


def manifest_of(directory: Path, form: str = "ort", **changes: Any) -> CompiledManifest:
    """Of a file made on the machine of `X86`."""
    (directory / "model.onnx").write_bytes(b"model")
    (directory / "compiled").mkdir(exist_ok=True)
    made = directory / "compiled" / "model.ort"
    made.write_bytes(b"compiled")
    package, version = PACKAGES[form]
    values = {
        "form": form,
        "runtime": "onnxruntime",
        "package": package,
        "version": version,
        "device": "local",
        "made_on": "device",
        "processor": Processor(architecture="x86_64", cpu_features=tuple(X86["cpu_features"])),
        "source": (file_record(directory / "model.onnx"),),
        "files": (file_record(made),),
        "seconds": 0.5,
    }
    manifest = CompiledManifest.model_validate({**values, **changes})
    (directory / "compiled" / MANIFEST).write_text(manifest.model_dump_json())
    return manifest


class Device(NamedTuple):
    """A device beside the one that a file was made on."""

    id: str
    form: str
    facts: dict[str, Any]
    expected: str | None
    processor: Processor | None = None


def without(*features: str) -> dict[str, Any]:
    return {**X86, "cpu_features": [name for name in X86["cpu_features"] if name not in features]}


def runtime(package: str, version: str | None) -> dict[str, Any]:
    runtimes = {name: found for name, found in X86["runtimes"].items() if name != package}
    return {**X86, "runtimes": runtimes if version is None else {**runtimes, package: {"version": version}}}


PI = {**X86, "architecture": "aarch64", "cpu_features": ["asimd"]}
PORTABLE = Processor(architecture=None, cpu_features=None)
BOUND = ("ort", "openvino_blob", "xnnpack_cache")
DEVICES = [
    *(Device(f"the same, {form}", form, X86, None) for form in BOUND),
    *(
        Device(f"another version, {form}", form, runtime(PACKAGES[form][0], "9.9"), "and the device has")
        for form in BOUND
    ),
    Device("a patch release", "openvino_blob", runtime("openvino", "2026.4.1"), "the device has openvino 2026.4.1"),
    Device("no such runtime", "ort", runtime("onnxruntime", None), "which the device does not have"),
    *(
        Device(f"no AVX-512, {form}", form, without("avx512f", "avx512_vnni"),
               "with avx512f, avx512_vnni, which the device's lacks")
        for form in BOUND
    ),
    Device("more features", "ort", {**X86, "cpu_features": [*X86["cpu_features"], "amx_int8"]}, "without amx_int8"),
    *(Device(f"another architecture, {form}", form, PI, "made for x86_64, and the device is") for form in BOUND),
    Device("portable on another architecture", "ort", PI, None, PORTABLE),
    Device("portable with another version", "ort", runtime("onnxruntime", "1.32.0"), "onnxruntime 1.32.0", PORTABLE),
    Device("the NPU's file on a CPU", "vela", X86, "it runs on an ethos-u65-256 alone",
           Processor(architecture="aarch64", cpu_features=None, accelerator="ethos-u65-256")),
    Device("a device that tells nothing", "ort", {}, "the device is None"),
]  # fmt: skip


@pytest.mark.parametrize("device", DEVICES, ids=lambda device: device.id)
def test_a_file_fits_or_the_reason_is_named(device: Device, tmp_path: Path) -> None:
    changes = {} if device.processor is None else {"processor": device.processor}
    manifest = manifest_of(tmp_path, device.form, **changes)

    if device.expected is None:
        check_fits(manifest, device.facts, path="model.ort", device="board")
        return
    with pytest.raises(CompiledMisfitError) as caught:
        check_fits(manifest, device.facts, path="model.ort", device="board")

    assert caught.value.exit_code == 2
    for part in (device.expected, "model.ort does not fit board, and was not sent there", "What to do: "):
        assert part in caught.value.message


def test_all_reasons_are_named_at_once(tmp_path: Path) -> None:
    facts = {**without("avx512f"), "runtimes": {}}

    assert len(manifest_of(tmp_path).misfits(facts)) == 2


def test_the_file_and_its_directory_name_the_same(tmp_path: Path) -> None:
    manifest = manifest_of(tmp_path)

    for path in (tmp_path / "compiled", tmp_path / "compiled" / "model.ort"):
        assert find_compiled(path) == (tmp_path / "compiled" / "model.ort", manifest)
    (tmp_path / "compiled" / "other.onnx").write_bytes(b"")
    assert find_compiled(tmp_path / "compiled" / "other.onnx") is None
    assert find_compiled(tmp_path / "model.onnx") is None


class Damage(NamedTuple):
    """What somebody does to a compiled model."""

    id: str
    name: str
    content: bytes | None
    expected: str


DAMAGES = [
    Damage("one byte is another", "model.ort", b"compilet", "was changed after it was compiled"),
    Damage("the file is gone", "model.ort", None, "there is no"),
    Damage("no manifest", MANIFEST, b"{", "is no manifest of a compiled file"),
    Damage("another schema", MANIFEST, b'{"schema_version": 2}', "is no manifest of a compiled file"),
]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.id)
def test_a_damaged_one_is_refused(damage: Damage, tmp_path: Path) -> None:
    manifest_of(tmp_path)
    file = tmp_path / "compiled" / damage.name
    file.unlink()
    if damage.content is not None:
        file.write_bytes(damage.content)

    with pytest.raises(ModelRejectedError, match=damage.expected) as caught:
        find_compiled(tmp_path / "compiled")

    assert "compile the model again" in caught.value.message


def test_digests_are_sha256(tmp_path: Path) -> None:
    (tmp_path / "abc").write_bytes(b"abc")

    assert digest_of(tmp_path / "abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
