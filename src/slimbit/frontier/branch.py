"""One width of a run: the network as it was given, or a narrower one, with everything that was decided about it."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from slimbit.frontier.narrow import narrow_network
from slimbit.frontier.slim import Slimmer, packed_state, slimmed
from slimbit.frontier.subject import Subject
from slimbit.frontier.workspace import PlannedPoint, Workspace, canonical
from slimbit.measure.sensitivity import Likelihood, measure_sensitivity
from slimbit.records.sensitivity import Sensitivity

STAGES = ("sweep", "refine", "baselines", "prune_only", "signal")
"""In the order of work: points for comparison wait until the places of the refinement are known."""
SLIM = "slim"
Tell = Callable[[str], None]


@dataclass
class Branch:
    """A width. What is decided about it stands in the run's study under names of its own.

    Attributes:
        root: The network as it was given.
        workspace: The run.
        width: Share of the filters that is kept; 1 = the network as it was given.
        slimmer: Makes it narrower.
        stages: Folder of what is pruned and tuned.
        likelihood: What the sensitivity samples labels from.
        objects: What makes the narrower network, for its points: digests by role "keep" and "network".
    """

    root: Subject
    workspace: Workspace
    width: float = 1.0
    slimmer: Slimmer | None = None
    stages: Path = Path()
    likelihood: Likelihood | str = "categorical"
    objects: dict[str, str] = field(default_factory=dict)
    _subject: Subject | None = None

    @property
    def subject(self) -> Subject:
        """The network under the run's recipe; `open` comes first."""
        assert self._subject is not None, "open comes first"
        return self._subject

    @property
    def is_open(self) -> bool:
        """Whether this process can work on it."""
        return self._subject is not None and self._subject.sensitivity is not None

    def open(self, tell: Tell) -> None:
        """Make the network and see to its sensitivity; what other processes have found is used."""
        self._subject = self.root if self.slimmer is None else self._narrower(self.slimmer, tell)
        self._subject.sensitivity = self._sensitivity(self._subject, tell)

    def key(self, name: str) -> str:
        """The name of something of this width within the run."""
        return name if self.width == 1 else f"width-{self.width:g}-{name}"

    @contextmanager
    def lock(self, name: str) -> Iterator[bool]:
        """`Workspace.lock` under a name of this width."""
        with self.workspace.lock(self.key(name)) as mine:
            yield mine

    def planned(self, stage: str) -> tuple[PlannedPoint, ...] | None:
        """The points of a stage, or None before they were decided on."""
        return self.workspace.planned(self.key(stage))

    def plan_points(self, stage: str, points: Sequence[PlannedPoint], **about: Any) -> None:
        """Decide on the points of a stage."""
        self.workspace.plan_points(self.key(stage), points, **about)

    def decided(self) -> list[PlannedPoint]:
        """Every point so far, in the order of work."""
        return [point for stage in STAGES for point in self.planned(stage) or ()]

    def _narrower(self, slimmer: Slimmer, tell: Tell) -> Subject:
        """Prune and tune, or take what the run has of it."""
        noted = self.workspace.noted(self.key(SLIM))
        if noted is None:
            result = slimmed(slimmer, slimmer.plan(self.width), self.stages, tell)
            noted = {
                "keep": self.workspace.write(canonical(result.plan.to_dict()), "json"),
                "network": self.workspace.write(packed_state(result.network), "safetensors"),
                "residuals": result.residuals,
            }
            self.workspace.note(self.key(SLIM), noted)
        self.objects = {role: noted[role] for role in ("keep", "network")}
        network = narrow_network(slimmer.model, self.objects, self.workspace.read)
        root = self.root
        settings = {"metric": root.metric, "recipe": root.recipe, "layout": root.layout, "seed": root.seed}
        return Subject.of(network, slimmer.example, root.batches, name=root.survey.spec.name, **settings)

    def _sensitivity(self, subject: Subject, tell: Tell) -> Sensitivity:
        stored = self.workspace.noted(self.key("sensitivity"))
        if stored is None:
            tell("measuring how much each filter matters")
            found = measure_sensitivity(
                subject.model,
                subject.survey.spec,
                subject.batches,
                generator=torch.Generator().manual_seed(subject.seed),
                likelihood=self.likelihood,
            )
            self.workspace.note(self.key("sensitivity"), found.to_dict())
            stored = self.workspace.noted(self.key("sensitivity"))
        return Sensitivity.from_dict(stored)
