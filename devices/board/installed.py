"""The releases that lie on this board, read; see `devices.release` for how they come here and what their form is."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
from typing import Any, Dict, List, Mapping, Optional, Tuple

from . import environment
from .bundle import kept_files
from .confidence import CONFIDENCE_FILE, ConfidenceMap
from .errors import AgentError, ModelRejected
from .preprocess import InputTransform, Preprocess
from .release_form import Form, choose_form

RELEASE_FILE = "release.json"
LABELS_FILE = "labels.txt"
SIGNATURE_FILE = "signature.json"

_BLOCK_BYTES = 1 << 20


class NoRelease(AgentError):
    """There is no release of that name; the message says which there are."""


@dataclasses.dataclass(frozen=True)
class Installed:
    """A release that was read and found whole.

    Attributes:
        name: Of the model.
        digest: Of the release; the name of its directory.
        directory: Where its files lie.
        runtime: That runs the model, a key of `runners.RUNNERS`.
        model: Path of the model's file.
        model_sha256: Of that file.
        precision: Of the model, as it was exported.
        labels: Of the classes, None where the release names none.
        preprocess: From an image to the model's size, None of a model that takes no images.
        transforms: By input, from a stored sample to that input; None where it is taken as it is.
        kind: Of the first output: `logits`, `probabilities` or `values`.
        confidence_map: What follows the softmax, if anything.
        form: What is loaded: the model itself, or its compiled form where that fits this board; None is the model.
    """

    name: str
    digest: str
    directory: str
    runtime: str
    model: str
    model_sha256: str
    precision: str
    labels: Optional[Tuple[str, ...]]
    preprocess: Optional[Preprocess]
    transforms: Mapping[str, Optional[InputTransform]]
    kind: str
    confidence_map: Optional[ConfidenceMap]
    form: Optional[Form] = None


def installed_names(root: str) -> List[str]:
    """The names under which a release is in use, sorted.

    Raises:
        NoRelease: It can't be told.
    """
    try:
        names = os.listdir(root)
    except FileNotFoundError:
        return []
    except OSError as error:
        raise NoRelease(
            f"the releases in {root} can't be read: {error.strerror}; be their owner or of their group, which "
            "`edgeship-board unit --group` makes a service"
        ) from error
    return sorted(name for name in names if current_digest(root, name) is not None)


def current_digest(root: str, name: str) -> Optional[str]:
    """The digest of the release in use; None where there is none."""
    try:
        return os.path.basename(os.readlink(os.path.join(root, name, "current")).rstrip("/")) or None
    except OSError:
        return None


def choose_name(root: str, name: Optional[str]) -> str:
    """The name that is meant.

    Raises:
        NoRelease: No release is in use under it, or it is not given and there is not exactly one.
    """
    names = installed_names(root)
    listed = ", ".join(names) or "none"
    if name is None:
        if len(names) != 1:
            raise NoRelease(f"{len(names)} models are installed in {root} ({listed}); name one of them")
        return names[0]
    if name not in names:
        raise NoRelease(f"no release of '{name}' is in use in {root}; there are: {listed}")
    return name


def read_release(root: str, name: str) -> Installed:
    """Reads the release in use and compares the digests of all its files.

    From here on this process imports the packages that came with it.

    Raises:
        NoRelease: There is none.
        ModelRejected: It is damaged or of a form that this version does not know.
    """
    digest = current_digest(root, choose_name(root, name))
    # The link may move while we read: from here on only the directory it named is looked at.
    directory = os.path.join(root, name, "releases", str(digest))
    manifest = _object(directory, RELEASE_FILE)
    try:
        _check_files(directory, kept_files(manifest))
        environment.activate(environment.packages_of(root, manifest))
        model = str(manifest["model"])
        signature = manifest.get("signature") or _object(directory, SIGNATURE_FILE)
        record = manifest.get("preprocess")
        return Installed(
            name=name,
            digest=str(digest),
            directory=directory,
            runtime=str(manifest["target"]),
            model=os.path.join(directory, model),
            model_sha256=str(manifest["files"][model]),
            precision=str(manifest.get("precision", "")),
            labels=_labels(directory, manifest),
            preprocess=None if record is None else Preprocess.from_dict(record),
            transforms={each["name"]: _transform(each) for each in signature["inputs"]},
            kind=str(signature["outputs"][0].get("kind", "values")),
            confidence_map=_confidence_map(directory, manifest),
            form=choose_form(directory, manifest),
        )
    except (KeyError, TypeError, IndexError, ValueError, AttributeError) as error:
        raise ModelRejected(
            f"the release in {directory} can't be used: {type(error).__name__}: {error}; deploy it again"
        ) from error


def _object(directory: str, file: str) -> Dict[str, Any]:
    path = os.path.join(directory, file)
    try:
        with open(path, encoding="utf-8") as stream:
            values = json.load(stream)
    except (OSError, ValueError, RecursionError) as error:
        raise ModelRejected(f"{path} can't be read: {error}; deploy the release again") from error
    if not isinstance(values, dict):
        raise ModelRejected(f"{path} holds no object; deploy the release again")
    return values


def _check_files(directory: str, files: Mapping[str, str]) -> None:
    for name, expected in files.items():
        path = os.path.join(directory, name)
        if os.path.isabs(name) or ".." in name.split("/"):
            raise ModelRejected(f"the release in {directory} names the file {name!r}, which lies outside of it")
        digest = hashlib.sha256()
        try:
            with open(path, "rb") as stream:
                for block in iter(lambda: stream.read(_BLOCK_BYTES), b""):
                    digest.update(block)
        except OSError as error:
            raise ModelRejected(f"{path} can't be read: {error}; deploy the release again") from error
        if digest.hexdigest() != expected:
            raise ModelRejected(
                f"{path} has SHA-256 {digest.hexdigest()[:12]}, not {str(expected)[:12]}; deploy it again"
            )


def _labels(directory: str, manifest: Mapping[str, Any]) -> Optional[Tuple[str, ...]]:
    classes = manifest.get("classes")
    if classes is not None:
        return tuple(str(label) for label in classes)
    try:
        with open(os.path.join(directory, LABELS_FILE), encoding="utf-8") as stream:
            return tuple(stream.read().splitlines())
    except FileNotFoundError:
        return None


def _transform(record: Mapping[str, Any]) -> Optional[InputTransform]:
    """Of one input of the signature, which states its type beside the transform."""
    values = record.get("transform")
    return None if values is None else InputTransform.from_json({"dtype": record["dtype"], **values})


def _confidence_map(directory: str, manifest: Mapping[str, Any]) -> Optional[ConfidenceMap]:
    path = os.path.join(directory, str(manifest.get("confidence_map") or CONFIDENCE_FILE))
    if "confidence_map" not in manifest and not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as stream:
            return ConfidenceMap.from_json(json.load(stream))
    except OSError as error:
        raise ModelRejected(f"{path} can't be read: {error}; deploy the release again") from error
