"""One TensorFlow SavedModel of a network, from which all three targets convert."""

from __future__ import annotations

import tempfile
from pathlib import Path

from pipeline.network import load_network


class KerasExportable:
    """A trained Keras network on its way to the targets. It is built once and serves every target.

    Args:
        directory: The artifact that holds the network.
        scratch: Where temporary files may go.
    """

    def __init__(self, directory: Path, scratch: Path) -> None:
        self._directory = directory
        self._scratch = tempfile.TemporaryDirectory(prefix="scratch-", dir=scratch)
        self._saved_model: Path | None = None

    @property
    def directory(self) -> Path:
        """The artifact that holds the network."""
        return self._directory

    def saved_model(self) -> Path:
        """Returns the SavedModel, written when first asked for.

        Its one signature takes `image`, uint8 (1, height, width, 3), and gives `logits`, float32 (1, classes).
        """
        if self._saved_model is None:
            import keras

            model = load_network(self._directory)
            shape = (1, *model.inputs[0].shape[1:])
            archive = keras.export.ExportArchive()
            archive.track(model)
            archive.add_endpoint(
                name="serve",
                fn=lambda image: {"logits": model(image, training=False)},
                input_signature=[keras.InputSpec(shape=shape, dtype="uint8", name="image")],
            )
            path = Path(self._scratch.name) / "saved_model"
            archive.write_out(str(path), verbose=False)
            self._saved_model = path
        return self._saved_model
