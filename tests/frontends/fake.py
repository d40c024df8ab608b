"""An LLM that obeys the contract and knows one text. Run as a script it is the `understudy` command on that LLM:
what a front end does with Steps, errors and Ctrl-C can be seen in a process of its own, without a model."""

import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import ModuleType
from typing import Any

from understudy.errors import CheckpointError, RoomError, StoreError, TransferError, UsageError
from understudy.generation_config import GenerationDefaults
from understudy.params import SamplingParams

WORDS = ["    with", " open(path)", " as", " file:\n", "        return", " [line", " for", " line", " in", " füle]\n"]


@dataclass(frozen=True)
class Stats:
    method: str = "substitute"
    new_tokens: int = 0
    rounds: int = 0
    mean_accepted: float = 0.0
    drafted: int = 0
    accepted: int = 0
    tokens_per_second: float = 0.0
    decode_seconds: float = 0.0
    ttft_seconds: float = 0.5
    bytes_streamed: int = 0
    stream_seconds: float = 0.0
    link_bytes_per_second: float = 0.0
    limit_tokens_per_second: float | None = None
    peak_memory_bytes: int = 300 << 20
    draft_seconds: float = 0.0
    wait_seconds: float = 0.0
    compute_seconds: float = 0.0
    prompt_tokens: int = 3
    plan: dict[str, Any] = field(default_factory=dict)
    seed: int | None = None
    read_again: int = 0
    levels_per_round: float = 0.0
    levels: float = 0.0
    suggested: dict[str, int] = field(default_factory=dict)
    agreed: dict[str, int] = field(default_factory=dict)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


@dataclass(frozen=True)
class Step:
    text: str
    token_ids: list[int]
    drafted: int
    accepted: int
    finish_reason: str | None
    stats: Stats


@dataclass(frozen=True)
class Completion:
    text: str
    token_ids: list[int]
    finish_reason: str
    stats: Stats


@dataclass(frozen=True)
class Plan:
    resident: str = "auto"

    def lines(self) -> list[str]:
        return ["fast memory  300 MiB", f"resident     {self.resident}"]

    def predicted(self, tokens: float, levels: float) -> float | None:
        return 1.5 * tokens

    def to_dict(self) -> dict[str, Any]:
        return {"resident": self.resident, "predicted": float("nan")}


@dataclass(frozen=True)
class Disk:
    block: int = 4096
    threads: int = 1


@dataclass(frozen=True)
class Machine:
    disk: Disk = field(default_factory=Disk)
    link_bandwidth: float = 2e9

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


class Tokenizer:
    def encode(self, text: str, add_special_tokens: bool = True) -> list[int]:
        return [ord(character) for character in text]


@dataclass(frozen=True)
class Store:
    path: Path
    streamed: Path = Path(__file__)


class LLM:
    """`UNDERSTUDY_FAKE` says what goes wrong: slow, failing, broken, parting (one method writes another token), or, in a chat,
    refusing (messages that say so), full (a later turn that is too long) or faulty (a template that can never be used)."""

    def __init__(
        self, model: str | None = None, *, progress: Callable[..., None] | None = None, **options: Any
    ) -> None:
        self.options = options
        self.method = options.get("method", "substitute")
        self.trouble = os.environ.get("UNDERSTUDY_FAKE", "")
        if self.trouble == "broken":
            raise StoreError("residual.bin is truncated.\nPrepare the model again.")
        self.plan = self.plan_only(model, **options)
        self.machine = Machine()
        self.tokenizer = Tokenizer()
        self.store = Store(Path(__file__).parent)
        self.closed = False
        self.generation = GenerationDefaults({})
        if progress is not None:
            progress("loading", 1.0, 1.0)

    @staticmethod
    def plan_only(model: str | None = None, *, resident: str = "auto", **options: Any) -> Plan:
        return Plan(resident)

    @staticmethod
    def prepare(model: str | None = None, *, output: Path | None = None, **options: Any) -> Store:
        path = output or Path(os.environ["UNDERSTUDY_CACHE"]) / "fake"
        path.mkdir(parents=True, exist_ok=True)
        (path / "index.json").write_text("{}")
        return Store(path)

    def settle(self) -> None:
        pass

    def __enter__(self) -> "LLM":
        return self

    def __exit__(self, *failure: object) -> None:
        self.closed = True

    def stream(self, prompt: str | list[int], params: SamplingParams | None = None) -> Iterator[Step]:
        assert not self.closed
        limit = (params or SamplingParams()).max_new_tokens
        words = (WORDS * (limit // len(WORDS) + 1))[:limit]
        speed = 4 if self.method == "none" else 40
        for count, word in enumerate(words, start=1):
            if self.trouble == "slow":
                if count == 2:
                    # who asks for JSON sees nothing yet
                    Path("begun").touch()
                time.sleep(0.2)
            if self.trouble == "failing" and count == 3:
                raise TransferError("Reading residual.bin at 4096 gave 12 of 8192 bytes.")
            ids = [count % len(WORDS) + (self.trouble == "parting" and self.method != "none" and count == 5)]
            stats = Stats(
                method=self.method,
                new_tokens=count,
                rounds=count,
                mean_accepted=1.0,
                tokens_per_second=speed,
                decode_seconds=count / speed,
                bytes_streamed=(count + 1) * 10**7,
                stream_seconds=count * 0.01,
                link_bytes_per_second=1e9,
                wait_seconds=count / speed / 2,
            )
            yield Step(word, ids, 1, 1, "length" if count == limit else None, stats)

    def stream_chat(self, messages: Sequence[dict[str, str]], params: SamplingParams | None = None) -> Iterator[Step]:
        if self.trouble == "refusing" and messages[-1]["content"] == "refuse this":
            raise UsageError("The chat template refuses the conversation.")
        if self.trouble == "full" and len(messages) > 2 and messages[-1]["content"] == "too long":
            raise RoomError("The conversation has 500 tokens.")
        if self.trouble == "faulty":
            raise CheckpointError("The chat template is faulty.")
        return self._chatting(messages, params)

    def _chatting(self, messages: Sequence[dict[str, str]], params: SamplingParams | None) -> Iterator[Step]:
        for step in self.stream(messages[-1]["content"], replace(params or SamplingParams(), max_new_tokens=2)):
            yield replace(step, text=f"{len(messages)}{step.text}")

    def generate(self, prompts: Sequence[Any], params: SamplingParams | None = None) -> list[Completion]:
        found = []
        for prompt in [prompts] if isinstance(prompts, str) else prompts:
            steps = list(self.stream(prompt, params))
            ids = [token for step in steps for token in step.token_ids]
            found.append(Completion("".join(s.text for s in steps), ids, "length", steps[-1].stats))
        return found


def module() -> ModuleType:
    """A stand-in for `understudy.llm`."""
    fake = ModuleType("understudy.llm")
    vars(fake).update(LLM=LLM, Step=Step, Stats=Stats, Completion=Completion)
    return fake


if __name__ == "__main__":
    from understudy import startup
    from understudy.frontends import main

    sys.modules["understudy.llm"] = module()
    # What only a model needs is most of what a process takes to start.
    startup.import_foundation = lambda: False
    sys.exit(main())
