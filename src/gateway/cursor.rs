//! Places in lists, as opaque text.
//!
//! A cursor belongs to one list of one tenant (and thread): its checksum covers their names, so a cursor of
//! another list, or a damaged one, is refused instead of silently meaning some other place. It is no secret
//! and no permission: whose list is read is decided by the caller, never by the cursor.

use std::fmt::Write as _;

use raddle_actors::{ItemPlace, TenantCursor};
use raddle_domain::{
    id::{AuditId, InputId, Seq, TenantId, ThreadId, ThreadKey},
    ports::Place,
    time::UnixMs,
};
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::problem::Problem;

const VERSION: u8 = 1;
const CHECK: usize = 8;

/// The list that a cursor walks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    Threads(TenantId),
    Turns(ThreadKey),
    Items(ThreadKey),
    Inbox(ThreadKey),
    Approvals(TenantId),
    Questions(TenantId),
    Effects(TenantId),
    Events(TenantId),
    Jobs(TenantId),
    Schedules(TenantId),
    Runs(TenantId),
    /// Tenants themselves.
    Tenants,
    Audit(TenantId),
    /// Whatever is a run's and stands in the order of its log.
    OfRun(ThreadKey),
}

/// A place in a list, as fixed-width bytes.
pub trait Point: Sized {
    fn write(&self, into: &mut Vec<u8>);
    fn read(bytes: &[u8]) -> Option<Self>;
}

impl Point for Place {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.at.0.to_be_bytes());
        into.extend(self.thread.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (at, thread) = bytes.split_first_chunk()?;
        Some(Self { at: UnixMs(u64::from_be_bytes(*at)), thread: ThreadId::from_bytes(thread.try_into().ok()?) })
    }
}

impl Point for Seq {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_be_bytes(bytes.try_into().ok()?))
    }
}

impl Point for ItemPlace {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.turn_started.to_be_bytes());
        into.extend(self.items.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (turn, items) = bytes.split_first_chunk()?;
        Some(Self { turn_started: u64::from_be_bytes(*turn), items: u32::from_be_bytes(items.try_into().ok()?) })
    }
}

impl Point for TenantCursor {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.position.to_be_bytes());
        into.extend(self.seq.to_be_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        let (position, seq) = bytes.split_first_chunk()?;
        Some(Self { position: u64::from_be_bytes(*position), seq: u64::from_be_bytes(seq.try_into().ok()?) })
    }
}

impl Point for InputId {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_bytes(bytes.try_into().ok()?))
    }
}

impl Point for Uuid {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_slice(bytes).ok()
    }
}

impl Point for AuditId {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        Some(Self::from_bytes(bytes.try_into().ok()?))
    }
}

impl Point for TenantId {
    fn write(&self, into: &mut Vec<u8>) {
        into.extend(self.as_bytes());
    }
    fn read(bytes: &[u8]) -> Option<Self> {
        Self::from_bytes(bytes.try_into().ok()?).ok()
    }
}

