//! The binary `kinsync`. Everything is in the library.

use std::process::ExitCode;

fn main() -> ExitCode {
    kinsync::cli::run()
}
