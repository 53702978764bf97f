//! `/oauth2/auth` and `/logout`: the hosted pages, without scripts.
//!
//! Source: <https://docs.kinde.com/developer-tools/about/using-kinde-without-an-sdk/>.

mod page;

use axum::Form;
use axum::extract::{Query, RawQuery, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use url::Url;

use crate::config::Application;
use crate::emulator::Emulator;
use crate::logins::Grant;
use crate::tenant;
use crate::user::{NewUser, User};
use page::{Page, problem, signed_out};

const COOKIE: &str = "kinde_emulator_session";

/// The query of an authorization request.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct AuthQuery {
    client_id: String,
    redirect_uri: String,
    response_type: String,
    scope: String,
    state: Option<String>,
    nonce: Option<String>,
    code_challenge: Option<String>,
    code_challenge_method: Option<String>,
    audience: Option<String>,
    prompt: Option<String>,
    login_hint: Option<String>,
    org_code: Option<String>,
}

/// A valid authorization request.
struct AuthRequest {
    application: Application,
    redirect: Url,
    query: AuthQuery,
    issuer: String,
    scopes: Vec<String>,
    audience: Vec<String>,
}

/// Shows the login page. A browser with a session is redirected immediately, as at Kinde.
pub(super) async fn show(
    State(emulator): State<Emulator>,
    Query(query): Query<AuthQuery>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
) -> Response {
    let request = match AuthRequest::check(&emulator, query, &headers) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    let prompt = request.query.prompt.as_deref().unwrap_or_default();
    let session = cookie(&headers).and_then(|session| emulator.session_user(session));
    let may_join = |user: &User| {
        let wanted = request.query.org_code.as_deref();
        wanted.is_none_or(|code| user.organizations.iter().any(|org| org.code == code))
    };
    match session.filter(|user| !matches!(prompt, "login" | "create") && may_join(user)) {
        Some(user) => request.send_code(&emulator, &user.id, StatusCode::FOUND),
        None if prompt == "none" => request.send_error("login_required", "The user is not signed in"),
        None => request.page(&emulator, &raw.unwrap_or_default(), None),
    }
}

/// The form of the login page.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LoginForm {
    /// Id of the user that signs in.
    user: String,
    /// Alternatively the email of the user that signs in or up.
    email: String,
    /// Not empty for a sign-up.
    sign_up: String,
    first_name: String,
    last_name: String,
}

/// Signs a user in or up and redirects the browser with a code. Shows the page again on an error.
pub(super) async fn submit(
    State(emulator): State<Emulator>,
    Query(query): Query<AuthQuery>,
    RawQuery(raw): RawQuery,
    headers: HeaderMap,
    Form(form): Form<LoginForm>,
) -> Response {
    let request = match AuthRequest::check(&emulator, query, &headers) {
        Ok(request) => request,
        Err(response) => return *response,
    };
    match authenticate(&emulator, form, request.query.org_code.as_deref()) {
        Ok(user) => {
            let session = emulator.open_session(&user.id);
            let mut response = request.send_code(&emulator, &user.id, StatusCode::SEE_OTHER);
            set_cookie(&mut response, &session);
            response
        }
        Err(error) => request.page(&emulator, &raw.unwrap_or_default(), Some(&error.to_string())),
    }
}

fn authenticate(emulator: &Emulator, form: LoginForm, org_code: Option<&str>) -> Result<User, tenant::Error> {
    let some = |text: String| Some(text.trim().to_owned()).filter(|text| !text.is_empty());
    if !form.sign_up.is_empty() {
        let email = some(form.email);
        return emulator.sign_up(NewUser {
            email_verified: email.is_some(),
            email,
            first_name: some(form.first_name),
            last_name: some(form.last_name),
            organization: org_code.map(str::to_owned),
            ..NewUser::default()
        });
    }
    let by_email = || emulator.user_by_email(form.email.trim()).map(|user| user.id);
    let id = some(form.user).or_else(by_email);
    let id = id.ok_or_else(|| tenant::Error::UnknownUser(form.email.trim().to_owned()))?;
    emulator.sign_in_to(&id, org_code)
}

impl AuthRequest {
    /// Validates a request. A wrong client or redirect URI is shown to the user, other errors go to the application.
    fn check(emulator: &Emulator, query: AuthQuery, headers: &HeaderMap) -> Result<Self, Box<Response>> {
        let invalid = |detail: &str| Box::new(problem(StatusCode::BAD_REQUEST, detail));
        let application = emulator
            .application(&query.client_id)
            .ok_or_else(|| invalid("No application has this client_id."))?;
        if !application.redirect_uris.contains(&query.redirect_uri) {
            return Err(invalid(
                "The redirect_uri is not one of the application: add exactly this URI to it.",
            ));
        }
        let redirect = query.redirect_uri.parse().map_err(|_| invalid("The redirect_uri is not a URL."))?;
        let wanted = query.audience.as_deref().unwrap_or_default();
        let wanted: Vec<String> = wanted.split_whitespace().map(str::to_owned).collect();
        let defaults = &emulator.config().tokens.audience;
        let audience = if wanted.is_empty() { defaults.clone() } else { wanted };
        let scope = if query.scope.is_empty() { "openid" } else { &query.scope };
        let scopes = scope.split_whitespace().map(str::to_owned).collect();
        let issuer = emulator.issuer_of(headers).to_owned();
        let request = Self { application, redirect, query, issuer, scopes, audience };
        match request.error(defaults) {
            Some((error, detail)) => Err(Box::new(request.send_error(error, detail))),
            None => Ok(request),
        }
    }

