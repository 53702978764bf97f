//! The OpenAPI 3.1 description, made from the list of routes and the types of their documents.

use std::collections::BTreeMap;

use http::{HeaderName, StatusCode};
use kinsync_tower::problem;
use utoipa::{
    IntoParams, ToSchema,
    openapi::{
        ComponentsBuilder, ContentBuilder, HttpMethod, Info, OpenApi, OpenApiBuilder, PathItem, PathsBuilder,
        Ref, RefOr, Required, ResponseBuilder, Schema, SecurityRequirement,
        path::{OperationBuilder, Parameter, ParameterBuilder, ParameterIn},
        request_body::RequestBodyBuilder,
        schema::{ObjectBuilder, Type},
        security::{ApiKey, ApiKeyValue, HttpAuthScheme, HttpBuilder, SecurityScheme},
    },
};

use super::{
    route::{Audience, Route, Verb},
    routes::routes,
};

/// Schemas by name. A document refers to the documents in it by name.
pub type Schemas = BTreeMap<String, RefOr<Schema>>;

const SIGNATURE: &str = "signature";
const ACCESS_TOKEN: &str = "accessToken";
const ADMIN_TOKEN: &str = "adminToken";
const ADMIN_TOKENS: &str = "KINSYNC_ADMIN_TOKEN, or one of KINSYNC_ADMIN_TOKENS: `GET` needs the scope `read`, every other \
                            method `operate`.";

/// The description of every route.
pub fn document() -> OpenApi {
    let mut schemas = Schemas::new();
    add::<problem::Document>(&mut schemas);
    let mut paths = PathsBuilder::new();
    for route in routes() {
        let item = PathItem::from_http_methods([method(route.verb)], operation(&route, &mut schemas));
        paths = paths.path(route.path, item);
    }
    let components = schemes()
        .into_iter()
        .fold(ComponentsBuilder::new().schemas_from_iter(schemas), |components, (name, scheme)| {
            components.security_scheme(name, scheme)
        });
    let mut info = Info::new("kinsync", env!("CARGO_PKG_VERSION"));
    info.description = Some("Mirrors Kinde users into your database.".into());
    OpenApiBuilder::new().info(info).paths(paths).components(Some(components.build())).build()
}

fn operation(route: &Route, schemas: &mut Schemas) -> utoipa::openapi::path::Operation {
    let operation = OperationBuilder::new()
        .operation_id(Some(operation_id(route)))
        .summary(Some(route.summary))
        .tag(route.audience.heading());
    let operation = match security(route.audience) {
        Some(scheme) => operation.security(SecurityRequirement::new::<_, [&str; 0], &str>(scheme, [])),
        None => operation,
    };
    let problem = ContentBuilder::new().schema(Some(reference::<problem::Document>())).build();
    let media_type = problem::MEDIA_TYPE.to_str().unwrap_or_default().to_owned();
    let failed = ResponseBuilder::new().description("Any failure").content(media_type, problem);
    (route.describe)(operation, schemas).response("default", failed).build()
}

/// `get_users_id` of `GET /api/admin/users/{id}`.
fn operation_id(route: &Route) -> String {
    let path = route.path.trim_start_matches("/api/admin").replace(['{', '}'], "");
    let parts = path.split(['/', '-', '.']).filter(|part| !part.is_empty());
    std::iter::once(method_name(route.verb)).chain(parts).collect::<Vec<_>>().join("_")
}

fn method_name(verb: Verb) -> &'static str {
    match verb {
        Verb::Get | Verb::Any => "get",
        Verb::Post => "post",
        Verb::Delete => "delete",
    }
}

/// OpenAPI cannot say "every method".
fn method(verb: Verb) -> HttpMethod {
    match verb {
        Verb::Get | Verb::Any => HttpMethod::Get,
        Verb::Post => HttpMethod::Post,
        Verb::Delete => HttpMethod::Delete,
    }
}

fn security(audience: Audience) -> Option<&'static str> {
    match audience {
        Audience::Sender => Some(SIGNATURE),
        Audience::User => Some(ACCESS_TOKEN),
        Audience::Operator => Some(ADMIN_TOKEN),
        Audience::Monitoring | Audience::Public => None,
    }
}

fn schemes() -> [(&'static str, SecurityScheme); 3] {
    let signature = ApiKeyValue::with_description(
        "x-kinde-signature",
        "HMAC-SHA256 of the body, in hexadecimal. Kinde's own deliveries are a signed JWT instead, and Standard \
         Webhooks headers are accepted too.",
    );
    let bearer = |description: &str| {
        HttpBuilder::new().scheme(HttpAuthScheme::Bearer).description(Some(description)).build()
    };
    [
        (SIGNATURE, SecurityScheme::ApiKey(ApiKey::Header(signature))),
        (ACCESS_TOKEN, SecurityScheme::Http(bearer("An access token that Kinde issued to a user."))),
        (ADMIN_TOKEN, SecurityScheme::Http(bearer(ADMIN_TOKENS))),
    ]
}

fn add<T: ToSchema>(schemas: &mut Schemas) {
    let mut found = vec![(T::name().into_owned(), T::schema())];
    T::schemas(&mut found);
    schemas.extend(found);
}

fn reference<T: ToSchema>() -> RefOr<Schema> {
    RefOr::Ref(Ref::from_schema_name(T::name()))
}

/// A response with this status and a JSON document of this type.
pub(super) fn answers<T: ToSchema>(
    operation: OperationBuilder,
    status: StatusCode,
    schemas: &mut Schemas,
) -> OperationBuilder {
    add::<T>(schemas);
    let content = ContentBuilder::new().schema(Some(reference::<T>())).build();
    let description = status.canonical_reason().unwrap_or_default();
    let response = ResponseBuilder::new().description(description).content("application/json", content);
    operation.response(status.as_str(), response)
}

/// A response that is a text.
pub(super) fn answers_text(operation: OperationBuilder) -> OperationBuilder {
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    let content = ContentBuilder::new().schema(Some(Schema::Object(text))).build();
    operation.response("200", ResponseBuilder::new().description("OK").content("text/plain", content))
}

/// A response without a body that documents these headers.
pub(super) fn answers_headers(
    operation: OperationBuilder,
    headers: &[(HeaderName, &str)],
) -> OperationBuilder {
    let response = ResponseBuilder::new().description("OK");
    let response = headers.iter().fold(response, |response, (name, description)| {
        let mut header = utoipa::openapi::header::Header::default();
        header.description = Some((*description).to_owned());
        response.header(name.as_str(), header)
    });
    operation.response("200", response)
}

/// The variable segment of a path.
pub(super) fn id() -> Parameter {
    let text = ObjectBuilder::new().schema_type(Type::String).build();
    ParameterBuilder::new()
        .name("id")
        .parameter_in(ParameterIn::Path)
        .required(Required::True)
        .schema(Some(Schema::Object(text)))
        .build()
}

/// The parameters of a query.
pub(super) fn query<T: IntoParams>(operation: OperationBuilder) -> OperationBuilder {
    operation.parameters(Some(T::into_params(|| Some(ParameterIn::Query))))
}

/// A JSON body, which may be missing.
pub(super) fn body<T: ToSchema>(operation: OperationBuilder, schemas: &mut Schemas) -> OperationBuilder {
    add::<T>(schemas);
    let content = ContentBuilder::new().schema(Some(reference::<T>())).build();
    let body = RequestBodyBuilder::new().content("application/json", content).required(Some(Required::False));
    operation.request_body(Some(body.build()))
}
