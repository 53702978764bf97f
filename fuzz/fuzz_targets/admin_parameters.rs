#![no_main]

use std::sync::LazyLock;

use kinde_fuzz::server::Server;

static SERVER: LazyLock<Server> = LazyLock::new(Server::start);

libfuzzer_sys::fuzz_target!(|input: &[u8]| kinde_fuzz::admin_parameters::run(&SERVER, input));
