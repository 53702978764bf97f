//! The merge of all settings, secrets masked.

use std::collections::BTreeMap;

use serde::Serialize;

use super::{
    rules::Disabled,
    setting::Secrecy,
    source::{Merged, Resolved},
};

/// The value, masked where it may be secret.
pub fn masked(resolved: &Resolved) -> Option<String> {
    let text = resolved.text.as_ref()?;
    if resolved.setting.default == Some(text) {
        return Some(text.clone());
    }
    Some(match resolved.setting.secrecy {
        // A setting that is not for secrets may contain one. The value is then rejected, and shown in the message.
        Secrecy::Open if text.contains("://") && text.contains('@') => without_credentials(text),
        Secrecy::Open => text.clone(),
        Secrecy::Hidden => MASK.to_owned(),
        Secrecy::Credentials => without_credentials(text),
    })
}

const MASK: &str = "********";

/// Options of addresses that hold no secret, in lower case: MongoDB compares them without case.
const OPEN_OPTIONS: [&str; 37] = [
    // MongoDB
    "appname",
    "authmechanism",
    "authsource",
    "compressors",
    "connecttimeoutms",
    "directconnection",
    "heartbeatfrequencyms",
    "journal",
    "loadbalanced",
    "localthresholdms",
    "maxconnecting",
    "maxidletimems",
    "maxpoolsize",
    "maxstalenessseconds",
    "minpoolsize",
    "readconcernlevel",
    "readpreference",
    "readpreferencetags",
    "replicaset",
    "retryreads",
    "retrywrites",
    "serverselectiontimeoutms",
    "sockettimeoutms",
    "srvmaxhosts",
    "srvservicename",
    "ssl",
    "tls",
    "tlsallowinvalidcertificates",
    "tlsallowinvalidhostnames",
    "tlscafile",
    "tlscertificatekeyfile",
    "tlsinsecure",
    "w",
    "wtimeoutms",
    "zlibcompressionlevel",
    // RabbitMQ and Redis
    "heartbeat",
    "protocol",
];

/// A URL with stars for its user and password, and for options that may hold a secret. When a `?` may be part of a password
/// that was not encoded, only the scheme is shown.
fn without_credentials(text: &str) -> String {
    let Some((scheme, rest)) = text.split_once("://") else { return MASK.to_owned() };
    let (place, options) = match rest.split_once('?') {
        Some((place, options)) => (place, Some(options)),
        None => (rest, None),
    };
    if options.is_some_and(|options| options.contains('@')) {
        return format!("{scheme}://{MASK}");
    }
    let options = options.map(open_options).unwrap_or_default();
    match place.rsplit_once('@') {
        Some((_, hosts)) => format!("{scheme}://{MASK}@{hosts}{options}"),
        None => format!("{scheme}://{place}{options}"),
    }
}

/// The options with their `?`, and stars in place of those that may hold a secret.
fn open_options(options: &str) -> String {
    let is_open = |option: &&str| {
        let (name, _) = option.split_once('=').unwrap_or((option, ""));
        OPEN_OPTIONS.contains(&name.to_ascii_lowercase().as_str())
    };
    let (open, hidden): (Vec<&str>, Vec<&str>) =
        options.split('&').filter(|option| !option.is_empty()).partition(is_open);
    let shown: Vec<&str> = open.into_iter().chain(hidden.first().map(|_| MASK)).collect();
    if shown.is_empty() { String::new() } else { format!("?{}", shown.join("&")) }
}

/// The merge of all settings, for programs. The shape is stable.
#[derive(Debug, Serialize)]
pub struct Document {
    /// Every setting, in the order of the table.
    pub settings: Vec<ShownSetting>,
    /// The keys of the user document, as in the file.
    pub fields: BTreeMap<String, serde_json::Value>,
    /// The keys of other documents, as in the file, by the name of the table.
    #[serde(flatten)]
    pub other_fields: BTreeMap<String, BTreeMap<String, serde_json::Value>>,
    /// The defaults of inserted documents, as in the file.
    pub defaults: BTreeMap<String, serde_json::Value>,
    /// Notable combinations of settings that are not errors.
    pub warnings: Vec<String>,
    /// Parts of kinsync that are off because of a setting.
    pub disabled: Vec<Disabled>,
}

/// One setting.
#[derive(Debug, Serialize)]
pub struct ShownSetting {
    /// The key in the TOML file.
    pub key: &'static str,
    /// The environment variable.
    pub env: &'static str,
    /// The flag, with its dashes.
    pub flag: String,
    /// The value, secrets masked; absent when there is none.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
    /// Whether the value is masked.
    pub secret: bool,
    /// Where the value comes from.
    pub origin: String,
}

impl Document {
    /// The document of this merge.
    pub fn new(merged: &Merged, warnings: Vec<String>, disabled: Vec<Disabled>) -> Self {
        let settings = merged.settings.iter().map(|resolved| ShownSetting {
            key: resolved.setting.key,
            env: resolved.setting.env,
            flag: format!("--{}", resolved.setting.flag),
            value: masked(resolved),
            secret: resolved.setting.has_file(),
            origin: resolved.origin.to_string(),
        });
        Self {
            settings: settings.collect(),
            fields: merged.fields.clone(),
            other_fields: merged.other_fields.clone(),
            defaults: merged.defaults.clone(),
            warnings,
            disabled,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_mongodb_uri_is_shown_without_what_may_be_secret() {
        let check = |text: &str, expect: &str| assert_eq!(without_credentials(text), expect);
        check("mongodb://h:1/app", "mongodb://h:1/app");
        check(
            "mongodb://u:p%40@h:1,i:2/app?replicaSet=rs0&authSource=admin",
            "mongodb://********@h:1,i:2/app?replicaSet=rs0&authSource=admin",
        );
        check(
            "mongodb://h/app?authMechanismProperties=TOKEN:a&w=majority&tlsCertificateKeyFilePassword=b",
            "mongodb://h/app?w=majority&********",
        );
        check("redis+sentinel://h/main?sentinel_password=a", "redis+sentinel://h/main?********");
        check("mongodb+srv://u:p@ss@h/app", "mongodb+srv://********@h/app");
        check("rubbish", "********");
        // The end of a password that was not encoded is unknown.
        check("mongodb://u:pa?ss@h/db", "mongodb://********");
        check("mongodb://h/db?authMechanismProperties=TOKEN:a@b", "mongodb://********");
    }
}
