//! What differs between a run as it is kept and as its log makes it.

use serde::{Deserialize, Serialize};
use serde_json::Value;
use utoipa::ToSchema;

use super::Image;

/// Differences that are told one by one.
const TOLD: usize = 100;

/// What differs. Empty for every healthy history.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize, ToSchema)]
#[schema(as = RunDrift)]
pub struct Drift {
    pub mismatch: bool,
    /// Of the record: status, steps, objective and whatever else it holds.
    pub run_mismatch: bool,
    pub status_mismatch: bool,
    pub why_next_step_mismatch: bool,
    pub steps_mismatch: bool,
    pub revision_mismatch: bool,
    pub tasks_mismatch: bool,
    pub blackboard_mismatch: bool,
    pub checkpoints_mismatch: bool,
    pub ledger_mismatch: bool,
    pub mutations_mismatch: bool,
    /// Where, as paths into the two; the first hundred.
    pub differences: Vec<Difference>,
}

/// One place that differs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = RunDifference)]
pub struct Difference {
    /// Such as `tasks[task-7].status`.
    pub at: String,
    /// As it is kept.
    #[schema(value_type = Object)]
    pub kept: Value,
    /// As the log makes it.
    #[schema(value_type = Object)]
    pub replayed: Value,
}

/// Compares a run as it is kept with what its log makes of it.
pub fn drift(kept: &Image, replayed: &Image) -> Drift {
    let mut drift = Drift {
        run_mismatch: kept.run != replayed.run,
        status_mismatch: kept.run.status != replayed.run.status,
        why_next_step_mismatch: kept.run.why_next_step != replayed.run.why_next_step,
        steps_mismatch: kept.run.steps != replayed.run.steps,
        revision_mismatch: (kept.run.revision, kept.run.last_event_seq)
            != (replayed.run.revision, replayed.run.last_event_seq),
        tasks_mismatch: kept.tasks != replayed.tasks,
        blackboard_mismatch: (&kept.entries, &kept.summaries) != (&replayed.entries, &replayed.summaries),
        checkpoints_mismatch: kept.checkpoints != replayed.checkpoints,
        ledger_mismatch: (&kept.rest, &kept.sources) != (&replayed.rest, &replayed.sources),
        mutations_mismatch: kept.mutations != replayed.mutations,
        ..Drift::default()
    };
    drift.mismatch = kept != replayed;
    if drift.mismatch {
        let json = |image: &Image| serde_json::to_value(image).unwrap_or_default();
        compare("", &json(kept), &json(replayed), &mut drift.differences);
    }
    drift
}

fn compare(at: &str, kept: &Value, replayed: &Value, found: &mut Vec<Difference>) {
    if kept == replayed || found.len() >= TOLD {
        return;
    }
    match (kept, replayed) {
        (Value::Object(kept), Value::Object(replayed)) => {
            let names = kept.keys().chain(replayed.keys().filter(|name| !kept.contains_key(*name)));
            for name in names {
                let at = if at.is_empty() { name.clone() } else { format!("{at}.{name}") };
                let part = |of: &serde_json::Map<String, Value>| of.get(name).cloned().unwrap_or_default();
                compare(&at, &part(kept), &part(replayed), found);
            }
        }
        (Value::Array(kept), Value::Array(replayed)) if kept.len() == replayed.len() => {
            for (number, (kept, replayed)) in kept.iter().zip(replayed).enumerate() {
                let ((made, kept), (made_too, replayed)) = (placed(kept), placed(replayed));
                let at = format!("{at}[{}]", name_of(kept, number));
                compare(&format!("{at}.event"), made, made_too, found);
                compare(&at, kept, replayed, found);
            }
        }
        _ => found.push(Difference { at: at.to_owned(), kept: brief(kept), replayed: brief(replayed) }),
    }
}

/// An entry of a list, and before it the event that made it, if the two are listed as a pair.
fn placed(entry: &Value) -> (&Value, &Value) {
    match entry.as_array().map(Vec::as_slice) {
        Some([made @ Value::Number(_), entry @ Value::Object(_)]) => (made, entry),
        _ => (&Value::Null, entry),
    }
}

/// What an entry of a list is called: by its id, where it has one.
fn name_of(entry: &Value, number: usize) -> String {
    let names = ["id", "step_id", "event_id", "checkpoint_id"];
    let name = names.iter().find_map(|name| entry.get(name)?.as_str());
    name.map_or_else(|| number.to_string(), str::to_owned)
}

/// A value as far as a report needs it: lists by their length.
fn brief(value: &Value) -> Value {
    match value {
        Value::Array(all) => Value::String(format!("{} entries", all.len())),
        other => other.clone(),
    }
}
