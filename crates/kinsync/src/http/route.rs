//! One route: method, path, audience, handler and description. The constructors tie a handler to the check that its
//! audience has to pass, and to the types that `/openapi.json` describes, so that neither can be forgotten.

use std::{convert::Infallible, fmt, sync::Arc};

use axum::{
    Json,
    body::Bytes,
    extract::{FromRequest, FromRequestParts, Path, Query, Request},
    response::IntoResponse,
    routing::MethodRouter,
};
use futures_util::FutureExt as _;
use http::{Response, StatusCode, header, request};
use kinsync_tower::{CurrentUser, KinsyncLayer, Problem, problem};
use serde::{Serialize, de::DeserializeOwned};
use serde_json::{Map, Value};
use tower::{Layer, service_fn};
use utoipa::{IntoParams, ToSchema, openapi::path::OperationBuilder};

use super::{
    admin_access::{self, Access},
    answer::{Failure, Result},
    mount::{Mount, Run},
    openapi::{self, Schemas},
};
use crate::{app::AppState, config::Scope, health::Detail};

/// The methods of a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Verb {
    /// GET, and HEAD with it.
    Get,
    /// POST.
    Post,
    /// DELETE.
    Delete,
    /// Every method.
    Any,
}

impl Verb {
    /// The name in the index.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Get => "GET",
            Self::Post => "POST",
            Self::Delete => "DELETE",
            Self::Any => "ANY",
        }
    }

    /// The value of an `Allow` header.
    pub fn allow(self) -> &'static str {
        match self {
            Self::Get => "GET, HEAD",
            Self::Post | Self::Delete | Self::Any => self.as_str(),
        }
    }
}

/// What may use a route.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Audience {
    /// Senders of signed deliveries.
    Sender,
    /// Users with an access token.
    User,
    /// Operators with the admin token.
    Operator,
    /// Load balancers and Prometheus; on an address of their own where one is configured.
    Monitoring,
    /// Every client.
    Public,
}

impl Audience {
    /// In the order of the index.
    pub const ALL: [Self; 5] = [Self::Sender, Self::User, Self::Operator, Self::Monitoring, Self::Public];

    /// The heading in the index and the reference.
    pub fn heading(self) -> &'static str {
        match self {
            Self::Sender => "Deliveries, with a signature",
            Self::User => "Users, with an access token",
            Self::Operator => "Operators, with the admin token",
            Self::Monitoring => "Monitoring",
            Self::Public => "Description",
        }
    }
}

/// Adds parameters, body and responses to the description of a route.
pub type Describe = fn(OperationBuilder, &mut Schemas) -> OperationBuilder;

/// Adds the handler of a route to its path.
pub type AddHandler = Box<dyn FnOnce(&Mount) -> MethodRouter>;

/// One route.
pub struct Route {
    /// The methods.
    pub verb: Verb,
    /// The path, with `{id}` for a variable segment. Also the `route` label of the request metrics.
    pub path: &'static str,
    /// More paths of the same route.
    pub aliases: &'static [&'static str],
    /// One sentence.
    pub summary: &'static str,
    /// What may use it.
    pub audience: Audience,
    /// Adds what runs it.
    pub add: AddHandler,
    /// The rest of its description.
    pub describe: Describe,
}

impl fmt::Debug for Route {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Route").field("verb", &self.verb).field("path", &self.path).finish_non_exhaustive()
    }
}

impl Route {
    /// The same route under more paths.
    #[must_use]
    pub fn also_at(self, aliases: &'static [&'static str]) -> Self {
        Self { aliases, ..self }
    }
}

/// A route for operators. The handler runs after the admin token was verified and, depending on `access`, the request was
/// recorded in the audit log. Its input and output are described by their types.
pub fn operator<I, O, F>(
    verb: Verb,
    access: Access,
    path: &'static str,
    summary: &'static str,
    handler: fn(Arc<AppState>, I) -> F,
) -> Route
where
    I: Input + 'static,
    O: Serialize + ToSchema + 'static,
    F: Future<Output = Result<O>> + Send + 'static,
{
    let run = move |state: Arc<AppState>, request: Request| async move {
        let operator = state.admin.authorize(&request, access.scope()).map_err(admin_access::refused)?;
        let outcome = async {
            let input = I::read(request, &state).await?;
            let what = (format!("{} {path}", verb.as_str()), input.parameters());
            state.admin.record(&state, access, operator, what).await?;
            handler(Arc::clone(&state), input).await
        };
        Ok::<_, Failure>(match outcome.await {
            Ok(document) => Json(document).into_response(),
            Err(failure) => failure.into_operator_response(),
        })
    };
    Route {
        verb,
        path,
        aliases: &[],
        summary,
        audience: Audience::Operator,
        add: handled_by(verb, run),
        describe: |operation, schemas| {
            openapi::answers::<O>(I::describe(operation, schemas), StatusCode::OK, schemas)
        },
    }
}

