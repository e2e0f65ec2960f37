"""The accuracy to quote for a model that was chosen: measured once, on images that did not choose it."""

from torch import nn

from slimbit.artifacts.manifest import AccuracyEntry
from slimbit.records.accuracy import Accuracy, wilson_interval
from slimbit.records.errors import InputError
from slimbit.records.origin import without_folders
from slimbit.records.run import RunInfo
from slimbit.sources.networks import check_trusted_data
from slimbit.zoo.data import open_data
from slimbit.zoo.data.evaluator import Evaluator

UNCHOSEN = "did not choose it"
"""In the words for images that an accuracy may be quoted on."""


def quoted_accuracy(
    info: RunInfo, model: nn.Module, *, float_network: nn.Module | None = None, allow_code: bool = False
) -> tuple[AccuracyEntry | None, str]:
    """Score a model of a run on the images that its data set has left for that, see `DataSet.selection`.

    Args:
        info: The run.
        model: A model of one of its points.
        float_network: The network before compression, to be scored on the same images; None: it is not at hand.
        allow_code: Whether a data spec that names code may be opened: the run's file says it.

    Returns:
        What was measured, and why nothing was, in words: one of the two is None or empty.
    """
    quote, about = quoting_images(info, allow_code=allow_code)
    if quote is None:
        return None, about
    found: Accuracy = quote(model)
    low, high = wilson_interval(found, found.images)
    uncompressed = None if float_network is None else float(quote(float_network))
    return AccuracyEntry(value=float(found), low=low, high=high, uncompressed=uncompressed, measured_on=about), ""


def quoting_images(info: RunInfo, *, allow_code: bool = False) -> tuple[Evaluator | None, str]:
    """The images that `quoted_accuracy` scores on and what they are; or None, and why there are none."""
    spec, norm = info.origin.data, info.origin.normalization
    if not spec:
        return None, (
            "the run was made in Python and does not say which data it was scored on; score it there on images that "
            f"{UNCHOSEN}: evaluate(slimbit.load(FOLDER).model)"
        )
    try:
        check_trusted_data(spec, "the run", allow_code=allow_code, otherwise="")
        card = None if norm is None else {"normalize": {"mean": list(norm.mean), "std": list(norm.std)}}
        data = open_data(spec, card=card)
        choose, quote = data.selection(info.evaluate_images)
    except InputError as error:
        return None, str(error)
    if choose.digest != info.evaluate_digest or quote is None:
        return None, f"no images are left that {UNCHOSEN}"
    about = quote.description.replace(data.name, without_folders(spec))
    return quote, about if UNCHOSEN in about else f"{about}, which {UNCHOSEN}"
