"""Members of a family by size: compound scaling, and the largest member that keeps within a budget."""

from __future__ import annotations

import difflib
import functools
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any, get_args

from models import MODELS, NetworkConfig, NetworkSpec, find, resolve
from models.cost import NetworkCost, count_cost
from models.memory import Precision
from models.skeleton import without_weights
from models.spec import MIN_RESOLUTION, Activation

# Section 3.3 of arXiv:1905.11946, step 1: depth, width, resolution.
_ALPHA, _BETA, _GAMMA = 1.2, 1.1, 1.15

COMPOUND_FAMILIES: dict[str, str] = {"efficientnet": "efficientnet_b0"}
"""Families that scale by a compound coefficient, and the network that it starts from."""

_PHI_STEPS = range(-600, 701)
"""Hundredths of the compound coefficients that are tried: from 224 to 96 pixels, the smallest image that keeps the
paper's first strides, up to the coefficient of B7."""

_WIDTH_STEP = 0.05

_LIMITS = ("multiply_adds", "parameters", "size_bytes", "peak_activation_bytes")

_MULTIPLES = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "ki": 2**10, "mi": 2**20, "gi": 2**30}
_AMOUNT = re.compile(r"(?P<number>[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?)\s*(?P<multiple>[kmg]?|[kmg]i(?=b))(?P<bytes>b?)")


@dataclass(frozen=True, kw_only=True)
class CompoundScaling:
    """Factors on a base network.

    Args:
        width: On the number of channels.
        depth: On the number of blocks.
        resolution: Side of the square image in pixels.
    """

    width: float
    depth: float
    resolution: int


@dataclass(frozen=True, kw_only=True)
class Budget:
    """What a network may cost at most, for one image.

    Args:
        multiply_adds: See `models.accounting`.
        parameters: Trainable ones, as frameworks count them.
        size_bytes: Weights of the file (`models.memory.file_size_bytes`).
        peak_activation_bytes: See `models.memory`.
        precision: Of the file that the two limits in bytes are for.

    Raises:
        ValueError: If there is no limit, or one is no whole number above 0.
    """

    multiply_adds: int | None = None
    parameters: int | None = None
    size_bytes: int | None = None
    peak_activation_bytes: int | None = None
    precision: Precision = "int8"

    def __post_init__(self) -> None:
        if self.precision not in get_args(Precision):
            raise ValueError(f"precision is {self.precision!r}, expected one of {', '.join(get_args(Precision))}.")
        limits = self.limits()
        if not limits:
            raise ValueError(f"The budget limits nothing, expected at least one of {', '.join(_LIMITS)}.")
        for name, limit in limits.items():
            if isinstance(limit, bool) or not isinstance(limit, int) or limit < 1:
                raise ValueError(f"{name} is {limit!r}, expected a whole number above 0; parse_amount reads '60M'.")

    def limits(self) -> dict[str, int]:
        """The limits that were given, by name."""
        return {name: getattr(self, name) for name in _LIMITS if getattr(self, name) is not None}


@dataclass(frozen=True, kw_only=True)
class Member:
    """A network of a family, and what it costs for one image.

    Args:
        name: A key of `models.MODELS`.
        family: Its family.
        phi: The compound coefficient, in a family that has one.
        width: Factor on the number of channels.
        depth: Factor on the number of blocks.
        input_shape: Without the batch.
        num_classes: Number of logits.
        precision: Of the file that the bytes are for.
        multiply_adds: See `models.accounting`.
        parameters: Trainable ones.
        size_bytes: Weights of the file.
        peak_activation_bytes: See `models.memory`.
    """

    name: str
    family: str
    phi: float | None
    width: float
    depth: float
    input_shape: tuple[int, ...]
    num_classes: int
    precision: Precision
    multiply_adds: int
    parameters: int
    size_bytes: int
    peak_activation_bytes: int

    def options(self) -> dict[str, Any]:
        """What makes it, as arguments of `models.build` beside the name."""
        chosen = {"width": self.width, "depth": self.depth}
        return {
            "input_shape": self.input_shape,
            "num_classes": self.num_classes,
            **{name: value for name, value in chosen.items() if value != 1.0},
        }


@dataclass(frozen=True, kw_only=True)
class _Rung:
    """A member that has not been counted."""

    name: str
    config: NetworkConfig
    phi: float | None = None


