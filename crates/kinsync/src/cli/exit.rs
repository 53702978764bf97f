//! How a command ends: a message for people, a code for programs (of sysexits.h where it has one).

use std::process::ExitCode;

use kinsync_engine::QueueError;

use crate::config::Problems;

/// The codes, for `--help` and docs/reference/exit-codes.md.
pub const CODES: [(u8, &str); 8] = [
    (SUCCESS, "done"),
    (FAILED, "failed"),
    (USAGE, "wrong usage"),
    (APPROVAL, "operator approval required"),
    (DIFFERENT, "stored users differ from the event log"),
    (UNAVAILABLE, "server unreachable or unable to answer, or another process is scanning"),
    (NO_PERMISSION, "no permission: the admin token is missing or wrong"),
    (CONFIG, "wrong settings"),
];

const SUCCESS: u8 = 0;
const FAILED: u8 = 1;
/// Of clap.
const USAGE: u8 = 2;
const APPROVAL: u8 = 3;
const DIFFERENT: u8 = 4;
/// `EX_UNAVAILABLE`.
const UNAVAILABLE: u8 = 69;
/// `EX_NOPERM`.
const NO_PERMISSION: u8 = 77;
/// `EX_CONFIG`.
const CONFIG: u8 = 78;

/// The code of a scan that held deletions.
pub(super) fn approval_required() -> ExitCode {
    ExitCode::from(APPROVAL)
}

/// The code of a rebuild after which users still differ from the log.
pub(super) fn users_differ() -> ExitCode {
    ExitCode::from(DIFFERENT)
}

/// The code of a scan: `FAILED` if the store refused users.
pub(super) fn of_scan(refused: u64) -> ExitCode {
    ExitCode::from(if refused > 0 { FAILED } else { SUCCESS })
}

/// Why a command failed.
#[derive(Debug)]
pub(super) enum Exit {
    /// Any reason without a code of its own.
    Failed(anyhow::Error),
    /// The flags or arguments are wrong, in a way that the command line alone does not show.
    Usage(String),
    /// The server cannot be reached, or cannot do it now.
    Unavailable(String),
    /// The admin token is missing or wrong.
    Denied(String),
    /// The settings are wrong.
    Config(Problems),
}

impl Exit {
    /// Prints the reason on stderr and returns the code.
    pub(super) fn report(self) -> ExitCode {
        let (code, text) = match &self {
            Self::Failed(error) => (FAILED, format!("{error:#}")),
            Self::Usage(text) => (USAGE, format!("{text}\n\nFor more information, try '--help'.")),
            Self::Unavailable(text) => (UNAVAILABLE, text.clone()),
            Self::Denied(text) => (NO_PERMISSION, text.clone()),
            Self::Config(problems) => (CONFIG, problems.to_string()),
        };
        super::output::complain(&text);
        ExitCode::from(code)
    }
}

impl Exit {
    /// Logs the reason instead of printing it, so that the last line of a server has the format of the others.
    pub(super) fn log(self) -> ExitCode {
        match self {
            Self::Failed(error) => {
                tracing::error!(error = format!("{error:#}"), "kinsync stops");
                ExitCode::from(FAILED)
            }
            other => other.report(),
        }
    }
}

impl From<Problems> for Exit {
    fn from(problems: Problems) -> Self {
        Self::Config(problems)
    }
}

impl From<anyhow::Error> for Exit {
    fn from(error: anyhow::Error) -> Self {
        Self::Failed(error)
    }
}

impl From<QueueError> for Exit {
    fn from(error: QueueError) -> Self {
        Self::Failed(error.into())
    }
}
