//! Server-sent events as a client reads them: bytes in, in any pieces; whole events out.
//!
//! As much of the format as an API sends: `id`, `event`, `data`, comments, any line end. `retry` is left to the
//! caller. An event is given out at its blank line only, so a cut stream never yields half of one.

/// One event.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Event {
    pub id: Option<String>,
    pub name: Option<String>,
    pub data: String,
}

/// What has arrived and is not an event yet.
#[derive(Debug, Default)]
pub struct Parser {
    line: Vec<u8>,
    event: Event,
    has_data: bool,
    /// The last byte was `\r`: a `\n` after it ends no second line.
    after_cr: bool,
}

/// The longest line that is kept: beyond it the peer is not speaking our language.
const LINE_BYTES: usize = 64 * 1024 * 1024;

/// A line without an end.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("a line of the stream is too long")]
pub struct TooLong;

impl Parser {
    /// Takes bytes, and adds the events that they complete to `out`.
    pub fn feed(&mut self, bytes: &[u8], out: &mut Vec<Event>) -> Result<(), TooLong> {
        for byte in bytes {
            let after_cr = std::mem::replace(&mut self.after_cr, *byte == b'\r');
            match byte {
                b'\n' if after_cr => {}
                b'\n' | b'\r' => self.end_line(out),
                _ if self.line.len() >= LINE_BYTES => return Err(TooLong),
                byte => self.line.push(*byte),
            }
        }
        Ok(())
    }

    fn end_line(&mut self, out: &mut Vec<Event>) {
        let line = std::mem::take(&mut self.line);
        let line = String::from_utf8_lossy(&line);
        if line.is_empty() {
            let event = std::mem::take(&mut self.event);
            if std::mem::take(&mut self.has_data) {
                out.push(event);
            }
            return;
        }
        let (field, value) = line.split_once(':').unwrap_or((&line, ""));
        let value = value.strip_prefix(' ').unwrap_or(value);
        match field {
            "id" => self.event.id = Some(value.to_owned()),
            "event" => self.event.name = Some(value.to_owned()),
            "data" => {
                if self.has_data {
                    self.event.data.push('\n');
                }
                self.has_data = true;
                self.event.data.push_str(value);
            }
            // Comments have an empty name; unknown fields mean nothing.
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const STREAM: &str = "retry: 1000\n\n: keep-alive\n\nid: 1\r\nevent: a\r\ndata: {\"x\":\"é\"}\r\n\r\ndata: one\ndata:two\n\ndata: half";

    fn events(pieces: impl Iterator<Item = Vec<u8>>) -> Vec<Event> {
        let mut parser = Parser::default();
        let mut out = Vec::new();
        for piece in pieces {
            parser.feed(&piece, &mut out).unwrap();
        }
        out
    }

    #[test]
    fn a_stream_reads_the_same_however_it_is_cut() {
        let whole = events([STREAM.as_bytes().to_vec()].into_iter());
        assert_eq!(whole.len(), 2);
        assert_eq!(whole[0], Event { id: Some("1".into()), name: Some("a".into()), data: "{\"x\":\"é\"}".into() });
        assert_eq!(whole[1].data, "one\ntwo");
        assert_eq!(events(STREAM.bytes().map(|byte| vec![byte])), whole);
        for cut in 0..STREAM.len() {
            let (left, right) = STREAM.as_bytes().split_at(cut);
            assert_eq!(events([left.to_vec(), right.to_vec()].into_iter()), whole, "cut at {cut}");
        }
    }
}