    fn error(&self, defaults: &[String]) -> Option<(&'static str, &'static str)> {
        let query = &self.query;
        let method = query.code_challenge_method.as_deref().unwrap_or("plain");
        let known = |api: &String| self.application.audience.contains(api) || defaults.contains(api);
        if query.response_type != "code" {
            Some(("unsupported_response_type", "response_type must be `code`"))
        } else if query.code_challenge.is_some() && method != "S256" {
            Some(("invalid_request", "code_challenge_method must be `S256`"))
        } else if self.application.client_secret.is_none() && query.code_challenge.is_none() {
            Some(("invalid_request", "An application without a secret must send a code_challenge"))
        } else if !self.audience.iter().all(known) {
            Some(("invalid_request", "The audience is not an API of this application"))
        } else {
            None
        }
    }

    fn page(&self, emulator: &Emulator, raw_query: &str, error: Option<&str>) -> Response {
        let page = Page {
            application: &self.application,
            redirect: &self.redirect,
            raw_query,
            login_hint: self.query.login_hint.as_deref().unwrap_or_default(),
            error,
        };
        page.render(emulator)
    }

    fn send_code(&self, emulator: &Emulator, user_id: &str, status: StatusCode) -> Response {
        let grant = Grant {
            client_id: self.application.client_id.clone(),
            issuer: self.issuer.clone(),
            user_id: user_id.to_owned(),
            scopes: self.scopes.clone(),
            audience: self.audience.clone(),
            org_code: self.query.org_code.clone(),
            nonce: self.query.nonce.clone(),
        };
        let code = emulator.issue_code(grant, &self.query.redirect_uri, self.query.code_challenge.clone());
        let scope = self.scopes.join(" ");
        self.send_back(status, &[("code", &code), ("scope", &scope)])
    }

    fn send_error(&self, error: &str, description: &str) -> Response {
        self.send_back(StatusCode::FOUND, &[("error", error), ("error_description", description)])
    }

    fn send_back(&self, status: StatusCode, parameters: &[(&str, &str)]) -> Response {
        let mut url = self.redirect.clone();
        url.query_pairs_mut().extend_pairs(parameters);
        if let Some(state) = &self.query.state {
            url.query_pairs_mut().append_pair("state", state);
        }
        redirect(status, url.as_str())
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub(super) struct LogoutQuery {
    redirect: Option<String>,
    post_logout_redirect_uri: Option<String>,
}

/// Ends the browser session. Issued tokens stay valid.
pub(super) async fn logout(
    State(emulator): State<Emulator>,
    Query(query): Query<LogoutQuery>,
    headers: HeaderMap,
) -> Response {
    let wanted = query.redirect.or(query.post_logout_redirect_uri);
    let allowed = |uri: &String| {
        emulator.applications().iter().any(|application| application.logout_redirect_uris.contains(uri))
    };
    let mut response = match wanted {
        Some(uri) if allowed(&uri) => redirect(StatusCode::FOUND, &uri),
        Some(_) => {
            let detail = "The redirect is not a logout redirect URI of an application.";
            return problem(StatusCode::BAD_REQUEST, detail);
        }
        None => signed_out(),
    };
    if let Some(session) = cookie(&headers) {
        emulator.close_session(session);
    }
    set_cookie(&mut response, "");
    response
}

fn redirect(status: StatusCode, url: &str) -> Response {
    match HeaderValue::from_str(url) {
        Ok(url) => (status, [(header::LOCATION, url), (header::CACHE_CONTROL, NO_STORE)]).into_response(),
        Err(_) => problem(StatusCode::BAD_REQUEST, "The redirect is not a URL."),
    }
}

const NO_STORE: HeaderValue = HeaderValue::from_static("no-store");

fn cookie(headers: &HeaderMap) -> Option<&str> {
    let cookies = headers.get_all(header::COOKIE).iter().filter_map(|value| value.to_str().ok());
    let mut pairs = cookies.flat_map(|text| text.split(';')).filter_map(|pair| pair.trim().split_once('='));
    pairs.find(|(name, _)| *name == COOKIE).map(|(_, value)| value)
}

fn set_cookie(response: &mut Response, session: &str) {
    let age = if session.is_empty() { "; Max-Age=0" } else { "" };
    let cookie = format!("{COOKIE}={session}; Path=/; HttpOnly; SameSite=Lax{age}");
    let cookie = HeaderValue::try_from(cookie).expect("a session id is hexadecimal");
    response.headers_mut().append(header::SET_COOKIE, cookie);
}
