"""Compound scaling equals the published networks as far as they follow it; budgets are kept and used."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import models
from models.scaling import (
    COMPOUND_FAMILIES,
    Budget,
    CompoundScaling,
    Member,
    compound_member,
    compound_scaling,
    fit_budget,
    parse_amount,
)


@dataclass(frozen=True)
class CompoundCase:
    """A row of `efficientnet_params` (efficientnet_builder.py), and how far the rule is from it.

    Args:
        id: The network.
        phi: The coefficient of the network in the paper.
        width: Published factor.
        depth: Published factor.
        resolution: Published, in pixels.
        off: Largest deviation of width, depth and resolution from the rule, in percent of the published value.
        own_phi: Coefficients at which the rule gives width, depth and resolution within 3 %.
    """

    id: str
    phi: float
    width: float
    depth: float
    resolution: int
    off: tuple[float, float, float]
    own_phi: tuple[float, float, float]


# In whole percent. B0 to B3 follow the rule to 5 %: B1 keeps the width of B0. From B4 on the published width and
# resolution are those of one coefficient more, and the depth is up to 6 % off: the networks were rounded by hand.
COMPOUND = [
    CompoundCase("b0", 0.0, 1.0, 1.0, 224, (0, 0, 0), (0, 0, 0)),
    CompoundCase("b1", 0.5, 1.0, 1.1, 240, (5, 0, 0), (0.2, 0.5, 0.5)),
    CompoundCase("b2", 1.0, 1.1, 1.2, 260, (0, 0, 2), (1, 1, 1.1)),
    CompoundCase("b3", 2.0, 1.2, 1.4, 300, (1, 3, 1), (2, 1.9, 2)),
    CompoundCase("b4", 3.0, 1.4, 1.8, 380, (5, 4, 11), (3.5, 3.2, 3.8)),
    CompoundCase("b5", 4.0, 1.6, 2.2, 456, (8, 6, 14), (5, 4.3, 5.1)),
    CompoundCase("b6", 5.0, 1.8, 2.6, 528, (11, 4, 14), (6.1, 5.2, 6.1)),
    CompoundCase("b7", 6.0, 2.0, 3.1, 600, (11, 4, 13), (7.2, 6.2, 7)),
]


@pytest.mark.parametrize("case", COMPOUND, ids=lambda case: case.id)
def test_compound_scaling_against_the_published_coefficients(case: CompoundCase) -> None:
    scaling = compound_scaling(case.phi)
    published = (case.width, case.depth, case.resolution)
    rule = (scaling.width, scaling.depth, scaling.resolution)
    off = tuple(round(abs(100 * (got / wanted - 1))) for got, wanted in zip(rule, published, strict=True))
    assert off == case.off

    own = [compound_scaling(phi) for phi in case.own_phi]
    assert own[0].width == pytest.approx(case.width, rel=0.03)
    assert own[1].depth == pytest.approx(case.depth, rel=0.03)
    assert own[2].resolution == pytest.approx(case.resolution, rel=0.03)


def test_compound_scaling_of_another_base() -> None:
    assert compound_scaling(1, resolution=160, divisor=32) == CompoundScaling(width=1.1, depth=1.2, resolution=192)
    assert compound_scaling(-6).resolution == 96


@pytest.mark.parametrize("phi", [float("nan"), float("inf"), -20.0])
def test_compound_coefficients_out_of_range(phi: float) -> None:
    with pytest.raises(ValueError, match="phi is"):
        compound_scaling(phi)


def test_the_compound_member_at_zero_is_the_base_network() -> None:
    member = compound_member("efficientnet", 0)
    facts = models.describe("efficientnet_b0")
    assert member.multiply_adds == facts["multiply_adds"]
    assert member.parameters == facts["parameters"]
    assert member.peak_activation_bytes == facts["peak_activation_bytes_int8"]
    assert member.options() == {"input_shape": (224, 224, 3), "num_classes": 1000}


def test_a_family_without_compound_scaling_says_so() -> None:
    with pytest.raises(ValueError, match="'mobilenet_v2' has no compound scaling, expected one of efficientnet"):
        compound_member("mobilenet_v2", 1)


@dataclass(frozen=True)
class AmountCase:
    text: Any
    amount: int


AMOUNTS = [
    AmountCase("60M", 60_000_000),
    AmountCase("1.2G", 1_200_000_000),
    AmountCase("3.5e6", 3_500_000),
    AmountCase("500k", 500_000),
    AmountCase("2 MiB", 2 * 2**20),
    AmountCase("2MB", 2_000_000),
    AmountCase("0.5 GiB", 2**29),
    AmountCase("2.2MiB", 2_306_867),
    AmountCase("512kib", 512 * 1024),
    AmountCase("640 B", 640),
    AmountCase(" 7 ", 7),
    AmountCase(12, 12),
    AmountCase(3.5e6, 3_500_000),
    AmountCase(".5k", 500),
]


@pytest.mark.parametrize("case", AMOUNTS, ids=lambda case: repr(case.text))
def test_amounts(case: AmountCase) -> None:
    assert parse_amount(case.text) == case.amount


@pytest.mark.parametrize("text", ["", "M", "60 Mega", "1,000", "2 Mi", "0x10", "nan", "inf", True, "1e"])
def test_what_is_no_amount(text: Any) -> None:
    with pytest.raises(ValueError, match="is no amount, expected a number with k, M or G"):
        parse_amount(text)


@pytest.mark.parametrize("text", ["0", "-5M", "1.5", "0.0001k", "1.2B", -3])
def test_amounts_are_whole_numbers_above_zero(text: Any) -> None:
    with pytest.raises(ValueError, match="expected a whole number above 0"):
        parse_amount(text)


@given(st.integers(1, 10**15))
def test_a_number_is_its_own_amount(number: int) -> None:
    assert parse_amount(number) == parse_amount(str(number)) == number


@dataclass(frozen=True)
class BudgetCase:
    id: str
    message: str
    limits: dict[str, Any] = field(default_factory=dict)


BUDGETS = [
    BudgetCase("empty", "limits nothing, expected at least one of multiply_adds, parameters"),
    BudgetCase("zero", "parameters is 0, expected a whole number", {"parameters": 0}),
    BudgetCase("text", "multiply_adds is '60M'.*parse_amount", {"multiply_adds": "60M"}),
    BudgetCase("truth", "size_bytes is True", {"size_bytes": True}),
    BudgetCase("precision", "precision is 'int4'", {"size_bytes": 1, "precision": "int4"}),
]


@pytest.mark.parametrize("case", BUDGETS, ids=lambda case: case.id)
def test_budgets_are_checked(case: BudgetCase) -> None:
    with pytest.raises(ValueError, match=case.message):
        Budget(**case.limits)


LIMITS = ("multiply_adds", "parameters", "size_bytes", "peak_activation_bytes")
SMALL = {"input_shape": (96, 96, 3), "num_classes": 10}


def members(name: str, widths: list[float]) -> list[Member]:
    """All members of a family of widths, each counted on its own."""
    return [fit_exactly(name, width) for width in widths]


def fit_exactly(name: str, width: float) -> Member:
    facts = models.describe(name, width=width, input_shape=SMALL["input_shape"], num_classes=SMALL["num_classes"])
    costs = {**facts, "size_bytes": facts["size_bytes_int8"],
             "peak_activation_bytes": facts["peak_activation_bytes_int8"]}  # fmt: skip
    return Member(
        name=name,
        family=facts["family"],
        phi=None,
        width=width,
        depth=1.0,
        input_shape=SMALL["input_shape"],
        num_classes=SMALL["num_classes"],
        precision="int8",
        **{key: costs[key] for key in LIMITS},
    )


@pytest.fixture(scope="module")
def every_width() -> list[Member]:
    return members("mobilenet_v1", [step / 20 for step in range(5, 21)])


@settings(max_examples=200, deadline=None)
@given(limit=st.sampled_from(LIMITS), share=st.floats(0.01, 1.2))
def test_the_largest_width_that_fits_is_taken(every_width: list[Member], limit: str, share: float) -> None:
    """Against all members, counted one by one: what is taken keeps the budget, the next larger one doesn't."""
    costs = [getattr(member, limit) for member in every_width]
    bound = int(share * max(costs))
    fitting = [member for member in every_width if getattr(member, limit) <= bound]
    if not fitting:
        with pytest.raises(ValueError, match="No member of 'mobilenet_v1' keeps within"):
            fit_budget("mobilenet_v1", Budget(**{limit: bound}), **SMALL)
        return
    found = fit_budget("mobilenet_v1", Budget(**{limit: bound}), **SMALL)
    assert asdict(found) == asdict(fitting[-1])


