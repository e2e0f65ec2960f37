"""Trace the frontier of a trained network: accuracy against cost, from nearly float to collapse."""

import copy
import time
import warnings
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from slimbit.compress.learning import learning_for
from slimbit.compress.model import CompressedModel
from slimbit.compress.prepared import PreparedNetwork
from slimbit.compress.prune import Pruner
from slimbit.compress.quantize import as_prepared
from slimbit.compress.tuning import TrainingData, tuning_for
from slimbit.frontier.frontier import Frontier
from slimbit.frontier.objects import check_artifacts
from slimbit.frontier.points import Evaluate, Scorer, interval_of, versions
from slimbit.frontier.progress import Listener, Progress, silent
from slimbit.frontier.store import (
    STAGES,
    RunStore,
    begin_store,
    check_folder,
    join_store,
    refresh_info,
    shared_name,
    study_name,
    waiting_claim,
)
from slimbit.frontier.study import is_server
from slimbit.frontier.table import FolderTable, RunTable
from slimbit.frontier.time_limit import time_limit
from slimbit.frontier.worker import Worker
from slimbit.measure.named_cost import CostLike, load_cost
from slimbit.plan.signal import check_signal
from slimbit.records.accuracy import Accuracy, is_near_chance
from slimbit.records.codec import digest
from slimbit.records.config import PAPER, RunConfig, check_config
from slimbit.records.errors import InputError
from slimbit.records.files import as_path
from slimbit.records.run import RunInfo, cautions, check_same
from slimbit.records.signal import EpochSignal
from slimbit.records.text import fault_of
from slimbit.records.training_run import read_training_run, spread_epochs
from slimbit.survey.trace import Inputs

OF_PREPARE = ("seed", "likelihood", "batch_size", "memory_gib")
"""Settings of a run that `slimbit.prepare` takes."""
SAME_SCORE, RANDOM_SCORE = 0.01, 0.5
"""Share by which the float network's score may differ when a run is continued: other processors and versions decide a
few images otherwise; an ``evaluate`` that is random differs from itself."""
MOST_EPOCHS = 8
"""Points of policy ``signal`` where no epochs were named."""


