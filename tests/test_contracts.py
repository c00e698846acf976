"""What the base of all distillers does for them: finds their options, weighs and names their losses, seeds their draws."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import pytest
import torch
from torch import Tensor

from recbole_kd.contracts import Batch, Distiller, DistillerOptions, Needs, Part
from recbole_kd.options import option
from tests.distiller.fakes import FakeStudent, FakeTeacher, batch_of, data_view

DATA = data_view(9, 12)


@dataclass(frozen=True)
class OneOptions(DistillerOptions):
    weight: float = option(0.5, "weight", minimum=0)


@dataclass(frozen=True)
class TwoOptions(DistillerOptions):
    first_weight: float = option(0.5, "weight of the first loss", minimum=0)
    second_weight: float = option(0.25, "weight of the second loss", minimum=0)

    needs = Needs.of("scores", teacher=("ranks",))

    @property
    def weights(self) -> Mapping[str, float]:
        return {"first": self.first_weight, "second": self.second_weight}


class One(Distiller[OneOptions]):
    name = "one"

    def loss(self, batch: Batch) -> Tensor:
        return torch.tensor(2.0)


class Two(Distiller[TwoOptions]):
    name = "two"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {"first": torch.tensor(2.0), "second": torch.tensor(8.0)}


AnyOptions = TypeVar("AnyOptions", bound=DistillerOptions)


class Base(Distiller[AnyOptions]):
    """A base for several distillers names no options."""


def test_its_draws_depend_on_the_runs_seed() -> None:
    states = [
        One(OneOptions(), FakeStudent(9, 12, 3), FakeTeacher(9, 12, 3), replace(DATA, seed=seed)).get_extra_state()
        for seed in (1, 2, 1)
    ]
    assert torch.equal(states[0], states[2])
    assert not torch.equal(states[0], states[1])


class Third(Base[TwoOptions]):
    name = "third"

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        return {}


class Quarter(One):
    """One of several processes."""

    def loss(self, batch: Batch) -> Part:  # type: ignore[override]
        return Part(torch.tensor(2.0), 0.25)


def losses(kind: type[Distiller], **options: float) -> dict[str, float]:
    made = kind(kind.options_class(**options), FakeStudent(9, 12, 3), FakeTeacher(9, 12, 3), DATA)
    return {name: loss.item() for name, loss in made(batch_of(DATA, 5)).items()}


def test_the_options_are_those_in_the_brackets() -> None:
    assert (One.options_class, Two.options_class, Quarter.options_class) == (OneOptions, TwoOptions, OneOptions)
    assert Third.options_class is TwoOptions
    assert not hasattr(Base, "options_class")


def test_the_only_loss_is_multiplied_by_weight_and_named_by_the_distiller() -> None:
    assert losses(One) == {"one": 1.0}
    assert losses(One, weight=3.0) == {"one": 6.0}


def test_several_losses_keep_their_names_and_have_weights_of_their_own() -> None:
    assert losses(Two) == {"first": 1.0, "second": 2.0}
    assert losses(Third) == {}, "nothing to compute in this step"


def test_a_part_counts_by_its_fraction_of_the_entries() -> None:
    assert losses(Quarter) == {"one": 0.25}


@pytest.mark.parametrize(
    ("options", "off"),
    [
        (OneOptions(), False),
        (OneOptions(weight=0), True),
        (TwoOptions(first_weight=0), False),
        (TwoOptions(first_weight=0, second_weight=0), True),
    ],
)
def test_it_is_off_when_every_weight_is_0(options: DistillerOptions, off: bool) -> None:
    assert options.is_off == off


def test_needs_are_of_both_models_where_the_teacher_is_not_named() -> None:
    assert Needs.of("scores") == Needs(frozenset({"scores"}), frozenset({"scores"}))
    assert TwoOptions().needs == Needs(frozenset({"scores"}), frozenset({"ranks"}))
    assert TwoOptions().sequence_needs == TwoOptions().needs, "the same where nothing else is said"
    assert OneOptions().needs == Needs()


def test_distillers_of_one_seed_draw_different_numbers_and_each_the_same_again() -> None:
    views = FakeStudent(9, 12, 3), FakeTeacher(9, 12, 3), DATA
    first, again, other = One(OneOptions(), *views), One(OneOptions(), *views), Two(TwoOptions(), *views)
    drawn = [torch.rand(3, generator=made.generator) for made in (first, again, other)]
    assert torch.equal(drawn[0], drawn[1])
    assert not torch.equal(drawn[0], drawn[2])