/// A route for users. Its handler runs behind the layer that verifies the access token and loads the user. Everything
/// that it waits for has a deadline of its own.
pub fn user<F>(
    verb: Verb,
    path: &'static str,
    summary: &'static str,
    handler: fn(Arc<AppState>, CurrentUser, request::Parts) -> F,
    describe: Describe,
) -> Route
where
    F: Future<Output = Result<Response<problem::Body>>> + Send + 'static,
{
    let add = move |mount: &Mount| {
        let state = Arc::clone(mount.state());
        let Some(authenticator) = state.authenticator.clone() else {
            return mount.service(verb, service_fn(async |_: Request| Ok(DISABLED.into_response())));
        };
        let layer = KinsyncLayer::new(authenticator);
        // The route that answers every method is the one for reverse proxies: nginx handles no refusal but 401 and 403.
        let layer = if verb == Verb::Any { layer.for_proxy() } else { layer };
        let run = move |request: Request| {
            let (mut head, _) = request.into_parts();
            let user = head.extensions.remove::<CurrentUser>().expect("the layer adds the user");
            let response = handler(Arc::clone(&state), user, head);
            async move {
                Ok::<_, Infallible>(response.await.unwrap_or_else(|failure| failure.problem.into_response()))
            }
        };
        mount.service(verb, layer.layer(service_fn(run)))
    };
    Route { verb, path, aliases: &[], summary, audience: Audience::User, add: Box::new(add), describe }
}

/// What the routes of users answer without a trusted issuer.
const DISABLED: Problem = Problem::Disabled { what: "routes for users", enabled_by: "KINDE_DOMAIN" };

/// The route of deliveries. Their signature is verified by the service behind it, which has a deadline of its own.
pub fn deliveries(path: &'static str, summary: &'static str, describe: Describe) -> Route {
    let (verb, audience) = (Verb::Post, Audience::Sender);
    let add = move |mount: &Mount| mount.service(verb, mount.state().webhook.clone());
    Route { verb, path, aliases: &[], summary, audience, add: Box::new(add), describe }
}

