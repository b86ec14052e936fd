//! Streams of model providers: whatever comes, and however it is split, the same is read of it.

use raddle_domain::ports::{Fragment, ModelError};

use super::{
    anthropic, openai,
    provider::{Read, Reader, problem::Secrets},
};
use crate::sse::Parser;

/// What is read of an answer that comes in these pieces, as the provider's client reads it.
fn read<R: Reader>(pieces: &[&[u8]]) -> (Vec<Fragment>, Option<Result<Option<Vec<Fragment>>, ModelError>>) {
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
