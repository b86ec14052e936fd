"""A server, and how to speak to it."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from types import TracebackType
from typing import Any

import anyio
import httpx

from . import models as m
from .errors import RaddleError, retry_after
from .follow import FeedPlace, LogPlace, Placed, backoff, follow, follow_async
from .operations import AsyncOperations, Operations, segment

DEFAULT_SERVER = "http://127.0.0.1:7878"

# The routes that answer when something has happened.
_WAIT = re.compile(r"/turns/[^/]+/wait$")


class _Speaker:
    """What both kinds of clients have in common: what is sent, and what is made of what comes back."""

    def __init__(
        self,
        server: str,
        key: str | None,
        *,
        timeout: float,
        retries: int,
        longest_retry: float,
        silence: float,
        reconnects: int,
    ) -> None:
        self._server = server.rstrip("/")
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}
        self._timeout = timeout
        self._retries = retries
        self._longest_retry = longest_retry
        self._silence = silence
        self._reconnects = reconnects

    def _request(
        self,
        method: str,
        path: str,
        query: Mapping[str, Any],
        headers: Mapping[str, str | None],
        body: Any,
    ) -> dict[str, Any]:
        sent = {name: value for name, value in headers.items() if value is not None} | self._headers
        if method == "POST":
            sent.setdefault("idempotency-key", uuid.uuid4().hex)
        params = {name: _text(value) for name, value in query.items() if value is not None}
        asked = float(query.get("timeout_ms") or 30_000) / 1000 if _WAIT.search(path) else 0.0
        request: dict[str, Any] = {
            "method": method,
            "url": self._server + path,
            "params": params,
            "headers": sent,
            "timeout": self._timeout + asked,
        }
        if isinstance(body, (str, bytes)):
            request["content"] = body
            sent["content-type"] = "application/x-ndjson"
        elif body is not None:
            request["json"] = body
        return request

    def _again(self, response: httpx.Response, failures: int) -> float | None:
        """After how long a request that was answered so is repeated."""
        seconds = retry_after(response) if response.status_code in (429, 503) else None
        if failures >= self._retries or seconds is None or seconds > self._longest_retry:
            return None
        return seconds + backoff(failures, 0.1, 1.0)

    def _lost(self, method: str, failures: int) -> float | None:
        """After how long a request that nobody answered is repeated, where that is harmless."""
        if failures >= self._retries or method not in ("GET", "POST"):
            return None
        return min(backoff(failures, 0.2, 5.0), self._longest_retry)

    def _stream(self, path: str, query: Mapping[str, str], cursor: str | None) -> dict[str, Any]:
        params = dict(query) if cursor is None else {**query, "after": cursor}
        return {
            "method": "GET",
            "url": self._server + path,
            "params": params,
            "headers": {**self._headers, "accept": "text/event-stream"},
            # A server says something every 15 s; after this long a silent one is dead.
            "timeout": self._silence,
        }


def _text(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def _answer(response: httpx.Response) -> Any:
    if not response.is_success:
        raise RaddleError.of(response)
    if not response.content:
        return None
    kind = response.headers.get("content-type", "").partition(";")[0]
    return response.json() if kind == "application/json" else response.text


def _feed(threads: Iterable[str] | None) -> dict[str, str]:
    return {} if threads is None else {"threads": ",".join(threads)}


class Raddle(_Speaker, Operations):
    """A client that waits. Every operation of the API is a method; a refusal raises `RaddleError`.

    A request that meets 429 or 503 with `Retry-After`, or nobody, is repeated up to `retries` times, under one
    `Idempotency-Key` if it is a POST. `timeout` is how long the server may be silent; of a wait, in addition to what it
    asks for. A stream without a byte for `silence` seconds is opened anew; after `reconnects` times in a row without
    progress it fails.
    """

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        longest_retry: float = 30.0,
        silence: float = 45.0,
        reconnects: int = 30,
        http: httpx.Client | None = None,
    ) -> None:
        super().__init__(
            server,
            key,
            timeout=timeout,
            retries=retries,
            longest_retry=longest_retry,
            silence=silence,
            reconnects=reconnects,
        )
        self._http = httpx.Client() if http is None else http

    def close(self) -> None:
        self._http.close()

    def __enter__(self) -> Raddle:
        return self

    def __exit__(self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None) -> None:
        self.close()

    def _call(
        self, method: str, path: str, query: Mapping[str, Any], headers: Mapping[str, str | None], body: Any = None
    ) -> Any:
        request = self._request(method, path, query, headers, body)
        failures = 0
        while True:
            wait: float | None
            try:
                response = self._http.request(**request)
                wait = self._again(response, failures)
                if wait is None:
                    return _answer(response)
            except httpx.TransportError:
                wait = self._lost(method, failures)
                if wait is None:
                    raise
            failures += 1
            time.sleep(wait)

    def events(self, thread: str, *, after: int = 0) -> Iterator[m.EventRecord]:
        """The events of a thread behind `after`, as they happen, each once and in order, whatever becomes of connections
        and of the server. It ends behind `thread.deleted`."""
        place: LogPlace[m.EventRecord] = LogPlace(after, "thread.deleted")
        return follow(self._connect(f"/v1/threads/{segment(thread)}/events", {}), place, self._reconnects)

    def run_events(self, run: str, *, after: int = 0) -> Iterator[m.RunEvent]:
        """The same for a run."""
        place: LogPlace[m.RunEvent] = LogPlace(after, "context.run.deleted")
        return follow(self._connect(f"/v1/runs/{segment(run)}/events", {}), place, self._reconnects)

    def tenant_events(
        self,
        *,
        after: str | None = None,
        threads: Iterable[str] | None = None,
        on_unavailable: Callable[[dict[str, Any]], None] | None = None,
    ) -> Iterator[Placed[m.TenantEventRecord]]:
        """The events of all threads, jobs, schedules and runs of the tenant, or of some threads: each once, those of one
        log in order. Without a cursor it begins when the connection is there; take one from `now` to miss nothing."""
        place: FeedPlace[m.TenantEventRecord] = FeedPlace(after, on_unavailable)
        return follow(self._connect("/v1/events", _feed(threads)), place, self._reconnects)

    def now(self) -> str:
        """A cursor behind everything that has happened so far."""
        return self.list_tenant_events(limit=1)["next_cursor"]

    def _connect(
        self, path: str, query: Mapping[str, str]
    ) -> Callable[[str | None], AbstractContextManager[httpx.Response]]:
        return lambda cursor: self._http.stream(**self._stream(path, query, cursor))


class AsyncRaddle(_Speaker, AsyncOperations):
    """The same as `Raddle`, for programs that await."""

    def __init__(
        self,
        server: str = DEFAULT_SERVER,
        key: str | None = None,
        *,
        timeout: float = 60.0,
        retries: int = 4,
        longest_retry: float = 30.0,
        silence: float = 45.0,
        reconnects: int = 30,
        http: httpx.AsyncClient | None = None,
    ) -> None:
        super().__init__(
            server,
            key,
            timeout=timeout,
            retries=retries,
            longest_retry=longest_retry,
            silence=silence,
            reconnects=reconnects,
        )
        self._http = httpx.AsyncClient() if http is None else http

    async def close(self) -> None:
        await self._http.aclose()

    async def __aenter__(self) -> AsyncRaddle:
        return self

    async def __aexit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        await self.close()

    async def _call(
        self, method: str, path: str, query: Mapping[str, Any], headers: Mapping[str, str | None], body: Any = None
    ) -> Any:
        request = self._request(method, path, query, headers, body)
        failures = 0
        while True:
            wait: float | None
            try:
                response = await self._http.request(**request)
                wait = self._again(response, failures)
                if wait is None:
                    return _answer(response)
            except httpx.TransportError:
                wait = self._lost(method, failures)
                if wait is None:
                    raise
            failures += 1
            await anyio.sleep(wait)

    def events(self, thread: str, *, after: int = 0) -> AsyncIterator[m.EventRecord]:
        """As `Raddle.events`."""
        place: LogPlace[m.EventRecord] = LogPlace(after, "thread.deleted")
        return follow_async(self._connect(f"/v1/threads/{segment(thread)}/events", {}), place, self._reconnects)

    def run_events(self, run: str, *, after: int = 0) -> AsyncIterator[m.RunEvent]:
        """As `Raddle.run_events`."""
        place: LogPlace[m.RunEvent] = LogPlace(after, "context.run.deleted")
        return follow_async(self._connect(f"/v1/runs/{segment(run)}/events", {}), place, self._reconnects)

    def tenant_events(
        self,
        *,
        after: str | None = None,
        threads: Iterable[str] | None = None,
        on_unavailable: Callable[[dict[str, Any]], None] | None = None,
    ) -> AsyncIterator[Placed[m.TenantEventRecord]]:
        """As `Raddle.tenant_events`."""
        place: FeedPlace[m.TenantEventRecord] = FeedPlace(after, on_unavailable)
        return follow_async(self._connect("/v1/events", _feed(threads)), place, self._reconnects)

    async def now(self) -> str:
        """As `Raddle.now`."""
        return (await self.list_tenant_events(limit=1))["next_cursor"]

    def _connect(
        self, path: str, query: Mapping[str, str]
    ) -> Callable[[str | None], AbstractAsyncContextManager[httpx.Response]]:
        return lambda cursor: self._http.stream(**self._stream(path, query, cursor))
