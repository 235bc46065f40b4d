from __future__ import annotations

import io
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from devices.board import program
from devices.board.confidence import ConfidenceMap, probabilities
from devices.board.errors import ModelRejected
from devices.board.images import ImageRejected, decode_image
from devices.board.installed import NoRelease, read_release
from devices.board.model import BadInput, open_model
from devices.board.preprocess import Preprocess, preprocess
from pipeline.calibration.probabilities import log_probabilities
from pipeline.sources.decode import decode_image as decode_on_host
from tests.releases import NAME, fake_model, image_manifest, put, put_fake

MAP = ConfidenceMap((0.2, 0.6, 0.95), (0.3, 0.5, 0.8))


@given(
    logits=st.lists(st.floats(-30, 30, width=32), min_size=2, max_size=12),
    mapped=st.booleans(),
)
def test_probabilities_are_those_of_the_host(logits: list[float], *, mapped: bool) -> None:
    confidence_map = MAP if mapped else None
    values = np.array(logits, np.float32)
    found = probabilities(values, confidence_map)
    np.testing.assert_allclose(
        found, np.exp(log_probabilities(values[None], confidence_map))[0], rtol=1e-9, atol=1e-300
    )
    assert found.sum() == pytest.approx(1)


def test_a_sure_model_with_a_map_shares_what_is_left() -> None:
    found = probabilities(np.array([2000.0, 0.0, 0.0]), MAP)
    assert found == pytest.approx([0.8, 0.1, 0.1])


def encoded(image: Image.Image, kind: str, **options: Any) -> bytes:
    stream = io.BytesIO()
    image.save(stream, kind, **options)
    return stream.getvalue()


def pictures() -> dict[str, bytes]:
    random = np.random.default_rng(0)
    pixels = Image.fromarray(random.integers(0, 256, (9, 13, 3), np.uint8))
    clear = pixels.convert("RGBA")
    clear.putalpha(Image.fromarray(random.integers(0, 256, (9, 13), np.uint8)))
    turned = Image.Exif()
    turned[0x0112] = 6
    palette = pixels.quantize(8)
    return {
        "jpeg": encoded(pixels, "JPEG"),
        "turned": encoded(pixels, "JPEG", exif=turned),
        "cmyk": encoded(pixels.convert("CMYK"), "JPEG"),
        "grey": encoded(pixels.convert("L"), "PNG"),
        "png": encoded(pixels, "PNG"),
        "transparent": encoded(clear, "PNG"),
        "transparent palette": encoded(palette, "PNG", transparency=3),
        "transparent colour": encoded(pixels, "PNG", transparency=tuple(pixels.getpixel((0, 0)))),
        "transparent grey": encoded(clear.convert("LA"), "PNG"),
        "16 bit": encoded(Image.fromarray(random.integers(0, 65536, (9, 13), np.uint16)), "PNG"),
    }


@pytest.mark.parametrize("data", [pytest.param(data, id=name) for name, data in pictures().items()])
def test_images_are_decoded_as_on_the_host(data: bytes) -> None:
    found = decode_image(data)
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, decode_on_host(data).pixels)


@dataclass(frozen=True)
class Bad:
    id: str
    data: bytes
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Bad("nothing", b"", "no JPEG, PNG"),
        Bad("a text", b"hello", "no JPEG, PNG"),
        Bad("a cut JPEG", pictures()["jpeg"][:200], "can't be decoded"),
        Bad("a cut PPM", b"P6 4 4 255\n123", "cut off"),
        Bad("a PPM of comments", b"P6 " + b"#" * 1_000_000, "PPM"),
        Bad("too many pixels", encoded(Image.new("1", (7000, 7000)), "PNG"), "7000 x 7000 pixels"),
    ],
    ids=lambda case: case.id,
)
def test_bytes_that_are_no_image(case: Bad) -> None:
    with pytest.raises(ImageRejected, match=case.message):
        decode_image(case.data)


