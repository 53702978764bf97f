//! Traces of deliveries, in a collector that speaks OTLP over HTTP.

use std::{
    collections::HashMap,
    sync::{Arc, Mutex},
    time::Duration,
};

use axum::{Router, body::Bytes, extract::State, http::HeaderMap, routing::post};
use kinsync_testing::{
    app::TestApp,
    mongo::TestMongo,
    redis::{DURABLE, TestRedis},
};
use opentelemetry_proto::tonic::{
    collector::trace::v1::ExportTraceServiceRequest, common::v1::any_value::Value, trace::v1::Span,
};
use prost::Message as _;
use tokio::task::JoinSet;

const WITHIN: Duration = Duration::from_mins(2);

/// A collector that keeps the spans of requests with the right token.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Vec<Span>>>);

impl Collector {
    async fn start() -> (Self, String, JoinSet<std::io::Result<()>>) {
        let collector = Self::default();
        let routes = Router::new().route("/v1/traces", post(collect)).with_state(collector.clone());
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let mut tasks = JoinSet::new();
        tasks.spawn(async move { axum::serve(listener, routes).await });
        (collector, format!("http://{address}"), tasks)
    }

    fn spans(&self) -> Vec<Span> {
        self.0.lock().unwrap().clone()
    }
}

async fn collect(State(collector): State<Collector>, headers: HeaderMap, body: Bytes) {
    assert_eq!(headers["authorization"], "Bearer collector-token");
    let request = ExportTraceServiceRequest::decode(body).unwrap();
    let spans = request.resource_spans.into_iter().flat_map(|one| one.scope_spans).flat_map(|one| one.spans);
    collector.0.lock().unwrap().extend(spans);
}

fn text(span: &Span, key: &str) -> Option<String> {
    let value = span.attributes.iter().find(|one| one.key == key)?.value.as_ref()?.value.as_ref()?;
    match value {
        Value::StringValue(text) => Some(text.clone()),
        _ => None,
    }
}

fn event(n: usize) -> String {
    format!(
        r#"{{"type":"user.created","event_id":"event_{n}","timestamp":"2026-01-01T00:00:00Z","data":{{"user":{{"id":"kp_{n}"}}}}}}"#
    )
}

async fn serve(redis: &TestRedis, mongo: &TestMongo, database: &str, settings: &[(&str, &str)]) -> TestApp {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.with_mongodb(&mongo.uri(), database).set("KINSYNC_QUEUE", redis.url());
    for (name, value) in settings {
        app.set(name, *value);
    }
    app.start().await.unwrap();
    app
}

#[tokio::test(flavor = "multi_thread")]
async fn a_delivery_and_its_write_in_another_process_are_one_trace() {
    let (collector, endpoint, _server) = Collector::start().await;
    let settings = [
        ("KINSYNC_OTLP_ENDPOINT", endpoint.as_str()),
        ("KINSYNC_OTLP_HEADERS", "authorization=Bearer collector-token"),
    ];
    let (redis, mongo) = (TestRedis::start(DURABLE), TestMongo::start_own().await);
    let database = mongo.database();
    let mut first = serve(&redis, &mongo, &database, &settings).await;
    // Without MongoDB the first process applies nothing.
    mongo.stop();
    for n in 0..5 {
        assert_eq!(first.deliver(event(n)).await.unwrap(), 200);
    }
    assert_eq!(first.deliver(event(0)).await.unwrap(), 200, "again");
    first.stop().await.unwrap();
    let received = collector.spans();
    mongo.restart().await;
    let mut second = serve(&redis, &mongo, &database, &settings).await;
    second.drained(WITHIN).await.unwrap();
    second.stop().await.unwrap();

    let is = |span: &Span, name: &str, outcome: &str| {
        span.name == name && text(span, "outcome").as_deref() == Some(outcome)
    };
    let roots: HashMap<String, &Span> = received
        .iter()
        .filter(|span| is(span, "receive delivery", "accepted"))
        .map(|span| (text(span, "event_id").unwrap(), span))
        .collect();
    assert_eq!(roots.len(), 5, "exported at the end of the process: {received:?}");
    assert!(roots.values().all(|root| root.parent_span_id.is_empty()));
    let all = collector.spans();
    let below = |span: &Span| {
        let root = roots[&text(span, "event_id").unwrap()];
        assert_eq!((&span.trace_id, &span.parent_span_id), (&root.trace_id, &root.span_id), "{span:?}");
    };
    let applied: Vec<&Span> = all.iter().filter(|span| is(span, "apply event", "applied")).collect();
    assert_eq!(applied.len(), 5, "{all:?}");
    applied.into_iter().for_each(below);
    let again: Vec<&Span> = all.iter().filter(|span| is(span, "receive delivery", "duplicate")).collect();
    assert_eq!(again.len(), 1);
    again.into_iter().for_each(below);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_collector_that_is_away_delays_no_delivery_and_no_end() {
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINSYNC_OTLP_ENDPOINT", "http://127.0.0.1:1");
    app.start().await.unwrap();
    assert_eq!(app.deliver(event(1)).await.unwrap(), 200);
    app.drained(WITHIN).await.unwrap();
    app.stop().await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_share_of_zero_exports_nothing() {
    let (collector, endpoint, _server) = Collector::start().await;
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINSYNC_OTLP_ENDPOINT", endpoint).set("KINSYNC_OTLP_SAMPLE", "0%");
    app.start().await.unwrap();
    assert_eq!(app.deliver(event(1)).await.unwrap(), 200);
    app.drained(WITHIN).await.unwrap();
    app.stop().await.unwrap();
    assert!(collector.spans().is_empty());
}
