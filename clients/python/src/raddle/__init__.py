"""A typed client of raddle, the durable runtime for AI-agent threads."""

from .client import AsyncRaddle, Raddle
from .errors import RaddleError
from .follow import OutOfOrder, Placed
from .sse import Block, SseParser

__all__ = ["AsyncRaddle", "Block", "OutOfOrder", "Placed", "Raddle", "RaddleError", "SseParser"]
