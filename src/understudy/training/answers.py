"""`--self`: what the model itself says to the prompts of the data, answered as by `understudy batch`, so a killed run goes on."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

from ..api.settings import AnswerSettings
from ..chat_template import chat_prompt, encode
from ..errors import UsageError
from ..jobs.ledger import Index, Output
from ..jobs.run import Job
from ..weights.writing import explained
from . import Report
from .checkpoints import OTHERWISE
from .conversation import Unusable, question_of
from .data import Text, content, kept_apart, lines_of, record_of

REQUESTS = "prompts.jsonl"
ANSWERS = "answers.jsonl"
# Of a text, the prompt is the first half of each piece, at most so many tokens.
LONGEST_PROMPT = 64


@dataclass
class PromptReader:
    """Reads files into prompts. `longest`: tokens of a prompt and its answer together, at most."""

    tokenizer: Any
    longest: int
    prompts: list[list[int]] = field(default_factory=list)
    # What was passed over, a line each.
    notes: list[str] = field(default_factory=list)

    def read(self, paths: Sequence[Path]) -> list[list[int]]:
        """The prompts of all files. Raises UsageError for a file that cannot be read, and where there is no prompt."""
        for path in paths:
            if path.suffix == ".jsonl":
                self._questions(path)
            else:
                self._beginnings(encode(self.tokenizer, content(path), verbose=False))
        if not self.prompts:
            raise UsageError(f"There is no prompt in {', '.join(map(str, paths[:3]))}. {' '.join(self.notes[:1])}".rstrip())
        return self.prompts

    def _questions(self, path: Path) -> None:
        wrong: list[str] = []
        for number, line in lines_of(path):
            try:
                record = record_of(line)
                if isinstance(text := record.get("text"), str):
                    self._beginnings(encode(self.tokenizer, text, verbose=False))
                else:
                    self._take(chat_prompt(self.tokenizer, question_of(record)))
            except (Unusable, UsageError) as error:
                wrong.append(f"line {number}: {error}")
        if wrong:
            self.notes.append(f"{len(wrong)} lines of {path} cannot be used (the first: {wrong[0].rstrip('.')}).")

    def _beginnings(self, tokens: list[int]) -> None:
        for start in range(0, len(tokens), self.longest):
            piece = tokens[start : start + self.longest]
            self._take(piece[: min(LONGEST_PROMPT, len(piece) // 2)])

    def _take(self, prompt: list[int]) -> None:
        """A prompt, unless it is empty or leaves no room for an answer."""
        if 0 < len(prompt) <= self.longest // 2:
            self.prompts.append(prompt)


@dataclass(frozen=True)
class Answers:
    """The answers of `model`, a digest of its weights, to `prompts`, in files of `directory`. Each prompt has a seed of its own."""

    directory: Path
    model: str
    prompts: Sequence[Sequence[int]]
    # Tokens of a prompt and its answer together, at most.
    longest: int
    seed: int

    def ask(self) -> int:
        """Write down what is to be answered. Returns how many prompts have no answer yet. UsageError where what is in the directory
        answers other prompts, or is by another model."""
        with explained(self.directory):
            self.directory.mkdir(parents=True, exist_ok=True)
            with (self.directory / REQUESTS).open("w") as file:
                for number, prompt in enumerate(self.prompts):
                    file.write(json.dumps(self._asked(number, prompt)) + "\n")
        with (self.directory / REQUESTS).open("rb") as requests:
            output = self._output(requests)
            output.close()
        return len(output.index) - output.finished

    def _asked(self, number: int, prompt: Sequence[int]) -> dict[str, Any]:
        most = self.longest - len(prompt)
        body = {"prompt": list(prompt), "max_tokens": most, "return_token_ids": True, "seed": self.seed + number}
        return {"custom_id": str(number), "method": "POST", "url": "/v1/completions", "body": body}

    def answer(self, llm: Any, report: Report) -> None:
        """Let `llm`, an LLM, answer what has no answer yet. Raises UnderstudyError where nothing can be answered any more."""
        with (self.directory / REQUESTS).open("rb") as requests:
            output = self._output(requests)

            def told() -> None:
                report("answering the prompts", output.finished, len(output.index))

            try:
                Job(AnswerSettings(self.model), requests, output, 2 * llm.plan.rows, told).run(llm)
            finally:
                output.close()

    def _output(self, requests: BinaryIO) -> Output:
        otherwise = f"finish that training, delete {self.directory}, or {OTHERWISE}"
        return Output(
            self.directory / ANSWERS, Index.of(requests, lambda done, total: None), self.model, False, otherwise
        )

    def _records(self) -> list[dict[str, Any]]:
        """The records of all prompts, in their order."""
        with (self.directory / ANSWERS).open("rb") as file:
            found = {int(record["custom_id"]): record for record in map(json.loads, file)}
        return [found[number] for number in range(len(self.prompts))]

    def failed(self) -> str:
        """How many prompts got no answer, and why; empty: all have one."""
        errors = [record["error"]["message"] for record in self._records() if record["error"] is not None]
        if not errors:
            return ""
        return f"{len(errors)} of {len(self.prompts)} prompts have no answer (the first: {errors[0].rstrip('.')})."

    def texts(self) -> Iterator[Text]:
        """Prompts with their answers, of which the answers are to be guessed. Those that `failed` counts are left out."""
        for prompt, record in zip(self.prompts, self._records(), strict=True):
            for choice in () if record["error"] is not None else record["response"]["body"]["choices"]:
                tokens = [*prompt, *choice["token_ids"]]
                marks = [place >= len(prompt) for place in range(len(tokens))]
                yield tokens, marks, kept_apart(json.dumps(list(prompt)))
