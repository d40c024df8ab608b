"""What the user asks of the sampler. Validated here, so that nothing deeper has to."""

from dataclasses import dataclass

from .errors import UsageError


@dataclass(frozen=True)
class SamplingParams:
    """How tokens are chosen and when to stop. Names follow transformers and vLLM.

    temperature 0 is greedy; top_k 0, top_p 1 and min_p 0 are off. `seed` keys the noise together with the position,
    so one seed gives one text, with drafting or without. Raises UsageError for values that make no sense."""

    temperature: float = 0.0
    top_p: float = 1.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int = 0
    max_new_tokens: int = 128
    stop: tuple[str, ...] = ()
    ignore_eos: bool = False

    def __post_init__(self) -> None:
        if isinstance(self.stop, str):
            object.__setattr__(self, "stop", (self.stop,))
        object.__setattr__(self, "stop", tuple(self.stop))
        for name, good, text in (
            ("temperature", 0.0 <= self.temperature < float("inf"), "0 or more"),
            ("top_p", 0.0 < self.top_p <= 1.0, "above 0 and at most 1"),
            ("top_k", self.top_k >= 0, "0 (off) or more"),
            ("min_p", 0.0 <= self.min_p <= 1.0, "from 0 to 1"),
            ("max_new_tokens", self.max_new_tokens >= 1, "1 or more"),
            ("seed", 0 <= self.seed < 2**63, "from 0 to 2**63 - 1"),
            ("stop", all(self.stop), "non-empty texts"),
        ):
            if not good:
                raise UsageError(f"{name} must be {text}, got {getattr(self, name)!r}.")
