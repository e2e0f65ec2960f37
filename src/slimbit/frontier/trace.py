"""Trace the frontier of a trained network: accuracy against cost, from nearly float to collapse."""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from slimbit.frontier.branch import Branch
from slimbit.frontier.measure_point import Evaluate, Scorer
from slimbit.frontier.progress import Listener, silent
from slimbit.frontier.slim import Slimmer, Slimming
from slimbit.frontier.subject import Subject, digest_of
from slimbit.frontier.worker import Worker
from slimbit.frontier.workspace import STAGES, Workspace, canonical
from slimbit.measure.sensitivity import DIVERGENCES, Likelihood
from slimbit.numerics.batches import inputs_of
from slimbit.plan.inputs import Layout
from slimbit.plan.signal import check_signal
from slimbit.plan.steps import METRICS
from slimbit.records.errors import InputError, closest
from slimbit.records.plan import Recipe
from slimbit.records.point import Frontier
from slimbit.records.signal import EpochSignal

MOST_POINTS, MOST_SEED = 1000, 1 << 63


@dataclass(frozen=True, kw_only=True)
class Origin:
    """Where network and data came from, for those who read the run later.

    Attributes:
        reference: How the command line names the network.
        weights: Its weights file.
        data: Data spec.
        normalization: ``mean`` and ``std`` per channel that the data spec or the weights' card led to.
    """

    reference: str = ""
    weights: str = ""
    data: str = ""
    normalization: Mapping[str, Any] = field(default_factory=dict)


def trace_frontier(  # noqa: PLR0913 - the main job; everything but five has a good default
    model: nn.Module,
    *,
    example_input: Any,
    calibration: Iterable[Any],
    evaluate: Evaluate,
    out: str | Path,
    metric: str = "esn_digital",
    points: int = 16,
    baselines: bool = True,
    signal: Sequence[EpochSignal] = (),
    widths: Sequence[float] = (1.0,),
    slimming: Slimming | None = None,
    stages: str | Path | None = None,
    seed: int = 0,
    storage: str | None = None,
    recipe: Recipe | None = None,
    layout: Layout | None = None,
    likelihood: Likelihood | str = "categorical",
    retry_failed: bool = False,
    progress: Listener | None = None,
    network_name: str = "",
    origin: Origin | None = None,
) -> Frontier:
    """Accuracy against cost of a trained network: compress it at many prices and score every result.

    With several ``widths``, filters are removed first, and the narrower networks are swept as well: the frontier is
    that of all of them together (prune, tune, then quantize, HkxAS6VFDB section 5).

    The price (accuracy loss one is willing to pay per unit of cost) sweeps from nearly float to where the network
    collapses, so that points spread evenly over log cost; a quarter of them goes where the curve bends. Needs no
    labels except in ``evaluate``. The same call continues a run that was stopped at any moment and repeats nothing;
    several processes with the same call share the work.

    Args:
        model: The trained network; not changed.
        example_input: One example with its batch dimension, e.g. ``torch.zeros(1, 3, 32, 32)``.
        calibration: Some hundred unlabelled images: a tensor, or batches, the same whenever the run is continued.
        evaluate: From a network to a number, higher is better. With attributes ``images`` and ``classes`` it says
            that the number is a percentage of so many images.
        out: Folder of the run (docs/reference/run-folder.md).
        metric: Cost to save: "esn_analog", "esn_digital" or "esn_filterwise".
        points: Number of points of each width, those for comparison not counted.
        baselines: Whether to add the paper's quantize-only at 8 to 2 bits, of every width.
        signal: Training epochs of this very network; for each, a point is added whose steps cost what the epoch's
            signal-to-noise ratio was worth, see `slimbit.plan.signal.step_by_signal`.
        widths: Shares of the filters to keep, each a network of its own; 1 is the network as it was given. Where there
            are several, each also gets a point at 8 bits, to show what pruning alone reaches.
        slimming: How the narrower networks are made, and what they learn with afterwards; default: by norm, untrained.
        stages: Folder where they are kept by content, so that other runs find them; default: in ``out``.
        seed: Of sampled labels and positions.
        storage: Database that holds the study, e.g. ``postgresql://...``; default: a file in the folder.
        recipe: How plans are carried out.
        layout: Grid, one step per layer or filter, layers that stay float.
        likelihood: "categorical" for classifiers, "gaussian" for regression and other heads, or a function, see
            `slimbit.measure.sensitivity`; a continued run must give one of the same name.
        retry_failed: Whether points that failed earlier are tried again.
        progress: Called with every `Progress`.
        network_name: Name for reports; default: the type of the network.
        origin: Where network and data came from.

    Returns:
        All points.

    Raises:
        InputError: Settings that cannot be, a damaged run or one that began with other settings, a float accuracy
            near chance, or an ``evaluate`` that fails on the float network.
        StoreError: The run's folder cannot be written; the same call continues when it can.
    """
    _check(metric=metric, points=points, seed=seed, likelihood=likelihood)
    slimming = slimming or Slimming()
    _check_widths(widths, slimming)
    recipe, layout = recipe or Recipe(), layout or default_layout(metric)
    _check_plans(metric, recipe, layout)
    subject = Subject.of(
        model,
        example_input,
        calibration,
        name=network_name,
        metric=metric,
        recipe=recipe,
        layout=layout,
        seed=seed,
        signal=tuple(signal),
    )
    _check_layers(subject)
    _check_signal(subject)
    scorer, origin = Scorer(evaluate), origin or Origin()
    slimmer = Slimmer(subject.model, example_input, subject.batches, slimming, network_name, seed, likelihood)
    for width in widths:
        slimmer.check_width(width)
    workspace = Workspace(Path(out), storage=storage)
    folder = workspace.folder / STAGES if stages is None else Path(stages)
    branches = tuple(
        Branch(subject, workspace, width, None if width == 1 else slimmer, folder, likelihood) for width in widths
    )
    asked = {"points": points, "baselines": baselines, "likelihood": _name_of(likelihood), "data": origin.data}
    narrowed = {"widths": tuple(widths), "slimming": {} if tuple(widths) == (1,) else slimming.settings()}
    worker = Worker(
        branches=branches,
        scorer=scorer,
        workspace=workspace,
        settings={**asked, **narrowed, **_settings(subject), "evaluate_images": scorer.images},
        about=_about(origin, scorer, example_input),
        listener=progress or silent,
    )
    worker.prepare()
    worker.work(retry_failed=retry_failed)
    return worker.frontier()


