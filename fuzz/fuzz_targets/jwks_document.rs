#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kinde_fuzz::jwks_document::run(input));
