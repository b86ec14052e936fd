#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| raddle::fuzzing::mcp_tools(data));
