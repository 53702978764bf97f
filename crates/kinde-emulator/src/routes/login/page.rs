//! The HTML of the login page. User-provided text is escaped, and scripts are forbidden.

use aws_lc_rs::digest;
use axum::http::{HeaderName, StatusCode, header};
use axum::response::{Html, IntoResponse, Response};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use url::Url;

use crate::config::Application;
use crate::emulator::Emulator;
use crate::user::User;

/// Number of users on the page; others sign in by email.
const LISTED: usize = 50;

const STYLE: &str = "body{font:16px/1.5 system-ui,sans-serif;max-width:28rem;margin:3rem auto;padding:0 1rem}\
form{margin:1rem 0}input,button{font:inherit;display:block;width:100%;box-sizing:border-box;margin:.3rem 0;\
padding:.5rem}button{text-align:left;cursor:pointer}small{color:#666;display:block}.error{color:#a00}";

pub(super) struct Page<'a> {
    pub(super) application: &'a Application,
    pub(super) redirect: &'a Url,
    /// The query is sent again by the forms, so that the server needs no state between the two requests.
    pub(super) raw_query: &'a str,
    pub(super) login_hint: &'a str,
    pub(super) error: Option<&'a str>,
}

impl Page<'_> {
    pub(super) fn render(&self, emulator: &Emulator) -> Response {
        let users: Vec<User> =
            emulator.tenant().users.now().from(0).take(LISTED).map(|(_, user)| user.into_owned()).collect();
        let users: String = users.iter().filter(|user| user.deleted_on.is_none()).map(choice).collect();
        let action = format!("/oauth2/auth?{}", escape(self.raw_query));
        let error = self.error.map(|text| format!("<p class=error role=alert>{}</p>", escape(text)));
        let body = format!(
            "<h1>Sign in</h1><p>to {name} with a local Kinde. No password is required.</p>{error}\
             <form method=post action=\"{action}\"><label>Email<input name=email type=email value=\"{hint}\" \
             autocomplete=off required></label><button>Sign in</button></form>\
             <form method=post action=\"{action}\">{users}</form>\
             <h2>Sign up</h2><form method=post action=\"{action}\"><input type=hidden name=sign_up value=yes>\
             <label>Email<input name=email type=email autocomplete=off required></label>\
             <label>First name<input name=first_name></label><label>Last name<input name=last_name></label>\
             <button>Sign up</button></form>",
            name = escape(&self.application.name),
            error = error.unwrap_or_default(),
            hint = escape(self.login_hint),
        );
        let status = if self.error.is_some() { StatusCode::FORBIDDEN } else { StatusCode::OK };
        document(status, "Sign in", &body, &form_target(self.redirect))
    }
}

/// The button that signs a user in.
fn choice(user: &User) -> String {
    let name = user.full_name();
    let name = if name.trim().is_empty() { "(no name)" } else { &name };
    let address = user.email.as_deref().or(user.phone.as_deref()).unwrap_or("no email");
    let suspended = if user.is_suspended { " · suspended" } else { "" };
    format!(
        "<button name=user value=\"{id}\">{name}<small>{address} · {id}{suspended}</small></button>",
        id = escape(&user.id),
        name = escape(name),
        address = escape(address),
    )
}

/// An error page without a redirect.
pub(super) fn problem(status: StatusCode, detail: &str) -> Response {
    document(status, "Cannot sign in", &format!("<h1>Cannot sign in</h1><p>{}</p>", escape(detail)), "")
}

pub(super) fn signed_out() -> Response {
    document(StatusCode::OK, "Signed out", "<h1>Signed out</h1>", "")
}

fn document(status: StatusCode, title: &str, body: &str, form_target: &str) -> Response {
    let html = format!(
        "<!doctype html><html lang=en><meta charset=utf-8>\
         <meta name=viewport content=\"width=device-width\"><title>{title}</title><style>{STYLE}</style>{body}</html>"
    );
    let hash = STANDARD.encode(digest::digest(&digest::SHA256, STYLE.as_bytes()));
    let policy = format!(
        "default-src 'none'; style-src 'sha256-{hash}'; form-action 'self'{form_target}; base-uri 'none'; \
         frame-ancestors 'none'"
    );
    let headers = [
        (header::CONTENT_SECURITY_POLICY, policy),
        (header::CACHE_CONTROL, "no-store".to_owned()),
        (header::REFERRER_POLICY, "no-referrer".to_owned()),
        (header::X_CONTENT_TYPE_OPTIONS, "nosniff".to_owned()),
        (HeaderName::from_static("cross-origin-opener-policy"), "same-origin".to_owned()),
    ];
    (status, headers, Html(html)).into_response()
}

/// The origin of the redirect: browsers apply `form-action` also to a redirect after a form.
fn form_target(redirect: &Url) -> String {
    let origin = redirect.origin();
    if origin.is_tuple() {
        format!(" {}", origin.ascii_serialization())
    } else {
        format!(" {}:", redirect.scheme())
    }
}

fn escape(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for letter in text.chars() {
        match letter {
            '&' => safe.push_str("&amp;"),
            '<' => safe.push_str("&lt;"),
            '>' => safe.push_str("&gt;"),
            '"' => safe.push_str("&quot;"),
            '\'' => safe.push_str("&#39;"),
            _ => safe.push(letter),
        }
    }
    safe
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_provided_text_is_escaped() {
        assert_eq!(escape("<a b=\"c\" d='e'>&"), "&lt;a b=&quot;c&quot; d=&#39;e&#39;&gt;&amp;");
    }

    #[test]
    fn the_policy_allows_the_redirect_to_the_application() {
        let target = |text: &str| form_target(&text.parse().unwrap());
        assert_eq!(target("http://localhost:3000/callback"), " http://localhost:3000");
        assert_eq!(target("myapp://callback"), " myapp:");
    }
}
