"""How a Store is made, and the directory that follows from it. It imports nothing heavy: options use it."""

from dataclasses import dataclass
from pathlib import Path

import xxhash

from ..codecs import FALLBACK
from ..errors import UsageError
from ..quantizers.mixed import Mixed, mixed
from .sample_text import TEXT

# the quantisers that can make use of a text
FITTED = ("int2", "int3", "int4", "int6", "mixed")
# what --calibrate says for no text
NO_TEXT = "none"


@dataclass(frozen=True)
class Recipe:
    """How a Store is made. Two Stores of one source fingerprint and one recipe are alike."""

    # The quantiser of all weights ("int4", "int4:group=32"), or a mix of bits ("mixed:bits=3.5").
    quantizer: str = "int4"
    # What the exact weights are stored as; a weight that the codec cannot store is stored as `FALLBACK`.
    codec: str = FALLBACK
    # A checksum of the text that the copy was fitted to; empty: it was made from the weights alone.
    calibrated: str = ""
    # The quantiser of the head alone; empty: that of all weights.
    head: str = ""

    @property
    def copy(self) -> str:
        """The quantisers of the copy, in words."""
        return f"{self.quantizer}, head {self.head}" if self.head else self.quantizer

    @property
    def mixes(self) -> bool:
        """Whether each weight has a quantiser of its own, chosen once what all weights are multiplied with is known."""
        return mixed(self.quantizer) is not None

    def store_path(self, model: str, fingerprint: str, cache: Path) -> Path:
        """The directory in `cache` for the Store of `model`, whose content has this fingerprint."""
        head = f"head_{self.head}" if self.head else ""
        recipe = filter(None, [self.quantizer, head, self.calibrated, self.codec])
        readable = "-".join([Path(model).name or "model", *recipe, fingerprint[:12]])
        return cache / "".join(c if c.isalnum() or c in "-._" else "_" for c in readable)


def uses_text(quantizer: str) -> bool:
    """Whether copies by this quantiser or mix are fitted to a text."""
    return quantizer.partition(":")[0] in FITTED


def calibration_text(path: str | Path | None) -> str | None:
    """The text in a file: for None that of `sample_text`, for "none" no text.

    Raises UsageError for a file that cannot be read or holds no text."""
    if path is None:
        return TEXT
    if str(path) == NO_TEXT:
        return None
    path = Path(path).expanduser()
    try:
        text = path.read_text(encoding="utf-8")
    except OSError as problem:
        raise UsageError(f"--calibrate {path} cannot be read: {problem.strerror}.") from None
    except UnicodeDecodeError:
        raise UsageError(f"--calibrate {path} is not UTF-8 text.") from None
    if not text.strip():
        raise UsageError(f"--calibrate {path} holds no text.")
    return text


def check_calibration(quantizer: str, calibrated: bool) -> None:
    """Raise UsageError where a text is given that fits nothing, or a mix names a checksum in place of its text."""
    mix = mixed(quantizer)
    if calibrated and not uses_text(quantizer):
        raise UsageError("--calibrate is for copies of 2, 3, 4 or mixed bits, which are fitted to it.")
    if mix is not None and mix.calibrated:
        raise UsageError("mixed: calibrated is not to be chosen; --calibrate FILE names the text.")


def checksum_of(text: str | None) -> str:
    """What a text is called in a recipe; empty for none."""
    return "" if text is None else xxhash.xxh3_64_hexdigest(text.encode())[:12]


def quantizer_name(quantizer: str, text: str | None) -> str:
    """The full name of a quantiser or mix. A text that weighs a mix is part of it: another text, another Store."""
    mix = mixed(quantizer)
    if mix is None:
        return quantizer
    if text is None:
        return mix.name
    return Mixed(bits=mix.bits, calibrated=checksum_of(text)).name


def textless(quantizer: str) -> str:
    """The full name of a quantiser or mix without the text that weighs it."""
    mix = mixed(quantizer)
    return quantizer if mix is None else Mixed(bits=mix.bits).name
