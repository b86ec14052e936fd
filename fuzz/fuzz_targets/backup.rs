#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raddle_actors::store::fuzzing::backup(data));
