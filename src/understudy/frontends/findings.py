"""What `doctor` finds: a line each, with advice where something can be done."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Finding:
    """One line. `advice` says what to do; `missing`: without it nothing runs."""

    topic: str
    value: str
    advice: str = ""
    missing: bool = False


def lines(found: list[Finding]) -> list[str]:
    """The findings for people."""
    text = []
    for finding in found:
        text.append(f"{finding.topic:16} {finding.value}")
        if finding.advice:
            text.append(f"{'':16} -> {finding.advice}")
    return text
