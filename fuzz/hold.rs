// Holds a target of `fuzz/` to what it says, without another toolchain: on its seeds, on those after they were damaged,
// and on anything at all. Part of the tests of each crate that has targets.

use std::{fs, path::Path};

use proptest::{prelude::*, sample::Index, test_runner::TestRunner};

/// Cuts a piece out of `bytes`, doubles one, or changes or adds a byte.
fn damage(bytes: &mut Vec<u8>, (at, other, byte, how): (Index, Index, u8, u8)) {
    if bytes.is_empty() {
        return;
    }
    let (at, other) = (at.index(bytes.len()), other.index(bytes.len()));
    let (from, to) = (at.min(other), at.max(other));
    match how % 4 {
        0 => bytes[at] = byte,
        1 => drop(bytes.drain(from..to)),
        2 => bytes.insert(at, byte),
        _ => bytes.extend_from_within(from..to),
    }
}

/// Runs the target of this name.
pub fn hold(name: &str, target: fn(&[u8])) {
    let above = Path::new(env!("CARGO_MANIFEST_DIR")).ancestors();
    let dir = above.map(|dir| dir.join("fuzz/seeds").join(name)).find(|dir| dir.is_dir());
    let files = fs::read_dir(dir.unwrap_or_else(|| panic!("{name} has no seeds"))).unwrap();
    let seeds: Vec<Vec<u8>> = files.map(|file| fs::read(file.unwrap().path()).unwrap()).collect();
    seeds.iter().for_each(|seed| target(seed));
    let damages = prop::collection::vec((any::<Index>(), any::<Index>(), any::<u8>(), any::<u8>()), 0..6);
    let given = (any::<Index>(), damages, prop::collection::vec(any::<u8>(), 0..60));
    // What is found is to be mended, and kept as a seed: no file of its own is needed.
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    let held = TestRunner::new(config).run(&given, |(which, damages, garbage)| {
        target(&garbage);
        let mut bytes = which.get(&seeds).clone();
        damages.into_iter().for_each(|one| damage(&mut bytes, one));
        target(&bytes);
        Ok(())
    });
    held.unwrap_or_else(|why| panic!("{name}: {why}"));
}

/// A test for each of these targets of the module above.
macro_rules! holds {
    ($($target:ident)*) => {$(
        #[test]
        fn $target() {
            hold(stringify!($target), super::$target);
        }
    )*};
}