/// The text for a place.
pub fn encode<P: Point>(list: List, place: &P) -> String {
    let mut bytes = vec![VERSION];
    place.write(&mut bytes);
    bytes.extend(check(list, &bytes));
    bytes.iter().fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

/// The place that `text` stands for in `list`.
pub fn decode<P: Point>(list: List, text: &str) -> Result<P, Problem> {
    decode_in("cursor", list, text)
}

/// The same for a text that came as `field`.
pub fn decode_in<P: Point>(field: &str, list: List, text: &str) -> Result<P, Problem> {
    read(list, text).ok_or_else(|| Problem::invalid(field, "is not a cursor of this list"))
}

fn read<P: Point>(list: List, text: &str) -> Option<P> {
    // Longer than any place: not worth decoding.
    if text.len() > 256 || !text.len().is_multiple_of(2) {
        return None;
    }
    let nibble = |byte: u8| match byte {
        b'0'..=b'9' => Some(byte - b'0'),
        b'a'..=b'f' => Some(byte - b'a' + 10),
        _ => None,
    };
    let bytes: Vec<u8> = text
        .as_bytes()
        .chunks_exact(2)
        .map(|pair| Some(nibble(pair[0])? << 4 | nibble(pair[1])?))
        .collect::<Option<_>>()?;
    let (body, found) = bytes.split_at_checked(bytes.len().checked_sub(CHECK)?)?;
    if found != check(list, body) {
        return None;
    }
    let (version, place) = body.split_first()?;
    if *version == VERSION { P::read(place) } else { None }
}

fn check(list: List, body: &[u8]) -> [u8; CHECK] {
    let mut digest = Sha256::new();
    let mut name = |tag: u8, tenant: TenantId, thread: Option<ThreadId>| {
        digest.update([tag]);
        digest.update(tenant.as_bytes());
        digest.update(thread.map_or([0; 16], |thread| *thread.as_bytes()));
    };
    match list {
        List::Threads(tenant) => name(1, tenant, None),
        List::Turns(key) => name(2, key.tenant, Some(key.thread)),
        List::Items(key) => name(3, key.tenant, Some(key.thread)),
        List::Inbox(key) => name(4, key.tenant, Some(key.thread)),
        // Records are in one order, whether of a thread or of the tenant: a place in the one is a place in the other.
        List::Approvals(tenant) => name(5, tenant, None),
        List::Questions(tenant) => name(6, tenant, None),
        List::Effects(tenant) => name(7, tenant, None),
        List::Events(tenant) => name(8, tenant, None),
        List::Jobs(tenant) => name(20, tenant, None),
        List::Schedules(tenant) => name(21, tenant, None),
        List::Runs(tenant) => name(22, tenant, None),
        List::OfRun(key) => name(23, key.tenant, Some(key.thread)),
        List::Tenants => name(24, TenantId::SYSTEM, None),
        List::Audit(tenant) => name(25, tenant, None),
    }
    digest.update(body);
    let whole: [u8; 32] = digest.finalize().into();
    let mut check = [0; CHECK];
    check.copy_from_slice(&whole[..CHECK]);
    check
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn key(thread: u128) -> ThreadKey {
        ThreadKey { tenant: TenantId::DEFAULT, thread: ThreadId::new(Uuid::from_u128(thread)) }
    }

    #[test]
    fn a_cursor_reads_back_in_its_own_list_and_in_no_other() {
        let text = encode(List::Turns(key(1)), &42_u64);
        assert_eq!(decode::<Seq>(List::Turns(key(1)), &text), Ok(42));
        let other: TenantId = "other".parse().unwrap();
        for foreign in [
            List::Turns(key(2)),
            List::Items(key(1)),
            List::Inbox(key(1)),
            List::Threads(TenantId::DEFAULT),
            List::Approvals(TenantId::DEFAULT),
            List::Questions(TenantId::DEFAULT),
            List::Effects(TenantId::DEFAULT),
            List::Events(TenantId::DEFAULT),
            List::Jobs(TenantId::DEFAULT),
            List::Schedules(TenantId::DEFAULT),
            List::Runs(TenantId::DEFAULT),
            List::OfRun(key(1)),
            List::Turns(ThreadKey { tenant: other, ..key(1) }),
        ] {
            assert!(decode::<Seq>(foreign, &text).is_err(), "{foreign:?}");
        }
    }

    #[test]
    fn every_kind_of_place_reads_back() {
        let place = Place { at: UnixMs(7), thread: ThreadId::new(Uuid::from_u128(9)) };
        let list = List::Threads(TenantId::DEFAULT);
        assert_eq!(decode(list, &encode(list, &place)), Ok(place));
        let item = ItemPlace { turn_started: 3, items: 5 };
        let list = List::Items(key(1));
        assert_eq!(decode(list, &encode(list, &item)), Ok(item));
        let place = TenantCursor { position: 7, seq: 9 };
        let list = List::Events(TenantId::DEFAULT);
        assert_eq!(decode(list, &encode(list, &place)), Ok(place));
        let other = List::Events("other".parse().unwrap());
        assert!(decode::<TenantCursor>(other, &encode(list, &place)).is_err());
        let input = InputId::new(Uuid::from_u128(11));
        let list = List::Inbox(key(1));
        assert_eq!(decode(list, &encode(list, &input)), Ok(input));
        let record = Uuid::from_u128(13);
        let list = List::Effects(TenantId::DEFAULT);
        assert_eq!(decode(list, &encode(list, &record)), Ok(record));
    }

    proptest! {
        #[test]
        fn a_damaged_cursor_is_refused(at in 0_usize..34, with in any::<u8>()) {
            let list = List::Turns(key(1));
            let mut bytes = encode(list, &7_u64).into_bytes();
            prop_assume!(bytes[at] != with);
            bytes[at] = with;
            if let Ok(text) = String::from_utf8(bytes) {
                prop_assert!(decode::<Seq>(list, &text).is_err());
            }
        }

        #[test]
        fn no_text_makes_the_decoder_panic(text in ".{0,80}") {
            let _ = decode::<Place>(List::Threads(TenantId::DEFAULT), &text);
        }
    }
}
