"""What was proved of an exported file, without torch or a runtime."""

from collections.abc import Mapping
from typing import Literal

from slimbit.records.codec import record
from slimbit.records.latency import Latency

Fusion = Literal["integer", "float", "gone"]
"""How a runtime executes an operation: in integers, in floats between integers, or not at all (folded away)."""


@record
class NodeExecution:
    """How the runtime executes one operation of the file.

    Attributes:
        name: In the file.
        operator: As the file has it.
        executed: As the runtime executes it.
        fusion: Whether these are integers.
    """

    name: str
    operator: str
    executed: str
    fusion: Fusion


@record
class SaturationCheck:
    """Whether sums of two byte products can leave 16 bits, where processors without VNNI add them.

    Attributes:
        layer: Name of the layer.
        largest_weight: Largest magnitude of its integers.
        largest_pair: Largest magnitude that two products can add up to, whatever the order of the inputs.
        is_safe: Whether no sum can saturate.
    """

    layer: str
    largest_weight: int
    largest_pair: int
    is_safe: bool


@record
class Verification:
    """Proof, or disproof, that a file computes what was promised.

    Attributes:
        file: Its name.
        digest: SHA-256 of it.
        runtime: Name and version of the runtime; "" where none ran it.
        processor: Whether this machine's processor has VNNI, or "unknown".
        images: Images that all three ran on.
        equal_to_reference: Of these, how many have every output bit equal in runtime and integer reference; None where
            no runtime ran it.
        equal_to_network: How many are bit equal in the integer reference and in the artifact's own network; None where
            no artifact was given.
        largest_output_difference: Between runtime and reference.
        layer_differences: Largest difference of codes between runtime and reference, by value.
        near_ties: Results in the reference that lay so near a rounding tie that runtimes may differ.
        accuracy: Of the file in the runtime, percent; None without labels.
        reference_accuracy: Of the reference on the same images.
        answers_that_differ: Images whose top answer differs between the two.
        nodes: How the runtime executes each operation.
        saturation: Of every layer of the file.
        answers_that_saturate: Images, of those that saturation was emulated on, whose top answer it changes; None where
            it was not emulated because no layer can saturate.
        saturating_images: Images that it was emulated on.

    >>> found = Verification(
    ...     file="net.onnx", digest="", runtime="onnxruntime 1.20", processor="unknown", images=50,
    ...     equal_to_reference=50, equal_to_network=49, largest_output_difference=0.0, layer_differences={},
    ...     near_ties=0, accuracy=None,
    ...     reference_accuracy=None, answers_that_differ=0, nodes=(), saturation=(),
    ... )
    >>> found.is_exact, found.needs_precision
    (False, ())
    >>> found.verdict
    'NOT exact: of 50 images, 50 are equal bit for bit in onnxruntime 1.20 and the integer reference, 49 in the \
integer reference and the network'
    """

    file: str
    digest: str
    runtime: str
    processor: str
    images: int
    equal_to_reference: int | None
    equal_to_network: int | None
    largest_output_difference: float
    layer_differences: Mapping[str, int]
    near_ties: int
    accuracy: float | None
    reference_accuracy: float | None
    answers_that_differ: int
    nodes: tuple[NodeExecution, ...]
    saturation: tuple[SaturationCheck, ...]
    answers_that_saturate: int | None = None
    saturating_images: int = 0

    @property
    def is_exact(self) -> bool:
        """Whether runtime, reference and artifact agree on every bit of every image, as far as they were run."""
        return {self.equal_to_reference, self.equal_to_network} <= {None, self.images}

    @property
    def verdict(self) -> str:
        """The verdict in one sentence."""
        verdict = "exact" if self.is_exact else "NOT exact"
        pairs = [
            (self.equal_to_reference, f"{self.runtime} and the integer reference"),
            (self.equal_to_network, "the integer reference and the network"),
        ]
        counts = [f"{count} in {where}" for count, where in pairs if count is not None]
        ran = "" if self.runtime else "; no runtime ran it"
        said = ", ".join(counts).replace(" in ", " are equal bit for bit in ", 1)
        return f"{verdict}: of {self.images} images, {said}{ran}"

    def __str__(self) -> str:
        found = [("runtime", self.accuracy), ("reference", self.reference_accuracy)]
        known = [f"{value:.2f} in the {where}" for where, value in found if value is not None]
        return f"{self.file}: {self.verdict}" + (f"; accuracy {', '.join(known)}" if known else "")

    def __repr__(self) -> str:
        return f"Verification({self})"

    @property
    def needs_precision(self) -> tuple[str, ...]:
        """Layers for which processors without VNNI need ``session.x64quantprecision``."""
        return tuple(check.layer for check in self.saturation if not check.is_safe)

    @property
    def float_nodes(self) -> tuple[NodeExecution, ...]:
        """Operations that run in floats between integers."""
        return tuple(node for node in self.nodes if node.fusion == "float")


@record
class PaddedCost:
    """What one runtime makes of a network's widths and channels.

    Attributes:
        runtime: Its title.
        padding: Executed bit-operations over those of the network; 1 where nothing is padded.
        too_wide: Layers that it would do in floats.
    """

    runtime: str
    padding: float
    too_wide: tuple[str, ...] = ()


@record
class ExportedFile:
    """A file that was written of a point of a run, with its proof.

    Attributes:
        point: Number of the point.
        bytes: Size of the file.
        verification: What was found.
        padded: What runtimes make of its widths.
        latencies: Of this file and the float one in one run, where they were measured.
    """

    point: int
    bytes: int
    verification: Verification
    padded: tuple[PaddedCost, ...] = ()
    latencies: tuple[Latency, ...] = ()
