//! One call of the Management API: token, attempts, pauses, and the meaning of the response.

use std::sync::Arc;

use reqwest::header::AUTHORIZATION;
use reqwest::{Client, RequestBuilder, StatusCode};

use super::retry::Budget;
use super::token::Token;
use super::{Error, Inner};
use crate::endpoint::Endpoint;
use crate::event;
use crate::event::reader::Reader;
use crate::http_client::{ApiError, Failure, RawResponse};
use crate::json;
use crate::response::Response;

/// A request and the reader of its response.
pub(super) struct Call<Build, IsAbsent, Read> {
    /// The label in metrics.
    pub(super) endpoint: Endpoint,
    /// The scope that Kinde documents for the endpoint.
    pub(super) scope: &'static str,
    pub(super) effect: Effect,
    pub(super) build: Build,
    /// Returns true for a status and code that mean that the object does not exist.
    pub(super) is_absent: IsAbsent,
    /// Reads the value from the response.
    pub(super) read: Read,
}

/// Whether a request can be repeated if its outcome is unknown.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Effect {
    /// Two requests have the same effect as one.
    Idempotent,
    /// Two requests would create two objects.
    Creates,
}

impl<Build, IsAbsent, Read, T> Call<Build, IsAbsent, Read>
where
    Build: Fn(&Client) -> RequestBuilder + Send + Sync,
    IsAbsent: Fn(StatusCode, &str) -> bool + Send + Sync,
    Read: Fn(Reader<'_>) -> Result<T, event::Error> + Send + Sync,
{
    /// Returns the value of the response, or `None` if the object does not exist.
    pub(super) async fn run(&self, client: &Inner) -> Result<Response<Option<T>>, Error> {
        let mut budget = Budget::new(&client.config.retry);
        let mut token_replaced = false;
        loop {
            let token = client.tokens.current().await.map_err(Error::TokenUnavailable)?;
            let outcome = self.attempt(client, &token, &budget).await;
            self.count(outcome.as_ref().map(|response| response.value.is_some()));
            let error = match outcome {
                Ok(response) => return Ok(response),
                Err(error) => error,
            };
            if !token_replaced && replaces_token(client, &token, &error) {
                token_replaced = true;
                continue;
            }
            if !self.can_repeat(&error) || !budget.wait(error.again()).await {
                return Err(error);
            }
        }
    }

    fn can_repeat(&self, error: &Error) -> bool {
        self.effect == Effect::Idempotent
            || match error {
                Error::RateLimited { .. } => true,
                Error::Unreachable(error) => error.is_connect(),
                _ => false,
            }
    }

    async fn attempt(
        &self,
        client: &Inner,
        token: &Token,
        budget: &Budget<'_>,
    ) -> Result<Response<Option<T>>, Error> {
        let permit = tokio::time::timeout_at(budget.deadline(), client.max_concurrent_requests.acquire());
        let Ok(Ok(_permit)) = permit.await else { return Err(Error::ConcurrencyTimeout) };
        let rate_limited = |left| Error::RateLimited { retry_after: Some(left) };
        client.gate.pass(budget.deadline()).await.map_err(rate_limited)?;
        let request =
            (self.build)(client.exchange.client()).header(AUTHORIZATION, token.authorization.clone());
        match client.exchange.send_until(request, budget.deadline()).await {
            Ok(received) => {
                let response = self.read(&received);
                match &response {
                    Err(Error::RateLimited { retry_after }) => {
                        client.gate.close_for(retry_after.unwrap_or_default());
                    }
                    Ok(_) => client.gate.widen(),
                    Err(_) => {}
                }
                response
            }
            Err(Failure::Unreachable(error)) => Err(Error::Unreachable(error)),
            Err(Failure::TooLong) => Err(Error::ResponseTooLarge { limit: client.exchange.max_body_bytes() }),
        }
    }

    fn read(&self, received: &RawResponse) -> Result<Response<Option<T>>, Error> {
        let (status, timing) = (received.status, received.timing);
        if status.is_success() {
            let value = (self.read)(Reader::new(String::new(), json::object(&received.body)?))
                .map_err(Error::InvalidResponse)?;
            return Ok(Response { value: Some(value), timing });
        }
        if status == StatusCode::TOO_MANY_REQUESTS {
            return Err(Error::RateLimited { retry_after: received.reset });
        }
        let complaint = ApiError::of_api(&received.body);
        if complaint.as_ref().is_some_and(|complaint| (self.is_absent)(status, &complaint.code)) {
            return Ok(Response { value: None, timing });
        }
        let ApiError { code, message } = complaint.unwrap_or_default();
        Err(match status {
            StatusCode::FORBIDDEN if is_about_scope(&code, &message) => {
                let scope = scope_in(&message).unwrap_or(self.scope).to_owned();
                Error::MissingScope { scope }
            }
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                Error::Unauthorized { scope: self.scope, code, message }
            }
            status => Error::UnexpectedStatus { status, code, message },
        })
    }

    fn count(&self, outcome: Result<bool, &Error>) {
        let outcome = match outcome {
            Ok(false) => "absent",
            outcome => Error::outcome_of(outcome.err()),
        };
        metrics::counter!("kinde_api_requests_total", "endpoint" => self.endpoint.as_str(), "outcome" => outcome)
            .increment(1);
    }
}

fn replaces_token(client: &Inner, token: &Arc<Token>, error: &Error) -> bool {
    match error {
        Error::Unauthorized { .. } => client.tokens.replace_invalid(token),
        Error::MissingScope { .. } => client.tokens.replace_old(token),
        _ => false,
    }
}

fn is_about_scope(code: &str, message: &str) -> bool {
    let contains_scope = |text: &str| text.to_ascii_lowercase().contains("scope");
    contains_scope(code) || contains_scope(message) || scope_in(message).is_some()
}

/// The first part of the message of the form `read:users`.
fn scope_in(message: &str) -> Option<&str> {
    let is_part = |char: char| char.is_ascii_lowercase() || char == '_' || char == ':';
    message.split(|char| !is_part(char)).find(|scope| {
        let verb = scope.split_once(':').filter(|(_, thing)| !thing.is_empty() && !thing.contains(':'));
        verb.is_some_and(|(verb, _)| matches!(verb, "read" | "create" | "update" | "delete"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_scope_in_a_message_is_found() {
        for (message, expect) in [
            ("The token lacks the scope `read:users`", Some("read:users")),
            ("Missing required scope(s): update:user_refresh_claims.", Some("update:user_refresh_claims")),
            ("see https://docs.kinde.com", None),
            ("read: users", None),
            ("Invalid credentials", None),
            ("", None),
        ] {
            assert_eq!(scope_in(message), expect, "{message}");
        }
        assert!(is_about_scope("INSUFFICIENT_SCOPE", "") && is_about_scope("", "wrong Scope"));
        assert!(!is_about_scope("TOKEN_INVALID", "The token has expired"));
    }
}
