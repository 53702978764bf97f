#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| kinde_fuzz::verify_webhook::run(input));
