import asyncio
import json
import pickle
import threading
import unittest
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import httpx
from raddle import AsyncRaddle, OutOfOrder, Raddle, RaddleError

Answer = Callable[[BaseHTTPRequestHandler], None]


class Server:
    """A server that gives one answer after the other, each over a connection of its own. `asked` notes what it was asked
    for, and `keys` the idempotency keys."""

    def __init__(self, *answers: Answer) -> None:
        asked: list[str] = []
        keys: list[str | None] = []

        class Handler(BaseHTTPRequestHandler):
            def answer(self) -> None:
                self.rfile.read(int(self.headers.get("content-length", 0)))
                asked.append(f"{self.command} {self.path}")
                keys.append(self.headers.get("idempotency-key"))
                at = len(asked) - 1
                (answers[at] if at < len(answers) else refuses(410, "thread-deleted"))(self)

            do_GET = do_POST = answer

            def log_message(self, *_: Any) -> None:
                pass

        self.asked, self.keys = asked, keys
        self._http = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self._runs = threading.Thread(target=lambda: self._http.serve_forever(0.01))

    def __enter__(self) -> "Server":
        self._runs.start()
        return self

    def __exit__(self, *_: Any) -> None:
        self._http.shutdown()
        self._runs.join()
        self._http.server_close()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._http.server_address[1]}/"

    def client(self, **options: Any) -> Raddle:
        return Raddle(self.url, **options)


def refuses(status: int, code: str, **headers: str) -> Answer:
    def answer(to: BaseHTTPRequestHandler) -> None:
        to.send_response(status)
        to.send_header("content-type", "application/problem+json")
        for name, value in headers.items():
            to.send_header(name.replace("_", "-"), value)
        to.end_headers()
        to.wfile.write(json.dumps({"status": status, "code": code, "detail": "no", "request_id": "r1"}).encode())

    return answer


def streams(text: str, promises: int = 0) -> Answer:
    """`promises` is how many bytes more were to come."""

    def answer(to: BaseHTTPRequestHandler) -> None:
        body = f"retry: 1\n\n{text}".encode()
        to.send_response(200)
        to.send_header("content-type", "text/event-stream")
        if promises:
            to.send_header("content-length", str(len(body) + promises))
        to.end_headers()
        to.wfile.write(body)

    return answer


def frame(seq: int, prev: int | None = None, event: str = "item.delta") -> str:
    record = {"seq": seq, "prev": seq - 1 if prev is None else prev, "event": event}
    return f"id: {seq}\nevent: {event}\ndata: {json.dumps(record)}\n\n"


def seqs(raddle: Raddle, after: int = 0) -> list[int]:
    return [event["seq"] for event in raddle.events("thr_1", after=after)]


CUTS = (
    streams(frame(2) + frame(3)),
    streams(frame(3) + 'id: 4\nevent: item.delta\ndata: {"se', promises=9),
    streams(frame(4) + 'event: stream.gap\ndata: {"after":4}\n\n'),
    refuses(503, "draining", retry_after="0"),
    # What was named is behind what was received, and 5 comes again.
    streams(frame(5) + 'event: stream.end\ndata: {"reason":"shutdown","after":4}\n\n'),
    streams(frame(4) + frame(5) + frame(6)),
)


