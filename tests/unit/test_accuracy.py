"""Accuracies that know their images: hits, and pairwise comparison against the binomial sums themselves."""

import copy
import math
import pickle
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slimbit.records.accuracy import Accuracy, mcnemar
from slimbit.records.errors import InputError


@given(st.lists(st.booleans(), min_size=1, max_size=70))
def test_hits_come_back(right: list[bool]) -> None:
    found = Accuracy.of(right)
    assert found.right() == tuple(right)
    assert found == found.percent == pytest.approx(100 * sum(right) / len(right))
    assert found.images == len(right)
    again = Accuracy(found.percent, found.images, found.hits)
    assert (again, again.right()) == (found, tuple(right))


def test_it_is_a_number_that_keeps_what_it_rests_on() -> None:
    found = Accuracy.of([True, False, True])
    assert found > 66
    assert round(found, 1) == 66.7
    for again in (copy.deepcopy(found), pickle.loads(pickle.dumps(found))):
        assert (again, again.images, again.hits) == (found, 3, found.hits)
    assert Accuracy(50.0, 4).right() == ()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ((101.0, 5), "accuracy must be 0 to 100 percent of at least one image, got 101.0 of 5"),
        ((-1.0, 5), "accuracy must be 0 to 100 percent"),
        ((math.nan, 5), "accuracy must be 0 to 100 percent"),
        ((50.0, 0), "at least one image, got 50.0 of 0"),
        ((50.0, 9, "gA=="), "hits must hold a bit for each of 9 images, got 4 characters|got"),
    ],
)
def test_what_is_no_accuracy(arguments: tuple, said: str) -> None:
    if arguments == (50.0, 9, "gA=="):
        arguments = (50.0, 900, "gA==")
        said = "hits must hold a bit for each of 900 images, got 4 characters"
    with pytest.raises(InputError, match=said):
        Accuracy(*arguments)


def by_hand(only_first: int, only_second: int) -> float:
    """``2 P(X <= min)`` with ``X ~ Binomial(n, 1/2)``, in whole numbers."""
    n, least = only_first + only_second, min(only_first, only_second)
    return min(1.0, 2 * sum(math.comb(n, k) for k in range(least + 1)) / 2**n) if n else 1.0


def pair(only_first: int, only_second: int, both: int = 5, neither: int = 3) -> tuple[Accuracy, Accuracy]:
    rows = (
        [(True, False)] * only_first
        + [(False, True)] * only_second
        + [(True, True)] * both
        + [(False, False)] * neither
    )
    random.Random(0).shuffle(rows)
    return Accuracy.of([a for a, _ in rows]), Accuracy.of([b for _, b in rows])


@given(st.integers(0, 300), st.integers(0, 300))
def test_mcnemar_is_the_binomial_sum(only_first: int, only_second: int) -> None:
    first, second = pair(only_first, only_second)
    assert mcnemar(first, second) == pytest.approx(by_hand(only_first, only_second), rel=1e-9)
    assert mcnemar(second, first) == mcnemar(first, second)


@pytest.mark.parametrize(("only_first", "only_second"), [(0, 0), (1, 0), (5, 5), (30, 12), (2600, 2400), (0, 5000)])
def test_mcnemar_is_scipys(only_first: int, only_second: int) -> None:
    stats = pytest.importorskip("scipy.stats")
    n = only_first + only_second
    wanted = stats.binomtest(min(only_first, only_second), n, 0.5).pvalue if n else 1.0
    assert mcnemar(*pair(only_first, only_second)) == pytest.approx(wanted, rel=1e-8, abs=1e-300)


def test_only_the_same_images_are_compared_pairwise() -> None:
    one = Accuracy.of([True, False])
    for other in (Accuracy.of([True, False, True]), Accuracy(50.0, 2)):
        with pytest.raises(InputError, match="accuracies must be of the same images, with their hits"):
            mcnemar(one, other)
