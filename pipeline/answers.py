"""What an exported model answers on a device, by the outputs of its signature."""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import numpy.typing as npt

from devices.errors import ModelRejectedError
from devices.measurement import Case, predict
from devices.profile import DeviceProfile
from devices.records import Prediction, SampleFile
from pipeline.signature import Signature
from pipeline.stages.base import Tell


def answers_on(
    profile: DeviceProfile,
    case: Case,
    inputs: list[SampleFile],
    signature: Signature,
    *,
    scratch: Path,
    tell: Tell | None = None,
) -> dict[str, npt.NDArray[np.float32]]:
    """Runs a model over samples on a device.

    Args:
        profile: The device.
        case: The model file.
        inputs: The samples of each input.
        signature: Whose outputs are wanted.
        scratch: An existing directory for temporary files.
        tell: Takes progress events.

    Returns:
        By output name, `(count, *shape without the batch)`, in the order of the signature.

    Raises:
        DeviceError: The device can't be used, or the model has other outputs than its signature.
    """
    return predicted_on(profile, case, inputs, signature, scratch=scratch, tell=tell)[0]


def predicted_on(
    profile: DeviceProfile,
    case: Case,
    inputs: list[SampleFile],
    signature: Signature,
    *,
    scratch: Path,
    tell: Tell | None = None,
) -> tuple[dict[str, npt.NDArray[np.float32]], Prediction]:
    """As `answers_on`, with what is known of the run; the files of its outputs are gone."""
    with tempfile.TemporaryDirectory(prefix=".outputs-", dir=scratch) as directory:
        prediction = predict(profile, case, inputs, None, directory, tell=tell)
        return {name: np.load(path) for name, path in _by_name(prediction, signature, case).items()}, prediction


def _by_name(prediction: Prediction, signature: Signature, case: Case) -> dict[str, str]:
    wanted = [output.name for output in signature.outputs]
    found = {output.name: output.path for output in prediction.outputs}
    if len(wanted) == 1 and len(found) == 1:
        return {wanted[0]: next(iter(found.values()))}
    missing = [name for name in wanted if name not in found]
    if missing:
        raise ModelRejectedError(
            f"{case.id} has the outputs {', '.join(found)}, but {', '.join(missing)} is expected: the file is not "
            f"what was exported"
        )
    return {name: found[name] for name in wanted}
