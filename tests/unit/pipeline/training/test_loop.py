"""What a training does on its way, with a network of a few weights."""

from __future__ import annotations

import errno
import sys
from pathlib import Path
from typing import Any

import keras
import numpy as np
import pytest

from pipeline.errors import DataError, InputError, StageError, StoreError
from pipeline.training import checkpoint, loop, supervision
from pipeline.training.assembly import network_of_size
from pipeline.training.checkpoint import CheckpointDirectory
from pipeline.training.distribution import Distribution
from pipeline.training.phases import Phase, phase_of

sys.path.insert(0, str(Path(__file__).parent))

from tiny import Images, arrays, make, run


def assert_equal(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one.keys() == other.keys()
    for path, value in one.items():
        np.testing.assert_array_equal(value, other[path], err_msg=path)


def changed(before: dict[str, Any], after: dict[str, Any]) -> set[str]:
    return {path.partition("/")[0] for path, value in before.items() if (value != after[path]).any()}


def test_records_and_events(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, events = make(monkeypatch)
    assert (training.steps_per_epoch, training.total_steps) == (5, 10)
    monkeypatch.setattr(supervision, "TELL_EVERY_S", 0.0)
    state = run(training, tmp_path)
    assert [record["epoch"] for record in state.history] == [1, 2]
    assert [record["step"] for record in state.history] == [5, 10]
    assert state.history[1]["learning_rate"] == training.learning_rate(9)
    assert state.history[1]["images_per_second"] > 0
    finished = [event for event in events if "epoch_done" in event]
    assert [event["done"] for event in finished] == [5, 10]
    assert finished[0]["epoch_done"] == state.history[0]
    steps = [event for event in events if "left_s" in event]
    assert {
        "epoch",
        "epochs",
        "done",
        "total",
        "step",
        "loss",
        "accuracy",
        "learning_rate",
        "images_per_second",
    } <= set(steps[0])
    assert all(event["total"] == 10 for event in steps)


def test_a_training_learns(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch, epochs=12, learning_rate=0.03)
    state = run(training, tmp_path)
    assert state.best_accuracy > 0.8
    assert state.history[-1]["loss"] < state.history[0]["loss"]


def test_the_loss_of_each_step_is_its_own(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Seen against the loss that the network has on each batch before it is learned from."""
    training, _ = make(monkeypatch, epochs=1, label_smoothing=0.0)
    model = training.model()
    for layer in training.network.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    seen: list[float] = []
    real = supervision.Supervisor.on_train_batch_end

    def batch_end(self: Any, batch: int, logs: Any = None) -> None:
        seen.append(float(logs["step_loss"]))
        real(self, batch, logs)

    monkeypatch.setattr(supervision.Supervisor, "on_train_batch_end", batch_end)
    twin, _ = make(monkeypatch, epochs=1, label_smoothing=0.0)
    state = run(training, tmp_path)
    assert len(seen) == 5
    assert state.history[0]["loss"] == pytest.approx(np.mean(seen), rel=1e-5)
    first = next(iter(twin.batches()))
    logits = twin.network(first.inputs["image"], training=True)
    for layer in twin.network.layers:
        if isinstance(layer, keras.layers.Dropout):
            layer.rate = 0.0
    logits = twin.network(first.inputs["image"], training=True)
    expected = float(keras.ops.mean(keras.losses.categorical_crossentropy(first.targets, logits, from_logits=True)))
    assert seen[0] == pytest.approx(expected, rel=1e-4)
    assert model is training.model()


def test_a_loss_that_is_no_number_names_the_step_and_its_images(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    images = Images()
    training, _ = make(monkeypatch, images, epochs=3, checkpoint_minutes=100.0)
    wanted = list(training.batches(1))[3]
    rows = wanted.rows
    real = loop.Loader.epoch

    def poisoned(self: Any, epoch: int, **options: Any) -> Any:
        for step, batch in enumerate(real(self, epoch, **options)):
            if (epoch, step) == (1, 3):
                batch.targets[0] = np.nan
            yield batch

    monkeypatch.setattr(loop.Loader, "epoch", poisoned)
    with pytest.raises(StageError) as caught:
        run(training, tmp_path)
    rate = training.learning_rate(8)
    assert f"The training loss became nan in step 4 of epoch 2, at a learning rate of {rate:g}." in caught.value.message
    assert f"Its batch: {rows[0]}.png, {rows[1]}.png" in caught.value.message
    assert "and 3 more" in caught.value.message
    assert caught.value.details.splitlines() == [f"{row}.png" for row in rows]
    state = CheckpointDirectory(tmp_path / "resume").state()
    assert state is not None
    assert state.epochs_done == 1, "the last good checkpoint is kept"


@pytest.mark.parametrize("is_asynchronous", [False, True])
def test_losses_are_looked_at_late_on_an_accelerator_and_none_is_missed(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, is_asynchronous: bool
) -> None:
    training, _ = make(monkeypatch, Images(200), epochs=1, checkpoint_minutes=100.0)
    training._is_asynchronous = is_asynchronous
    steps: list[int] = []
    real = supervision.Supervisor.on_train_batch_end

    def batch_end(self: Any, batch: int, logs: Any = None) -> None:
        steps.append(batch)
        if batch == 6:
            logs = {**logs, "step_loss": float("inf")}
        real(self, batch, logs)

    monkeypatch.setattr(supervision.Supervisor, "on_train_batch_end", batch_end)
    with pytest.raises(StageError, match=r"became inf in step 7 of epoch 1.*Its batch: .*png") as caught:
        run(training, tmp_path)
    assert len(caught.value.details.splitlines()) == 8
    assert steps[-1] == (17 if is_asynchronous else 6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "more",
    [
        {},
        {"optimizer": "rmsprop", "weight_decay": 1e-3, "accumulate_steps": 2},
        {"progressive": {"stages": 3, "start_size": 0.5}, "averaging": None},
        {"freeze": {"until": "stem", "epochs": 1}},
        {"freeze": {"until": "stem", "epochs": 2}, "optimizer": "sgd", "class_weights": "balanced"},
    ],
    ids=["adamw", "rmsprop, summed", "progressive", "freed after one", "freed after two"],
)
def test_resumed_is_as_if_never_stopped(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, more: dict[str, Any]) -> None:
    """Stopped after a checkpoint within an epoch, and after ones at the ends of both epochs; by SIGKILL elsewhere."""
    options = {
        "epochs": 3,
        "averaging": {"decay": 0.9, "every_steps": 2},
        "augmentation": {"mixup": 0.4, "flip": True},
        **more,
    }
    whole, _ = make(monkeypatch, **options)
    expected = run(whole, tmp_path / "whole", checkpoint_steps=2)
    real, saves = CheckpointDirectory.save, []

    def save(self: CheckpointDirectory, *arguments: Any, **named: Any) -> None:
        real(self, *arguments, **named)
        saves.append(None)
        if len(saves) in {2, 3, 6}:  # each epoch has two and one at its end
            raise KeyboardInterrupt

    monkeypatch.setattr(CheckpointDirectory, "save", save)
    for _ in range(3):
        stopped, _ = make(monkeypatch, **options)
        with pytest.raises(KeyboardInterrupt):
            run(stopped, tmp_path / "stopped", checkpoint_steps=2)
    resumed, events = make(monkeypatch, **options)
    found = run(resumed, tmp_path / "stopped", checkpoint_steps=2)
    assert events[0] == {"message": "going on after epoch 2 of 3"}
    assert_equal(arrays(resumed.network), arrays(whole.network))
    assert_equal(arrays(resumed.exported), arrays(whole.exported))
    for one, other in zip(expected.history, found.history, strict=True):
        assert {**one, "seconds": 0, "images_per_second": 0} == {**other, "seconds": 0, "images_per_second": 0}


@pytest.mark.parametrize("when", ["arrays", "state"])
def test_a_full_disk_keeps_the_last_checkpoint(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, when: str) -> None:
    training, _ = make(monkeypatch, epochs=3)
    writes: list[Path] = []
    real_write, real_text = checkpoint._write, Path.write_text

    def write(path: Path, values: Any) -> None:
        real_write(path, values)
        writes.append(path)
        if when == "arrays" and len(writes) == 4:
            path.write_bytes(path.read_bytes()[:300])
            raise OSError(errno.ENOSPC, "No space left on device")

    def write_text(self: Path, *arguments: Any, **named: Any) -> int:
        if when == "state" and len(writes) >= 4 and self.name == checkpoint.STATE_FILE:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_text(self, *arguments, **named)

    monkeypatch.setattr(checkpoint, "_write", write)
    monkeypatch.setattr(Path, "write_text", write_text)
    with pytest.raises(StoreError, match=r"No space left on the device for a checkpoint.*one before it is whole") as at:
        run(training, tmp_path, checkpoint_steps=3)
    assert at.value.exit_code == 2
    assert sorted(path.name for path in (tmp_path / "resume").iterdir()) == ["current"], "what was half written is gone"
    monkeypatch.undo()
    whole, _ = make(monkeypatch, epochs=3)
    run(whole, tmp_path / "whole", checkpoint_steps=3)
    again, events = make(monkeypatch, epochs=3)
    run(again, tmp_path, checkpoint_steps=3)
    assert "going on after" in events[0]["message"]
    assert_equal(arrays(again.exported), arrays(whole.exported))


@pytest.mark.slow
def test_a_checkpoint_of_another_recipe_or_network(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch, epochs=1)
    training.run(CheckpointDirectory(tmp_path, recipe={"train": {"seed": 0, "epochs": 1}}))
    other, _ = make(monkeypatch, epochs=1)
    with pytest.raises(StageError, match=r"is of another recipe: train\.seed was 0 and is 1\."):
        other.run(CheckpointDirectory(tmp_path, recipe={"train": {"seed": 1, "epochs": 1}}))
    averaged, _ = make(monkeypatch, epochs=1, averaging={})
    with pytest.raises(StageError, match=r"can't be read: last\.npz holds"):
        averaged.run(CheckpointDirectory(tmp_path))


def test_averages_are_what_is_judged_and_exported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch, epochs=1, averaging={"decay": 0.5, "every_steps": 1})
    weights = [arrays(training.network)]
    real = supervision.Supervisor.on_train_batch_end

    def batch_end(self: Any, batch: int, logs: Any = None) -> None:
        weights.append(arrays(training.network))
        real(self, batch, logs)

    monkeypatch.setattr(supervision.Supervisor, "on_train_batch_end", batch_end)
    run(training, tmp_path)
    expected = weights[0]
    for step, values in enumerate(weights[1:]):
        decay = min(0.5, (1 + step) / (10 + step))
        expected = {path: decay * old + (1 - decay) * values[path] for path, old in expected.items()}
    assert "stem_bn/moving_mean" in expected
    for path, value in arrays(training.exported).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_averages_every_few_steps_take_the_decay_to_that_power(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch, epochs=1, averaging={"decay": 0.15, "every_steps": 2})
    weights = [arrays(training.network)]
    real = supervision.Supervisor.on_train_batch_end

    def batch_end(self: Any, batch: int, logs: Any = None) -> None:
        weights.append(arrays(training.network))
        real(self, batch, logs)

    monkeypatch.setattr(supervision.Supervisor, "on_train_batch_end", batch_end)
    run(training, tmp_path)
    expected = weights[0]
    for step in (2, 4):
        expected = {path: 0.15**2 * old + (1 - 0.15**2) * weights[step][path] for path, old in expected.items()}
    for path, value in arrays(training.exported).items():
        np.testing.assert_allclose(value, expected[path], rtol=1e-4, atol=1e-6, err_msg=path)


def test_early_stopping(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch, epochs=9, early_stopping={"patience_epochs": 2, "monitor": "loss"})
    losses = iter([1.0, 0.9, 0.95, 0.92, 0.5])
    monkeypatch.setattr(training, "_judged", lambda: {"accuracy": 0.5, "nll": next(losses)})
    state = run(training, tmp_path)
    assert state.stopped_early
    assert (state.epochs_done, state.best_epoch) == (4, 2)
    again, _ = make(monkeypatch, epochs=9, early_stopping={"patience_epochs": 2, "monitor": "loss"})
    assert run(again, tmp_path).epochs_done == 4, "a training that has stopped is not gone on with"


def test_a_smaller_gain_than_asked_for_counts_as_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    stopping = {"patience_epochs": 2, "monitor": "accuracy", "min_delta": 0.1}
    training, _ = make(monkeypatch, epochs=9, early_stopping=stopping)
    values = iter([0.5, 0.55, 0.59, 0.9])
    monkeypatch.setattr(training, "_judged", lambda: {"accuracy": next(values), "nll": 1.0})
    assert run(training, tmp_path).epochs_done == 3


@pytest.mark.parametrize(
    ("until", "moving"),
    [
        ("head", {"logits"}),
        ("stem", {"block_00_conv", "block_00_bn", "logits"}),
        ("block_00", {"logits"}),
        ("block_00_conv", {"block_00_bn", "logits"}),
    ],
)
def test_frozen_layers_stay_to_the_bit(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, until: str, moving: set[str]
) -> None:
    training, _ = make(monkeypatch, epochs=1, freeze={"until": until})
    before = arrays(training.network)
    run(training, tmp_path)
    assert changed(before, arrays(training.network)) == moving


def test_frozen_layers_are_freed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch, epochs=2, freeze={"until": "head", "epochs": 1})
    before = arrays(training.network)
    seen: list[dict[str, Any]] = []
    training._tell = lambda event: seen.append(arrays(training.network)) if "epoch_done" in event else None
    run(training, tmp_path)
    assert changed(before, seen[0]) == {"logits"}
    assert {"stem_conv", "stem_bn", "block_00_conv"} <= changed(seen[0], seen[1])


def test_no_such_layer(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(InputError, match=r"freeze\.until is block_77, .* stem_conv, stem_bn, block_00, logits"):
        make(monkeypatch, freeze={"until": "block_77"})
    with pytest.raises(InputError, match="leaves no layer to train"):
        make(monkeypatch, freeze={"until": "logits"})


def test_sizes_and_strength_grow(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    images = Images()
    images.size = (64, 64)
    progressive = {"stages": 3, "start_size": 0.5, "start_strength": 0.4}
    training, _ = make(monkeypatch, images, epochs=3, progressive=progressive)
    seen: list[Any] = []
    real = loop.Loader.epoch

    def epoch(self: Any, number: int, **options: Any) -> Any:
        model = training.model(number)
        rate = training.network.get_layer("head_dropout").rate
        for batch in real(self, number, **options):
            size = batch.inputs["image"].shape[1:3]
            shown = (size, options["strength"], round(rate, 3), model.network.inputs[0].shape[1:3])
            if shown not in seen:
                seen.append(shown)
            yield batch

    monkeypatch.setattr(loop.Loader, "epoch", epoch)
    training._validation = (np.repeat(np.repeat(images.pixels, 2, 1), 2, 2), images.labels)
    optimizers = {id(training.model(number).optimizer) for number in range(3)}
    assert len(optimizers) == 1, "the optimizer goes on"
    run(training, tmp_path)
    assert seen == [
        ((32, 32), 0.4, 0.08, (32, 32)),
        ((48, 48), 0.7, 0.14, (48, 48)),
        ((64, 64), 1.0, 0.2, (64, 64)),
    ]
    assert training.network.get_layer("block_00_drop_path").rate == 0.1


def test_sizes_are_multiples() -> None:
    from pipeline.training.config import TrainConfig

    config = TrainConfig.model_validate({"epochs": 8, "progressive": {"stages": 4, "start_size": 0.3}})
    assert [phase_of(epoch, config, (224, 192)).size for epoch in range(8)] == [
        *[(64, 64)] * 2,
        *[(128, 96)] * 2,
        *[(160, 160)] * 2,
        *[(224, 192)] * 2,
    ]
    assert {phase_of(epoch, config, (50, 50)).size for epoch in range(8)} == {(32, 32), (40, 40), (50, 50)}
    assert phase_of(3, TrainConfig(), (50, 50)) == Phase((50, 50), 1.0, is_frozen=False)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_mixed_precision(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, precision: str) -> None:
    training, _ = make(monkeypatch, epochs=1, precision=precision, averaging={"every_steps": 2})
    model = training.model()
    assert training.precision == precision
    assert training.network.get_layer("block_00_conv").compute_dtype == precision
    assert model({"image": np.zeros((2, 32, 32, 3), np.uint8)}).dtype == "float32"
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer) == (precision == "float16")
    before = arrays(training.network)
    state = run(training, tmp_path)
    assert "stem_conv" in changed(before, arrays(training.network))
    assert np.isfinite(state.history[0]["loss"])
    for network in (training.network, training.exported):
        assert {str(each.dtype) for each in network.weights} == {"float32"}
    assert {layer.compute_dtype for layer in training.exported.layers} == {"float32"}
    assert keras.config.dtype_policy().name == "float32"


class TooLargeError(RuntimeError):
    """As an accelerator says it."""


@pytest.mark.slow
@pytest.mark.parametrize(("limit", "said"), [(5, "A batch of 4 fits: set train.batch_size to 4"), (1, "Not even a")])
def test_the_batch_that_fits_is_found(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, limit: int, said: str) -> None:
    tried: list[int] = []
    real = loop.TrainingModel.compute_loss

    def compute_loss(self: Any, x: Any = None, y: Any = None, *arguments: Any, **named: Any) -> Any:
        size = x["image"].shape[0]
        tried.append(size)
        if size > limit:
            raise TooLargeError("RESOURCE_EXHAUSTED: Out of memory while trying to allocate 123 bytes.")
        return real(self, x, y, *arguments, **named)

    monkeypatch.setattr(loop.TrainingModel, "compute_loss", compute_loss)
    real_compile = loop.TrainingModel.compile
    monkeypatch.setattr(
        loop.TrainingModel, "compile", lambda self, **named: real_compile(self, **named, run_eagerly=True)
    )
    training, _ = make(monkeypatch, Images(64), batch_size=32, epochs=1)
    with pytest.raises(StageError, match=r"Memory is too small for train\.batch_size 32") as caught:
        run(training, tmp_path)
    assert said in caught.value.message
    assert sorted(set(tried), reverse=True)[:3] == [32, 16, 8]
    if limit == 5:
        assert "train.accumulate_steps to 8" in caught.value.message


def test_the_first_steps_are_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    training, _ = make(monkeypatch)
    seconds = training.first_steps(3)
    assert len(seconds) == 3
    assert all(0 < each < 5 for each in seconds)


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_out_of_range(monkeypatch: pytest.MonkeyPatch, label: int) -> None:
    images = Images()
    images.labels[17] = label
    with pytest.raises(DataError, match=rf"1 of 40 training labels are outside 0\.\.2, the first is {label} in row 17"):
        make(monkeypatch, images)


def test_an_error_of_the_loader_comes_as_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch)
    real = loop.Loader.epoch

    def broken(self: Any, epoch: int, **options: Any) -> Any:
        for step, batch in enumerate(real(self, epoch, **options)):
            if step == 3:
                raise DataError("an image is damaged")
            yield batch

    monkeypatch.setattr(loop.Loader, "epoch", broken)
    with pytest.raises(DataError, match="an image is damaged"):
        run(training, tmp_path)


def test_only_the_first_process_writes(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    training, _ = make(monkeypatch, epochs=1)
    training._distribution = Distribution(process_index=1, process_count=2, devices=2)
    written: list[Any] = []
    monkeypatch.setattr(CheckpointDirectory, "save", lambda *given, **_: written.append(given))
    monkeypatch.setattr(loop, "share_directory", lambda *_: None)
    monkeypatch.setattr(loop, "broadcast", lambda *_: b'{"accuracy": 0.5, "nll": 1.0}')
    monkeypatch.setattr(CheckpointDirectory, "load_best", lambda *_: None)
    training._make_loader = lambda: loop.Loader(training._images, training._config, on_accelerator=False)
    state = run(training, tmp_path)
    assert state.best_accuracy == 0.5, "as the first process judged it"
    assert not written


def test_pixels_are_changed_within_the_step(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    augmentation = {"place": "accelerator", "brightness": 0.2, "mixup": 0.4, "rand_augment": {}, "erase": 0.2}
    training, _ = make(monkeypatch, epochs=1, augmentation=augmentation)
    assert set(next(iter(training.batches())).inputs) > {"image"}
    state = run(training, tmp_path)
    assert np.isfinite(state.history[0]["loss"])


def test_a_teacher_pulls_the_student_and_stays_out_of_checkpoints(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    taught, _ = make(monkeypatch, epochs=6, learning_rate=0.03)
    run(taught, tmp_path / "teacher")
    taught.exported.save(tmp_path / "teacher.keras")
    images = Images()
    images.labels = np.roll(images.labels, 1)  # what the labels say is wrong
    options = {"epochs": 6, "learning_rate": 0.03}
    alone, _ = make(monkeypatch, images, **options)
    teacher = {"path": str(tmp_path / "teacher.keras"), "weight": 1.0, "temperature": 2.0}
    student, _ = make(monkeypatch, images, **options, teacher=teacher)
    before = arrays(student.model().teacher)
    run(alone, tmp_path / "alone")
    run(student, tmp_path / "student")
    assert_equal(arrays(student.model().teacher), before)
    assert len(student.assembly.variables()) == len(alone.assembly.variables())
    expected = np.asarray(taught.exported(images.pixels)).argmax(1)
    agreement = [(np.asarray(each.network(images.pixels)).argmax(1) == expected).mean() for each in (alone, student)]
    assert agreement[1] > 0.8 > agreement[0]


@pytest.mark.parametrize("name", ["mobilenet_v3_small", "mobilenet_v4_hybrid_medium", "efficientnet_v2_b0"])
def test_real_networks_take_other_sizes_with_the_same_variables(name: str) -> None:
    import models

    with keras.StatelessScope(initialize_variables=False):
        network = models.build(name, input_shape=(96, 64, 3), num_classes=5)
        other = network_of_size(network, (64, 32))
        assert [id(each) for each in other.variables] == [id(each) for each in network.variables]
        assert other.output_shape == (None, 5)
