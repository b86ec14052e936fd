//! Streams of model providers: whatever comes, and however it is split, the same is read of it. And what agents say.

use std::collections::HashSet;

use agent_client_protocol::v1::schema::{RequestPermissionRequest, SessionUpdate};
use raddle_domain::ports::{ActStep, Fragment, ModelError};

use super::{
    acp::says::{ARGUMENT_BYTES, Says},
    anthropic, openai,
    provider::{Read, Reader, problem::Secrets},
};
use crate::sse::Parser;

/// The fragments of an answer, and how it ended; `None`: not as a stream of events.
type Heard = (Vec<Fragment>, Option<Result<Option<Vec<Fragment>>, ModelError>>);

/// What is read of an answer that comes in these pieces, as the provider's client reads it.
fn read<R: Reader>(pieces: &[&[u8]]) -> Heard {
    let (mut parser, mut reader, secrets) = (Parser::default(), R::default(), Secrets::default());
    let mut fragments = Vec::new();
    for piece in pieces {
        let mut events = Vec::new();
        let whole = parser.push(piece, &mut events);
        for event in &events {
            match reader.event(event, &secrets) {
                Ok(Read::On(more)) => fragments.extend(more),
                Ok(Read::End) => return (fragments, Some(Ok(reader.end()))),
                Err(error) => return (fragments, Some(Err(error))),
            }
        }
        if whole.is_err() {
            return (fragments, None);
        }
    }
    (fragments, Some(Ok(reader.end())))
}

fn stream<R: Reader>(data: &[u8]) {
    let whole = read::<R>(&[data]);
    if let (_, Some(Ok(Some(end)))) = &whole {
        assert!(matches!(end.last(), Some(Fragment::Finish(_))), "an answer ends with its reason");
    }
    let bytes: Vec<_> = data.chunks(1).collect();
    assert_eq!(read::<R>(&bytes), whole, "byte by byte");
    for at in 0..data.len().min(512) {
        let (one, other) = data.split_at(at);
        assert_eq!(read::<R>(&[one, other]), whole, "split at {at}");
    }
    let _ = R::default().whole(data, &Secrets::default());
}

pub fn openai_stream(data: &[u8]) {
    stream::<openai::answer::Answer>(data);
}

pub fn anthropic_stream(data: &[u8]) {
    stream::<anthropic::answer::Answer>(data);
}

/// Lines as updates of a session and as questions: an act ends once, and says nothing behind its end; what is shown of
/// it has bounds.
pub fn acp_updates(data: &[u8]) {
    let (mut says, mut over) = (Says::new("agent", "/w"), HashSet::new());
    for line in data.split(|byte| *byte == b'\n') {
        let fragments = if let Ok(asked) = serde_json::from_slice::<RequestPermissionRequest>(line) {
            over.remove(&asked.tool_call.tool_call_id.to_string());
            says.ask(asked).map(|(_, fragments)| fragments).unwrap_or_default()
        } else if let Ok(update) = serde_json::from_slice::<SessionUpdate>(line) {
            if let SessionUpdate::ToolCall(call) = &update {
                over.remove(&call.tool_call_id.to_string());
            }
            says.update(update)
        } else {
            continue;
        };
        for fragment in fragments {
            let Fragment::Act(act) = fragment else { continue };
            assert!(act.arguments.to_string().len() <= ARGUMENT_BYTES + 2 * act.title.len() + 100);
            assert!(!over.contains(&act.call_id), "{} says something behind its end", act.call_id);
            if let ActStep::Ended { .. } = act.step {
                over.insert(act.call_id);
            }
        }
    }
}