def trace_frontier(
    model: "nn.Module | PreparedNetwork | CompressedModel",
    example_input: Inputs | None = None,
    calibration: Iterable[Any] | Tensor | None = None,
    evaluate: Evaluate | None = None,
    *,
    out: str | Path,
    metric: CostLike | None = None,
    points: int | None = None,
    config: RunConfig | None = None,
    data: TrainingData | None = None,
    progress: Listener | None = None,
) -> Frontier:
    """Accuracy against cost of a trained network: compress it at many prices and score every result.

    With several ``keep_ratios`` in the settings, filters are removed first, and the pruned networks are swept as well:
    the frontier is that of all of them together (prune, tune, then quantize; Prune or quantize? (2019), section 5).

    The price (accuracy loss one is willing to pay per unit of cost) sweeps from nearly float to where the network
    collapses, so that points spread evenly over log cost; a quarter of them goes where the curve bends. Needs no
    labels except in ``evaluate``. The same call continues a run that was stopped at any moment and repeats nothing;
    several processes with the same call share the work.

    Args:
        model: The trained network; or what `slimbit.prepare` or `slimbit.prune` returned. Not changed.
        example_input: One example with its batch dimension, e.g. ``torch.zeros(1, 3, 32, 32)``; not for a prepared
            network.
        calibration: Some hundred unlabelled images: a tensor, or batches, the same whenever the run is continued, in
            any order; not for a prepared network.
        evaluate: From a network to a number, higher is better, or to a `slimbit.Accuracy`, which says how many images
            it rests on. Its ``name`` attribute, or that of a function, is what tables call it. When the run is
            continued, a ``digest`` attribute must be the same; without one it scores the float network once more,
            which must give the run's score: another metric needs another folder.
        out: Folder of the run (docs/reference/run-folder.md).
        metric: Cost to save; over that of ``config``. A metric of the cost report, ``hardware:NAME``, a ``.toml`` file,
            ``package.module:function``, a `slimbit.HardwareModel` or a function.
        points: Number of points of each network, those for comparison not counted; over that of ``config``.
        config: Everything else.
        data: What pruned networks learn from, where ``config.prune.tune`` says that they do, and what a frontier is
            learned from, where ``config.learn`` is given.
        progress: Called with every `slimbit.frontier.progress.Progress`.

    Returns:
        All points; `Frontier.best`, `Frontier.load` and `Frontier.report` go on from there.

    Raises:
        InputError: Settings that cannot be, a damaged run or one that began with other settings or another metric, a
            float accuracy near chance, or an ``evaluate`` that fails on the float network.
        StoreError: The run's folder cannot be written; the same call continues when it can.

    >>> import slimbit, tempfile, torch
    >>> net, images = slimbit.network("digits_resnet"), torch.randn(32, 1, 8, 8)
    >>> frontier = slimbit.trace_frontier(
    ...     net, images[:1], images, lambda model: float(model(images).detach().std()), out=tempfile.mkdtemp(), points=2
    ... )
    >>> frontier.best(within={"esn_digital": 1e6}).policy in ("optimal", "max_abs")
    True
    """
    if evaluate is None or not callable(evaluate):
        raise InputError(f"evaluate must be a function from a network to a number, got {type(evaluate).__name__}")
    folder = as_path(out, "out")
    check_config(config, RunConfig)
    named = metric if metric is None or isinstance(metric, str) else load_cost(metric).name
    settings: RunConfig = (config or RunConfig()).with_options({"metric": named, "points": points})
    cost = load_cost(settings.metric if metric is None else metric)
    cost.check_priceable()
    near = {name if name == "accuracy" else load_cost(name, (cost,), what="near").name: amount
            for name, amount in settings.near.items()}  # fmt: skip
    settings = settings.model_copy(
        update={"metric": cost.name, "near": near, "quant": settings.quant.for_metric(cost.name)}
    )
    given_once = {name: getattr(settings, name) for name in OF_PREPARE}
    with time_limit(settings.timeout_seconds, "calibration"):
        root = as_prepared(model, example_input, calibration, **given_once)
    for name in OF_PREPARE:
        given, there = getattr(settings, name), getattr(root, name)
        if name in settings.model_fields_set and given != there:
            raise InputError(
                f"{name} must be given to slimbit.prepare for a prepared network, got {given} beside {there}"
            )
    signal = _signal(settings, root)
    settings.quant.check_names(root.spec)
    if all(layer.name in settings.quant.skip for layer in root.spec.layers):
        raise InputError(f"skip must leave a layer of {root.name} to compress, got all of them")
    pruner = _pruner(settings, root, data)
    learning = None if settings.learn is None else learning_for(settings.learn, data, root)
    scorer, listener = Scorer(evaluate, settings.metric_name, settings.timeout_seconds), progress or silent
    check_folder(folder)
    fixed = _fixed(settings, root, scorer, signal, pruner) | {"machine": cost.definition}
    store, began = _opened(folder, settings, root, scorer, fixed, listener)
    if began is not None:
        _check_score(began, root, scorer, *_run_and_remedy(began, folder, settings))
    assert store.info is not None
    worker = Worker(
        store,
        store.info,
        root,
        settings,
        cost=cost,
        signal=signal,
        pruner=pruner,
        learning=learning,
        stages=folder / STAGES if settings.stages is None else Path(settings.stages),
        scorer=scorer,
        listener=listener,
    )
    worker.work()
    return Frontier(store, form=root.model if root.keep is None else None)


