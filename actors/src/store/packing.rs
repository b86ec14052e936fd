//! What of a log is packed: one rule for every store.

use raddle_domain::{
    event::{BadRecord, SCHEMA},
    id::Seq,
    pack::{self, Packed},
    ports::StoredEvent,
};

/// What an event means for where the turn ends that goes on at some place.
pub(crate) enum Means {
    /// Nothing: the turn goes on.
    GoesOn,
    /// It is the turn's end.
    Ends,
    /// Another turn begins, so this one's end is not in the log.
    Another,
}

/// Reads the name of the event at `seq`, at or behind `from`, from where on the turn is to be packed.
pub(crate) fn means(name: &str, seq: Seq, from: Seq) -> Means {
    match name {
        "turn.completed" => Means::Ends,
        "turn.started" if seq > from => Means::Another,
        _ => Means::GoesOn,
    }
}

/// The seqs that a place covers.
pub(crate) fn seqs(place: &Packed) -> Seq {
    match place {
        Packed::Event(_) => 1,
        Packed::Run(run) => run.lengths.len() as Seq,
    }
}

/// Joins the deltas from `from` to `to` among places that begin at `first`; all others stay as they are.
pub(crate) fn join(first: Seq, places: Vec<Packed>, from: Seq, to: Seq) -> Result<Vec<Packed>, BadRecord> {
    let mut joined = Vec::with_capacity(places.len());
    // Events that follow each other, and the seq of the first.
    let mut waiting: (Seq, Vec<StoredEvent>) = (0, Vec::new());
    let mut seq = first;
    for place in places {
        let at = seq;
        seq += seqs(&place);
        match place {
            Packed::Event(event) if (from..=to).contains(&at) => {
                if waiting.1.is_empty() {
                    waiting.0 = at;
                }
                waiting.1.push(event);
            }
            other => {
                joined.extend(pack::pack(SCHEMA, waiting.0, std::mem::take(&mut waiting.1))?);
                joined.push(other);
            }
        }
    }
    joined.extend(pack::pack(SCHEMA, waiting.0, waiting.1)?);
    Ok(joined)
}
