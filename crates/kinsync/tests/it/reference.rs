//! Most of docs/reference is generated from the lists in the code. `UPDATE_REFERENCE=1 cargo test -p kinsync --all-features --test it reference`
//! writes it; without the variable a stale file fails.

use std::{fmt::Write as _, path::PathBuf};

use kinsync::{
    cli::exit::CODES,
    config::{
        setting::{Secrecy, Setting},
        settings,
    },
    http::{openapi, route::Audience, routes::routes},
    metrics::{METRICS, Metric},
};
use serde_json::{Map, Value};

use crate::server::{BODY, Server};

fn check(file: &str, generated: &str) {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference").join(file);
    if std::env::vars_os().any(|(name, _)| name == "UPDATE_REFERENCE") {
        std::fs::write(&path, generated).unwrap();
    }
    let stored = std::fs::read_to_string(&path).unwrap_or_default();
    assert!(stored == generated, "docs/reference/{file} is stale: run with UPDATE_REFERENCE=1");
}

#[test]
fn the_openapi_description_is_as_reviewed() {
    check("openapi.json", &(openapi::document().to_pretty_json().unwrap() + "\n"));
}

#[test]
fn the_reference_of_the_http_api_describes_every_route() {
    let document = serde_json::to_value(openapi::document()).unwrap();
    check("http-api.md", &http_api(&document));
}

#[test]
fn the_reference_of_the_settings_describes_every_setting() {
    let mut text = String::from(
        "# Settings\n\nGenerated from the list in `crates/kinsync/src/config/setting/`. Flags take precedence over the \
         environment, the environment over the file (`--config` or `KINSYNC_CONFIG`), and the file over the defaults. An \
         empty variable counts as not set. A secret can be read from a file: append `_FILE` to its variable, `_file` to its \
         key or `-file` to its flag.\n\n| variable | key, flag | default | meaning |\n|---|---|---|---|\n",
    );
    for Setting { key, env, flag, default, help, secrecy, .. } in settings() {
        let secret = if *secrecy == Secrecy::Open { "" } else { " Secret." };
        let default = default.map_or_else(String::new, |default| format!("`{default}`"));
        let help = help.replace('|', "\\|");
        _ = writeln!(text, "| `{env}` | `{key}`, `--{flag}` | {default} | {help}.{secret} |");
    }
    check("settings.md", &text);
}

#[test]
fn the_reference_of_the_metrics_describes_every_metric() {
    let mut text = String::from(
        "# Metrics\n\nGenerated from the list in `crates/kinsync/src/metrics.rs`, as `/metrics` exports them.\n\n| metric | \
         kind | meaning |\n|---|---|---|\n",
    );
    for Metric { name, kind, help } in METRICS {
        _ = writeln!(text, "| `{name}` | {} | {help}. |", kind.as_str());
    }
    check("metrics.md", &text);
}

#[test]
fn the_name_of_a_duration_ends_with_its_unit() {
    for Metric { name, help, .. } in METRICS {
        let is_duration = help.starts_with("Duration of ");
        assert_eq!(is_duration, name.ends_with("_duration_seconds"), "{name}: {help}");
    }
}

#[test]
fn every_exported_metric_is_in_the_list() {
    let server = Server::start(&[("KINDE_DOMAIN", "https://acme.kinde.com")]);
    server.deliver(BODY);
    server.wait_for("/api/admin/users/test", |status, _| status == 200);
    let (_, page) = server.request("GET", "/metrics", &[], "");
    let exported = page.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split(' ').next());
    for name in exported {
        assert!(METRICS.iter().any(|metric| metric.name == name), "{name} is not in the list of metrics");
    }
    assert!(page.contains("# HELP kinsync_queue_depth "), "{page}");
}

#[test]
fn the_reference_of_the_exit_codes_describes_every_code() {
    let mut text = String::from(
        "# Exit codes\n\nGenerated from the list in `crates/kinsync/src/cli/exit.rs`.\n\n| code | meaning |\n|---|---|\n",
    );
    for (code, meaning) in CODES {
        _ = writeln!(text, "| {code} | {meaning} |");
    }
    check("exit-codes.md", &text);
}

#[test]
fn the_reference_of_the_user_document_describes_every_key() {
    let document = serde_json::to_value(openapi::document()).unwrap();
    let mut text = USER_DOCUMENT.to_owned();
    for name in ["User", "EmailConflict", "Organization", "Identity"] {
        let schema = &document["components"]["schemas"][name];
        _ = write!(text, "\n## {name}\n\n{}\n", paragraph(schema));
        members(&mut text, schema);
    }
    check("user-document.md", &text.replace("| instant", "| date"));
}