def _opened(
    folder: Path,
    settings: RunConfig,
    root: PreparedNetwork,
    scorer: Scorer,
    fixed: dict[str, Any],
    listener: Listener,
) -> tuple[RunStore, RunInfo | None]:
    """The run, which one worker begins by scoring the float network, and what it was about where it had begun."""
    check_artifacts(settings.artifacts or "")

    def tell(text: str) -> None:
        listener(Progress(stage="note", message=text))

    def check(info: RunInfo) -> None:
        check_same(info, fixed, *_run_and_remedy(info, folder, settings))
        for caution in cautions(info, fixed, versions()):
            tell(caution)

    def waiting() -> None:
        holders = ", ".join(holder.worker for holder in table.holders() if holder.what == what)
        text = f"another process ({holders or 'unknown'}) prepares the run"
        listener(Progress(stage="waiting", message=text))

    def begin(store: RunStore, name: str) -> None:
        listener(Progress(stage="float accuracy", message="scoring the float network"))
        store.write_info(_begin(root, scorer, fixed, name))

    what = "accuracy of the float network"
    if settings.storage is None or not is_server(settings.storage):
        table: RunTable = (own := FolderTable(folder))
        with waiting_claim(own, "prepare", what, waiting):
            store = begin_store(
                own,
                storage=settings.storage,
                metric=settings.metric,
                check=check,
                artifacts=settings.artifacts,
                tell=tell,
            )
            if (began := store.info) is None:
                begin(store, study_name(folder, settings.storage))
        return store, began
    name = shared_name(fixed, settings.run_name)
    store = join_store(
        folder,
        storage=settings.storage,
        name=name,
        metric=settings.metric,
        artifacts=settings.artifacts,
        takeover_seconds=settings.takeover_seconds,
        tell=tell,
    )
    table = store.table
    began = store.info
    if began is None:
        with waiting_claim(table, "begin", what, waiting):
            refresh_info(store)
            if (began := store.info) is None:
                begin(store, name)
    assert store.info is not None
    check(store.info)
    store.write_own_info()
    return store, began


def _run_and_remedy(info: RunInfo, folder: Path, settings: RunConfig) -> tuple[object, str]:
    """What a message calls the run, and the option that makes another one."""
    return (info.study, "--run-name") if is_server(settings.storage) else (folder, "--out")


def _signal(config: RunConfig, root: PreparedNetwork) -> tuple[EpochSignal, ...]:
    """The training epochs to take steps from, checked against the network."""
    if config.signal is None:
        return ()
    known = {epoch.epoch: epoch for epoch in read_training_run(config.signal).signal}
    if config.signal_epochs is None:
        chosen: Sequence[EpochSignal] = spread_epochs(tuple(known.values()), MOST_EPOCHS)
    else:
        missing = [number for number in config.signal_epochs if number not in known]
        if missing:
            where = f"{config.signal}, from {min(known)} to {max(known)}"
            raise InputError(f"signal_epochs must be epochs of {where}, got {missing[0]}")
        if len(set(config.signal_epochs)) < len(config.signal_epochs):
            raise InputError(f"signal_epochs must name each epoch once, got {list(config.signal_epochs)}")
        chosen = [known[number] for number in config.signal_epochs]
    plain = PAPER.model_copy(update={"skip": config.quant.skip})
    for epoch in chosen:
        check_signal(root.spec, plain, epoch)
    return tuple(chosen)


def _pruner(config: RunConfig, root: PreparedNetwork, data: TrainingData | None) -> Pruner | None:
    """What makes the smaller networks, every keep ratio checked; None where there are none."""
    if not config.prunes:
        return None
    tune = config.prune.tune
    pruner = Pruner(root, config.prune, None if tune is None else tuning_for(tune, data, root))
    for ratio in config.keep_ratios:
        pruner.check_ratio(ratio)
    return pruner


def _fixed(
    config: RunConfig, root: PreparedNetwork, scorer: Scorer, signal: Sequence[EpochSignal], pruner: Pruner | None
) -> dict[str, Any]:
    """What a continued run must repeat, names as in `RunInfo`."""
    tuning = None if pruner is None else pruner.tuning
    likelihood = root.likelihood
    return {
        "network": root.name,
        "network_digest": root.digest,
        "metric": config.metric,
        "points": config.points,
        "baselines": config.baselines,
        "signal_epochs": tuple(epoch.epoch for epoch in signal),
        "signal_digest": digest(signal) if signal else "",
        "calibration_images": root.images,
        "calibration_digest": root.calibration_digest,
        "evaluate_images": scorer.images,
        "evaluate_digest": scorer.digest,
        "seed": root.seed,
        "likelihood": likelihood if isinstance(likelihood, str) else _qualified_name(likelihood),
        "quant": config.quant,
        "keep_ratios": config.keep_ratios,
        "prune": config.prune if config.prunes else None,
        "training": "" if tuning is None else tuning.name,
    } | {
        "origin": root.origin,
        "scoring": scorer.description,
        "score_name": scorer.name,
        "classes": _classes(root, scorer),
    }


