//! The settings: every problem at once, the order of sources, and what is never shown.

use std::{collections::BTreeMap, fs, path::PathBuf};

use kinsync::config::{
    Config, Flags, Problems, Sources,
    rules::disabled,
    setting::{Secrecy, Setting},
    settings, show,
    source::Merged,
};
use secrecy::ExposeSecret;

/// Enough to start with.
const SECRET: (&str, &str) = ("KINDE_WEBHOOK_SECRET", "a-secret-of-more-than-16-characters");

fn problems(vars: &[(&str, &str)]) -> BTreeMap<String, String> {
    match Config::from_vars(vars.iter().copied()) {
        Ok(_) => BTreeMap::new(),
        Err(Problems(list)) => list.into_iter().map(|p| (p.name, p.message)).collect(),
    }
}

fn with_file(text: &str) -> (tempfile::TempDir, Sources) {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("kinsync.toml");
    fs::write(&path, text).unwrap();
    let sources = Sources::from_vars([("KINSYNC_CONFIG", path.to_str().unwrap())]);
    (folder, sources)
}

fn config_file(name: &str) -> String {
    let path = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../config").join(name);
    fs::read_to_string(path).unwrap()
}

#[test]
fn every_problem_is_reported_at_once_with_its_name_and_an_example() {
    let wrong = [
        ("PORT", "eighty"),
        ("KINDE_DOMAIN", "acme.kinde.com"),
        ("KINDE_ISSUERS", "https://acme.kinde.com,http://evil.example"),
        ("KINSYNC_BIND", "localhost"),
        ("KINSYNC_QUEUE", "kafka"),
        ("KINSYNC_SHUTDOWN_GRACE", "soon"),
        ("KINSYNC_UNIQUE_EMAIL", "maybe"),
        ("MONGODB_URI", "postgres://h/app"),
        ("KINDE_M2M_CLIENT_ID", "id-without-secret"),
    ];
    let Err(found) = Config::from_vars(wrong) else { panic!("nothing was found wrong") };
    let text = found.to_string();
    for (name, _) in wrong {
        let name = if name == "KINDE_M2M_CLIENT_ID" { "KINDE_M2M_CLIENT_SECRET" } else { name };
        assert!(text.contains(&format!("\n  {name}: ")), "{name} is missing in:\n{text}");
        assert!(text.contains(&format!("for example: {name}=")), "no example for {name} in:\n{text}");
    }
    assert_eq!(found.0.len(), wrong.len(), "{text}");
}

#[test]
fn a_problem_never_repeats_what_was_written() {
    let text =
        Config::from_vars([("MONGODB_URI", "hunter2"), ("KINDE_DOMAIN", "hunter2")]).unwrap_err().to_string();
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn without_any_way_to_verify_nothing_starts_and_both_ways_are_named() {
    let found = problems(&[]);
    let message = &found["KINDE_DOMAIN"];
    assert!(message.contains("KINDE_WEBHOOK_SECRET"), "{message}");
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn two_variables_are_enough_and_the_disabled_parts_are_listed() {
    let config = Config::from_vars([SECRET, ("MONGODB_URI", "mongodb://127.0.0.1/app")]).unwrap();
    let parts: Vec<_> = disabled(&config).into_iter().map(|part| part.enabled_by).collect();
    assert_eq!(parts, ["KINDE_DOMAIN", "KINSYNC_ADMIN_TOKEN", "KINDE_M2M_CLIENT_ID"]);
    assert_eq!(config.http.port, 5000);
    assert_eq!(config.http.bind.to_string(), "127.0.0.1");
    assert_eq!(config.data_dir, PathBuf::from("./kinsync-data"));
}

#[test]
fn flags_outweigh_the_environment_and_the_environment_the_file() {
    let (_folder, mut sources) =
        with_file("[http]\nport = 1\nbind = \"127.0.0.2\"\nbody_deadline = \"3s\"\n");
    sources.vars.insert(SECRET.0.into(), SECRET.1.into());
    sources.vars.insert("PORT".into(), "2".into());
    sources.vars.insert("KINSYNC_BIND".into(), "127.0.0.3".into());
    sources.flags = Flags::from([("port".to_owned(), "3".to_owned())]);
    let loaded = Config::load(&sources).unwrap();
    assert_eq!(loaded.config.http.port, 3);
    assert_eq!(loaded.config.http.bind.to_string(), "127.0.0.3");
    assert_eq!(loaded.config.http.body_deadline.as_secs(), 3);
    let origin =
        |env| loaded.merged.settings.iter().find(|r| r.setting.env == env).unwrap().origin.to_string();
    assert_eq!(origin("PORT"), "flag --port");
    assert_eq!(origin("KINSYNC_BIND"), "environment KINSYNC_BIND");
    assert_eq!(origin("KINSYNC_BODY_DEADLINE"), "file http.body_deadline");
    assert_eq!(origin("KINSYNC_HEAD_DEADLINE"), "default");
}

#[test]
fn an_empty_variable_is_not_set() {
    let config =
        Config::from_vars([SECRET, ("PORT", ""), ("MONGODB_URI", ""), ("KINDE_DOMAIN", "")]).unwrap();
    assert_eq!(config.http.port, 5000);
    assert!(config.store.mongodb_uri.is_none() && config.kinde.domain.is_none());
}

#[test]
fn a_secret_may_stand_in_a_file_with_the_line_end_of_an_editor() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "the-new-secret,the-old-secret\r\n").unwrap();
    let config = Config::from_vars([("KINDE_WEBHOOK_SECRET_FILE", path.to_str().unwrap())]).unwrap();
    let secrets: Vec<_> = config.kinde.webhook_secrets.iter().map(ExposeSecret::expose_secret).collect();
    assert_eq!(secrets, ["the-new-secret", "the-old-secret"]);
}

