//! Every route of the server, once. The router, the index at `/`, `Allow` headers, the `route` label of the request
//! metrics, `/openapi.json` and docs/reference/http-api.md are made from this list.

use super::{
    admin,
    admin_access::Access::{Action, Figures, PersonalData},
    deliveries, description, forward_auth, operation,
    route::{
        self,
        Audience::{Monitoring, Public},
        Route,
        Verb::{Any, Delete, Get, Post},
        operator, probe, probe_with, text, user,
    },
    user_routes,
};

/// Every route.
pub fn routes() -> Vec<Route> {
    [of_senders_and_users(), of_operators(), of_scans(), of_the_log(), of_operation()]
        .into_iter()
        .flatten()
        .collect()
}

fn of_senders_and_users() -> Vec<Route> {
    vec![
        route::deliveries(
            "/api/webhook",
            "Accept a signed delivery; 200 after it is on disk",
            deliveries::describe,
        ),
        user(
            Get,
            "/api/me",
            "Return the stored user of the access token",
            user_routes::me,
            user_routes::describe_me,
        ),
        user(
            Get,
            "/api/profile",
            "Return the user of the access token, refreshed from Kinde",
            user_routes::profile,
            user_routes::describe_profile,
        ),
        // Requests behind a further `/` are answered with the next step.
        user(
            Any,
            forward_auth::PATH,
            "Authenticate a request for a reverse proxy (forward-auth), and require roles or permissions",
            forward_auth::verify,
            forward_auth::describe,
        )
        .also_at(&["/auth/verify/", "/auth/verify/{*path}"]),
        // A wildcard does not match an empty rest.
        user(
            Any,
            "/auth/ext-authz/{requirements}",
            "Do the same for a proxy that appends the path of the client, as Envoy does: the first segment is the requirement",
            forward_auth::verify_appended,
            forward_auth::describe_appended,
        )
        .also_at(&["/auth/ext-authz/", "/auth/ext-authz/{requirements}/", "/auth/ext-authz/{requirements}/{*path}"]),
    ]
}

fn of_operators() -> Vec<Route> {
    vec![
        operator(
            Get,
            Figures,
            "/api/admin/stats",
            "Count stored users, events and queued deliveries",
            admin::stats,
        ),
        operator(
            Get,
            Figures,
            "/api/admin/stats/growth",
            "List sign-ups, deletions and active users by day",
            admin::projections::growth,
        ),
        operator(
            Get,
            Figures,
            "/api/admin/stats/system",
            "List deliveries, their lag and drift by day",
            admin::projections::system,
        ),
        operator(
            Get,
            PersonalData,
            "/api/admin/users",
            "List users, each filter by an index, page by page",
            admin::users::users,
        ),
        operator(Get, PersonalData, "/api/admin/users/{id}", "Return one user", admin::user),
        operator(
            Get,
            PersonalData,
            "/api/admin/users/{id}/explain",
            "List the observations of a user and the outcome of each",
            admin::explain_user,
        ),
        operator(
            Get,
            PersonalData,
            "/api/admin/users/{id}/export",
            "Return everything that is stored about a user",
            admin::export::export_user,
        ),
        operator(
            Post,
            Action,
            "/api/admin/users/{id}/erase",
            "Erase the personal data of a deleted user, or report what that would remove",
            admin::erase::erase_user,
        ),
        operator(
            Post,
            Action,
            "/api/admin/users/{id}/check",
            "Read this user from Kinde again, soon",
            admin::check_user,
        ),
        operator(
            Get,
            Figures,
            "/api/admin/organizations",
            "List organizations in the order of their codes",
            admin::organizations::organizations,
        ),
        operator(
            Get,
            Figures,
            "/api/admin/organizations/{id}",
            "Return one organization",
            admin::organizations::organization,
        ),
        operator(
            Get,
            Figures,
            "/api/admin/roles",
            "List roles in the order of their ids",
            admin::organizations::roles,
        ),
        operator(Get, Figures, "/api/admin/roles/{id}", "Return one role", admin::organizations::role),
    ]
}

fn of_scans() -> Vec<Route> {
    vec![
        operator(
            Get,
            PersonalData,
            "/api/admin/drift",
            "Return the result of the newest complete scan",
            admin::drift,
        ),
        operator(Get, Figures, "/api/admin/runs", "List the last scans, newest first", admin::runs),
        operator(Get, PersonalData, "/api/admin/runs/{id}", "Return one scan with examples", admin::run),
        operator(
            Post,
            Action,
            "/api/admin/reconcile",
            "Request a scan, or approve held deletions",
            admin::reconcile,
        ),
        operator(
            Get,
            PersonalData,
            "/api/admin/audit",
            "List the requests of operators that read personal data or changed something, newest first",
            admin::audit,
        ),
    ]
}

fn of_the_log() -> Vec<Route> {
    vec![
        operator(
            Get,
            PersonalData,
            "/api/admin/events",
            "List events, the most recently received first",
            admin::events,
        ),
        operator(
            Get,
            PersonalData,
            "/api/admin/events/{id}",
            "Return one event with its payload",
            admin::event,
        ),
        operator(
            Post,
            Action,
            "/api/admin/events/replay",
            "Apply entries of the event log again, or report what that would change",
            admin::replay::replay,
        ),
        operator(
            Get,
            Figures,
            "/api/admin/dead-letters",
            "List dead letters, oldest first",
            admin::dead_letters,
        ),
        operator(
            Get,
            PersonalData,
            "/api/admin/dead-letters/{id}",
            "Return one dead letter with its payload",
            admin::dead_letter,
        ),
        operator(
            Delete,
            Action,
            "/api/admin/dead-letters/{id}",
            "Remove a dead letter",
            admin::drop_dead_letter,
        ),
        operator(
            Post,
            Action,
            "/api/admin/dead-letters/{id}/retry",
            "Put a dead letter back into the queue",
            admin::retry_dead_letter,
        ),
    ]
}

fn of_operation() -> Vec<Route> {
    vec![
        probe(
            "/health",
            "Report the state of every part, causes of errors only with the admin token; 503 while deliveries cannot be accepted",
            operation::health,
        ),
        probe("/health/live", "Answer 200 while the process runs", operation::live),
        probe_with(
            "/health/ready",
            "Answer 200 while deliveries can be accepted (or, with ?for=logins, users authenticated), else 503",
            operation::ready,
        ),
        text("/metrics", Monitoring, "Return metrics for Prometheus", operation::METRICS, operation::metrics),
        text(
            "/openapi.json",
            Public,
            "Return this description as OpenAPI 3.1",
            "application/json",
            description::openapi,
        ),
        text("/", Public, "List the routes", "text/plain; charset=utf-8", description::index),
    ]
}
