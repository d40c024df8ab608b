"""What a server answers while its model is loaded: 503, with how far it is."""

from __future__ import annotations

from starlette.responses import JSONResponse
from starlette.types import Receive, Scope, Send

from .. import __version__
from ..api.errors import ApiError
from .responses import error_response

# Seconds after which another try may help.
RETRY_AFTER = 5


class Loading:
    """An ASGI application without a model. `report` is told how loading goes on, as `LLM(progress=...)` tells it."""

    def __init__(self) -> None:
        self.stage = ""
        # 0 to 1; None where it is not known.
        self.progress: float | None = None

    def report(self, stage: str, done: float, total: float) -> None:
        """A stage is so far; one without a total is a note."""
        if total:
            self.stage = stage
            self.progress = min(done / total, 1.0) if total > 0 else None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["path"] == "/version":
            await JSONResponse({"version": __version__})(scope, receive, send)
            return
        retry = {"Retry-After": str(RETRY_AFTER)}
        if scope["path"] == "/health":
            found = {"status": "loading", "stage": self.stage, "progress": self.progress}
            await JSONResponse(found, 503, headers=retry)(scope, receive, send)
            return
        so_far = f" ({self.stage}: {self.progress:.0%})" if self.stage and self.progress is not None else ""
        error = ApiError(503, f"The model is being loaded{so_far}: try again later.", code="loading", headers=retry)
        await error_response(error, scope["path"])(scope, receive, send)