def test_classify_goes_the_way_of_the_host(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model.fake")
    (tmp_path / "calibration.json").write_text(json.dumps(MAP.to_json()))
    manifest = image_manifest(model, confidence_map="calibration.json")
    put(tmp_path / "root", manifest, model, tmp_path / "calibration.json")
    pixels = np.random.default_rng(1).integers(0, 256, (20, 30, 3), np.uint8)
    labels = open_model(root=str(tmp_path / "root")).classify(pixels, top=3)
    with np.load(model) as arrays:
        image = preprocess(pixels, Preprocess(size=(8, 8)))
        logits = image.reshape(1, -1).astype(np.float32) / np.float32(255) @ arrays["weights"] + arrays["bias"]
    expected = np.exp(log_probabilities(logits, MAP))[0]
    assert [label.index for label in labels] == np.argsort(-expected)[:3].tolist()
    assert [label.name for label in labels] == [f"class {label.index}" for label in labels]
    assert [label.probability for label in labels] == pytest.approx(sorted(expected, reverse=True)[:3])


def test_labels_and_signature_may_lie_in_files_of_their_own(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model.fake")
    manifest = image_manifest(model)
    (tmp_path / "labels.txt").write_text("rose\ntulip\nlily\naster\n")
    (tmp_path / "signature.json").write_text(json.dumps(manifest.pop("signature")))
    manifest["classes"] = None
    put(tmp_path / "root", manifest, model, tmp_path / "labels.txt", tmp_path / "signature.json")
    labels = open_model(root=str(tmp_path / "root")).classify(np.zeros((8, 8, 3), np.uint8), top=9)
    assert {label.name for label in labels} == {"rose", "tulip", "lily", "aster"}


def test_tensors_by_name(tmp_path: Path) -> None:
    put_fake(tmp_path / "root", tmp_path)
    model = open_model(NAME, root=str(tmp_path / "root"))
    assert model.infer({"image": np.zeros((1, 8, 8, 3), np.uint8)})["logits"].shape == (1, 4)
    with pytest.raises(BadInput, match="expected 'image'"):
        model.infer({"picture": np.zeros((1, 8, 8, 3), np.uint8)})
    with pytest.raises(BadInput, match="takes uint8"):
        model.infer({"image": np.zeros((1, 8, 8, 3), np.float32)})


def test_a_model_that_does_not_classify(tmp_path: Path) -> None:
    put_fake(tmp_path / "root", tmp_path, preprocess=None)
    with pytest.raises(BadInput, match="does not classify images"):
        open_model(root=str(tmp_path / "root")).classify(np.zeros((8, 8, 3), np.uint8))


def test_labels_that_are_not_the_models(tmp_path: Path) -> None:
    model = fake_model(tmp_path / "model.fake")
    put(tmp_path / "root", {**image_manifest(model), "classes": ["one"]}, model)
    with pytest.raises(ModelRejected, match="1 labels, its model 4 classes"):
        open_model(root=str(tmp_path / "root")).classify(np.zeros((8, 8, 3), np.uint8))


def test_which_model_is_meant(tmp_path: Path) -> None:
    root = tmp_path / "root"
    with pytest.raises(NoRelease, match="0 models"):
        open_model(root=str(root))
    put_fake(root, tmp_path)
    put_fake(root, tmp_path, seed=1, name="other")
    with pytest.raises(NoRelease, match=r"2 models .* \(net, other\)"):
        open_model(root=str(root))
    with pytest.raises(NoRelease, match="no release of 'third'"):
        open_model("third", root=str(root))
    assert open_model("other", root=str(root)).release.name == "other"


def test_a_damaged_release_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put_fake(root, tmp_path)
    model = root / NAME / "current" / "model-0.fake"
    model.write_bytes(model.read_bytes()[:-1] + b"?")
    with pytest.raises(ModelRejected, match="SHA-256"):
        read_release(str(root), NAME)


def test_a_release_that_names_files_outside_is_refused(tmp_path: Path) -> None:
    root = tmp_path / "root"
    put_fake(root, tmp_path)
    path = root / NAME / "current" / "release.json"
    manifest = json.loads(path.read_text())
    path.write_text(json.dumps({**manifest, "files": {**manifest["files"], "../../secret": "0"}}))
    with pytest.raises(ModelRejected, match="outside"):
        read_release(str(root), NAME)


@pytest.fixture
def image(tmp_path: Path) -> str:
    path = tmp_path / "image.png"
    path.write_bytes(pictures()["png"])
    return str(path)


def test_infer_prints_labels(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    digest = put_fake(tmp_path / "root", tmp_path)
    assert program.main(["infer", image, "--root", str(tmp_path / "root"), "--top", "2"]) == 0
    assert capsys.readouterr().out.startswith(f"{image}: class ")
    assert program.main(["infer", image, image, "--root", str(tmp_path / "root"), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    assert (shown["model"], shown["release"]) == (NAME, digest)
    assert [row["image"] for row in shown["images"]] == [image, image]
    assert sum(label["probability"] for label in shown["images"][0]["labels"]) == pytest.approx(1)


@dataclass(frozen=True)
class Failure:
    id: str
    arguments: tuple[str, ...]
    code: int
    message: str


@pytest.mark.parametrize(
    "case",
    [
        Failure("no image", ("infer", "missing.png"), 2, "missing.png can't be read"),
        Failure("no such model", ("infer", "IMAGE", "--name", "other"), 2, "there are: net"),
        Failure("reachable from elsewhere", ("serve", "--host", "0.0.0.0"), 2, "--token-file"),
        Failure("a unit that is reachable from elsewhere", ("unit", "--host", "0.0.0.0"), 2, "--token-file"),
        Failure("a port of somebody else", ("serve", "--port", "1", "--host", "127.1.2.3.4"), 2, "can't be found"),
    ],
    ids=lambda case: case.id,
)
def test_bad_usage(case: Failure, tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_fake(tmp_path / "root", tmp_path)
    arguments = [image if word == "IMAGE" else word for word in case.arguments]
    assert program.main([*arguments, "--root", str(tmp_path / "root")]) == case.code
    told = capsys.readouterr()
    assert case.message in told.err
    assert not told.out


def test_a_release_that_fails(tmp_path: Path, image: str, capsys: pytest.CaptureFixture[str]) -> None:
    put_fake(tmp_path / "root", tmp_path, behaviour="reject")
    assert program.main(["infer", image, "--root", str(tmp_path / "root")]) == 3
    assert "refuses" in capsys.readouterr().err


def test_unknown_options_are_bad_usage(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        program.main(["infer"])
    assert ended.value.code == 2
