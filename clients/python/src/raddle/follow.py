"""Streams that may be cut at any time, as streams that are not.

`Place` says where a reader stands and what blocks mean there, `Pace` when to connect again; neither does any I/O.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AbstractContextManager
from dataclasses import dataclass
from typing import Any, Generic, NamedTuple, Protocol, TypeVar

import anyio
import httpx

from .errors import RaddleError
from .sse import Block, SseParser

T = TypeVar("T")

_RETRY_S = 1.0
_LONGEST_RETRY_S = 15.0
# A connection that lasted this long was a good one, even if nothing happened meanwhile.
_LASTING_S = 10.0


class Again(Exception):
    """The stream is over, and goes on over another connection: at once, or when the server is likely to be back."""

    def __init__(self, soon: bool) -> None:
        self.soon = soon


class OutOfOrder(ValueError):
    """An event that does not follow the one before it."""


@dataclass
class Found(Generic[T]):
    """An event."""

    value: T
    last: bool = False
    """Nothing follows it."""


class Place(Protocol[T]):
    """Where somebody stands in a stream, and what blocks mean there."""

    @property
    def cursor(self) -> str | None:
        """What to ask for; nothing before there is a place."""

    def take(self, block: Block) -> Found[T] | None:
        """The event of a block that is new to this reader. Raises `Again`, or `ValueError`."""

    def ends(self, refused: RaddleError) -> bool:
        """Whether a refusal is the end of the stream."""


class LogPlace(Generic[T]):
    """Behind an event of one log: a thread's, or a run's. `last_word` is the event that nothing follows."""

    def __init__(self, after: int, last_word: str) -> None:
        self._after = after
        self._last_word = last_word

    @property
    def cursor(self) -> str:
        return str(self._after)

    def take(self, block: Block) -> Found[T] | None:
        # Both name the last event that was sent. What was received is the better place: it is never behind it.
        if block.event in ("stream.gap", "stream.end"):
            raise Again(soon=block.event == "stream.gap")
        if block.data is None or block.id is None or not (block.id.isascii() and block.id.isdigit()):
            return None
        seq = int(block.id)
        # A stream that is resumed may repeat; a reader may not notice.
        if seq <= self._after:
            return None
        record = json.loads(block.data)
        last = record.get("event") == self._last_word
        if record.get("prev") != self._after and not last:
            prev = record.get("prev")
            raise OutOfOrder(f"event {seq} follows {prev}, and the last one received was {self._after}")
        self._after = seq
        return Found(record, last)

    def ends(self, refused: RaddleError) -> bool:
        return refused.code == "thread-deleted"


class Placed(NamedTuple, Generic[T]):
    """An event of a tenant, and the place behind it."""

    cursor: str | None
    """Where to go on behind it. An event that is kept nowhere, such as `thread.deleted`, has none."""
    record: T


class FeedPlace(Generic[T]):
    """Behind a cursor that only the server can read."""

    def __init__(self, after: str | None, on_unavailable: Callable[[dict[str, Any]], None] | None) -> None:
        self._cursor = after
        self._on_unavailable = on_unavailable

    @property
    def cursor(self) -> str | None:
        return self._cursor

    def take(self, block: Block) -> Found[Placed[T]] | None:
        value = None if block.data is None else json.loads(block.data)
        if block.event in ("stream.gap", "stream.end"):
            if isinstance(value, dict) and isinstance(value.get("after"), str):
                self._cursor = value["after"]
            raise Again(soon=block.event == "stream.gap")
        # Said also without an event: whoever comes back from there has missed nothing.
        if block.id is not None:
            self._cursor = block.id
        if block.event == "stream.unavailable":
            if self._on_unavailable is not None and value is not None:
                self._on_unavailable(value)
            return None
        return None if value is None else Found(Placed(block.id, value))

    def ends(self, refused: RaddleError) -> bool:
        return False


class Pace:
    """When to connect again, and when to give up."""

    def __init__(self, reconnects: int) -> None:
        self._reconnects = reconnects
        self._failures = 0
        self._retry = _RETRY_S
        self._begun = time.monotonic()

    def begins(self) -> None:
        self._begun = time.monotonic()

    def hears(self, block: Block) -> None:
        if block.retry is not None:
            self._retry = block.retry / 1000

    def progress(self) -> None:
        self._failures = 0

    def pause(self, why: Exception) -> float:
        """How long to wait behind a connection that ended so; raises what is not worth another one."""
        if isinstance(why, RaddleError) and why.status < 500 and why.status != 429:
            raise why
        if time.monotonic() - self._begun > _LASTING_S:
            self._failures = 0
        if self._failures >= self._reconnects:
            raise why
        wait = 0.0
        if not (isinstance(why, Again) and why.soon and self._failures == 0):
            wait = backoff(self._failures, self._retry, _LONGEST_RETRY_S)
        self._failures += 1
        asked = why.retry_after if isinstance(why, RaddleError) else None
        return max(wait, asked or 0)


def backoff(failures: int, first: float, most: float) -> float:
    """Longer with every failure in a row, and never the same for all who failed at once."""
    now: float = min(first * 2 ** min(failures, 20), most)
    return now * random.uniform(0.5, 1)


def follow(
    connect: Callable[[str | None], AbstractContextManager[httpx.Response]], place: Place[T], reconnects: int
) -> Iterator[T]:
    """The events behind `place`, each once and in order, over as many connections as it takes."""
    pace = Pace(reconnects)
    while True:
        pace.begins()
        try:
            with connect(place.cursor) as response:
                if not response.is_success:
                    response.read()
                    raise RaddleError.of(response)
                parser = SseParser()
                for data in response.iter_bytes():
                    for block in parser.push(data):
                        pace.hears(block)
                        found = place.take(block)
                        if found is not None:
                            pace.progress()
                            yield found.value
                            if found.last:
                                return
            raise httpx.RemoteProtocolError("the stream ended")
        except (httpx.TransportError, RaddleError, Again, ValueError) as why:
            if isinstance(why, RaddleError) and place.ends(why):
                return
            wait = pause_or_raise(pace, why)
        time.sleep(wait)


async def follow_async(
    connect: Callable[[str | None], AbstractAsyncContextManager[httpx.Response]], place: Place[T], reconnects: int
) -> AsyncIterator[T]:
    """The same, of another colour."""
    pace = Pace(reconnects)
    while True:
        pace.begins()
        try:
            async with connect(place.cursor) as response:
                if not response.is_success:
                    await response.aread()
                    raise RaddleError.of(response)
                parser = SseParser()
                async for data in response.aiter_bytes():
                    for block in parser.push(data):
                        pace.hears(block)
                        found = place.take(block)
                        if found is not None:
                            pace.progress()
                            yield found.value
                            if found.last:
                                return
            raise httpx.RemoteProtocolError("the stream ended")
        except (httpx.TransportError, RaddleError, Again, ValueError) as why:
            if isinstance(why, RaddleError) and place.ends(why):
                return
            wait = pause_or_raise(pace, why)
        await anyio.sleep(wait)


def pause_or_raise(pace: Pace, why: Exception) -> float:
    """`Again` is no error that anybody should see."""
    try:
        return pace.pause(why)
    except Again:
        raise httpx.RemoteProtocolError("the stream ends again and again") from None