const USER_DOCUMENT: &str = "# The user document

Generated from `UserDocument` in `crates/kinsync-core/src/document.rs`.

kinsync writes one document per user into the collection `users` (`KINSYNC_USERS_COLLECTION`), beside the fields of your application. \
`/api/me` and `/api/profile` return the same keys as JSON, with instants as RFC 3339 texts.

- A value that no source has reported is absent. A list that is known to be empty is there and empty.
- The key `kindeId` identifies a user. An email address does not: it may change, and another user may get it.
- A deleted user keeps its document, with `isDeleted` and `deletedAt`. Filter on `isDeleted: false` where you list users.
- The sub-document `kinsync` holds the versions of the fields and kinsync's own data. Do not read or write it.
- The unique index on `kindeId` and the others are listed by `kinsync doctor`; `KINSYNC_UNIQUE_EMAIL` sets whether the one on \
`email` is unique.
- The section `[fields]` of the settings renames keys ([settings](settings.md)). The tables show the default names.

kinsync updates only its own keys and never replaces a document. For Mongoose see [the guide](../guides/mongoose.md).

The collection `user_events` holds every verified event with its payload, and every other observation that changed a user: reads of Kinde, tokens, links and actions of operators, with types that begin with `kinsync.`. The key `source` is `webhook`, `login`, `profile`, `reconcile`, `operator` or `kinsync`. It is a log: read it, and \
write nothing into it.
";

/// The reference describes the binary with the feature `dev`.
#[cfg(feature = "dev")]
#[test]
fn the_reference_of_the_command_line_describes_every_command() {
    let mut text = String::from(
        "# Command line\n\nGenerated from the commands in `crates/kinsync/src/cli`. The flags of [settings](settings.md) are \
         left out here; `--help` lists those that a command reads.\n",
    );
    let command = kinsync::cli::command().term_width(120).disable_help_subcommand(true);
    let mut kinsync = without_settings(command);
    kinsync.build();
    describe(&mut text, &mut kinsync, "kinsync");
    check("cli.md", &text);
}

#[cfg(feature = "dev")]
fn without_settings(command: clap::Command) -> clap::Command {
    let is_setting = |arg: &clap::Arg| arg.get_help_heading() == Some("Settings");
    let hide = |arg: clap::Arg| if is_setting(&arg) { arg.hide(true) } else { arg };
    command.mut_args(hide).mut_subcommands(without_settings)
}

#[cfg(feature = "dev")]
fn describe(text: &mut String, command: &mut clap::Command, name: &str) {
    let help = command.render_long_help().to_string();
    let lines = help.lines().map(|line| format!("{}\n", line.trim_end()));
    _ = write!(text, "\n## {name}\n\n```text\n{}```\n", lines.collect::<String>());
    for subcommand in command.get_subcommands_mut() {
        let name = format!("{name} {}", subcommand.get_name());
        describe(text, subcommand, &name);
    }
}

/// Markdown for people, from the same description.
fn http_api(document: &Value) -> String {
    let mut text = String::from(
        "# HTTP API\n\nGenerated from the list of routes in `crates/kinsync/src/http/routes.rs` and the types in \
         `crates/kinsync/src/api`. A running server describes itself at `/openapi.json`.\n\nA value that is not known is \
         absent; a list or map that is known to be empty is there and empty. Instants are RFC 3339 texts in UTC with \
         microseconds. Every failure is a [Problem](#problem) document (RFC 9457), except the answers 400, 431 and 505 to a \
         request that is not valid HTTP/1.1, which have no body.\n",
    );
    for audience in Audience::ALL {
        _ = write!(text, "\n## {}\n", audience.heading());
        for route in routes().iter().filter(|route| route.audience == audience) {
            let methods = document["paths"][route.path].as_object().unwrap();
            let method = route.verb.as_str().to_lowercase();
            let described = methods.get(&method).or_else(|| methods.get("get")).unwrap();
            let (verb, path, summary) = (route.verb.as_str(), route.path, route.summary);
            _ = write!(text, "\n### {verb} {path}\n\n{summary}. {}", paragraph(described));
            text.truncate(text.trim_end().len());
            text.push('\n');
            operation(&mut text, described);
        }
    }
    text.push_str("\n## Documents\n");
    for (name, schema) in document["components"]["schemas"].as_object().unwrap() {
        _ = write!(text, "\n### {name}\n\n{}\n", paragraph(schema));
        members(&mut text, schema);
    }
    text
}

