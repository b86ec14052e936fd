//! Other names for the same: what replicas are told differs from what was recorded in its ids alone.

use raddle_domain::id::ThreadId;
use uuid::Uuid;

/// Which replica of a thread; the one with the number 0 has the recorded ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Replica(pub u32);

/// Characters of a UUID in text.
pub(super) const UUID: usize = 36;
/// The random bits of a UUIDv7: neither its time nor its version and variant.
const RANDOM: u128 = 0x0fff_3fff_ffff_ffff_ffff;

impl Replica {
    /// The id that takes the place of a recorded one: always the same, and told twice it is the recorded one again. No
    /// two replicas have the same, but by a chance of one in 2^74.
    pub fn id(self, recorded: Uuid) -> Uuid {
        Uuid::from_u128(recorded.as_u128() ^ self.mask())
    }

    pub fn thread(self, recorded: ThreadId) -> ThreadId {
        ThreadId::new(self.id(Uuid::from_bytes(*recorded.as_bytes())))
    }

    fn mask(self) -> u128 {
        if self.0 == 0 {
            return 0;
        }
        let (high, low) = (mixed(u64::from(self.0) << 1), mixed(u64::from(self.0) << 1 | 1));
        (u128::from(high) << 64 | u128::from(low)) & RANDOM
    }

    /// A text with every id in it replaced.
    pub fn text(self, recorded: &str) -> String {
        self.at(recorded, &places(recorded))
    }

    /// A text with every id in it under another name.
    pub fn renamed(text: &str, name: impl Fn(Uuid) -> Uuid) -> String {
        renamed(text, &places(text), name)
    }

    /// The ids of a text, in its order.
    pub fn ids(text: &str) -> impl Iterator<Item = Uuid> {
        places(text).into_iter().filter_map(|at| Uuid::try_parse(&text[at..at + UUID]).ok())
    }

    /// The same where it is known where the ids are.
    pub(super) fn at(self, recorded: &str, places: &[usize]) -> String {
        if self.0 == 0 { recorded.to_owned() } else { renamed(recorded, places, |id| self.id(id)) }
    }
}

fn renamed(text: &str, places: &[usize], name: impl Fn(Uuid) -> Uuid) -> String {
    let mut renamed = text.to_owned();
    for at in places {
        if let Ok(id) = Uuid::try_parse(&text[*at..*at + UUID]) {
            renamed.replace_range(*at..*at + UUID, name(id).as_hyphenated().encode_lower(&mut [0; UUID]));
        }
    }
    renamed
}

/// Where the ids of a text begin.
pub(super) fn places(text: &str) -> Vec<usize> {
    let bytes = text.as_bytes();
    let (mut places, mut at) = (Vec::new(), 0);
    while at + UUID <= bytes.len() {
        let hyphens = [8, 13, 18, 23].iter().all(|place| bytes[at + place] == b'-');
        if hyphens && Uuid::try_parse_ascii(&bytes[at..at + UUID]).is_ok() {
            places.push(at);
            at += UUID;
        } else {
            at += 1;
        }
    }
    places
}

/// A number that looks random (splitmix64).
const fn mixed(number: u64) -> u64 {
    let z = number.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    z ^ (z >> 31)
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    const ID: Uuid = Uuid::from_u128(0x0190_5d3c_7e57_7abc_8def_0123_4567_89ab);

    #[test]
    fn an_id_of_a_replica_is_of_the_same_kind_and_leads_back() {
        for number in [0, 1, 2, 999, u32::MAX] {
            let id = Replica(number).id(ID);
            assert_eq!(id.get_version_num(), 7);
            assert_eq!(id.get_variant(), ID.get_variant());
            assert_eq!(id.as_u128() >> 80, ID.as_u128() >> 80, "its time is the same");
            assert_eq!(Replica(number).id(id), ID);
        }
        assert_eq!(Replica(0).id(ID), ID);
    }

    #[test]
    fn no_two_replicas_of_neighbouring_ids_have_the_same() {
        let ids = (0..100).flat_map(|n| {
            let id = Uuid::from_u128(ID.as_u128() + n);
            (0..100).map(move |number| Replica(number).id(id))
        });
        assert_eq!(ids.collect::<HashSet<_>>().len(), 10_000);
    }

    #[test]
    fn every_id_of_a_text_is_replaced_and_nothing_else() {
        let text = format!("turn_{ID} is ü not 01905d3c-7e57-7abc-8def-01234567; {ID}{ID}");
        let told = Replica(3).text(&text);
        let id = Replica(3).id(ID);
        assert_eq!(told, format!("turn_{id} is ü not 01905d3c-7e57-7abc-8def-01234567; {id}{id}"));
        assert_eq!(Replica(3).text(&told), text);
        assert_eq!(Replica(0).text(&text), text);
    }
}
