"""What the served fake model is asked, and what it answers by itself."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np

from devices.board.model import open_model
from tests.releases import NAME

SIZE = 8
MODEL = f"/v2/models/{NAME}"


def image_of(seed: int) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (1, SIZE, SIZE, 3), np.uint8)


def expected(root: Path, image: np.ndarray) -> np.ndarray:
    return open_model(NAME, root=str(root)).infer({"image": image})["logits"]


def json_request(image: np.ndarray) -> bytes:
    tensor = {"name": "image", "shape": list(image.shape), "datatype": "UINT8", "data": image.reshape(-1).tolist()}
    return json.dumps({"inputs": [tensor]}).encode()
