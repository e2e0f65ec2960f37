"""A compressed network: an ordinary module, what it costs, and how it came about."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import nn

from slimbit.apply.integers import IntegerProgram
from slimbit.apply.mask import mask
from slimbit.artifacts.artifact import write_artifact
from slimbit.artifacts.manifest import AccuracyEntry, NetworkReference
from slimbit.artifacts.packed import PackedModel, pack_model
from slimbit.artifacts.pruned import write_pruned
from slimbit.exchange.export import Format, write_floats, write_integers
from slimbit.numerics.batches import zeros_like_input
from slimbit.numerics.levels import LayerLevels
from slimbit.records.accuracy import Accuracy, wilson_interval
from slimbit.records.codec import canonical, with_schema
from slimbit.records.cost import METRICS, CostReport
from slimbit.records.cost import SCHEMA as COST_SCHEMA
from slimbit.records.dataflow import Dataflow
from slimbit.records.errors import InputError
from slimbit.records.files import as_path
from slimbit.records.keep import KeepPlan
from slimbit.records.network import NetworkSpec
from slimbit.records.origin import NetworkOrigin, without_folders
from slimbit.records.plan import CompressionPlan
from slimbit.records.terminal import quantity
from slimbit.survey.dataflow import read_dataflow
from slimbit.survey.trace import Inputs


@dataclass(frozen=True, kw_only=True, eq=False, repr=False)
class CompressedModel:
    """A pruned network, a quantized one, or both; made by `slimbit.prune`, `slimbit.quantize`, `slimbit.load`.

    Attributes:
        model: An ordinary ``nn.Module`` in evaluation mode; weights of quantized layers are exactly ``step * levels``.
            Where activations are quantized it computes in integers, and gives what the exported file gives.
        network: The same network with float activations, as modules; ``model`` itself where they stay float.
        program: The integers of every operation; None where activations stay float.
        cost: What it costs.
        plan: Steps and how they were carried out; None where nothing was quantized.
        layers: Levels and steps of each quantized layer by name.
        keep: Which filters of the original are left; None where none were removed.
        spec: Its layers.
        origin: How the original is built, and what its inputs need.
        accuracy: What was measured of it, where something was.
        provenance: Versions, seed, hardware: anything JSON.
        residuals: Of ADMM, by epoch, where that pruned it.

    >>> import slimbit, torch
    >>> net, images = slimbit.network("digits_resnet"), torch.randn(16, 1, 8, 8)
    >>> small = slimbit.quantize(net, images[:1], images, bits=4)
    >>> str(small.plan.setting), small.model(images).shape
    ('4 bits', torch.Size([16, 10]))
    """

    model: nn.Module = field(repr=False)
    network: nn.Module = field(repr=False)
    program: IntegerProgram | None = field(default=None, repr=False)
    cost: CostReport = field(repr=False)
    spec: NetworkSpec = field(repr=False)
    plan: CompressionPlan | None = field(default=None, repr=False)
    layers: Mapping[str, LayerLevels] = field(default_factory=dict, repr=False)
    keep: KeepPlan | None = field(default=None, repr=False)
    origin: NetworkOrigin = field(default_factory=NetworkOrigin)
    accuracy: AccuracyEntry | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    residuals: tuple[float, ...] = field(default=(), repr=False)

    def __repr__(self) -> str:
        """What it is, what it costs, and how good it was measured to be."""
        how = [] if self.keep is None else [f"pruned by {self.keep.policy}, {self.keep.setting}"]
        how += [] if self.plan is None else [f"quantized by {self.plan.policy}, {self.plan.setting}"]
        how += [] if self.program is None else ["activations as integers"]
        total = self.cost.total
        spent = ("macs", "weight_bytes") if self.plan is None else ("esn_digital", "esn_analog", "weight_bytes")
        how += [f"{name} {quantity(value)}" for name in spent if (value := total[name]) is not None]
        how += [] if self.accuracy is None else [f"accuracy {self.accuracy.value:.2f}"]
        return f"CompressedModel({self.spec.name}: {', '.join(how)})"

    def with_accuracy(self, evaluate: Callable[[nn.Module], float], *, measured_on: str = "") -> "CompressedModel":
        """The same with its accuracy measured now; `save` stores it.

        Args:
            evaluate: From a network to a number, higher is better, or to a `slimbit.Accuracy`, whose confidence
                interval is stored too.
            measured_on: The images, for people; default: what ``evaluate`` says as ``description``.

        Raises:
            InputError: ``evaluate`` returned no finite number.

        >>> import slimbit, torch
        >>> net, images = slimbit.network("digits_resnet"), torch.randn(16, 1, 8, 8)
        >>> small = slimbit.quantize(net, images[:1], images, bits=4)
        >>> small.with_accuracy(lambda model: 91.5, measured_on="my images").accuracy.value
        91.5
        """
        found = evaluate(self.model)
        if isinstance(found, bool) or not isinstance(found, int | float) or not math.isfinite(found):
            raise InputError(f"evaluate must return a finite number, got {found!r}")
        low, high = wilson_interval(found, found.images) if isinstance(found, Accuracy) else (None, None)
        where = measured_on or str(getattr(evaluate, "description", ""))
        entry = AccuracyEntry(value=float(found), low=low, high=high, measured_on=where)
        return replace(self, accuracy=entry)

    def masked(self, original: nn.Module, example_input: Inputs) -> nn.Module:
        """The pruning as masks on the original network: the same outputs and costs, every layer at its old size.

        Args:
            original: The network that was pruned; not changed.
            example_input: One example with its batch dimension.

        Returns:
            A copy in which removed weights are zero, with a buffer ``weight_mask`` beside each weight, as
            `torch.nn.utils.prune` has it: `slimbit.cost` reads it. Training or quantization afterwards is not in it.

        Raises:
            InputError: Nothing was pruned, or the pruning is one of another network.

        >>> import slimbit, torch
        >>> net, image = slimbit.network("digits_resnet"), torch.randn(1, 1, 8, 8)
        >>> slim = slimbit.prune(net, image, keep=0.5)
        >>> torch.allclose(slim.masked(net, image)(image), slim.model(image), atol=1e-5)
        True
        """
        if self.keep is None:
            raise InputError(f"{self.spec.name} must be a pruned network to have masks, got one with all its filters")
        return mask(original, self.keep, example_input)

    def card(self) -> dict[str, Any]:
        """Model card: how the network is built, what its inputs need, how good it is; only what is known.

        >>> import slimbit, torch
        >>> slimbit.prune(slimbit.network("digits_resnet"), torch.zeros(1, 1, 8, 8), keep=0.5).card()["network"]
        'digits_resnet'
        """
        norm = self.origin.normalization
        numbers = None if norm is None else {"mean": list(norm.mean), "std": list(norm.std)}
        how = [] if self.keep is None else [f"pruned by {self.keep.policy}, {self.keep.setting}"]
        how += [] if self.plan is None else [f"quantized by {self.plan.policy}, {self.plan.setting}"]
        known = {
            "network": self.origin.source or None,
            "data": without_folders(self.origin.data) or None,
            "normalize": norm.name if norm is not None and norm.name != "custom" else numbers,
            "classes": self.origin.classes,
            "accuracy": None if self.accuracy is None else self.accuracy.value,
            "description": f"{', '.join(how)}; slimbit.load puts it together",
        }
        return {name: value for name, value in known.items() if value is not None}

    def packed(self) -> PackedModel:
        """Levels and everything else of the state dict as bytes.

        Raises:
            InputError: Weights of a quantized layer that are not ``step * levels`` any more.
        """
        return pack_model(self.network, self.layers, self.spec)

    def reference(self) -> NetworkReference:
        """How the original is built again.

        Raises:
            InputError: Nobody knows.
        """
        if not self.origin.source or not self.origin.input_shape:
            raise InputError(
                "origin of the network must be known to save it (source and input shape), got none: give one input "
                "tensor as the example, or slimbit.prepare(..., origin='package.module:function')"
            )
        return NetworkReference(
            source=self.origin.source,
            classes=self.origin.classes,
            input_shape=self.origin.input_shape,
            weights_digest=self.origin.weights_digest,
        )

    def export(
        self,
        file: str | Path,
        *,
        format: Format = "onnx",  # noqa: A002 - the word that other exporters use
        target: str | None = None,
        as_float: bool = False,
        int4: bool = False,
        opset: int | None = None,
    ) -> Path:
        """Write a file that a runtime executes, or an FPGA flow reads; `slimbit.verify` proves what it computes.

        Levels stay the integers they are; a layer, its BatchNorm and its ReLU become one integer operation. The file
        carries plan digest, cost and provenance.

        Args:
            file: To write; an older file of that name is replaced.
            format: "onnx" for runtimes (QuantizeLinear and DequantizeLinear), "qonnx" for FPGA flows.
            target: Runtime that the file keeps to, as in docs/reference/runtimes.md; "tensorrt" needs activations of
                signed codes. Default: onnxruntime, or finn of QONNX.
            as_float: Whether weights and activations are written as floats: of networks that are only pruned, and to
                compare with.
            int4: Whether weights of at most seven steps are stored in four bits: a smaller file, not a faster one.
            opset: Version of the ONNX operators; default: the oldest that has what is needed.

        Returns:
            The file.

        Raises:
            InputError: Float activations without ``as_float``, or what the format cannot hold.
            MissingExtraError: onnx is not installed.
            StoreError: It cannot be written.
        """
        about: dict[str, Any] = {
            "network": self.spec.name,
            **({} if self.plan is None else {"plan": self.plan.digest(), "policy": self.plan.policy}),
            **({"provenance": dict(self.provenance)} if self.provenance else {}),
        }
        if not as_float or self.plan is None:  # floats of a quantized network have neither its cost nor its accuracy
            about["cost"] = {name: self.cost.total[name] for name in METRICS}
            if self.accuracy is not None:
                about["accuracy"] = self.accuracy.model_dump(mode="json")
        if not as_float:
            if self.program is None:
                raise InputError(
                    "activations must be quantized for a file of integers, got float ones: give activation_bits=8 when "
                    "the network is quantized, or write it as floats"
                )
            return write_integers(file, self.program, form=format, target=target, int4=int4, opset=opset, about=about)
        if format != "onnx" or int4:
            raise InputError(f"format of floats must be onnx, got {'int4' if int4 else format}")
        return write_floats(file, self.network, self._flow(), opset=opset, about=about)

    def _flow(self) -> Dataflow:
        if self.program is not None:
            return self.program.flow
        if not self.origin.input_shape:
            raise InputError("input shape of the network must be known to export it, got none: give one input tensor")
        return read_dataflow(self.network, zeros_like_input(self.origin.input_shape), name=self.spec.name)

    def about_pruned(self) -> dict[str, Any]:
        """What ``prune.json`` says beside the plan: the card, and what `slimbit.load` gives back."""
        return {
            "card": self.card(),
            **({} if self.origin.normalization is None else {"normalization": self.origin.normalization}),
            **({} if self.accuracy is None else {"accuracy": self.accuracy}),
        }

    def save(self, folder: str | Path) -> Path:
        """Write a folder that `slimbit.load` reads: packed levels, plan, cost and hashes, or a pruned network.

        All of it or nothing is written; equal content gives equal files (docs/reference/artifact-format.md).

        Args:
            folder: A new or empty one, or one that holds this very model already.

        Returns:
            The folder.

        Raises:
            InputError: Another content in the folder, or weights that were changed after quantization.
            StoreError: It cannot be written.
        """
        target = as_path(folder, "folder")
        if self.plan is None:
            if self.keep is None:
                raise InputError("model must be quantized or pruned to be saved, got neither")
            write_pruned(target, self.model, self.keep, network=self.reference(), about=self.about_pruned())
            return target
        files = {
            "plan": canonical(self.plan),
            "cost": canonical(with_schema(self.cost, COST_SCHEMA)),
            **({} if self.keep is None else {"keep": canonical(self.keep)}),
        }
        write_artifact(
            target,
            self.packed(),
            files,
            network=self.reference(),
            plan=self.plan,
            cost=self.cost,
            accuracy=self.accuracy,
            normalization=self.origin.normalization,
            provenance=self.provenance,
        )
        return target
