"""What card and report are written from: the run as it was asked for, planned, trained and checked."""

from __future__ import annotations

from dataclasses import dataclass

from cloister_api.run import Run
from cloister_trainer.publish.adapter_checks import model_name
from cloister_trainer.publish.manifest import AdapterFacts, Deletion, Egress, Times
from cloister_trainer.records import Checks, PlanFile, TrainPlan


@dataclass(frozen=True)
class RunFacts:
    """Everything known about a run once its adapter has passed the checks."""

    run: Run
    plan: PlanFile
    checks: Checks
    """With the gate's result."""
    adapter: AdapterFacts
    egress: Egress
    deletions: list[Deletion]
    first_step: str | None
    """UTC, ISO 8601."""
    last_step: str | None

    @property
    def base_name(self) -> str:
        """The base model's name as people know it."""
        return model_name(self.plan.model.uri)

    @property
    def train_plan(self) -> TrainPlan:
        """The plan that train followed."""
        return self.checks.plan or self.plan.plan

    def times(self, published: str) -> Times:
        """For the manifest."""
        return Times(first_step=self.first_step, last_step=self.last_step, published=published)