def parse_amount(text: str | float) -> int:
    """Reads an amount of multiply-adds, parameters or bytes.

    Args:
        text: `60M`, `1.2G`, `3.5e6`, `500k` or `2MB` (powers of 1,000), `2.2 MiB` (powers of 1,024), or a number. What
            a prefix leaves of a part of one is cut.

    Raises:
        ValueError: If it is none, or not a whole number above 0.

    >>> parse_amount("60M"), parse_amount("1.2G"), parse_amount("2 MiB")
    (60000000, 1200000000, 2097152)
    """
    match = None if isinstance(text, bool) else _AMOUNT.fullmatch(str(text).strip().lower())
    if match is None:
        raise ValueError(
            f"{text!r} is no amount, expected a number with k, M or G, or for bytes kB, MB, GB, KiB, MiB or GiB, "
            "such as 60M, 1.2G or 2 MiB."
        )
    amount = Decimal(match["number"]) * _MULTIPLES[match["multiple"]]
    if amount < 1 or (amount != int(amount) and not match["multiple"]):
        raise ValueError(f"{text!r} is {amount.normalize():f}, expected a whole number above 0.")
    return int(amount)


def compound_scaling(phi: float, *, resolution: int = 224, divisor: int = 4) -> CompoundScaling:
    """Compound scaling: `depth = 1.2 ** phi`, `width = 1.1 ** phi`, `resolution * 1.15 ** phi`.

    Equation 3 and section 3.3 of Tan and Le, ICML 2019, arXiv:1905.11946: each step of 1 takes about twice the
    multiply-adds. The published networks B1 to B7 were rounded by hand, and from B4 on their depth follows another
    coefficient than their width and resolution: those of B4 fit 4, its depth 3 (`tests/unit/models/test_scaling.py`).

    Args:
        phi: The compound coefficient: 0 for the base network, below 0 for smaller ones.
        resolution: Side of the base network's image in pixels.
        divisor: The resolution is rounded to a multiple of it; those of B0 to B7 are multiples of 4.

    Raises:
        ValueError: If phi is not finite or the image would have less than 32 pixels a side.
    """
    if not (math.isfinite(phi) and abs(phi) < 100):
        raise ValueError(f"phi is {phi!r}, expected a number such as 0.5, at which B0 becomes B1.")
    side = round(resolution * _GAMMA**phi / divisor) * divisor
    if side < MIN_RESOLUTION:
        raise ValueError(f"phi is {phi!r}, which gives images of {side} pixels a side, expected at least 32.")
    return CompoundScaling(width=round(_BETA**phi, 4), depth=round(_ALPHA**phi, 4), resolution=side)


def compound_member(
    name: str,
    phi: float,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    precision: Precision = "int8",
) -> Member:
    """The network of a compound coefficient.

    Args:
        name: A family of `COMPOUND_FAMILIES`, or the network that it starts from.
        phi: The compound coefficient.
        input_shape: `(height, width, 3)` in pixels; None scales the resolution too.
        num_classes: None takes the authors'.
        precision: Of the file that the member's bytes are for.

    Raises:
        ValueError: If the family does not scale so, or an argument is outside its range.
    """
    spec = next((spec for spec in networks_of(name) if spec.name in COMPOUND_FAMILIES.values()), None)
    if spec is None:
        known = ", ".join(sorted({*COMPOUND_FAMILIES, *COMPOUND_FAMILIES.values()}))
        raise ValueError(f"{name!r} has no compound scaling, expected one of {known}; a budget finds its members.")
    return _member(_compound_rung(spec, phi, input_shape, {"num_classes": num_classes}), precision)


def fit_budget(
    name: str,
    budget: Budget,
    *,
    input_shape: tuple[int, ...] | None = None,
    num_classes: int | None = None,
    activation: Activation | None = None,
    squeeze_excite: bool | None = None,
    early_stride: bool | None = None,
) -> Member:
    """The largest member of a family that keeps within a budget.

    The largest is the one with most multiply-adds, or with most parameters where the budget limits only parameters
    or the size of the file. Members are:

    - of a family of `COMPOUND_FAMILIES` the compound coefficients from -6 to 7 in steps of 0.01,
    - of a network with published widths the multiples of 0.05 from its smallest to its largest published width,
    - else the networks as they are published.

    Every member that is chosen was built and counted, and so was the next larger one, unless there is none.

    Args:
        name: A family, such as `efficientnet` or `mobilenet_v3`, or one network of it.
        budget: The limits.
        input_shape: `(height, width, 3)` in pixels; None takes the authors', and scales it by a compound coefficient.
        num_classes: None takes the authors'.
        activation: As in `models.build`.
        squeeze_excite: As in `models.build`.
        early_stride: As in `models.build`.

    Raises:
        ValueError: If nothing fits, the family is unknown, or a network refuses an option.
    """
    options = {
        "num_classes": num_classes,
        "activation": activation,
        "squeeze_excite": squeeze_excite,
        "early_stride": early_stride,
    }
    ladders = [_ladder(spec, input_shape, options) for spec in networks_of(name)]
    fitting = [member for ladder in ladders if (member := _largest(ladder, budget)) is not None]
    if not fitting:
        smallest = min((_member(ladder[0], budget.precision) for ladder in ladders), key=lambda m: _rank(m, budget))
        raise ValueError(_nothing_fits(name, budget, smallest))
    return max(fitting, key=lambda member: _rank(member, budget))