class Follow(unittest.TestCase):
    def test_a_reader_sees_every_event_once_however_its_stream_is_cut(self) -> None:
        with Server(*CUTS) as server, server.client() as raddle:
            self.assertEqual(seqs(raddle, after=1), [2, 3, 4, 5, 6])
            path = "GET /v1/threads/thr_1/events?after="
            self.assertEqual(server.asked, [path + str(after) for after in (1, 3, 3, 4, 4, 5, 6)])

    def test_so_does_one_that_awaits(self) -> None:
        async def read(url: str) -> list[int]:
            async with AsyncRaddle(url) as raddle:
                return [event["seq"] async for event in raddle.events("thr_1", after=1)]

        with Server(*CUTS) as server:
            self.assertEqual(asyncio.run(read(server.url)), [2, 3, 4, 5, 6])

    def test_an_event_that_does_not_follow_the_last_one_is_fetched_anew(self) -> None:
        with Server(streams(frame(1) + frame(3)), streams(frame(2) + frame(3))) as server, server.client() as raddle:
            self.assertEqual(seqs(raddle), [1, 2, 3])
            self.assertEqual(server.asked[1], "GET /v1/threads/thr_1/events?after=1")

    def test_a_hole_that_stays_is_an_error(self) -> None:
        with Server(*[streams(frame(3))] * 9) as server, server.client(reconnects=2) as raddle:
            with self.assertRaises(OutOfOrder):
                seqs(raddle)
            self.assertEqual(len(server.asked), 3)

    def test_deltas_that_were_joined_since_are_no_gap(self) -> None:
        with Server(streams(frame(1) + frame(7, prev=1))) as server, server.client() as raddle:
            self.assertEqual(seqs(raddle), [1, 7])

    def test_nothing_follows_the_last_word(self) -> None:
        with Server(streams(frame(1) + frame(2, event="thread.deleted"))) as server, server.client() as raddle:
            self.assertEqual(seqs(raddle), [1, 2])
            self.assertEqual(len(server.asked), 1)

    def test_a_refusal_for_good_ends_a_stream(self) -> None:
        with Server(refuses(422, "invalid")) as server, server.client() as raddle:
            with self.assertRaises(RaddleError) as refused:
                seqs(raddle, after=99)
            error = refused.exception
            found = (error.status, error.code, error.detail, error.request_id)
            self.assertEqual(found, (422, "invalid", "no", "r1"))
            self.assertEqual(str(pickle.loads(pickle.dumps(error))), str(error))
            self.assertEqual(len(server.asked), 1)

    def test_a_stream_that_brings_nothing_is_believed_after_so_many_tries(self) -> None:
        for text in ("", 'event: stream.gap\ndata: {"after":0}\n\n'):
            with Server(*[streams(text)] * 9) as server, server.client(reconnects=3) as raddle:
                with self.assertRaises(httpx.TransportError):
                    seqs(raddle)
                self.assertEqual(len(server.asked), 4)

    def test_a_connection_that_has_gone_silent_is_opened_anew(self) -> None:
        over = threading.Event()

        def silent(to: BaseHTTPRequestHandler) -> None:
            streams(frame(1))(to)
            over.wait()

        with Server(silent, streams(frame(2))) as server, server.client(silence=0.05) as raddle:
            try:
                self.assertEqual(seqs(raddle), [1, 2])
            finally:
                over.set()
            self.assertEqual(server.asked[1], "GET /v1/threads/thr_1/events?after=1")

    def test_a_feed_goes_on_behind_the_newest_cursor_also_when_that_came_without_an_event(self) -> None:
        told: list[str] = []
        feed = (
            streams('id: a\n\nid: b\nevent: job.queued\ndata: {"event":"job.queued"}\n\n: keep-alive\n\nid: c\n\n'),
            streams('event: stream.gap\ndata: {"after":"d"}\n\n'),
            streams(
                'event: stream.unavailable\ndata: {"thread_id":"thr_1","detail":"damaged"}\n\n'
                'event: thread.deleted\ndata: {"event":"thread.deleted"}\n\n'
            ),
            refuses(403, "forbidden"),
        )
        with Server(*feed) as server, server.client() as raddle:
            seen = []
            with self.assertRaisesRegex(RaddleError, "forbidden"):
                for cursor, record in raddle.tenant_events(
                    threads=["thr_1", "thr_2"], on_unavailable=lambda log: told.append(log["detail"])
                ):
                    seen.append((cursor, record["event"]))
            self.assertEqual(seen, [("b", "job.queued"), (None, "thread.deleted")])
            self.assertEqual(told, ["damaged"])
            path = "GET /v1/events?threads=thr_1%2Cthr_2"
            self.assertEqual(server.asked, [path, f"{path}&after=c", f"{path}&after=d", f"{path}&after=d"])


class Requests(unittest.TestCase):
    def test_a_post_is_repeated_under_one_key_when_the_server_says_later_or_is_gone(self) -> None:
        def gone(to: BaseHTTPRequestHandler) -> None:
            to.close_connection = True

        def made(to: BaseHTTPRequestHandler) -> None:
            to.send_response(201)
            to.send_header("content-type", "application/json")
            to.end_headers()
            to.wfile.write(b'{"id":"thr_1"}')

        answers = (refuses(503, "busy", retry_after="0"), gone, made)
        with Server(*answers) as server, server.client() as raddle:
            self.assertEqual(raddle.create_thread({"title": "é"})["id"], "thr_1")
            self.assertEqual(len(server.keys), 3)
            self.assertRegex(server.keys[0] or "", "^[0-9a-f]{32}$")
            self.assertEqual(len(set(server.keys)), 1)

        async def make(url: str) -> str:
            async with AsyncRaddle(url) as raddle:
                return (await raddle.create_thread({}))["id"]

        with Server(*answers) as server:
            self.assertEqual(asyncio.run(make(server.url)), "thr_1")
            self.assertEqual((len(server.keys), len(set(server.keys))), (3, 1))

    def test_a_callers_own_key_is_kept(self) -> None:
        with Server(refuses(409, "in-flight")) as server, server.client() as raddle:
            with self.assertRaisesRegex(RaddleError, "in-flight"):
                raddle.create_thread({}, idempotency_key="mine")
            self.assertEqual(server.keys, ["mine"])

    def test_a_refusal_without_a_time_to_come_back_or_with_a_late_one_is_not_repeated(self) -> None:
        refusals = (refuses(503, "thread-unavailable"), refuses(429, "inbox-full", retry_after="3600"))
        with Server(*refusals) as server, server.client() as raddle:
            for expected in (None, 3600):
                with self.assertRaises(RaddleError) as refused:
                    raddle.info()
                self.assertEqual(refused.exception.retry_after, expected)
            self.assertEqual(len(server.asked), 2)

    def test_an_answer_that_is_no_problem_document_is_a_refusal_all_the_same(self) -> None:
        def page(to: BaseHTTPRequestHandler) -> None:
            to.send_response(404)
            to.end_headers()
            to.wfile.write(b"<html>")

        with Server(page) as server, server.client() as raddle:
            with self.assertRaises(RaddleError) as refused:
                raddle.info()
            self.assertEqual((refused.exception.status, refused.exception.code), (404, "unknown"))

    def test_an_id_stays_in_its_segment_of_the_path(self) -> None:
        with Server(refuses(404, "not-found")) as server, server.client() as raddle:
            with self.assertRaises(RaddleError):
                raddle.get_thread("a/b?c")
            self.assertEqual(server.asked, ["GET /v1/threads/a%2Fb%3Fc"])