fn operation(text: &mut String, operation: &Value) {
    let parameters = operation["parameters"].as_array().into_iter().flatten();
    let parameters: Vec<_> = parameters.filter(|parameter| parameter["in"] == "query").collect();
    if !parameters.is_empty() {
        text.push_str("\n| parameter | type | meaning |\n|---|---|---|\n");
    }
    for parameter in parameters {
        let (name, kind) = (parameter["name"].as_str().unwrap(), type_of(&parameter["schema"]));
        _ = writeln!(text, "| `{name}` | {kind} | {} |", paragraph(parameter));
    }
    let body = &operation["requestBody"]["content"]["application/json"]["schema"];
    if !body.is_null() {
        _ = write!(text, "\nBody: {}.\n", type_of(body));
    }
    for (status, response) in operation["responses"].as_object().unwrap() {
        let content = response["content"].as_object().and_then(|content| content.iter().next());
        match content.filter(|_| status != "default") {
            Some((_, media)) => _ = write!(text, "\n{status}: {}.\n", type_of(&media["schema"])),
            None => headers(text, status, response),
        }
    }
}

fn headers(text: &mut String, status: &str, response: &Value) {
    let headers = response["headers"].as_object().into_iter().flatten();
    let rows: Vec<_> =
        headers.map(|(name, header)| format!("| `{name}` | {} |\n", paragraph(header))).collect();
    if !rows.is_empty() {
        _ = write!(text, "\n{status}, without a body:\n\n| header | value |\n|---|---|\n{}", rows.concat());
    }
}

fn members(text: &mut String, schema: &Value) {
    if let Some(values) = schema["enum"].as_array() {
        let values: Vec<_> = values.iter().map(|value| format!("`{}`", value.as_str().unwrap())).collect();
        _ = write!(text, "\nOne of {}.\n", values.join(", "));
    }
    for variant in schema["oneOf"].as_array().into_iter().flatten() {
        _ = write!(text, "\n- {} ({})\n", paragraph(variant), type_of(variant));
        members(text, variant);
    }
    let mut rows = Map::new();
    let mut required = Vec::new();
    collect(schema, &mut rows, &mut required, text);
    if !rows.is_empty() {
        text.push_str("\n| member | type | meaning |\n|---|---|---|\n");
    }
    for (name, member) in rows {
        let absent = if required.contains(&name) { "" } else { ", optional" };
        _ = writeln!(text, "| `{name}` | {}{absent} | {} |", type_of(&member), paragraph(&member));
    }
}

/// The members of an object, and of each part of a flattened one.
fn collect(schema: &Value, rows: &mut Map<String, Value>, required: &mut Vec<String>, text: &mut String) {
    for part in schema["allOf"].as_array().into_iter().flatten() {
        match part["$ref"].as_str() {
            Some(_) => _ = write!(text, "\nEvery member of {}, and:\n", type_of(part)),
            None => collect(part, rows, required, text),
        }
    }
    let of = |key: &str| schema[key].as_object().cloned().unwrap_or_default();
    rows.extend(of("properties"));
    let names = schema["required"].as_array().into_iter().flatten().filter_map(Value::as_str);
    required.extend(names.map(ToOwned::to_owned));
}

fn paragraph(described: &Value) -> String {
    described["description"].as_str().unwrap_or_default().replace('\n', " ").replace('|', "\\|")
}

/// The type of a value, as text.
fn type_of(schema: &Value) -> String {
    if let Some(reference) = schema["$ref"].as_str() {
        let name = reference.rsplit('/').next().unwrap();
        return format!("[{name}](#{})", name.to_lowercase());
    }
    if let Some(any) = schema["oneOf"].as_array() {
        let types: Vec<_> = any.iter().filter(|one| one["type"] != "null").map(type_of).collect();
        return types.join(" or ");
    }
    let kind = match &schema["type"] {
        Value::Array(kinds) => kinds.iter().filter_map(Value::as_str).find(|kind| *kind != "null"),
        kind => kind.as_str(),
    };
    match (kind, schema["format"].as_str()) {
        (Some("string"), Some("date-time")) => "instant".into(),
        (Some("string"), _) if schema["enum"].is_array() => {
            let values = schema["enum"].as_array().unwrap().iter();
            values.map(|value| format!("`{}`", value.as_str().unwrap())).collect::<Vec<_>>().join(" or ")
        }
        (Some("string"), _) => "text".into(),
        (Some("integer"), _) => "whole number".into(),
        (Some("number"), _) => "number".into(),
        (Some("boolean"), _) => "true or false".into(),
        (Some("array"), _) => format!("list of {}", type_of(&schema["items"])),
        (Some("object"), _) if schema["additionalProperties"].is_object() => {
            format!("map of text to {}", type_of(&schema["additionalProperties"]))
        }
        (Some("object"), _) => "object".into(),
        (Some(kind), _) => kind.into(),
        (None, _) => "any JSON".into(),
    }
}
