"""What decides how bodies are answered, whoever sends them."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class AnswerSettings:
    """The model's name and the limits of one answer. Times are seconds."""

    # What clients call the model.
    model_name: str
    # The longest a request may take; 0: as long as it needs.
    request_timeout: float = 0.0
    # Silence after which a stream says that it is alive.
    keep_alive: float = 5.0
    # The most answers to one prompt.
    max_choices: int = 16