#[test]
fn a_secret_and_its_file_together_are_a_problem_and_so_is_a_missing_file() {
    let found = problems(&[SECRET, ("KINDE_WEBHOOK_SECRET_FILE", "/nowhere")]);
    assert!(found["KINDE_WEBHOOK_SECRET"].contains("both set"), "{found:?}");
    let found = problems(&[("KINDE_WEBHOOK_SECRET_FILE", "/nowhere")]);
    assert!(found["KINDE_WEBHOOK_SECRET_FILE"].contains("could not be read"), "{found:?}");
    assert_eq!(found.len(), 1, "it is not reported as missing too: {found:?}");
}

#[test]
fn a_flag_with_a_file_outweighs_a_variable_with_the_value() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("secret");
    fs::write(&path, "from-the-file-of-the-flag").unwrap();
    let mut sources = Sources::from_vars([SECRET]);
    sources.flags.insert("kinde-webhook-secret-file".into(), path.to_str().unwrap().into());
    let config = Config::load(&sources).unwrap().config;
    assert_eq!(config.kinde.webhook_secrets[0].expose_secret(), "from-the-file-of-the-flag");
}

#[test]
fn an_unknown_key_of_the_file_is_refused_with_what_was_probably_meant() {
    let (_folder, sources) =
        with_file("[kinde]\ndomian = \"https://acme.kinde.com\"\n[http]\nprot = 1\n[sotre]\n");
    let Err(Problems(list)) = Config::load(&sources) else { panic!("typos were taken") };
    let of = |name: &str| list.iter().find(|p| p.name == name).map(|p| p.message.clone()).unwrap_or_default();
    assert!(of("kinde.domian").contains("did you mean `kinde.domain`?"), "{list:?}");
    assert!(of("http.prot").contains("did you mean `http.port`?"), "{list:?}");
    assert!(of("sotre").contains("is not a setting"), "{list:?}");
}

#[test]
fn a_broken_file_is_named_with_the_line_and_without_its_content() {
    let (_folder, sources) = with_file("[kinde]\nwebhook_secret = \"hunter2\n");
    let text = Config::load(&sources).unwrap_err().to_string();
    assert!(text.contains("line 2"), "{text}");
    assert!(!text.contains("hunter2"), "{text}");
}

#[test]
fn a_typo_in_a_variable_of_ours_is_a_warning() {
    for (name, meant) in [
        ("KINSYNC_DATADIR", "KINSYNC_DATA_DIR"),
        ("KINSYNC_PORT", "PORT"),
        ("KINSYNC_MONGODB_URI_FILE", "MONGODB_URI_FILE"),
    ] {
        let loaded = Config::load(&Sources::from_vars([SECRET, (name, "/data")])).unwrap();
        let expected = format!("did you mean {meant}?");
        assert!(loaded.warnings.iter().any(|w| w.contains(&expected)), "{name}: {:?}", loaded.warnings);
    }
}

