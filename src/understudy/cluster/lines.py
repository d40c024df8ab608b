"""A batch job on Ray Data: replicas answer groups of lines, and this process writes the records, each line's once.

Ray answers a group anew where its replica was lost. Records reach the output in whole groups, by this process alone, so what is
there is whole, stands there once, and is found again by a later run, on a cluster or without."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import pyarrow
import ray
import ray.data

from ..api.settings import AnswerSettings
from ..jobs.answering import Answering
from ..jobs.job import BatchJob
from ..jobs.records import Line, line_of
from ..llm import LLM
from ..service import Service
from .connection import ReplicaShare
from .faults import told

# Groups of lines that a replica answers side by side: where one draws to its end, the other keeps the rows busy.
TOGETHER = 2


class LineReplica:
    """One model that answers groups of lines, several groups at a time; Ray makes it once for each replica."""

    def __init__(self, model: str | None, options: dict[str, Any], settings: AnswerSettings):
        self.llm = LLM(model, **options)
        self.settings = settings
        self.service = Service(self.llm)
        self.service.start()

    def __call__(self, group: dict[str, Any]) -> dict[str, Any]:
        """The records of the lines in `group`, as JSON, with the names of the fields that were ignored in one of the lines."""
        answering = Answering(self.llm, self.settings, self.service)
        numbered = zip(group["number"].tolist(), group["text"].tolist(), strict=True)
        records = asyncio.run(_records(answering, [line_of(number, text) for number, text in numbered]))
        ignored = [json.dumps(sorted(answering.ignored))] * len(records)
        told = np.array([json.dumps(record) for record in records], dtype=object)
        return {"number": group["number"], "text": group["text"], "record": told, "ignored": np.array(ignored, dtype=object)}


async def _records(answering: Answering, lines: list[Line]) -> list[dict[str, Any]]:
    return await asyncio.gather(*map(answering.record, lines))


class ClusterJob(BatchJob):
    """A job on replicas."""

    def run(self, model: str | None, options: dict[str, Any], replicas: int, place: ReplicaShare) -> None:
        """Answer all lines by `replicas` LLMs of `model` with `options`, each in its `place`.

        Raises UnderstudyError where no line can be answered any more, KeyboardInterrupt at Ctrl-C.
        Whatever ends it, the records of finished lines are on the disk."""
        _quiet()
        size = max(self.window // TOGETHER, 1)
        groups = [ray.put(group) for group in self._groups(size)]
        pool = ray.data.ActorPoolStrategy(
            size=replicas,
            max_tasks_in_flight_per_actor=TOGETHER,
            max_concurrent_calls_per_actor=TOGETHER,
            enable_true_multi_threading=True,
        )
        answered = ray.data.from_arrow_refs(groups).map_batches(
            LineReplica,
            batch_size=size,
            compute=pool,
            fn_constructor_args=(model, options, self.settings),
            **place.options(),
        )
        with told("The replicas cannot answer"):
            for row in answered.iter_rows():
                self._keep(row)

    def _groups(self, size: int) -> Iterator[pyarrow.Table]:
        """The lines that are left, `size` in each group."""
        left = self.output.left(self.input)
        while lines := list(islice(left, size)):
            yield pyarrow.table({"number": [line.number for line in lines], "text": [line.text for line in lines]})

    def _keep(self, row: dict[str, Any]) -> None:
        """Write the record of a line, if it has none."""
        if self.output.holds(line_of(row["number"], row["text"])):
            return
        self.ignored |= set(json.loads(row["ignored"]))
        self.keep(json.loads(row["record"]))


def _quiet() -> None:
    """Ray Data says what it does in many lines: errors alone are left."""
    logging.getLogger("ray.data").setLevel(logging.ERROR)
    chosen = ray.data.DataContext.get_current()
    chosen.enable_progress_bars = False
    chosen.print_on_execution_start = False