/// Adds a handler with a deadline.
fn handled_by<F>(verb: Verb, run: impl Fn(Arc<AppState>, Request) -> F + Send + Sync + 'static) -> AddHandler
where
    F: Future<Output: IntoResponse> + Send + 'static,
{
    let run: Run =
        Arc::new(move |state, request| run(state, request).map(IntoResponse::into_response).boxed());
    Box::new(move |mount| mount.handler(verb, run))
}

/// A route for monitoring that answers 200 or 503 with one document.
pub fn probe<O, F>(path: &'static str, summary: &'static str, look: fn(Arc<AppState>, Detail) -> F) -> Route
where
    O: Serialize + ToSchema + 'static,
    F: Future<Output = (StatusCode, O)> + Send + 'static,
{
    let run = move |state: Arc<AppState>, request: Request| async move {
        let is_operator = state.admin.authorize(&request, Scope::Read).is_ok();
        let detail = if is_operator { Detail::Operator } else { Detail::Open };
        let (status, document) = look(state, detail).await;
        (status, [(header::CACHE_CONTROL, "no-store")], Json(document))
    };
    probe_route(path, summary, handled_by(Verb::Get, run), describe_probe::<O>)
}

/// The same with parameters in the query.
pub fn probe_with<Q, O, F>(
    path: &'static str,
    summary: &'static str,
    look: fn(Arc<AppState>, Q) -> F,
) -> Route
where
    Q: DeserializeOwned + IntoParams + Send + 'static,
    O: Serialize + ToSchema + 'static,
    F: Future<Output = (StatusCode, O)> + Send + 'static,
{
    let run = move |state: Arc<AppState>, request: Request| async move {
        let (mut head, _) = request.into_parts();
        let Params(query) = Params::from_request_parts(&mut head, &state).await?;
        let (status, document) = look(state, query).await;
        Ok::<_, Failure>((status, [(header::CACHE_CONTROL, "no-store")], Json(document)))
    };
    probe_route(path, summary, handled_by(Verb::Get, run), |operation, schemas| {
        describe_probe::<O>(openapi::query::<Q>(operation), schemas)
    })
}

fn probe_route(path: &'static str, summary: &'static str, add: AddHandler, describe: Describe) -> Route {
    let (verb, audience) = (Verb::Get, Audience::Monitoring);
    Route { verb, path, aliases: &[], summary, audience, add, describe }
}

fn describe_probe<O>(operation: OperationBuilder, schemas: &mut Schemas) -> OperationBuilder
where
    O: Serialize + ToSchema + 'static,
{
    let operation = openapi::answers::<O>(operation, StatusCode::OK, schemas);
    openapi::answers::<O>(operation, StatusCode::SERVICE_UNAVAILABLE, schemas)
}

/// A route that answers a text.
pub fn text<F>(
    path: &'static str,
    audience: Audience,
    summary: &'static str,
    media_type: &'static str,
    write: fn(Arc<AppState>) -> F,
) -> Route
where
    F: Future<Output = String> + Send + 'static,
{
    let run = move |state: Arc<AppState>, _| async move {
        ([(header::CONTENT_TYPE, media_type)], write(state).await).into_response()
    };
    Route {
        verb: Verb::Get,
        path,
        aliases: &[],
        summary,
        audience,
        add: handled_by(Verb::Get, run),
        describe: |operation, _| openapi::answers_text(operation),
    }
}

/// What a handler for operators reads from a request.
pub trait Input: Sized + Send {
    /// Reads it. The failure names what is wrong.
    fn read(request: Request, state: &Arc<AppState>) -> impl Future<Output = Result<Self>> + Send;

    /// Returns it for the audit log.
    fn parameters(&self) -> Map<String, Value>;

    /// Describes it.
    fn describe(operation: OperationBuilder, schemas: &mut Schemas) -> OperationBuilder;
}

/// Nothing.
impl Input for () {
    async fn read(_: Request, _: &Arc<AppState>) -> Result<Self> {
        Ok(())
    }

    fn parameters(&self) -> Map<String, Value> {
        Map::new()
    }

    fn describe(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
        operation
    }
}

/// The `{id}` in the path, decoded.
#[derive(Debug)]
pub struct Id(pub String);

impl Input for Id {
    async fn read(request: Request, state: &Arc<AppState>) -> Result<Self> {
        let wrong = |_| {
            Failure::from(Problem::BadParameter { detail: "the id in the path is not valid UTF-8".into() })
        };
        let (mut head, _) = request.into_parts();
        Path::from_request_parts(&mut head, state).await.map(|Path(id)| Self(id)).map_err(wrong)
    }

    fn parameters(&self) -> Map<String, Value> {
        Map::from_iter([("id".to_owned(), self.0.clone().into())])
    }

    fn describe(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
        operation.parameter(openapi::id())
    }
}

/// The parameters of the query.
#[derive(Debug)]
pub struct Params<T>(pub T);

impl<T: DeserializeOwned> FromRequestParts<Arc<AppState>> for Params<T> {
    type Rejection = Failure;

    async fn from_request_parts(head: &mut request::Parts, _: &Arc<AppState>) -> Result<Self> {
        match Query::try_from_uri(&head.uri) {
            Ok(Query(params)) => Ok(Self(params)),
            Err(error) => Err(Problem::BadParameter { detail: error.body_text() }.into()),
        }
    }
}

impl<T: DeserializeOwned + Serialize + IntoParams + Send> Input for Params<T> {
    async fn read(request: Request, state: &Arc<AppState>) -> Result<Self> {
        let (mut head, _) = request.into_parts();
        Self::from_request_parts(&mut head, state).await
    }

    fn parameters(&self) -> Map<String, Value> {
        admin_access::audited(&self.0)
    }

    fn describe(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
        openapi::query::<T>(operation)
    }
}

/// The `{id}` in the path, and the parameters of the query.
#[derive(Debug)]
pub struct IdAndParams<T>(pub String, pub T);

impl<T: DeserializeOwned + Serialize + IntoParams + Send> Input for IdAndParams<T> {
    async fn read(request: Request, state: &Arc<AppState>) -> Result<Self> {
        let (mut head, body) = request.into_parts();
        let Params(params) = Params::from_request_parts(&mut head, state).await?;
        let Id(id) = Id::read(Request::from_parts(head, body), state).await?;
        Ok(Self(id, params))
    }

    fn parameters(&self) -> Map<String, Value> {
        let mut parameters = admin_access::audited(&self.1);
        parameters.insert("id".to_owned(), self.0.clone().into());
        parameters
    }

    fn describe(operation: OperationBuilder, _: &mut Schemas) -> OperationBuilder {
        openapi::query::<T>(operation.parameter(openapi::id()))
    }
}

/// A JSON body. An empty one is the default.
#[derive(Debug)]
pub struct Body<T>(pub T);

impl<T: DeserializeOwned + Serialize + Default + ToSchema + Send> Input for Body<T> {
    async fn read(request: Request, state: &Arc<AppState>) -> Result<Self> {
        let wrong = |detail| Failure::from(Problem::BadParameter { detail });
        let body =
            Bytes::from_request(request, state).await.map_err(|rejected| wrong(rejected.body_text()))?;
        if body.trim_ascii().is_empty() {
            return Ok(Self(T::default()));
        }
        serde_json::from_slice(&body).map(Self).map_err(|error| wrong(format!("the body: {error}")))
    }

    fn parameters(&self) -> Map<String, Value> {
        admin_access::audited(&self.0)
    }

    fn describe(operation: OperationBuilder, schemas: &mut Schemas) -> OperationBuilder {
        openapi::body::<T>(operation, schemas)
    }
}
