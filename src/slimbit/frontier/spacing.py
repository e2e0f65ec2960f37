"""Where points go: prices that spread evenly over log cost, and more where the curve bends. Plain numbers."""

import heapq
import math
from collections.abc import Callable, Sequence
from itertools import pairwise

CostOf = Callable[[float], float]
"""From a price to the cost of its plan; falls, or stays, when the price grows."""

TOLERANCE = 0.01
STEPS = 20
WAY_DOWN = 0.25
"""Share of the way from the best to the worst accuracy that is worth looking at closely."""


def price_for(cost_of: CostOf, target: float, low: float, high: float) -> float:
    """The price at which the cost is the target, within one percent, by false position in log-log.

    Args:
        cost_of: Falling in the price; may jump, then the nearest side of the jump is found.
        target: Positive; prices outside ``low ... high`` are not tried.
        low: Price whose cost is at least the target.
        high: Price whose cost is at most the target.

    >>> round(price_for(lambda price: 5 / price, 2.0, 0.1, 100.0), 2)
    2.5
    """
    a, b = math.log(low), math.log(high)
    fa, fb = _gap(cost_of(low), target), _gap(cost_of(high), target)
    if fa <= TOLERANCE or fb >= -TOLERANCE:
        return low if abs(fa) <= abs(fb) else high
    best = min((abs(fa), low), (abs(fb), high))
    for turn in range(STEPS):
        # every third step halves the bracket: false position alone creeps along a jump
        share = 0.5 if turn % 3 == 2 else min(0.9, max(0.1, fa / (fa - fb)))
        middle = a + (b - a) * share
        gap = _gap(cost_of(math.exp(middle)), target)
        best = min(best, (abs(gap), math.exp(middle)))
        if best[0] <= TOLERANCE:
            break
        a, b, fa, fb = (middle, b, gap, fb) if gap > 0 else (a, middle, fa, gap)
    return best[1]


def _gap(cost: float, target: float) -> float:
    """How far above the target, in log; a cost of nothing is far below."""
    return math.log(max(cost, 1e-9 * target) / target)


def even_targets(dearest: float, cheapest: float, count: int) -> list[float]:
    """Costs evenly spread over log cost, both ends included, from the dearest down.

    >>> [round(c, 3) for c in even_targets(8.0, 1.0, 4)]
    [8.0, 4.0, 2.0, 1.0]
    """
    if count == 1:
        return [math.sqrt(dearest * cheapest)]
    ratio = (cheapest / dearest) ** (1 / (count - 1))
    return [dearest * ratio**i for i in range(count)]


def without_nearest(targets: Sequence[float], known: Sequence[float]) -> list[float]:
    """Costs to aim for, without those that are nearest, in log cost, to points that there are: each takes one away.

    >>> without_nearest([8.0, 4.0, 2.0, 1.0], [3.9])
    [8.0, 2.0, 1.0]
    """
    left = list(targets)
    for cost in known:
        left.remove(min(left, key=lambda target: abs(math.log(target / cost))))
    return left


def bisection_order(count: int) -> list[int]:
    """An order in which every beginning is spread over the whole: both ends, the middle, the quarters, ...

    >>> bisection_order(5)
    [0, 4, 2, 1, 3]
    """
    order = [0, count - 1] if count > 1 else list(range(count))
    gaps = [(-(count - 1), 0, count - 1)] if count > 2 else []
    while gaps:
        _, left, right = heapq.heappop(gaps)
        middle = (left + right) // 2
        order.append(middle)
        for a, b in ((left, middle), (middle, right)):
            if b - a > 1:
                heapq.heappush(gaps, (-(b - a), a, b))
    return order


def refinement_prices(points: Sequence[tuple[float, float, float]], count: int) -> list[float]:
    """Prices of further points, where straight lines between the points are worst.

    Between neighbours a line is off by about ``h^2 |f''| / 8``, with ``h`` their distance in log cost and ``f''``
    the bend of accuracy over log cost at the two ends (divided differences). An interval cut into n + 1 parts is
    off by that over ``(n + 1)^2``; cuts go one by one to the interval that is worst. Before that, accuracies are
    made monotone, so that noise bends less, and whatever lies below the first quarter of the way down is lifted to
    there: the collapse bends most, and nobody picks a model from it.

    Args:
        points: Cost, accuracy and price of each measured point; costs positive.
        count: How many prices.

    Returns:
        Prices from low to high; fewer than ``count`` where fewer than two points have different costs.

    >>> places = refinement_prices([(8.0, 90.0, 1.0), (4.0, 90.0, 2.0), (2.0, 90.0, 4.0), (1.0, 10.0, 8.0)], 2)
    >>> [round(price, 3) for price in places]  # on both sides of the bend at price 4
    [2.828, 5.657]
    """
    nodes = _monotone(points)
    if len(nodes) < 2:
        return []
    faults = _faults(nodes)
    cuts = [0] * len(faults)
    for _ in range(count):
        worst = max(range(len(faults)), key=lambda i: (faults[i] / (cuts[i] + 1) ** 2, -i))
        cuts[worst] += 1
    prices = []
    for i, n in enumerate(cuts):
        a, b = math.log(nodes[i][2]), math.log(nodes[i + 1][2])
        prices += [math.exp(a + (b - a) * k / (n + 1)) for k in range(1, n + 1)]
    return sorted(prices)


