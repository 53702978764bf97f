//! How a command ends: a sentence for the person, a code for the program (sysexits.h where there is one).

use std::process::ExitCode;

use crate::config::Problems;

/// A command that did not do it.
#[derive(Debug)]
pub(super) enum Exit {
    /// 1.
    Failed(anyhow::Error),
    /// 69, `EX_UNAVAILABLE`: the server cannot be reached or cannot do it now.
    Unavailable(String),
    /// 77, `EX_NOPERM`: the admin token is missing or wrong.
    Denied(String),
    /// 78, `EX_CONFIG`.
    Config(Problems),
}

impl Exit {
    /// Says what happened on stderr, and answers the code.
    pub(super) fn report(self) -> ExitCode {
        let (code, text) = match &self {
            Self::Failed(error) => (1, format!("{error:#}")),
            Self::Unavailable(text) => (69, text.clone()),
            Self::Denied(text) => (77, text.clone()),
            Self::Config(problems) => (78, problems.to_string()),
        };
        super::output::complain(&text);
        ExitCode::from(code)
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
