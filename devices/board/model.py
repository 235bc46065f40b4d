"""The installed model, for the application on the board.

from devices.board.model import open_model       # on a board, from the shipped folder: from board.model import ...

model = open_model(name="flowers")
for label in model.classify("garden.jpg"):
    print(label.name, label.probability)
"""

from __future__ import annotations

import dataclasses
import os
from typing import Any, Dict, List, Mapping, Optional, Sequence, Tuple, Union

import numpy as np

from .confidence import probabilities
from .errors import AgentError, ModelRejected
from .images import read_image
from .installed import Installed, choose_name, read_release
from .places import DEFAULT_ROOT, ROOT_VARIABLE, default_root
from .preprocess import InputTransform, preprocess
from .quantization import dequantize
from .release_form import PLAIN, Form
from .runners import RUNNERS, Runner
from .runners.contract import Feed, make_feeds, names_of

Array = np.ndarray

_NUMBER_KINDS = "fiub"
_LEAST = 1e-12


class BadInput(AgentError):
    """What is given does not fit the model; the message says what it takes."""


@dataclasses.dataclass(frozen=True)
class Label:
    """One class and how sure the model is of it.

    Attributes:
        index: Of the class.
        name: The label, or the index as text where the release has no labels.
        probability: Calibrated, from 0 to 1.
    """

    index: int
    name: str
    probability: float


