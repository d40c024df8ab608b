"""Models by name that share one ceiling of memory: which must go so that another can be loaded, and loading it.

A model is loaded beside others where it gives up nothing for them: where the memory that they leave holds it whole. Else those
that were used longest ago make way for it."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from .errors import UnderstudyError, UsageError
from .llm import LLM
from .options import Options
from .plan.placement import Plan
from .sources import Report, ending, locate
from .weights.holding import Hold


@dataclass
class ModelShelf:
    """Models that are loaded by name, with the same options of `LLM`. `check` comes first."""

    # What `LLM` takes, by name; None is the built-in model.
    sources: Mapping[str, str | None]
    options: Mapping[str, Any]
    # Told how loading goes on, as `LLM(progress=...)` tells it.
    report: Report
    # The plan of each model when it is loaded alone.
    plans: dict[str, Plan] = field(default_factory=dict)
    # Keeps the files of models that are served from being deleted, loaded or not.
    hold: Hold = field(default_factory=Hold)

    def check(self) -> None:
        """Plan each model before any is loaded. Raises UnderstudyError, with its name, for the first one that cannot be."""
        for name, model in self.sources.items():
            with _named(name):
                self.hold.add(locate(model, Options.of(self.options, os.environ)).path)
                self.plans[name] = LLM.plan_only(model, **self.options)

    @property
    def contexts(self) -> dict[str, int]:
        """Tokens that each model's texts may have when it is loaded alone."""
        return {name: plan.context for name, plan in self.plans.items()}

    @property
    def exact(self) -> dict[str, bool]:
        """Of each model: are its texts the exact model's?"""
        return {name: not plan.kv_bits for name, plan in self.plans.items()}

    def leaving(self, name: str, loaded: Mapping[str, LLM]) -> list[str]:
        """Which of the `loaded` models, those used longest ago first, must go so that `name` can be loaded.

        Raises UnderstudyError where its files are not there any more."""
        locate(self.sources[name], Options.of(self.options, os.environ))
        names = list(loaded)
        for going in range(len(names)):
            if self._fits(name, [loaded[other] for other in names[going:]]):
                return names[:going]
        return names

    def load(self, name: str, beside: Mapping[str, LLM], ended: threading.Event) -> LLM:
        """The model called `name`, in the memory that those of `beside` leave. UnderstudyError also once `ended` is set."""
        report = ending(self.report, ended)
        if len(self.sources) > 1:
            report(f"Loading {name}" + (f" beside {', '.join(beside)}" if beside else ""), 0, 0)
        llm = LLM(self.sources[name], progress=report, **self._options(name, list(beside.values())))
        self.hold.add(llm.store.path)
        return llm

    def close(self) -> None:
        """The models are served no more: their files may be deleted."""
        self.hold.close()

    def _fits(self, name: str, beside: list[LLM]) -> bool:
        """Would the model give up nothing for those that stay?"""
        try:
            plan = LLM.plan_only(self.sources[name], **self._options(name, beside))
        except UsageError:
            # What they leave is too little for any plan.
            return False
        alone = self.plans[name]
        same = (plan.context, plan.rows, plan.passes.trees) == (alone.context, alone.rows, alone.passes.trees)
        return same and not plan.streamed_bytes

    def _options(self, name: str, beside: list[LLM]) -> dict[str, Any]:
        """The options to load a model with, in the memory that others leave. Raises UsageError where they leave none."""
        if not beside:
            return dict(self.options)
        # What the process holds besides is counted once for each.
        taken = sum(llm.plan.used - llm.plan.items.get("runtime", 0) for llm in beside)
        left = self.plans[name].budget_bytes - taken
        if left <= 0:
            raise UsageError(f"No memory is left for {name}.")
        return {**self.options, "memory": left}


@contextmanager
def _named(name: str) -> Iterator[None]:
    """Errors say which model they are of."""
    try:
        yield
    except UnderstudyError as error:
        error.args = (f"{name}: {error}",)
        raise
