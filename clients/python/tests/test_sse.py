import unittest

from raddle import Block, SseParser

# With everything that a split may fall into.
STREAM = (
    '\ufeffretry: 1000\n\n: keep-alive\n\nid: 7\nevent: item.delta\ndata: {"delta":"aé😀"}\n\n'
    "id: x1\r\n\r\ndata: a\r\ndata\r\ndata: b\r\n\r\ndata:  two\rid: 9\r\revent: stream.gap\ndata: {\"after\":9}\n\ndata: cut"
).encode()

BLOCKS = [
    Block(retry=1000),
    Block(id="7", event="item.delta", data='{"delta":"aé😀"}'),
    Block(id="x1"),
    Block(data="a\n\nb"),
    Block(id="9", data=" two"),
    Block(event="stream.gap", data='{"after":9}'),
]


def parse(*pieces: bytes) -> list[Block]:
    parser = SseParser()
    return [block for piece in pieces for block in parser.push(piece)]


class Sse(unittest.TestCase):
    def test_a_stream_is_the_blocks_that_were_closed(self) -> None:
        self.assertEqual(parse(STREAM), BLOCKS)

    def test_every_split_gives_the_same_blocks(self) -> None:
        self.assertEqual(parse(*(STREAM[at : at + 1] for at in range(len(STREAM)))), BLOCKS)
        for first in range(len(STREAM) + 1):
            for second in range(first, len(STREAM) + 1):
                pieces = (STREAM[:first], STREAM[first:second], STREAM[second:])
                self.assertEqual(parse(*pieces), BLOCKS, f"split at {first} and {second}")

    def test_comments_and_unknown_fields_are_no_blocks(self) -> None:
        self.assertEqual(parse(b": ping\n\nwhat: ever\n\nevent: a\n\nretry: soon\n\n"), [])

    def test_a_name_belongs_to_its_own_block_alone(self) -> None:
        self.assertEqual(parse(b"event: a\ndata: 1\n\ndata: 2\n\n"), [Block(event="a", data="1"), Block(data="2")])

    def test_what_is_not_utf8_is_an_error(self) -> None:
        with self.assertRaises(ValueError):
            parse(b"data: \xff\n")

    def test_a_block_without_an_end_is_refused_before_it_is_held(self) -> None:
        parser = SseParser(8)
        parser.push(b"data: ab\n\ndata: cd\n\ndata: ")
        with self.assertRaisesRegex(ValueError, "longer than 8"):
            parser.push(b"efg")