class InstalledModel:
    """A release's model, loaded and ready. One thread at a time may use it.

    Args:
        release: As `read_release` gives it.
        num_threads: Of one inference.

    Attributes:
        form: What was loaded, and why not the compiled form where there is one.

    Raises:
        RuntimeMissing: The runtime is not installed.
        ModelRejected: The file can't be loaded, or its tensors do not fit what the release says.
    """

    def __init__(self, release: Installed, *, num_threads: int = 1) -> None:
        self.release = release
        if release.runtime not in RUNNERS:
            raise ModelRejected(
                f"the release {release.digest} needs the runtime '{release.runtime}'; there are: {', '.join(RUNNERS)}"
            )
        self.form = release.form or Form(PLAIN, release.model, release.model_sha256, None)
        self._runner = self._loaded(num_threads)
        description = self._runner.describe()
        self.runtime_version = str(description["version"])
        self.inputs: List[Dict[str, Any]] = description["inputs"]
        self.outputs: List[Dict[str, Any]] = description["outputs"]
        self.feeds: List[Feed] = make_feeds(self.inputs)

    def _loaded(self, num_threads: int) -> Runner:
        """The compiled form where there is one that fits and that the runtime takes, else the model itself."""
        if self.form.name != PLAIN:
            runner = RUNNERS[self.release.runtime]()
            try:
                runner.load(self.form.path, num_threads=num_threads)
            except (AgentError, OSError) as error:
                reason = f"the form {self.form.name} is not used: {error}"
                self.form = Form(PLAIN, self.release.model, self.release.model_sha256, None, reason)
            else:
                return runner
        runner = RUNNERS[self.release.runtime]()
        runner.load(self.release.model, num_threads=num_threads)
        return runner

    def warm_up(self) -> List[Array[Any, Any]]:
        """Runs once on zeros, so that the first request does not wait; returns the answers."""
        return self.run([np.zeros(feed.shape, feed.dtype) for feed in self.feeds])

    def run(self, arrays: Sequence[Array[Any, Any]]) -> List[Array[Any, Any]]:
        """Runs the model on arrays of exactly its shapes and types, in the order of `feeds`.

        Returns:
            All outputs in the order of `outputs`; the next call may overwrite them.
        """
        return self._runner.infer(arrays)

    def infer(self, inputs: Mapping[str, Any]) -> Dict[str, Array[Any, Any]]:
        """Runs the model once.

        Args:
            inputs: By name, arrays of exactly the shapes and types of the model.

        Returns:
            All outputs by name.

        Raises:
            BadInput: An input is missing, unknown, or of another shape or type.
        """
        if sorted(inputs) != sorted(feed.name for feed in self.feeds):
            raise BadInput(f"given are {', '.join(sorted(inputs)) or 'no inputs'}; expected {names_of(self.inputs)}")
        try:
            answers = self.run([np.ascontiguousarray(inputs[feed.name]) for feed in self.feeds])
        except ValueError as error:
            raise BadInput(str(error)) from error
        return {record["name"]: np.array(answer) for record, answer in zip(self.outputs, answers)}

    def classify(self, image: Union[str, os.PathLike[str], Array[Any, Any]], *, top: int = 5) -> List[Label]:
        """Tells what is on an image.

        Args:
            image: A file, or uint8 `(height, width, 3)`, RGB, of any size.
            top: How many classes to return.

        Returns:
            The most probable classes, the most probable first.

        Raises:
            BadInput: The model is no classifier of images, or the image does not fit it.
            ImageRejected: The file can't be decoded.
        """
        pixels = image if isinstance(image, np.ndarray) else read_image(os.fspath(image))
        return self.labels_of(self.run([self.prepare(pixels)]), top=top)

    def check_classifier(self) -> None:
        """Refuses a model that does not tell the classes of images.

        Raises:
            BadInput: It is such a model.
        """
        if len(self.feeds) != 1 or self.release.kind == "values" or self.release.preprocess is None:
            raise BadInput(
                f"'{self.release.name}' does not classify images: it needs one input, a pre-processing record and "
                "logits or probabilities as its first output; give it its tensors instead"
            )

    def prepare(self, pixels: Array[Any, Any]) -> Array[Any, Any]:
        """The model's input of an image uint8 `(height, width, 3)`, resized and transformed.

        Raises:
            BadInput: The model is no classifier of images, or the image does not fit it.
        """
        self.check_classifier()
        assert self.release.preprocess is not None  # noqa: S101 (`check_classifier` has refused it)
        feed, record = self.feeds[0], self.inputs[0]
        transform = self._transform(record)
        try:
            made = preprocess(pixels, self.release.preprocess)
            if transform is None:
                made = made[np.newaxis]
            else:
                made = transform.apply(made, record["quantization"], quantized_dtype=feed.dtype.name)
        except ValueError as error:
            raise BadInput(str(error)) from error
        if made.shape != feed.shape or made.dtype != feed.dtype:
            raise BadInput(
                f"the image becomes {made.dtype.name} {made.shape}, but the input '{feed.name}' takes "
                f"{feed.dtype.name} {feed.shape}; give it its tensors instead"
            )
        return made

    def _transform(self, record: Mapping[str, Any]) -> Optional[InputTransform]:
        transforms = self.release.transforms
        names = [record["name"], *record.get("aliases", ())]
        found = [transforms[name] for name in names if name in transforms]
        if not found and len(transforms) == 1:  # a converter may have renamed the only input
            found = list(transforms.values())
        return found[0] if found else None

    def labels_of(self, answers: Sequence[Array[Any, Any]], *, top: int = 5) -> List[Label]:
        """The most probable classes of what `run` returned, the most probable first.

        Raises:
            BadInput: The first output is not one number for each class.
        """
        shares = self.probabilities_of(answers)
        labels = self.release.labels
        if labels is not None and len(labels) != len(shares):
            raise ModelRejected(
                f"the release {self.release.digest} has {len(labels)} labels, its model {len(shares)} classes"
            )
        order = np.argsort(-shares, kind="stable")[: max(1, top)]
        return [
            Label(int(index), str(index) if labels is None else labels[index], float(shares[index])) for index in order
        ]

    def probabilities_of(self, answers: Sequence[Array[Any, Any]]) -> Array[Any, Any]:
        """Calibrated probabilities, float64 `(classes,)`, of what `run` returned.

        Raises:
            BadInput: The first output is not one number for each class.
        """
        answer, record = answers[0], self.outputs[0]
        if answer.dtype.kind not in _NUMBER_KINDS or answer.ndim != 2 or answer.shape[0] != 1 or not answer.shape[1]:
            raise BadInput(
                f"the first output of '{self.release.name}' is {answer.dtype.name} {answer.shape}; expected one number "
                "for each class, (1, classes)"
            )
        if record["quantization"] is not None and answer.dtype.kind in "iu":
            answer = dequantize(answer, record["quantization"])
        values = answer[0].astype(np.float64)
        if not np.isfinite(values).all():
            raise ModelRejected(f"the model of '{self.release.name}' answers with a value that is not a finite number")
        if self.release.kind == "probabilities":
            values = np.log(np.maximum(values, _LEAST))
        return probabilities(values, self.release.confidence_map)


def default_threads(workers: int = 1) -> int:
    """Of one inference, where so many run at once: an equal part of the cores that this process may use."""
    return max(1, len(os.sched_getaffinity(0)) // workers)


def open_model(
    name: Optional[str] = None, *, root: Optional[str] = None, num_threads: Optional[int] = None
) -> InstalledModel:
    """Loads the release in use.

    Args:
        name: Of the model; may be left out where only one is installed.
        root: Where releases lie; `EDGESHIP_ROOT` or `~/.local/share/edgeship` where it is left out.
        num_threads: Of one inference; all cores where it is left out.

    Raises:
        NoRelease: There is none of that name.
        ModelRejected: It is damaged or can't be loaded.
        RuntimeMissing: Its runtime is not installed.
    """
    where = default_root() if root is None else root
    release = read_release(where, choose_name(where, name))
    return InstalledModel(release, num_threads=num_threads or default_threads())


__all__: Tuple[str, ...] = (
    "DEFAULT_ROOT",
    "ROOT_VARIABLE",
    "InstalledModel",
    "Label",
    "default_root",
    "default_threads",
    "open_model",
)
