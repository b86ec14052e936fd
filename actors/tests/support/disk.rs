//! What may be on a disk after the power went.

use raddle_actors::store::backend::Op;

use super::script::Dice;

/// What a device writes whole, or not at all.
const SECTOR: usize = 512;

/// Does an operation to bytes; of a write, the sectors that `lands` lets pass.
pub fn put_op(image: &mut Vec<u8>, op: &Op, mut lands: impl FnMut() -> bool) {
    match op {
        Op::SetLen(len) => image.resize(*len as usize, 0),
        Op::Write { offset, data } => {
            for (at, sector) in (*offset as usize..).step_by(SECTOR).zip(data.chunks(SECTOR)) {
                if lands() {
                    // A length that was cut later, and then not: the write stood there before.
                    if image.len() < at + sector.len() {
                        image.resize(at + sector.len(), 0);
                    }
                    image[at..at + sector.len()].copy_from_slice(sector);
                }
            }
        }
        Op::Install(whole) => image.clone_from(whole),
        Op::Sync => {}
    }
}

/// Shows `check` what may be on the disk after each number of operations, with that number: everything that was
/// written, what was synced alone, and `rounds` times some of the other writes, whole and in torn sectors. `begins` is
/// what the disk held before.
pub fn images(begins: &[u8], ops: &[Op], rounds: usize, dice: &mut Dice, mut check: impl FnMut(usize, &[u8], &str)) {
    let (mut written, mut synced, mut synced_to) = (begins.to_vec(), begins.to_vec(), 0);
    for end in 0..=ops.len() {
        if let Some(op) = end.checked_sub(1).map(|at| &ops[at]) {
            put_op(&mut written, op, || true);
            // What is put in place at one stroke is on the disk from then on.
            if matches!(op, Op::Sync | Op::Install(_)) {
                synced.clone_from(&written);
                synced_to = end;
            }
        }
        check(end, &written, "all writes");
        let unsynced = &ops[synced_to..end];
        if unsynced.is_empty() {
            continue;
        }
        check(end, &synced, "synced writes");
        for _ in 0..rounds {
            let mut image = synced.clone();
            let keep = 1 + dice.roll(9);
            for op in unsynced {
                let whole = dice.roll(10) < keep;
                put_op(&mut image, op, || whole);
            }
            check(end, &image, "some writes");
            let mut image = synced.clone();
            for op in unsynced {
                put_op(&mut image, op, || dice.roll(10) < keep);
            }
            check(end, &image, "torn writes");
        }
    }
}
