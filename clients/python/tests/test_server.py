"""What a host does, against a real server.

`RADDLE_TEST_SERVER` is its address, and who writes `kill` to `RADDLE_TEST_CONTROL` has it killed and started again.
"""

import asyncio
import os
import socket
import threading
import unittest

from raddle import AsyncRaddle, Raddle, RaddleError
from raddle import models as m


def kill_and_restart() -> None:
    """SIGKILL, and a start on the same data and port; it listens when this returns."""
    host, _, port = os.environ["RADDLE_TEST_CONTROL"].partition(":")
    with socket.create_connection((host, int(port))) as control:
        control.sendall(b"kill\n")
        assert control.recv(8) == b"up\n"


def at_rest(event: m.TenantEventRecord) -> bool:
    """Nothing of the thread runs or waits."""
    return event["event"] == "thread.status" and "thread" in event["payload"] and event["payload"]["thread"]["status"] == "idle"


class OfServer(unittest.TestCase):
    def setUp(self) -> None:
        self.raddle = Raddle(os.environ["RADDLE_TEST_SERVER"])
        self.addCleanup(self.raddle.close)

    def start(self, thread: str, prompt: str) -> str:
        started = self.raddle.start_turn(thread, {"prompt": prompt})
        assert "turn" in started
        return started["turn"]["id"]

    def log(self, thread: str) -> list[m.EventRecord]:
        """The log as its pages say it."""
        log: list[m.EventRecord] = []
        while page := self.raddle.list_events(thread, after=log[-1]["seq"] if log else 0, limit=500)["data"]:
            log.extend(page)
        return log

    def dense(self, events: list[m.EventRecord]) -> None:
        self.assertEqual([event["seq"] for event in events], list(range(1, len(events) + 1)))

    def test_a_turn_is_followed_to_its_end_and_a_prompt_that_was_queued_runs_behind_it(self) -> None:
        thread = self.raddle.create_thread({})["id"]
        first = self.start(thread, "@tokens 20 50")
        queued = self.raddle.start_turn(thread, {"prompt": "then this", "delivery": "queue"})
        assert "admission" in queued
        self.assertEqual((queued["active_turn"], queued["admission"]["status"]), (first, "pending"))
        events: list[m.EventRecord] = []
        said: dict[str, str] = {}
        ended = 0
        for event in self.raddle.events(thread):
            events.append(event)
            if event["event"] == "item.delta":
                turn = event["turn_id"] or ""
                said[turn] = said.get(turn, "") + event["payload"]["delta"]
            if event["event"] == "turn.completed":
                self.assertEqual(event["payload"]["status"], "completed")
                ended += 1
            if at_rest(event):
                break
        self.assertEqual(ended, 2)
        self.dense(events)
        self.assertEqual(len(said[first].split()), 20)
        self.assertEqual(list(said.values())[1], "echo: then this")
        self.assertEqual(events, self.log(thread))

    def test_a_call_waits_for_a_person_who_decides(self) -> None:
        thread = self.raddle.create_thread({})["id"]
        turn = self.start(thread, '@tool demo_put {"name": "python.txt", "text": "hello"}\n@say done')
        for event in self.raddle.events(thread):
            if event["event"] == "approval.required":
                approval = event["payload"]["approval"]["id"]
                self.assertEqual(self.raddle.decide_approval(approval, {"decision": "approved"})["status"], "approved")
            if event["event"] == "turn.completed":
                self.assertEqual((event["turn_id"], event["payload"]["status"]), (turn, "completed"))
                break
        items = self.raddle.list_items(thread, turn=turn)["data"]
        self.assertEqual([i["status"] for i in items if i["metadata"].get("tool") == "demo_put"], ["completed"])

    def test_a_refusal_is_an_error_with_its_code(self) -> None:
        thread = self.raddle.create_thread({})["id"]
        turn = self.start(thread, "@tokens 1000 10")
        with self.assertRaises(RaddleError) as refused:
            self.start(thread, "now?")
        error = refused.exception
        self.assertEqual((error.status, error.code, error.problem["active_turn"]), (409, "turn-open", turn))
        self.assertTrue(error.request_id and error.detail)
        self.assertEqual(self.raddle.interrupt_turn(thread, turn, {})["turn"]["status"], "interrupted")
        self.assertEqual(self.raddle.wait_turn(thread, turn)["status"], "interrupted")

    def test_a_stream_goes_on_over_a_kill_of_the_server_without_a_gap_or_a_double(self) -> None:
        since = self.raddle.now()
        thread = self.raddle.create_thread({})["id"]
        self.start(thread, "@tokens 60 40")
        events: list[m.EventRecord] = []
        fed: list[m.TenantEventRecord] = []

        async def watch() -> None:
            async with AsyncRaddle(os.environ["RADDLE_TEST_SERVER"]) as raddle:
                async for _, record in raddle.tenant_events(after=since, threads=[thread]):
                    fed.append(record)
                    if at_rest(record):
                        break

        watches = threading.Thread(target=lambda: asyncio.run(watch()))
        watches.start()
        killed = False
        for event in self.raddle.events(thread):
            events.append(event)
            if event["event"] == "item.delta" and not killed:
                killed = True
                kill_and_restart()
            if event["event"] == "turn.completed":
                self.assertEqual(event["payload"]["status"], "completed")
            if at_rest(event):
                break
        watches.join()
        self.assertIn("turn.resumed", [event["event"] for event in events])
        self.dense(events)
        self.assertEqual(events, self.log(thread))
        self.assertEqual(fed, events)

    def test_a_stream_ends_behind_the_deletion_of_its_thread(self) -> None:
        thread = self.raddle.create_thread({})["id"]
        events = self.raddle.events(thread)
        self.assertEqual(next(events)["event"], "thread.created")
        self.raddle.delete_thread(thread)
        self.assertEqual([event["event"] for event in events], ["thread.deleted"])
        with self.assertRaises(RaddleError) as refused:
            self.raddle.get_thread(thread)
        self.assertEqual(refused.exception.code, "not-found")