#[test]
fn a_typo_in_a_variable_that_other_programs_have_too_is_a_warning_unless_the_setting_is_set() {
    let check = |vars: &[(&str, &str)], expected: &str| {
        let loaded = Config::load(&Sources::from_vars(vars.iter().copied())).unwrap();
        let has = |warning: &String| warning.contains(expected);
        assert!(loaded.warnings.iter().any(has), "{expected}: {:?}", loaded.warnings);
    };
    check(&[SECRET, ("MONGODB_URL", "mongodb://h/app")], "did you mean MONGODB_URI?");
    check(&[SECRET, ("MONGO_URI", "mongodb://h/app")], "did you mean MONGODB_URI?");
    check(&[SECRET, ("KINDE_M2M_CLIENTID", "id")], "did you mean KINDE_M2M_CLIENT_ID?");
    let domain = ("KINDE_DOMAIN", "https://acme.kinde.com");
    check(&[domain, ("KINDE_WEBHOOK_SECERT", "x")], "did you mean KINDE_WEBHOOK_SECRET?");
    // Those of an application with Kinde's own libraries, in the same environment.
    let others =
        [("MONGODB_URI", "mongodb://h/app"), ("MONGO_URI", "x"), ("KINDE_CLIENT_ID", "x"), ("HOME", "/")];
    let loaded = Config::load(&Sources::from_vars([SECRET].into_iter().chain(others))).unwrap();
    assert_eq!(loaded.warnings, [""; 0]);
}

#[test]
fn a_misspelled_or_empty_secret_is_named_where_it_is_why_nothing_starts() {
    let found = problems(&[("KINDE_WEBHOOK_SECERT", "a-secret-of-more-than-16-characters")]);
    assert!(found["KINDE_WEBHOOK_SECERT"].contains("did you mean KINDE_WEBHOOK_SECRET?"), "{found:?}");
    let found = problems(&[("KINDE_WEBHOOK_SECRET", "")]);
    assert!(found["KINDE_WEBHOOK_SECRET"].starts_with("is empty"), "{found:?}");
    assert_eq!(found.len(), 1, "{found:?}");
}

#[test]
fn an_age_below_a_week_is_refused_for_erasures_and_retention() {
    for (name, short, week) in
        [("KINSYNC_ERASE_DELETED_AFTER", "6d", "7d"), ("KINSYNC_RETENTION", "*=167h", "*=168h")]
    {
        let found = problems(&[SECRET, (name, short)]);
        assert!(found[name].contains("at least 7d"), "{found:?}");
        Config::from_vars([SECRET, (name, week)]).unwrap();
    }
}

#[test]
fn a_short_secret_is_a_warning_and_not_a_problem() {
    let loaded = Config::load(&Sources::from_vars([("KINDE_WEBHOOK_SECRET", "test")])).unwrap();
    assert!(loaded.warnings.iter().any(|w| w.contains("KINDE_WEBHOOK_SECRET")), "{:?}", loaded.warnings);
}

#[test]
fn a_short_admin_token_is_refused_where_other_machines_reach_it() {
    let everywhere = ("KINSYNC_BIND", "0.0.0.0");
    for (name, short) in
        [("KINSYNC_ADMIN_TOKEN", "15-characters-x"), ("KINSYNC_ADMIN_TOKENS", "ada:read:15-characters-x")]
    {
        let found = problems(&[SECRET, everywhere, (name, short)]);
        assert!(found[name].contains("can be guessed") && !found[name].contains(short), "{found:?}");
        for bind in [("KINSYNC_BIND", "127.0.0.1"), ("KINSYNC_ADMIN_BIND", "[::1]:5001")] {
            let loaded =
                Config::load(&Sources::from_vars([SECRET, everywhere, (name, short), bind])).unwrap();
            assert!(loaded.warnings.iter().any(|warning| warning.contains(name)), "{:?}", loaded.warnings);
        }
        assert!(problems(&[SECRET, everywhere, (name, &format!("{short}y"))]).is_empty());
    }
    let found = problems(&[SECRET, ("KINSYNC_ADMIN_BIND", "0.0.0.0:5001"), ("KINSYNC_ADMIN_TOKEN", "short")]);
    assert!(found.contains_key("KINSYNC_ADMIN_TOKEN"), "{found:?}");
}

