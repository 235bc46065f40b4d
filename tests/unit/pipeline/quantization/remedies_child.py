"""All remedies on whichever backend Keras runs; run as a script by a test.

    python remedies_child.py FILE

writes the weights of a briefly trained network, the logits of its rounded form, and what the remedies gave.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import keras
import numpy as np

sys.path.insert(0, str(Path(__file__).parent))

from digits import Digits, trained_network

from pipeline.network import predict_logits
from pipeline.quantization.bias_correction import correct_biases
from pipeline.quantization.config import EqualizationConfig, FineTuneConfig, IntegerArithmetic, RoundingConfig
from pipeline.quantization.equalization import equalize
from pipeline.quantization.fake_quantization import fake_quantized, observed_ranges
from pipeline.quantization.folded import fold
from pipeline.quantization.rounding import learn_rounding
from pipeline.quantization.training import fine_tune
from pipeline.training.config import AugmentationConfig

COARSE = IntegerArithmetic(weight_bits=2, activation_bits=4)

network, digits, validation = fold(trained_network(epochs=3)), Digits(0, 512), Digits(1200, 1300)
samples = digits.pixels[:64]
ranges = observed_ranges(network, samples)
logits = predict_logits(fake_quantized(network, ranges, COARSE), samples)
equalized = equalize(network, samples, EqualizationConfig(relu6="unclipped"))
events: list[dict[str, object]] = []
rounded = learn_rounding(
    equalized,
    samples,
    observed_ranges(equalized, samples),
    RoundingConfig(steps=100),
    arithmetic=COARSE,
    tell=events.append,
)
corrected = correct_biases(rounded, samples, observed_ranges(equalized, samples), COARSE, reference=equalized)
tuned = fine_tune(
    network,
    digits,
    (validation.pixels, validation.labels),
    ranges,
    FineTuneConfig(epochs=2, learning_rate=0.01, workers=0, augmentation=AugmentationConfig(shift=0.0)),
    arithmetic=COARSE,
)
facts = {
    "backend": keras.backend.backend(),
    "ranges": ranges,
    "nearest_errors": [event["nearest_error"] for event in events],
    "rounding_errors": [event["error"] for event in events],
    "corrected": bool(np.isfinite(predict_logits(corrected, samples)).all()),
    "losses": [record["validation_loss"] for record in tuned.history],
    "moved_ranges": sum(tuned.ranges[name][1] != ranges[name][1] for name in ranges),
}
weights = {f"weight_{place}": weight for place, weight in enumerate(network.get_weights())}
np.savez(sys.argv[1], facts=json.dumps(facts), logits=logits, **weights)
