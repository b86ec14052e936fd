//! What a command writes: passed on as it comes, and kept from both ends, because the first error and the last line
//! are what a reader looks for.
//!
//! Bytes become text without a loss: a character that arrives in pieces is one, and what is none shows as U+FFFD.

use std::collections::VecDeque;

/// Keeps at most so many bytes.
#[derive(Debug)]
pub struct Capture {
    most: usize,
    head: Vec<u8>,
    tail: VecDeque<u8>,
    /// How much there was in all.
    total: u64,
    /// A character that has only begun.
    begun: Vec<u8>,
    told_cut: bool,
}

impl Capture {
    pub fn new(most: usize) -> Self {
        Self { most, head: Vec::new(), tail: VecDeque::new(), total: 0, begun: Vec::new(), told_cut: false }
    }

    fn head_most(&self) -> usize {
        self.most.div_ceil(2)
    }

    /// Takes a piece; returns the text to be passed on, which is that of the head only.
    pub fn take(&mut self, piece: &[u8]) -> String {
        self.total += piece.len() as u64;
        let room = self.head_most() - self.head.len();
        let (head, tail) = piece.split_at(room.min(piece.len()));
        self.head.extend_from_slice(head);
        self.tail.extend(tail);
        let over = self.tail.len().saturating_sub(self.most - self.head_most());
        self.tail.drain(..over);
        let mut live = self.decode(head);
        if !tail.is_empty() && !self.told_cut {
            self.told_cut = true;
            live.push_str("\n[there is more than is shown while it runs]\n");
        }
        live
    }

    fn decode(&mut self, piece: &[u8]) -> String {
        self.begun.extend_from_slice(piece);
        let whole = self.begun.len() - unfinished(&self.begun);
        let rest = self.begun.split_off(whole);
        let text = String::from_utf8_lossy(&self.begun).into_owned();
        self.begun = rest;
        text
    }

    /// All of it, or both ends and how much is missing between them.
    pub fn finish(self) -> String {
        let (head, tail) = (self.head, Vec::from(self.tail));
        let kept = (head.len() + tail.len()) as u64;
        if kept == self.total {
            return String::from_utf8_lossy(&[head, tail].concat()).into_owned();
        }
        // A character that was cut in two is no character.
        let head = &head[..head.len() - unfinished(&head)];
        let continued = tail.iter().take(3).take_while(|byte| **byte & 0xc0 == 0x80).count();
        let tail = &tail[continued..];
        let missing = self.total - (head.len() + tail.len()) as u64;
        let (head, tail) = (String::from_utf8_lossy(head), String::from_utf8_lossy(tail));
        format!("{head}\n[{missing} bytes are left out here, of {} in all]\n{tail}", self.total)
    }
}

/// How many bytes at the end are the beginning of a character.
fn unfinished(bytes: &[u8]) -> usize {
    for back in 1..=bytes.len().min(3) {
        let end = &bytes[bytes.len() - back..];
        // The last byte that is not the continuation of another.
        if end[0] & 0xc0 != 0x80 {
            let begun = std::str::from_utf8(end).is_err_and(|why| why.error_len().is_none());
            return if begun { back } else { 0 };
        }
    }
    0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_character_in_pieces_is_one_wherever_it_is_cut() {
        let text = "aä€😀z\u{7ff}é";
        for size in 1..=text.len() {
            let mut capture = Capture::new(1000);
            let live: String = text.as_bytes().chunks(size).map(|piece| capture.take(piece)).collect();
            assert_eq!(live, text, "pieces of {size}");
            assert_eq!(capture.finish(), text);
        }
    }

    #[test]
    fn what_is_no_character_shows_as_that_and_hides_nothing() {
        let mut capture = Capture::new(1000);
        let bytes = b"a\xff\xc3(\xe2\x82b";
        let live: String = bytes.iter().map(|byte| capture.take(&[*byte])).collect();
        assert_eq!(live, String::from_utf8_lossy(bytes));
        assert_eq!(capture.finish(), String::from_utf8_lossy(bytes));
    }

    #[test]
    fn of_too_much_both_ends_are_kept_and_the_rest_is_counted() {
        let mut capture = Capture::new(10);
        let live = capture.take(b"0123456789") + &capture.take(b"abcde");
        assert_eq!(live, "01234\n[there is more than is shown while it runs]\n");
        assert_eq!(capture.finish(), "01234\n[5 bytes are left out here, of 15 in all]\nabcde");
    }

    #[test]
    fn what_just_fits_is_whole() {
        let mut capture = Capture::new(10);
        capture.take(b"0123456789");
        assert_eq!(capture.finish(), "0123456789");
    }

    #[test]
    fn no_cut_goes_through_a_character() {
        for most in 4..40 {
            let mut capture = Capture::new(most);
            capture.take("€".repeat(20).as_bytes());
            let text = capture.finish();
            assert!(!text.contains('\u{fffd}'), "{most}: {text}");
            let digits = text.chars().filter(char::is_ascii_digit).collect::<String>();
            let missing: usize = digits.strip_suffix("60").unwrap_or("0").parse().unwrap();
            assert_eq!(text.matches('€').count() * 3 + missing, 60, "{most}: {text}");
        }
    }
}
