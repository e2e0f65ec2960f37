"""What the numbers of a report assume, in sentences."""

from collections.abc import Mapping, Sequence
from typing import Any


def assumptions(
    reports: Sequence[Mapping[str, Any]],
    *,
    activation_bits: int | None = None,
    score_name: str = "accuracy",
    trained: str = "",
    statistics: Mapping[str, str] | None = None,
) -> tuple[str, ...]:
    """What to know before quoting: what is compressed, what zeros cost, how weights are weighted.

    Args:
        reports: JSON data of the cost reports of every finished point.
        activation_bits: Width that the run quantizes activations to; None where they stay float.
        score_name: What is called accuracy here.
        trained: How long pruned networks were trained; "" where they were not.
        statistics: Where BatchNorm statistics of a baseline come from, by its policy.
    """
    grids = {layer["grid"] for report in reports for layer in report["layers"]}
    widths = sorted({layer["activation_bits"] for report in reports for layer in report["layers"]})
    texts = [_weights_only(widths, score_name) if activation_bits is None else _integers(activation_bits, score_name)]
    if grids & {"midrise_zero", "midtread"}:
        texts.append(ZEROS_ARE_FREE)
    if "midrise_zero" in grids:
        texts.append(ZERO_IS_A_CODE)
    texts.append(PER_MAC if {report["per"] for report in reports} == {"mac"} else PER_PARAMETER)
    if trained:
        texts.append(f"{trained_longer(trained)} {CONTROL}")
    both = [(statistics or {}).get(policy, "") for policy in ("max_abs", "prune_only")]
    if all(both) and both[0] != both[1]:
        texts.append(
            "max_abs and prune_only round to the same 8 bits, so they cost the same. Their BatchNorm statistics "
            f"differ, and with them their {score_name}: max_abs {SOURCES[both[0]]}, prune_only {SOURCES[both[1]]}."
        )
    common = set.intersection(*({*report.get("notes", ())} for report in reports))
    return (*texts, *sorted(common))


def trained_longer(trained: str) -> str:
    """What a comparison of pruned networks with the whole one leaves out."""
    return (
        f"Pruned networks were trained for {trained} after the cut, the whole network was not trained further: a part "
        "of what they gain is due to training."
    )


def _weights_only(activation_bits: Sequence[int], score_name: str) -> str:
    return (
        f"Weights only. Activations, biases and normalization stay float, and {score_name} was measured that way. Bit "
        f"operations nevertheless count activations at {' or '.join(map(str, activation_bits))} bits."
    )


def _integers(bits: int, score_name: str) -> str:
    return (
        f"Activations {bits} bits, integer arithmetic. What layers read has {bits} bits; inputs of the network, and "
        f"what only additions read, have 8; logits stay float. The {score_name} is that of the integers, which an "
        "exported file computes bit for bit, and bit operations count these widths."
    )


CONTROL = (
    "To tell the two apart, train the whole network as long with slimbit prune NETWORK --keep 1 --tune-epochs N and "
    "the other options of the run, then sweep what it wrote."
)
SOURCES = {
    "stored": "keeps those that are in the network",
    "absolute": "averages them anew over the calibration images, as the paper does",
    "paired": "corrects them by the difference that compression makes",
    "paired_layerwise": "corrects them by the difference that compression makes, layer by layer",
}
"""What `QuantConfig.statistics` does, for a sentence."""
ZEROS_ARE_FREE = (
    "Zeros are free. A weight at level zero costs nothing in ESN digital, ESN analog and non-zero MACs, which assumes "
    "hardware that skips zeros. Hardware that cannot skip them should go by ESN filter-wise."
)
ZERO_IS_A_CODE = (
    "Zero is a code. On the grid midrise_zero, b bits hold 2^b levels without it; where a filter uses all of them and "
    "a zero, ESN filter-wise, bit operations and weight bytes count one bit more for each of its weights."
)
PER_MAC = "Costs are per image: a weight counts once for every output position that uses it (per MAC)."
PER_PARAMETER = "A weight counts once, however many output positions use it (per parameter)."