#[test]
fn a_certificate_needs_its_key() {
    let found = problems(&[SECRET, ("KINSYNC_TLS_CERTIFICATE", "tls.crt")]);
    assert!(found["KINSYNC_TLS_KEY"].contains("KINSYNC_TLS_CERTIFICATE needs it"), "{found:?}");
    assert!(problems(&[SECRET, ("KINSYNC_TLS_KEY", "tls.key")]).contains_key("KINSYNC_TLS_CERTIFICATE"));
}

#[test]
fn http_is_taken_for_this_machine_alone() {
    assert!(problems(&[("KINDE_DOMAIN", "http://127.0.0.1:4000")]).is_empty());
    assert!(problems(&[("KINDE_DOMAIN", "http://acme.kinde.com")]).contains_key("KINDE_DOMAIN"));
}

#[test]
fn renamed_fields_are_checked_for_typos_and_clashes() {
    let problems = |fields: &str| {
        let text = format!("[kinde]\ndomain = \"https://acme.kinde.com\"\n[fields]\n{fields}");
        let (_folder, sources) = with_file(&text);
        let list = Config::load(&sources).err().map(|Problems(list)| list).unwrap_or_default();
        list.into_iter().map(|problem| (problem.name, problem.message)).collect::<Vec<_>>()
    };
    let wrong = problems("fristName = \"a\"\npicture = 1\nprefix = false\ntake_over = [\"usernam\"]\n");
    let names: Vec<_> = wrong.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(
        names,
        ["fields.fristName", "fields.picture", "fields.prefix", "fields.take_over"],
        "{wrong:?}"
    );
    assert!(wrong[0].1.contains("did you mean `firstName`?"), "{wrong:?}");
    assert!(wrong[3].1.contains("did you mean `username`?"), "{wrong:?}");
    for clash in ["email = \"username\"", "phone = \"_id\"", "source = \"kinsync.x\"", "kindeId = false"] {
        assert_eq!(problems(clash).len(), 1, "{clash}");
    }
    for fine in [
        "lastName = \"profile.surname\"",
        "prefix = \"kinde\"",
        "source = false",
        "take_over = [\"username\"]",
    ] {
        assert_eq!(problems(fine), [], "{fine}");
    }
}

#[test]
fn the_keys_of_the_other_collections_are_checked_too() {
    let problems = |tables: &str| {
        let text = format!("[kinde]\ndomain = \"https://acme.kinde.com\"\n{tables}");
        let (_folder, sources) = with_file(&text);
        let list = Config::load(&sources).err().map(|Problems(list)| list).unwrap_or_default();
        list.into_iter().map(|problem| problem.name).collect::<Vec<_>>()
    };
    let wrong =
        "[organization_fields]\ncod = \"a\"\nname = 1\n[role_fields]\nid = false\n[membership_field]\n";
    assert_eq!(
        problems(wrong),
        ["membership_field", "organization_fields.cod", "organization_fields.name", "role_fields"]
    );
    let right = "[store]\nroles_collection = \"r\"\n[role_fields]\nprefix = \"kinde\"\nname = false\n";
    assert_eq!(problems(right), Vec::<String>::new());
}

#[test]
fn no_secret_is_ever_shown() {
    let hidden = "hunter2-hunter2-hunter2";
    let mut vars: Vec<(&str, String)> = settings()
        .filter(|setting| setting.secrecy == Secrecy::Hidden)
        .map(|setting| (setting.env, hidden.to_owned()))
        .collect();
    vars.retain(|(name, _)| !matches!(*name, "KINSYNC_ADMIN_TOKENS" | "KINSYNC_OTLP_HEADERS"));
    vars.push(("KINSYNC_OTLP_HEADERS", format!("authorization={hidden}")));
    vars.push(("KINSYNC_ADMIN_TOKENS", format!("ada:read:{hidden}")));
    vars.push(("MONGODB_URI", format!("mongodb://app:{hidden}@db.example/app")));
    vars.push(("KINDE_M2M_CLIENT_ID", "id".into()));
    let loaded = Config::load(&Sources::from_vars(vars)).unwrap();
    let shown = shown(&loaded.merged);
    assert!(!shown.contains(hidden), "{shown}");
    assert!(shown.contains("mongodb://********@db.example/app"), "{shown}");
    assert!(!format!("{:?}", loaded.config).contains(hidden));
}