FURTHEST = 4.0
"""Beyond the points of a run, prices near a target go at most so many times as far as its last two are apart."""


def nearby_prices(
    points: Sequence[tuple[float, float, float]], count: int, target: float, *, by_cost: bool
) -> list[float]:
    """Prices of further points between the two neighbours that a cost or an accuracy lies between.

    Args:
        points: Cost, accuracy and price of each measured point; costs positive.
        count: How many prices.
        target: A cost, or an accuracy; accuracies are made monotone first. Beyond all points, prices go on from the
            last two: to the cost along a straight line in log cost and log price, or once more as far as these are
            apart, but never more than `FURTHEST` times that.
        by_cost: Whether the target is a cost.

    Returns:
        Prices from low to high, evenly spread in log price; none where fewer than two points have different costs.

    >>> points = [(8.0, 92.0, 1.0), (4.0, 90.0, 2.0), (1.0, 10.0, 8.0)]
    >>> [round(price, 3) for price in nearby_prices(points, 1, 91.0, by_cost=False)]
    [1.414]
    >>> [round(price, 3) for price in nearby_prices(points, 2, 16.0, by_cost=True)]
    [0.5, 0.707]
    """
    nodes: list[tuple[float, float, float]] = []
    for cost, accuracy, price in sorted(points, key=lambda p: (p[0], -p[1], p[2])):
        if cost > 0 and (not nodes or cost > nodes[-1][0]):
            nodes.append((cost, max(accuracy, nodes[-1][1]) if nodes else accuracy, price))
    if len(nodes) < 2:
        return []
    values = [node[0] if by_cost else node[1] for node in nodes]
    if not values[0] <= target <= values[-1]:
        inner, edge = nodes[-2:] if target > values[-1] else (nodes[1], nodes[0])
        apart = math.log(edge[2] / inner[2])
        reach = math.log(target / edge[0]) / math.log(edge[0] / inner[0]) if by_cost else 1.0
        whole = apart * min(reach, FURTHEST)
        return sorted(edge[2] * math.exp(whole * k / count) for k in range(1, count + 1))
    place = min(max(sum(value < target for value in values), 1), len(nodes) - 1)
    a, b = sorted(math.log(node[2]) for node in nodes[place - 1 : place + 1])
    return [math.exp(a + (b - a) * k / (count + 1)) for k in range(1, count + 1)]


def _monotone(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float, float]]:
    """Log cost, best accuracy up to that cost, price; rising in cost, one node per cost."""
    nodes: list[tuple[float, float, float]] = []
    for cost, accuracy, price in sorted(points, key=lambda p: (p[0], -p[1], p[2])):
        best = max(accuracy, nodes[-1][1]) if nodes else accuracy
        if cost > 0 and (not nodes or math.log(cost) - nodes[-1][0] > 1e-9):
            nodes.append((math.log(cost), best, price))
    floor = nodes[-1][1] - WAY_DOWN * (nodes[-1][1] - nodes[0][1]) if nodes else 0.0
    return [(cost, max(accuracy, floor), price) for cost, accuracy, price in nodes]


def _faults(nodes: Sequence[tuple[float, float, float]]) -> list[float]:
    """Estimated error of the straight line over each interval; with two points their gap in accuracy."""
    width = [b[0] - a[0] for a, b in pairwise(nodes)]
    slope = [(b[1] - a[1]) / h for (a, b), h in zip(pairwise(nodes), width, strict=True)]
    if len(width) == 1:
        return [abs(nodes[1][1] - nodes[0][1])]
    bends = [2 * abs(slope[i + 1] - slope[i]) / (width[i] + width[i + 1]) for i in range(len(width) - 1)]
    ends = [bends[0], *bends, bends[-1]]
    faults = [h * h * max(ends[i], ends[i + 1]) / 8 for i, h in enumerate(width)]
    lifted = [b[1] == nodes[0][1] for _, b in pairwise(nodes)]
    # the tiny second term spreads points by width where nothing bends
    return [1e-9 * h * h + (0.0 if low else fault) for h, low, fault in zip(width, lifted, faults, strict=True)]
