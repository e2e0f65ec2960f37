"""A compressed network: an ordinary module, what it costs, and how it came about."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from slimbit.artifacts.artifact import write_artifact
from slimbit.artifacts.manifest import AccuracyEntry, NetworkReference
from slimbit.artifacts.packed import PackedModel, pack_model
from slimbit.artifacts.pruned import write_pruned
from slimbit.numerics.levels import LayerLevels
from slimbit.records.codec import canonical, with_schema
from slimbit.records.cost import SCHEMA as COST_SCHEMA
from slimbit.records.cost import CostReport
from slimbit.records.errors import InputError
from slimbit.records.keep import KeepPlan
from slimbit.records.network import NetworkSpec
from slimbit.records.origin import NetworkOrigin
from slimbit.records.plan import CompressionPlan


@dataclass(frozen=True, kw_only=True, eq=False)
class CompressedModel:
    """A pruned network, a quantized one, or both; made by `slimbit.prune`, `slimbit.quantize`, `slimbit.load`.

    Attributes:
        model: An ordinary ``nn.Module`` in evaluation mode; weights of quantized layers are exactly ``step * levels``.
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
    >>> str(small.plan.setting), small.model(images).shape, small.cost.total.esn_digital == slimbit.cost(small).total.esn_digital
    ('4 bits', torch.Size([16, 10]), True)
    """

    model: nn.Module = field(repr=False)
    cost: CostReport = field(repr=False)
    spec: NetworkSpec = field(repr=False)
    plan: CompressionPlan | None = field(default=None, repr=False)
    layers: Mapping[str, LayerLevels] = field(default_factory=dict, repr=False)
    keep: KeepPlan | None = field(default=None, repr=False)
    origin: NetworkOrigin = field(default_factory=NetworkOrigin)
    accuracy: AccuracyEntry | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict, repr=False)
    residuals: tuple[float, ...] = field(default=(), repr=False)

    def packed(self) -> PackedModel:
        """Levels and everything else of the state dict as bytes.

        Raises:
            InputError: Weights of a quantized layer that are not ``step * levels`` any more.
        """
        return pack_model(self.model, self.layers, self.spec)

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
        target = Path(folder)
        if self.plan is None:
            if self.keep is None:
                raise InputError("model must be quantized or pruned to be saved, got neither")
            write_pruned(target, self.model, self.keep, network=self.reference(), about={})
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