def _classes(root: PreparedNetwork, scorer: Scorer) -> int | None:
    """Number of classes: what ``evaluate`` says, or the network's outputs where it knows labels only."""
    if not getattr(scorer.evaluate, "open_classes", False) or not isinstance(root.example_input, Tensor):
        return scorer.classes
    with torch.no_grad():
        outputs = root.model(root.example_input)
    return int(outputs.shape[1]) if isinstance(outputs, Tensor) and outputs.ndim == 2 else scorer.classes


def _qualified_name(function: Any) -> str:
    """Name of a function for ``run.json``: code cannot be stored."""
    named = function if hasattr(function, "__qualname__") else type(function)
    return f"{named.__module__}:{named.__qualname__}"


def _float_score(root: PreparedNetwork, scorer: Scorer) -> float:
    """Score the float network; whatever the user's ``evaluate`` raises is said in one sentence."""
    try:
        return scorer.score(copy.deepcopy(root.model).eval())
    except InputError:
        raise
    except (Exception, SystemExit) as error:
        raise InputError(f"evaluate must score the float network, got {fault_of(error)}") from error


def _check_score(info: RunInfo, root: PreparedNetwork, scorer: Scorer, run: object, remedy: str) -> None:
    """Refuse to continue a run with an ``evaluate`` that scores the float network otherwise than when it began.

    Raises:
        InputError: One sentence with both scores.
    """
    if scorer.digest:
        return  # it names its data, and those were compared
    before, now = info.float_accuracy, float(_float_score(root, scorer))
    if now == before:
        return
    is_random = float(_float_score(root, scorer)) != now
    tolerance = (RANDOM_SCORE if is_random else SAME_SCORE) * max(abs(before), abs(now))
    if abs(now - before) > tolerance:
        raise InputError(
            f"evaluate must score the float network with {before:g} as when run {run} began, got {now:g}: the metric "
            f"or its data have changed, give another {remedy} for a new run"
        )
    warnings.warn(
        f"evaluate scores the float network with {now:g}, with {before:g} when run {run} began: points measured from "
        "now on may differ as much",
        stacklevel=3,
    )


def _begin(root: PreparedNetwork, scorer: Scorer, fixed: dict[str, Any], study: str) -> RunInfo:
    """Score the float network."""
    start = time.perf_counter()
    score = _float_score(root, scorer)
    seconds = time.perf_counter() - start
    # where it names its data by a digest it is Slimbit's own, or made as carefully
    again = score if scorer.digest else _float_score(root, scorer)
    accuracy = float(score)
    if float(again) != accuracy:
        warnings.warn(
            f"evaluate scores the same network with {accuracy:g} and then {float(again):g}: points differ by chance as "
            "well; call model.eval() in it and give random choices a fixed seed",
            stacklevel=3,
        )
    classes = fixed["classes"]
    if classes is not None and is_near_chance(accuracy, classes):
        raise InputError(
            f"float {scorer.name} must be well above chance ({100 / classes:.3g} % for {classes} classes), "
            f"got {accuracy:.4g} %: check that the data's normalization (normalize=... in the data spec) and the order "
            "of classes are those the network was trained with, and that its weights were loaded"
        )
    low, high = interval_of(score)
    return RunInfo(
        **fixed,
        float_accuracy=accuracy,
        float_low=low,
        float_high=high,
        float_hits=score.hits if isinstance(score, Accuracy) else "",
        evaluate_seconds=round(seconds, 4),
        study=study,
        versions=dict(versions()),
    )
