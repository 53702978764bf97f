//! Wrong settings: all of them at once, each with the name to change and an example.

use std::fmt;

use serde::Serialize;

use super::setting::Setting;

/// One wrong setting.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct Problem {
    /// The variable, key or flag that the operator has to change.
    pub name: String,
    /// What is wrong with it. Never holds a secret.
    pub message: String,
    /// A line that would be valid.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub example: Option<String>,
}

impl Problem {
    /// A problem with a name that is not in the table of settings.
    pub fn new(name: impl Into<String>, message: impl Into<String>) -> Self {
        Self { name: name.into(), message: message.into(), example: None }
    }

    /// A problem with a setting, with the example of the table.
    pub fn of(setting: &Setting, message: impl Into<String>) -> Self {
        Self {
            name: setting.env.to_owned(),
            message: message.into(),
            example: Some(format!("{}={}", setting.env, setting.example)),
        }
    }
}

/// Every wrong setting.
#[derive(Debug, thiserror::Error)]
pub struct Problems(pub Vec<Problem>);

impl fmt::Display for Problems {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => writeln!(f, "one setting is wrong")?,
            n => writeln!(f, "{n} settings are wrong")?,
        }
        for problem in &self.0 {
            write!(f, "\n  {}: {}", problem.name, problem.message)?;
            if let Some(example) = &problem.example {
                write!(f, "\n      for example: {example}")?;
            }
        }
        Ok(())
    }
}
