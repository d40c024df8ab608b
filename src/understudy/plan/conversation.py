"""A conversation as a person plans it: so many turns of so many tokens, for one client or several at once."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import UsageError
from ..registry import lookup

FORM = "turns=20,prompt=64,reply=192"
NAMES = ("turns", "prompt", "reply", "clients", "template")
# Tokens that a chat template puts around the two messages of a turn, where nobody says.
TEMPLATE = 16


@dataclass(frozen=True)
class Conversation:
    """What `plan --chat` and `serve --plan-for` describe."""

    # Questions and answers.
    turns: int
    # Tokens of a question, and of an answer at most.
    prompt: int
    reply: int
    # Conversations at once.
    clients: int = 1
    # Tokens of the chat template in each turn.
    template: int = TEMPLATE

    @classmethod
    def parse(cls, text: str, option: str) -> Conversation:
        """What `text` says, such as FORM. Raises UsageError, naming `option`, where it is not of that form."""
        values: dict[str, int] = {}
        for pair in filter(None, map(str.strip, text.split(","))):
            name, _, value = pair.partition("=")
            lookup(f"value of {option}", name, dict.fromkeys(NAMES, ""))
            least = 0 if name == "template" else 1
            if name in values or not (value.isascii() and value.isdigit()) or int(value) < least:
                what = f"{name} must be given once, as a whole number of {least} or more"
                raise UsageError(f"{option} {text}: {what}: {option} {FORM}.")
            values[name] = int(value)
        if missing := [name for name in ("turns", "prompt", "reply") if name not in values]:
            raise UsageError(f"{option} {text}: {' and '.join(missing)} must be given: {option} {FORM}.")
        return cls(**values)

    @property
    def turn(self) -> int:
        """Tokens of one turn."""
        return self.prompt + self.reply + self.template

    @property
    def tokens(self) -> int:
        """Tokens of the whole conversation: the context it needs."""
        return self.turns * self.turn

    def check_reserved(self, option: str, rows: int | None, context: int | None) -> None:
        """Raise UsageError, naming `option`, where the rows or the context that were given (None: were not) are not its own."""
        for name, given, wanted in (("rows", rows, self.clients), ("context", context, self.tokens)):
            if given not in (None, wanted):
                raise UsageError(f"--{name} {given} contradicts {option}, which needs {wanted}: leave one of them out.")

    def check_positions(self, positions: int | None) -> None:
        """Raise UsageError where a model of so many positions (None: any number) cannot hold it: how many turns it does."""
        if positions is not None and self.tokens > positions:
            raise UsageError(
                f"{self.turns} turns have {self.tokens} tokens, and this model has {positions} positions: they hold"
                f" {self.turns_within(positions)} such turns."
            )

    def turns_within(self, context: int) -> int:
        """Turns that end within `context` tokens."""
        return context // self.turn
