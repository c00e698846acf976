"""The server's FastAPI application, which answers from the live bundle. Every error is JSON with a ``detail``."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator
from datetime import datetime, timezone
from pathlib import Path
from typing import Annotated, Any

from fastapi import FastAPI, HTTPException, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi_offline import FastAPIOffline
from pydantic import BaseModel, ConfigDict, Field

from recbole_kd.errors import UserError
from recbole_kd.verbs.serve.live import Live, Ready

__all__ = ["LARGEST_BODY", "application", "worker"]

#: Largest body in bytes: about a hundred thousand ids. Of a longer body, at most the second number of bytes
#: is read and dropped, so that a client which first sends everything gets its answer.
LARGEST_BODY, _THROWN_AWAY = 1 << 20, 1 << 26
#: Seconds between two checks of the folder.
_PERIOD = 1.0
#: Characters of an id that an error shows.
_SHOWN = 100


class _Asked(BaseModel):
    model_config = ConfigDict(extra="forbid", coerce_numbers_to_str=True)

    k: int = Field(20, ge=1, description="items in the answer; fewer if fewer are left")
    exclude_seen: bool | None = Field(None, description="whether seen items are left out; by default as in the bundle")


class ForUser(_Asked):
    """A user of the data."""

    user: str = Field(description="original id")


class ForHistory(_Asked):
    """A user who is not in the data."""

    history: list[str] = Field(min_length=1, description="original ids of the user's items, oldest first")


class Recommendation(BaseModel):
    """The best items, best first."""

    user: str
    items: list[str]
    scores: list[float]


class HistoryRecommendation(Recommendation):
    """The best items after a history; the user is called `new`."""

    unknown: list[str] = Field(description="items of the history that the model does not know; they are ignored")


class Health(BaseModel):
    """The bundle in use."""

    status: str
    model: str
    dataset: str
    kind: str
    users: int
    items: int
    loaded: str = Field(description="when this process read the bundle")
    problem: str = Field(description="why a newer bundle in the folder could not be read; empty if there is no problem")


class Problem(BaseModel):
    """The error in a request."""

    detail: str


def worker(folder: str | Path) -> FastAPI:
    """The application of one of several processes.

    A process that replaces another one waits while the folder's bundle cannot be read.
    """
    problem = ""
    while True:
        try:
            return application(Live(folder))
        except UserError as error:
            if str(error) != problem:
                problem = str(error)
                logging.getLogger("uvicorn.error").warning("A new worker waits for a bundle: %s", error)
            time.sleep(_PERIOD)


def application(live: Live) -> FastAPI:
    """The application that answers from a bundle, and from its successors in the same folder."""

    @contextlib.asynccontextmanager
    async def renewing(_: FastAPI) -> AsyncIterator[None]:
        task = asyncio.create_task(_renew(live))
        yield
        task.cancel()

    # A matrix-vector product takes less time than starting a thread, so functions are async and run one at a time.
    async def recommend(asked: Annotated[ForUser, Query()]) -> Recommendation:
        """The best items for a user of the data."""
        ready = live.current
        k = _k(ready, asked)
        row = ready.bundle.user_rows.get(asked.user)
        if row is None:
            raise HTTPException(404, f"User {_shown(asked.user)} is not in {ready.bundle.manifest['dataset']}.")
        items, scores = ready.recommend(row, k, asked.exclude_seen)
        return Recommendation(user=asked.user, items=items, scores=scores)

    async def recommend_after(asked: ForHistory) -> HistoryRecommendation:
        """The best items for a user who is not in the data, from the user's items."""
        ready = live.current
        k = _k(ready, asked)
        rows = [ready.bundle.item_rows.get(item, -1) for item in asked.history]
        had = [row for row in rows if row >= 0]
        if not had:
            raise HTTPException(422, f"history: no item of it is in {ready.bundle.manifest['dataset']}.")
        try:
            items, scores = ready.recommend_after(had, k, asked.exclude_seen)
        except UserError as error:
            raise HTTPException(422, str(error)) from None
        # JSON may name half a character, which no answer can hold.
        unknown = [item.encode("utf-8", "replace").decode() for item, row in zip(asked.history, rows) if row < 0]
        return HistoryRecommendation(user="new", items=items, scores=scores, unknown=unknown)

    async def health() -> Health:
        """The bundle in use, and whether a newer bundle could be read."""
        ready = live.current
        bundle = ready.bundle
        return Health(
            status="ok",
            model=bundle.manifest["model"],
            dataset=bundle.manifest["dataset"],
            kind=bundle.kind,
            users=len(bundle.users),
            items=len(bundle.items),
            loaded=datetime.fromtimestamp(ready.loaded, timezone.utc).isoformat(timespec="milliseconds"),
            problem=live.problem,
        )

    app = FastAPIOffline(title="recbole-kd serve", lifespan=renewing, redirect_slashes=False, redoc_url=None)
    errors: dict[int | str, dict[str, Any]] = {422: {"model": Problem}}
    unknown: dict[int | str, dict[str, Any]] = {404: {"model": Problem}, **errors}
    app.get("/recommend", responses=unknown)(recommend)
    app.post("/recommend", responses={400: {"model": Problem}, 413: {"model": Problem}, **errors})(recommend_after)
    app.get("/health")(health)
    app.add_exception_handler(RequestValidationError, _invalid)
    app.add_exception_handler(Exception, _failed)
    app.add_middleware(_Limited)
    return app