/// Wrong settings are shown too: that is when they are looked at.
#[test]
fn a_password_in_the_address_of_something_else_is_refused_and_not_shown() {
    let hidden = "hunter2-hunter2-hunter2";
    for name in ["KINSYNC_SERVER", "KINSYNC_PUBLIC_URL", "KINDE_DOMAIN"] {
        let sources = Sources::from_vars([SECRET, (name, &format!("https://me:{hidden}@example.com"))]);
        let error = Config::load(&sources).unwrap_err().to_string();
        assert!(error.contains(name) && !error.contains(hidden), "{error}");
        let shown = shown(&sources.merge(&mut Vec::new()));
        assert!(!shown.contains(hidden), "{shown}");
        assert!(shown.contains("https://********@example.com"), "{shown}");
    }
}

#[test]
fn the_minimal_file_is_right() {
    let (_folder, sources) = with_file(&config_file("kinsync.minimal.toml"));
    Config::load(&sources).unwrap();
}

#[test]
fn the_full_file_is_right_and_mentions_every_key_and_variable() {
    let text = config_file("kinsync.full.toml");
    let (_folder, sources) = with_file(&text);
    let loaded = Config::load(&sources).unwrap();
    for resolved in &loaded.merged.settings {
        let Setting { key, env, .. } = resolved.setting;
        assert!(resolved.origin.to_string().starts_with("file "), "{key} is missing in the full file");
        assert!(text.contains(env), "{env} is missing in the full file");
        if resolved.setting.has_file() {
            let key = key.rsplit('.').next().unwrap();
            assert!(text.contains(&format!("# {key}_file = ")), "{key}_file is missing in the full file");
        }
    }
    assert!(loaded.warnings.is_empty(), "{:?}", loaded.warnings);
}

#[test]
fn every_example_and_default_of_the_table_is_right() {
    for setting in settings() {
        for text in [Some(setting.example), setting.default].into_iter().flatten() {
            let domain = ("KINDE_DOMAIN", "https://acme.kinde.com");
            let mut vars =
                vec![SECRET, domain, ("KINDE_M2M_CLIENT_ID", "id"), ("KINDE_M2M_CLIENT_SECRET", "secret")];
            vars.extend([("KINSYNC_TLS_CERTIFICATE", "tls.crt"), ("KINSYNC_TLS_KEY", "tls.key")]);
            vars.retain(|(name, _)| *name != setting.env);
            vars.push((setting.env, text));
            let found = problems(&vars);
            assert!(found.is_empty(), "{}={text}: {found:?}", setting.env);
        }
        assert!(std::ptr::eq(Setting::of(setting.env), setting), "{} is there twice", setting.env);
    }
}

fn shown(merged: &Merged) -> String {
    serde_json::to_string(&show::Document::new(merged, Vec::new(), Vec::new())).unwrap()
}

#[test]
fn the_two_hmac_schemes_have_settings_of_their_own() {
    let config = Config::from_vars([SECRET]).unwrap();
    assert_eq!((config.kinde.webhook_secrets.len(), config.kinde.standard_webhooks_secrets.len()), (1, 0));
    let standard = ("KINSYNC_STANDARD_WEBHOOKS_SECRET", "whsec_bmV3LXNlY3JldC1vZi0zMi1ieXRlcy0wMDAwMDAwMDA=");
    let config = Config::from_vars([standard]).unwrap();
    assert_eq!((config.kinde.webhook_secrets.len(), config.kinde.standard_webhooks_secrets.len()), (0, 1));
    let config = Config::from_vars([SECRET, ("KINDE_ALLOWED_CLIENT_IDS", "web, mobile")]).unwrap();
    assert_eq!(config.kinde.allowed_client_ids, ["web", "mobile"]);
}
