//! The commands that call the control API of a running emulator.

use anyhow::{Context as _, bail};
use reqwest::Method;
use serde_json::{Map, Value, json};

use super::output::show;
use super::request::Request;
use super::{Command, Faults, Fields, Keys, Spec, Token, UserToken, Users, Webhooks, directory};

pub(super) async fn run(command: Command, json: bool) -> anyhow::Result<()> {
    let request = match command {
        Command::Serve(_) => bail!("`serve` does not use the control API"),
        Command::Users(users) => users_request(users)?,
        Command::Organizations(organizations) => directory::organizations_request(organizations),
        Command::Roles(roles) => directory::roles_request(roles),
        Command::Permissions(permissions) => directory::permissions_request(permissions),
        Command::Properties(properties) => directory::definitions_request(properties),
        Command::Token(token) => token_request(token),
        Command::Keys(Keys::Rotate { drop, target }) => {
            let overlap = if drop { "drop" } else { "keep" };
            Request::post(target, &["keys", "rotate"], json!({"overlap": overlap}))
        }
        Command::Faults(faults) => faults_request(faults)?,
        Command::Webhooks(webhooks) => webhooks_request(webhooks),
        Command::Deliveries(target) => Request::get(target, &["deliveries"]),
        Command::Stats(target) => Request::get(target, &["stats"]),
        Command::Reset(target) => Request::new(target, Method::POST, &["reset"]),
    };
    show(&request.send().await?, json);
    Ok(())
}

fn users_request(users: Users) -> anyhow::Result<Request> {
    Ok(match users {
        Users::Create { fields, sign_up, target } => {
            Request::post(target, &[if sign_up { "sign-up" } else { "users" }], fields_body(fields))
        }
        Users::Update { id, fields, target } => Request::patch(target, &["users", &id], fields_body(fields)),
        Users::Suspend { id, undo, target } => {
            let verb = if undo { "unsuspend" } else { "suspend" };
            Request::new(target, Method::POST, &["users", &id, verb])
        }
        Users::Delete { id, keep_profile, target } => {
            let request = Request::new(target, Method::DELETE, &["users", &id]);
            request.with_query(keep_profile.then(|| ("profile", "keep".to_owned())))
        }
        Users::Import { fields, file, target } => {
            let body = match file {
                Some(path) => {
                    let text = std::fs::read_to_string(&path)
                        .with_context(|| format!("cannot read `{}`", path.display()))?;
                    serde_json::from_str(&text)
                        .with_context(|| format!("`{}` is not JSON", path.display()))?
                }
                None => fields_body(fields),
            };
            Request::post(target, &["import"], body)
        }
        Users::List { after, target } => {
            Request::get(target, &["users"]).with_query(after.map(|id| ("after", id)))
        }
        Users::SetProperties { id, values, target } => directory::properties_request(&id, values, target),
        Users::SignIn { id, target } => Request::new(target, Method::POST, &["users", &id, "sign-in"]),
    })
}

fn fields_body(fields: Fields) -> Value {
    let Fields { email, first_name, last_name, phone, username, picture } = fields;
    json!({
        "email": email,
        "first_name": first_name,
        "last_name": last_name,
        "phone": phone,
        "username": username,
        "picture": picture,
    })
}

fn token_request(token: Token) -> Request {
    match token {
        Token::M2m { spec, target } => Request::post(target, &["tokens", "m2m"], spec_body(spec)),
        Token::Id(UserToken { user, spec, target }) => {
            Request::post(target, &["tokens", "id"], json!({"user": user, "token": spec_body(spec)}))
        }
        Token::Access { user: UserToken { user, spec, target }, org, roles } => {
            let mut token = spec_body(spec);
            token["org"] = json!(org);
            token["roles"] = json!(roles.then_some(true));
            Request::post(target, &["tokens", "access"], json!({"user": user, "token": token}))
        }
    }
}

fn spec_body(spec: Spec) -> Value {
    let some = |list: Vec<String>| (!list.is_empty()).then_some(list);
    let claims: Map<String, Value> = spec.claim.into_iter().collect();
    json!({
        "expires_in": spec.expires_in,
        "audience": some(spec.audience),
        "scopes": some(spec.scope),
        "claims": claims,
        "sign": {"alg": spec.alg, "signer": if spec.foreign { "foreign" } else { "tenant" }},
    })
}

fn faults_request(faults: Faults) -> anyhow::Result<Request> {
    Ok(match faults {
        Faults::Set { kind, chance, times, on, with, target } => {
            let name = clap::ValueEnum::to_possible_value(&kind).context("the kind of fault has no name")?;
            let mut fault: Map<String, Value> = with.into_iter().collect();
            fault.insert("kind".to_owned(), json!(name.get_name()));
            fault.insert("chance".to_owned(), json!(chance));
            fault.insert("times".to_owned(), json!(times));
            fault.insert("on".to_owned(), json!(on));
            Request::post(target, &["faults"], Value::Object(fault))
        }
        Faults::Clear(target) => Request::new(target, Method::DELETE, &["faults"]),
        Faults::Show(target) => Request::get(target, &["faults"]),
    })
}

fn webhooks_request(webhooks: Webhooks) -> Request {
    match webhooks {
        Webhooks::Add { endpoint, event, hmac, standard, target } => {
            let scheme = match (hmac, standard) {
                (Some(secret), _) => json!({"type": "hmac", "secret": secret}),
                (None, Some(secret)) => json!({"type": "standard_webhooks", "secret": secret}),
                (None, None) => json!({"type": "kinde_jwt"}),
            };
            let body = json!({"endpoint": endpoint, "event_types": event, "scheme": scheme});
            Request::post(target, &["webhooks"], body)
        }
        Webhooks::List(target) => Request::get(target, &["webhooks"]),
        Webhooks::Disable { id, target } => Request::new(target, Method::POST, &["webhooks", &id, "disable"]),
        Webhooks::Enable { id, target } => Request::new(target, Method::POST, &["webhooks", &id, "enable"]),
    }
}