@settings(max_examples=50, deadline=None)
@given(limits=st.tuples(st.integers(2_000_000, 10**8), st.integers(2_000_000, 10**8)))
def test_a_larger_budget_never_gives_a_smaller_member(limits: tuple[int, int]) -> None:
    smaller, larger = sorted(limits)

    def size(limit: int) -> int:
        try:
            return fit_budget("mobilenet_v3", Budget(multiply_adds=limit), **SMALL).multiply_adds
        except ValueError:
            return 0

    assert size(smaller) <= size(larger) <= larger


@dataclass(frozen=True)
class CompoundBudget:
    id: str
    budget: Budget
    input_shape: tuple[int, int, int] | None = None


COMPOUND_BUDGETS = [
    CompoundBudget("parameters of small images", Budget(parameters=3_000_000), (64, 64, 3)),
    CompoundBudget("both", Budget(multiply_adds=10**9, size_bytes=3_500_000)),
]


@pytest.mark.slow
@pytest.mark.parametrize("case", COMPOUND_BUDGETS, ids=lambda case: case.id)
def test_the_largest_compound_coefficient_that_fits_is_taken(case: CompoundBudget) -> None:
    found = fit_budget("efficientnet", case.budget, input_shape=case.input_shape)
    assert found.phi is not None
    larger = compound_member("efficientnet", round(found.phi + 0.01, 2), input_shape=case.input_shape)
    limits = case.budget.limits()
    assert all(getattr(found, name) <= limit for name, limit in limits.items())
    assert any(getattr(larger, name) > limit for name, limit in limits.items())
    assert found.input_shape == (case.input_shape or (compound_scaling(found.phi).resolution,) * 2 + (3,))