async def _renew(live: Live) -> None:
    while True:
        await asyncio.sleep(_PERIOD)
        if live.outdated():
            await asyncio.to_thread(live.renew)


def _k(ready: Ready, asked: _Asked) -> int:
    """The requested number of items; the default is at most the catalogue's size."""
    catalogue = len(ready.bundle.items)
    if asked.k > catalogue and "k" in asked.model_fields_set:
        raise HTTPException(422, f"k: {asked.k} exceeds the catalogue of {catalogue} items.")
    return min(asked.k, catalogue)


def _shown(text: str) -> str:
    return ascii(text[:_SHOWN]) + ("..." if len(text) > _SHOWN else "")


async def _invalid(_: Request, error: Exception) -> JSONResponse:
    """The first error in a request, in one line, without the client's input."""
    assert isinstance(error, RequestValidationError)
    first = error.errors()[0]
    if first["type"] == "model_attributes_type" and isinstance(first.get("input"), (str, bytes)):
        return JSONResponse({"detail": "the body needs the header 'content-type: application/json'"}, 415)
    where = ".".join(str(part)[:_SHOWN] for part in first["loc"] if part not in ("query", "body"))
    bad_json = first["type"] == "json_invalid"
    text = "the body is not JSON" if bad_json else f"{where or 'the body'}: {first['msg']}"
    return JSONResponse({"detail": text.encode("ascii", "backslashreplace").decode()}, 400 if bad_json else 422)


async def _failed(_: Request, __: Exception) -> JSONResponse:
    """The answer after an error of the program; uvicorn logs the traceback."""
    return JSONResponse({"detail": "internal error; the server's log has the details"}, 500)


class _Limited:
    """Refuses a body that is longer than :data:`LARGEST_BODY`, with or without a Content-Length."""

    def __init__(self, app: Any) -> None:
        self.app = app

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        messages: list[Any] = []
        size, more = 0, True
        while more and size <= _THROWN_AWAY:
            message = await receive()
            size += len(message.get("body", b""))
            more = message.get("more_body", False)
            if size > LARGEST_BODY:
                messages.clear()
            else:
                messages.append(message)
        if size > LARGEST_BODY:
            answer = JSONResponse({"detail": f"the body is longer than {LARGEST_BODY:,} bytes"}, 413)
            await answer(scope, receive, send)
            return

        async def again() -> Any:
            return messages.pop(0) if messages else await receive()

        await self.app(scope, again, send)