def default_layout(metric: str) -> Layout:
    """The grid that suits a metric: a free zero level pays where zeros cost nothing, and is not allowed for ESN'_d."""
    return Layout(grid="midrise") if metric == "esn_filterwise" else Layout()


def _check(*, metric: str, points: int, seed: int, likelihood: Likelihood | str) -> None:
    if metric not in METRICS:
        raise InputError(f"metric must be one of {', '.join(METRICS)}, got {metric!r}{closest(str(metric), METRICS)}")
    if not isinstance(points, int) or isinstance(points, bool) or not 1 <= points <= MOST_POINTS:
        raise InputError(f"points must be a whole number from 1 to {MOST_POINTS}, got {points!r}")
    if not isinstance(seed, int) or isinstance(seed, bool) or not 0 <= seed < MOST_SEED:
        raise InputError(f"seed must be a whole number of 0 or more, got {seed!r}")
    if not callable(likelihood) and likelihood not in DIVERGENCES:
        raise InputError(f"likelihood must be {', '.join(DIVERGENCES)} or a function, got {likelihood!r}")


def _check_widths(widths: Sequence[float], slimming: Slimming) -> None:
    numbers = all(isinstance(width, int | float) and not isinstance(width, bool) for width in widths)
    alike = numbers and len({f"{width:g}" for width in widths}) < len(widths)  # results are kept by these names
    if not widths or not numbers or not all(0 < width <= 1 for width in widths) or alike:
        raise InputError(f"widths must be numbers above 0 and at most 1 that differ in six digits, got {list(widths)}")
    if slimming.by == "dead" and any(width < 1 for width in widths):
        raise InputError(
            "widths must be 1 for pruning by dead, which decides by itself how many filters stay, got "
            f"{list(widths)}: prune the network first, then trace the frontier of what is left"
        )


def _check_plans(metric: str, recipe: Recipe, layout: Layout) -> None:
    """What no plan could be made of, before anything is measured."""
    for name, value, kind in (("recipe", recipe, Recipe), ("layout", layout, Layout)):
        if not isinstance(value, kind):
            raise InputError(f"{name} must be a {kind.__name__}, got {value!r}")
    if metric != "esn_filterwise":
        return
    if layout.grid == "midrise_zero":
        raise InputError("grid must be midrise or midtread for esn_filterwise, got midrise_zero")
    if recipe.rounding == "rate_aware":
        raise InputError("rounding must be nearest for esn_filterwise, whose cost is not one of levels, got rate_aware")


def _check_layers(subject: Subject) -> None:
    subject.layout.check_names(subject.survey.spec)
    if all(layer.name in subject.layout.skip for layer in subject.survey.spec.layers):
        raise InputError(f"skip must leave a layer of {subject.survey.spec.name} to compress, got all of them")


def _check_signal(subject: Subject) -> None:
    for epoch in subject.signal:
        check_signal(subject.survey.spec, subject.paper_layout, epoch)
    numbers = [epoch.epoch for epoch in subject.signal]
    twice = sorted({number for number in numbers if numbers.count(number) > 1 or number < 1})
    if twice:
        raise InputError(f"signal must hold epochs from 1, each once, got {numbers}")


def _name_of(likelihood: Likelihood | str) -> str:
    """Name of a likelihood for ``run.json``: code cannot be stored."""
    if isinstance(likelihood, str):
        return likelihood
    named = likelihood if hasattr(likelihood, "__qualname__") else type(likelihood)
    return f"{named.__module__}:{named.__qualname__}"


def _settings(subject: Subject) -> dict[str, Any]:
    return {
        "network": subject.survey.spec.name,
        "network_digest": subject.digest,
        "metric": subject.metric,
        "signal_epochs": tuple(epoch.epoch for epoch in subject.signal),
        "signal_digest": _digest(subject.signal),
        "calibration_images": subject.images(),
        "calibration_digest": digest_of([inputs_of(batch) for batch in subject.batches]),
        "seed": subject.seed,
        "recipe": asdict(subject.recipe),
        "layout": asdict(subject.layout),
    }


def _digest(signal: Sequence[EpochSignal]) -> str:
    return hashlib.sha256(canonical([epoch.to_dict() for epoch in signal])).hexdigest() if signal else ""


def _about(origin: Origin, scorer: Scorer, example_input: Any) -> dict[str, Any]:
    return {
        "reference": origin.reference,
        "weights": origin.weights,
        "normalization": dict(origin.normalization),
        "scoring": str(getattr(scorer.evaluate, "description", "")),
        "input_shape": tuple(example_input.shape[1:]) if isinstance(example_input, Tensor) else (),
    }