def test_a_generous_budget_takes_the_end_of_the_family() -> None:
    member = fit_budget("mobilenet_v2", Budget(parameters=10**9), **SMALL)
    assert member.width == max(result.width for result in models.MODELS["mobilenet_v2"].published)


def test_a_family_of_fixed_networks_gives_its_largest() -> None:
    member = fit_budget("efficientnet_lite", Budget(multiply_adds=900_000_000))
    assert (member.name, member.width, member.options()["input_shape"]) == ("efficientnet_lite2", 1.0, (260, 260, 3))
    one = fit_budget("efficientnet_lite1", Budget(multiply_adds=900_000_000))
    assert one.name == "efficientnet_lite1"


def test_options_change_what_fits() -> None:
    budget = Budget(parameters=2_000_000)
    plain = fit_budget("mobilenet_v2", budget, **SMALL)
    gated = fit_budget("mobilenet_v2", budget, squeeze_excite=True, **SMALL)
    assert gated.width < plain.width


def test_the_member_can_be_built() -> None:
    member = fit_budget("mobilenet_v3", Budget(multiply_adds=9_000_000), **SMALL)
    network = models.without_weights(lambda: models.build(member.name, **member.options()))
    assert models.count_multiply_adds(network) == member.multiply_adds <= 9_000_000


def test_the_bytes_are_those_of_the_precision() -> None:
    small = fit_budget("mobilenet_v2", Budget(size_bytes=4_000_000, precision="float32"), **SMALL)
    large = fit_budget("mobilenet_v2", Budget(size_bytes=4_000_000), **SMALL)
    assert small.width < large.width
    assert small.size_bytes > 3 * small.parameters


@dataclass(frozen=True)
class ErrorCase:
    id: str
    call: Callable[[], Any]
    message: str


ERRORS = [
    ErrorCase(
        "nothing fits",
        lambda: fit_budget("mobilenet_v2", Budget(multiply_adds=1_000_000), **SMALL),
        r"No member of 'mobilenet_v2' keeps within multiply_adds up to 1,000,000: the smallest, mobilenet_v2 at width "
        r"0.35, depth 1 and input 96x96x3 with 10 classes, needs multiply_adds 10,666,928",
    ),
    ErrorCase(
        "unknown family",
        lambda: fit_budget("mobilnet_v2", Budget(parameters=1)),
        r"Unknown family 'mobilnet_v2', expected one of .* Did you mean 'mobilenet_v2'\?",
    ),
    ErrorCase(
        "bad image size",
        lambda: fit_budget("mobilenet_v2", Budget(parameters=1), input_shape=(8, 8, 3)),
        "at least 32",
    ),
]


@pytest.mark.parametrize("case", ERRORS, ids=lambda case: case.id)
def test_refused(case: ErrorCase) -> None:
    with pytest.raises(ValueError, match=case.message):
        case.call()


def test_compound_families_start_from_networks_that_scale() -> None:
    for family, base in COMPOUND_FAMILIES.items():
        spec = models.find(base)
        assert (spec.family, spec.has_width, spec.has_depth) == (family, True, True)
