"""Server-sent events, from bytes.

The same bytes give the same blocks however they are split. Lines end in CR, LF or both; a byte-order mark and comments
are read and ignored; a block that no empty line closed was cut off and is never handed out; what is not UTF-8 is an
error. Absent on purpose: I/O, reconnecting, what the events mean.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

_BOM = b"\xef\xbb\xbf"
_LINE_END = re.compile(rb"[\r\n]")


@dataclass
class Block:
    """What stood between two empty lines, unless that was nothing."""

    id: str | None = None
    """The `id:` of this block; one is not carried over to those after it."""
    event: str = ""
    """The `event:`; empty when there was none."""
    data: str | None = None
    """The `data:` lines, joined by newlines; without any there is no event."""
    retry: int | None = None
    """The `retry:` in milliseconds."""


class SseParser:
    """Reads one stream. `bound` is the most bytes held of one block: more than a server sends."""

    def __init__(self, bound: int = 64 * 1024 * 1024) -> None:
        self._bound = bound
        self._held = 0
        self._line: list[bytes] = []
        self._begun = False
        # The byte before was a CR: an LF now belongs to the same line end.
        self._after_cr = False
        self._block = Block()
        self._data: list[str] = []

    def push(self, data: bytes) -> list[Block]:
        """Reads on; gives the blocks that `data` completed. `ValueError` for what is no stream of events."""
        blocks: list[Block] = []
        at = 0
        while at < len(data):
            if self._after_cr:
                self._after_cr = False
                if data[at : at + 1] == b"\n":
                    at += 1
                    continue
            found = _LINE_END.search(data, at)
            end = len(data) if found is None else found.start()
            self._held += end - at
            if self._held > self._bound:
                raise ValueError(f"an event of the stream is longer than {self._bound} bytes")
            self._line.append(data[at:end])
            if found is None:
                break
            self._after_cr = found.group() == b"\r"
            at = end + 1
            line = b"".join(self._line)
            self._line.clear()
            if not self._begun:
                self._begun = True
                line = line.removeprefix(_BOM)
            if line:
                self._field(line.decode())
            else:
                self._close(blocks)
        return blocks

    def _field(self, line: str) -> None:
        name, _, value = line.partition(":")
        value = value.removeprefix(" ")
        if name == "data":
            self._data.append(value)
        elif name == "event":
            self._block.event = value
        elif name == "id" and "\0" not in value:
            self._block.id = value
        elif name == "retry" and value.isascii() and value.isdigit():
            self._block.retry = int(value)
        # Comments have an empty name.

    def _close(self, blocks: list[Block]) -> None:
        block, self._block = self._block, Block()
        if self._data:
            block.data = "\n".join(self._data)
            self._data.clear()
        self._held = 0
        if block.data is not None or block.id is not None or block.retry is not None:
            blocks.append(block)
