#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raddle::fuzzing::patch_text(data));
