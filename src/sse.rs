//! Server-sent events, from bytes.
//!
//! The same bytes give the same events however they are split: into lines, into characters, into single bytes.
//! Lines end in CR, LF or both; a byte-order mark, comments and `retry` are read and ignored; an event
//! that no empty line closed was cut off and is never handed out. No line and no event is held beyond
//! [`Bounds`]. `data` stays bytes: whether they are UTF-8 is for their reader to say, and to refuse.
//!
//! Absent on purpose: I/O, reconnecting, what the events mean.

const BYTE_ORDER_MARK: &[u8] = b"\xef\xbb\xbf";

/// The most bytes held of one line, and of the data of one event.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    pub line_bytes: usize,
    pub event_bytes: usize,
}

impl Default for Bounds {
    /// 4 MiB each: a tool call that writes a whole file may come as one line.
    fn default() -> Self {
        Self { line_bytes: 4 << 20, event_bytes: 4 << 20 }
    }
}

/// One event as it was dispatched.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Event {
    /// The event's own `id` field; one is not carried over to the events after it.
    pub id: Option<String>,
    /// The `event` field; empty when there was none, which readers take as `message`.
    pub name: String,
    /// The `data` lines, joined by newlines.
    pub data: Vec<u8>,
}

/// A stream that outgrew its bounds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Oversize {
    #[error("a line of the event stream is longer than {0} bytes")]
    Line(usize),
    #[error("an event of the stream is longer than {0} bytes")]
    Event(usize),
}

/// Reads one stream. After an error it answers every further byte with the same error.
#[derive(Debug, Default)]
pub struct Parser {
    bounds: Bounds,
    /// The line so far, without its end.
    line: Vec<u8>,
    /// The byte before was a CR: an LF now belongs to the same line end.
    after_cr: bool,
    /// A line has ended: no byte-order mark can follow.
    begun: bool,
    id: Option<String>,
    name: String,
    data: Vec<u8>,
    /// There was a `data` line; an empty one counts.
    has_data: bool,
    /// The newest `id` of a block that was closed, with an event in it or none.
    last_id: Option<String>,
    failed: Option<Oversize>,
}

impl Parser {
    pub fn new(bounds: Bounds) -> Self {
        Self { bounds, ..Self::default() }
    }

    /// The newest `id` that was said, with an event or alone: where to go on behind everything that was handed out.
    pub fn last_id(&self) -> Option<&str> {
        self.last_id.as_deref()
    }

