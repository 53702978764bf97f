//! The merge of all settings for a person or a program, secrets masked.

use serde_json::{Value, json};

use super::{
    rules::ClosedDoor,
    setting::Secrecy,
    source::{Merged, Resolved},
};

/// The value as it may be shown.
pub fn masked(resolved: &Resolved) -> Option<String> {
    let text = resolved.text.as_ref()?;
    Some(match resolved.setting.secrecy {
        // What should be no secret may hold one all the same, in a setting that is refused for it.
        Secrecy::Open if text.contains("://") && text.contains('@') => without_credentials(text),
        Secrecy::Open => text.clone(),
        Secrecy::Hidden => "********".to_owned(),
        Secrecy::Credentials => without_credentials(text),
    })
}

/// A URL with stars for its user and password, and without the options that may hold more. Where a `?` may be part of
/// a password that was not encoded, nothing is told apart, and nothing shown.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return "********".to_owned() };
    let (place, options) = rest.split_once('?').unwrap_or((rest, ""));
    if options.contains('@') {
        return format!("{scheme}://********");
    }
    match place.rsplit_once('@') {
        Some((_, hosts)) => format!("{scheme}://********@{hosts}"),
        None => format!("{scheme}://{place}"),
    }
}

/// For a program. The shape is stable.
pub fn json(merged: &Merged, warnings: &[String], closed: &[ClosedDoor]) -> Value {
    let settings: Vec<Value> = merged
        .settings
        .iter()
        .map(|resolved| {
            json!({
                "key": resolved.setting.key,
                "env": resolved.setting.env,
                "flag": format!("--{}", resolved.setting.flag),
                "value": masked(resolved),
                "secret": resolved.setting.has_file(),
                "origin": resolved.origin.to_string(),
            })
        })
        .collect();
    let closed: Vec<Value> =
        closed.iter().map(|door| json!({ "what": door.what, "openedBy": door.opened_by })).collect();
    json!({ "settings": settings, "fields": merged.fields, "warnings": warnings, "closed": closed })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mongodb_uri_is_shown_without_what_may_be_secret() {
        let check = |text: &str, expect: &str| assert_eq!(without_credentials(text), expect);
        check("mongodb://h:1/app", "mongodb://h:1/app");
        check("mongodb://u:p%40@h:1,i:2/app?authSource=admin", "mongodb://********@h:1,i:2/app");
        check("mongodb+srv://u:p@ss@h/app", "mongodb+srv://********@h/app");
        check("rubbish", "********");
        // Where a password may not have been encoded, it is not guessed where it ends.
        check("mongodb://u:pa?ss@h/db", "mongodb://********");
        check("mongodb://h/db?authMechanismProperties=TOKEN:a@b", "mongodb://********");
    }
}
