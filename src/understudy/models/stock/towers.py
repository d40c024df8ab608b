"""Towers that are another library's: multimodal models are built without them, as they are cut off anyway, and the library need not
be installed."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from torch import nn

# Classes of transformers that only hold a model which another library builds.
SHELLS = ("TimmWrapperModel", "TimmBackbone")


@contextmanager
def left_out() -> Iterator[None]:
    """Inside, transformers builds an empty module in the place of a part that is another library's model."""
    import transformers

    # typed as anything, since it is changed for a while
    auto: Any = transformers.AutoModel
    # as it stands in the class, for it has to be put back so
    known = auto.__dict__["from_config"]
    build = auto.from_config

    def from_config(config: Any, **options: Any) -> nn.Module:
        made: nn.Module = nn.Module() if _is_shell(config, auto) else build(config, **options)
        return made

    auto.from_config = staticmethod(from_config)
    try:
        yield
    finally:
        auto.from_config = known


def _is_shell(config: Any, auto: Any) -> bool:
    return type(config) in auto._model_mapping and auto._model_mapping[type(config)].__name__ in SHELLS