    /// Reads on, adding to `events` what `bytes` completed; events before an error are handed out too.
    pub fn push(&mut self, bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Oversize> {
        if let Some(failed) = self.failed {
            return Err(failed);
        }
        let read = self.read(bytes, events);
        self.failed = read.err();
        read
    }

    fn read(&mut self, mut bytes: &[u8], events: &mut Vec<Event>) -> Result<(), Oversize> {
        while let Some(&first) = bytes.first() {
            if std::mem::take(&mut self.after_cr) && first == b'\n' {
                bytes = &bytes[1..];
                continue;
            }
            let end = bytes.iter().position(|byte| matches!(byte, b'\r' | b'\n'));
            let part = &bytes[..end.unwrap_or(bytes.len())];
            if self.line.len() + part.len() > self.bounds.line_bytes {
                return Err(Oversize::Line(self.bounds.line_bytes));
            }
            self.line.extend_from_slice(part);
            let Some(end) = end else { return Ok(()) };
            self.after_cr = bytes[end] == b'\r';
            bytes = &bytes[end + 1..];
            events.extend(self.end_line()?);
        }
        Ok(())
    }

    fn end_line(&mut self) -> Result<Option<Event>, Oversize> {
        let mut line = std::mem::take(&mut self.line);
        if !std::mem::replace(&mut self.begun, true) && line.starts_with(BYTE_ORDER_MARK) {
            line.drain(..BYTE_ORDER_MARK.len());
        }
        let event = if line.is_empty() { self.dispatch() } else { self.field(&line).map(|()| None)? };
        // Its space serves the next line.
        line.clear();
        self.line = line;
        Ok(event)
    }

    fn field(&mut self, line: &[u8]) -> Result<(), Oversize> {
        let colon = line.iter().position(|byte| *byte == b':').unwrap_or(line.len());
        let value = line.get(colon + 1..).unwrap_or_default();
        let value = value.strip_prefix(b" ").unwrap_or(value);
        match &line[..colon] {
            b"data" => {
                if self.data.len() + value.len() + usize::from(self.has_data) > self.bounds.event_bytes {
                    return Err(Oversize::Event(self.bounds.event_bytes));
                }
                if std::mem::replace(&mut self.has_data, true) {
                    self.data.push(b'\n');
                }
                self.data.extend_from_slice(value);
            }
            b"event" => self.name = String::from_utf8_lossy(value).into_owned(),
            b"id" => self.id = Some(String::from_utf8_lossy(value).into_owned()),
            // Comments have an empty name; when to reconnect is for the caller to know.
            _ => {}
        }
        Ok(())
    }

    fn dispatch(&mut self) -> Option<Event> {
        let (id, name) = (self.id.take(), std::mem::take(&mut self.name));
        if id.is_some() {
            self.last_id.clone_from(&id);
        }
        std::mem::take(&mut self.has_data).then(|| Event { id, name, data: std::mem::take(&mut self.data) })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn event(name: &str, data: &str) -> Event {
        Event { id: None, name: name.into(), data: data.into() }
    }

    fn parse(pieces: &[&[u8]], bounds: Bounds) -> (Vec<Event>, Result<(), Oversize>) {
        let (mut parser, mut events) = (Parser::new(bounds), Vec::new());
        let end = pieces.iter().try_for_each(|piece| parser.push(piece, &mut events));
        (events, end)
    }

    fn events(text: &str) -> Vec<Event> {
        let (events, end) = parse(&[text.as_bytes()], Bounds::default());
        assert_eq!(end, Ok(()));
        events
    }

    #[test]
    fn an_empty_line_dispatches_what_was_gathered() {
        assert_eq!(events("data: a\n\ndata: b\n\n"), [event("", "a"), event("", "b")]);
        assert_eq!(events("event: error\ndata: a\n\ndata: b\n\n"), [event("error", "a"), event("", "b")]);
    }

    #[test]
    fn every_line_end_ends_a_line() {
        let expected = [event("x", "a\nb"), event("", "c")];
        for end in ["\n", "\r", "\r\n"] {
            assert_eq!(events(&"event: x|data: a|data: b||data: c||".replace('|', end)), expected, "{end:?}");
        }
    }

    #[test]
    fn data_lines_are_joined_by_newlines() {
        assert_eq!(events("data: a\ndata\ndata: b\n\n"), [event("", "a\n\nb")]);
    }

    #[test]
    fn one_space_after_the_colon_belongs_to_the_syntax_and_the_rest_to_the_value() {
        assert_eq!(events("data:a\n\ndata:  b \n\n"), [event("", "a"), event("", " b ")]);
    }

    #[test]
    fn comments_and_unknown_fields_and_a_byte_order_mark_are_ignored() {
        let text = "\u{feff}: hi\nretry: 1\nwhat: ever\ndatas: x\ndata: a\n: ping\n\n: ping\n\n";
        assert_eq!(events(text), [event("", "a")]);
        assert_eq!(events("\u{feff}data: a\n\n"), [event("", "a")]);
    }

    #[test]
    fn an_id_belongs_to_its_own_event_alone() {
        let ids: Vec<_> = events("id: 7\ndata: a\n\ndata: b\n\n").into_iter().map(|event| event.id).collect();
        assert_eq!(ids, [Some("7".to_owned()), None]);
    }

    #[test]
    fn the_last_id_is_known_also_where_it_came_alone_and_once_its_block_is_closed() {
        let mut parser = Parser::default();
        let mut last = |text: &str| {
            parser.push(text.as_bytes(), &mut Vec::new()).unwrap();
            parser.last_id().map(str::to_owned)
        };
        assert_eq!(last(": hi\n\nid: 7\ndata: a"), None);
        assert_eq!(last("\n\n").as_deref(), Some("7"));
        assert_eq!(last("data: b\n\nid: x").as_deref(), Some("7"));
        assert_eq!(last("\n\n").as_deref(), Some("x"));
    }

    #[test]
    fn a_second_byte_order_mark_is_part_of_a_name_and_so_unknown() {
        assert_eq!(events("\n\u{feff}data: a\n\n"), []);
    }

    #[test]
    fn an_event_without_data_is_none_and_its_name_is_forgotten() {
        assert_eq!(events("event: a\n\ndata: b\n\n"), [event("", "b")]);
        assert_eq!(events("data\n\n"), [event("", "")]);
    }

    #[test]
    fn what_no_empty_line_closed_is_not_dispatched() {
        assert_eq!(events("data: a"), []);
        assert_eq!(events("data: a\n"), []);
        assert_eq!(events("data: a\r"), []);
    }

    #[test]
    fn a_line_may_be_as_long_as_its_bound_and_no_longer() {
        let bounds = Bounds { line_bytes: 8, event_bytes: 100 };
        assert_eq!(parse(&[b"data: ab\n\n"], bounds), (vec![event("", "ab")], Ok(())));
        assert_eq!(parse(&[b"data: abc\n\n"], bounds).1, Err(Oversize::Line(8)));
        // A line that never ends is refused before it is held.
        assert_eq!(parse(&[b"12345678", b"9"], bounds).1, Err(Oversize::Line(8)));
    }

    #[test]
    fn an_event_may_be_as_long_as_its_bound_and_what_came_before_is_kept() {
        let bounds = Bounds { line_bytes: 100, event_bytes: 3 };
        assert_eq!(parse(&[b"data: a\ndata: b\n\n"], bounds), (vec![event("", "a\nb")], Ok(())));
        let (events, end) = parse(&[b"data: a\n\ndata: a\ndata: bc\n\n"], bounds);
        assert_eq!((events, end), (vec![event("", "a")], Err(Oversize::Event(3))));
    }

    #[test]
    fn an_oversize_stream_stays_refused() {
        let mut parser = Parser::new(Bounds { line_bytes: 2, event_bytes: 2 });
        let mut events = Vec::new();
        assert_eq!(parser.push(b"data: a", &mut events), Err(Oversize::Line(2)));
        assert_eq!(parser.push(b"\n\n", &mut events), Err(Oversize::Line(2)));
        assert_eq!(events, []);
    }

    /// Streams with everything that a split may fall into.
    fn streams() -> impl Strategy<Value = Vec<u8>> {
        let part = prop_oneof![
            Just("data: ".to_owned()),
            Just("event: ".to_owned()),
            Just(": ".to_owned()),
            Just("\n".to_owned()),
            Just("\r".to_owned()),
            Just("\r\n".to_owned()),
            Just("\n\n".to_owned()),
            Just("\u{feff}".to_owned()),
            "[aé😀 :]{0,6}",
        ];
        proptest::collection::vec(part, 0..40).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn any_split_gives_the_same_events(stream in streams(), cuts in proptest::collection::vec(any::<prop::sample::Index>(), 0..12)) {
            for bounds in [Bounds::default(), Bounds { line_bytes: 12, event_bytes: 9 }] {
                let whole = parse(&[&stream], bounds);
                let bytes: Vec<&[u8]> = stream.chunks(1).collect();
                prop_assert_eq!(&parse(&bytes, bounds), &whole);
                let mut cuts: Vec<usize> = cuts.iter().map(|cut| cut.index(stream.len() + 1)).collect();
                cuts.extend([0, stream.len()]);
                cuts.sort_unstable();
                let pieces: Vec<&[u8]> = cuts.windows(2).map(|cut| &stream[cut[0]..cut[1]]).collect();
                prop_assert_eq!(&parse(&pieces, bounds), &whole);
            }
        }
    }
}