def networks_of(name: str) -> list[NetworkSpec]:
    """The networks of a family, or the one of this name; a compound family is scaled from one network alone.

    Raises:
        ValueError: If there is neither; the message names the closest one.
    """
    if name in COMPOUND_FAMILIES and COMPOUND_FAMILIES[name] in MODELS:
        return [find(COMPOUND_FAMILIES[name])]
    if name in MODELS:
        return [find(name)]
    networks = [spec for spec in MODELS.values() if spec.family == name]
    if not networks:
        families = sorted({spec.family for spec in MODELS.values()})
        close = difflib.get_close_matches(name, [*families, *MODELS], n=1, cutoff=0.4)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ValueError(f"Unknown family {name!r}, expected one of {', '.join(families)}, or a network.{hint}")
    return networks


def _ladder(spec: NetworkSpec, input_shape: tuple[int, ...] | None, options: dict[str, Any]) -> Sequence[_Rung]:
    """The members of one network, from the smallest to the largest."""
    if spec.name in COMPOUND_FAMILIES.values():
        return _CompoundLadder(spec, input_shape, options)
    widths = [1.0]
    if spec.has_width and spec.published:
        published = [result.width for result in spec.published]
        steps = range(round(min(published) / _WIDTH_STEP), round(max(published) / _WIDTH_STEP) + 1)
        widths = [round(step * _WIDTH_STEP, 2) for step in steps]
    return [
        _Rung(name=spec.name, config=resolve(spec, input_shape=input_shape, width=width, **options))
        for width in widths
    ]  # fmt: skip


class _CompoundLadder(Sequence[_Rung]):
    """The members of a compound family, made when they are asked for."""

    def __init__(self, spec: NetworkSpec, input_shape: tuple[int, ...] | None, options: dict[str, Any]) -> None:
        self._spec, self._input_shape, self._options = spec, input_shape, options

    def __len__(self) -> int:
        return len(_PHI_STEPS)

    def __getitem__(self, index: Any) -> Any:
        return _compound_rung(self._spec, _PHI_STEPS[index] / 100, self._input_shape, self._options)


def _compound_rung(
    spec: NetworkSpec, phi: float, input_shape: tuple[int, ...] | None, options: dict[str, Any]
) -> _Rung:  # fmt: skip
    scaling = compound_scaling(phi, resolution=spec.resolution)
    shape = (scaling.resolution, scaling.resolution, 3) if input_shape is None else input_shape
    config = resolve(spec, input_shape=shape, width=scaling.width, depth=scaling.depth, **options)
    return _Rung(name=spec.name, config=config, phi=phi)


def _largest(ladder: Sequence[_Rung], budget: Budget) -> Member | None:
    """Bisects: what is returned fits, and the next larger one does not, or there is none."""
    below, above = -1, len(ladder)
    found = None
    while above - below > 1:
        middle = (below + above) // 2
        member = _member(ladder[middle], budget.precision)
        if all(getattr(member, name) <= limit for name, limit in budget.limits().items()):
            below, found = middle, member
        else:
            above = middle
    return found


def _rank(member: Member, budget: Budget) -> tuple[int, int]:
    """What makes one member larger than another."""
    if budget.multiply_adds is None and budget.peak_activation_bytes is None:
        return member.parameters, member.multiply_adds
    return member.multiply_adds, member.parameters


def _member(rung: _Rung, precision: Precision) -> Member:
    cost, config = _cost(rung.name, rung.config), rung.config
    int8 = precision == "int8"
    return Member(
        name=rung.name,
        family=find(rung.name).family,
        phi=rung.phi,
        width=config.width,
        depth=config.depth,
        input_shape=config.input_shape,
        num_classes=config.num_classes,
        precision=precision,
        multiply_adds=cost.multiply_adds,
        parameters=cost.parameters,
        size_bytes=cost.size_bytes_int8 if int8 else cost.size_bytes_float32,
        peak_activation_bytes=cost.peak_activation_bytes_int8 if int8 else cost.peak_activation_bytes,
    )


@functools.lru_cache(maxsize=1024)
def _cost(name: str, config: NetworkConfig) -> NetworkCost:
    return count_cost(without_weights(lambda: find(name).build(config)))


def _nothing_fits(name: str, budget: Budget, smallest: Member) -> str:
    limits = budget.limits()
    wanted = ", ".join(f"{key} up to {limit:,}" for key, limit in limits.items())
    costs = ", ".join(f"{key} {getattr(smallest, key):,}" for key in limits)
    size = "x".join(map(str, smallest.input_shape))
    return (
        f"No member of {name!r} keeps within {wanted}: the smallest, {smallest.name} at width {smallest.width:g}, "
        f"depth {smallest.depth:g} and input {size} with {smallest.num_classes} classes, needs {costs}. Take a larger "
        "budget, a smaller input or another family."
    )
