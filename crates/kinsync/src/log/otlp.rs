//! Exports the spans of deliveries by OTLP over HTTP.
//!
//! All spans of an event are in the trace that follows from its id, whichever process made them and whenever: the id is what the
//! queue carries. The first acceptance of the delivery is the root; everything else is below it.

use std::{cell::Cell, collections::HashMap, fmt, time::Duration};

use anyhow::Context as _;
use aws_lc_rs::digest::{SHA256, digest};
use kinsync_engine::internal::trace;
use opentelemetry::{
    Context, KeyValue, SpanId, TraceFlags, TraceId,
    trace::{
        Span as _, SpanContext, SpanKind, TraceContextExt as _, TraceState, Tracer as _, TracerProvider as _,
    },
};
use opentelemetry_otlp::{Protocol, WithExportConfig as _, WithHttpConfig as _};
use opentelemetry_sdk::{
    Resource,
    trace::{IdGenerator, RandomIdGenerator, Sampler, SdkTracer, SdkTracerProvider},
};
use secrecy::ExposeSecret as _;
use tracing::{
    Subscriber,
    field::{Field, Visit},
    span::{Attributes, Id, Record},
};
use tracing_subscriber::{Layer, Registry, filter::filter_fn, layer, registry::LookupSpan};

use crate::config;

/// Longest time for one export.
const TIMEOUT: Duration = Duration::from_secs(5);

/// Exports what is left when it is dropped.
#[derive(Debug)]
pub(super) struct Exporter(SdkTracerProvider);

impl Drop for Exporter {
    fn drop(&mut self) {
        if let Err(error) = self.0.shutdown_with_timeout(TIMEOUT) {
            tracing::warn!(%error, "the last traces could not be exported");
        }
    }
}

type Started = (Option<Exporter>, Option<Box<dyn Layer<Registry> + Send + Sync>>);

/// Returns the exporter and the layer that feeds it, if an endpoint is set. Must be called outside of a runtime.
pub(super) fn start(config: &config::Log) -> anyhow::Result<Started> {
    let Some(endpoint) = &config.otlp_endpoint else { return Ok((None, None)) };
    let exporter = opentelemetry_otlp::SpanExporter::builder()
        .with_http()
        .with_protocol(Protocol::HttpBinary)
        .with_endpoint(format!("{}/v1/traces", endpoint.as_str().trim_end_matches('/')))
        .with_headers(headers(config))
        .with_timeout(TIMEOUT)
        .build()
        .context("the exporter of traces could not be built")?;
    let provider = SdkTracerProvider::builder()
        .with_batch_exporter(exporter)
        .with_id_generator(RootIds::default())
        // By the trace id, which every process derives alike.
        .with_sampler(Sampler::TraceIdRatioBased(config.otlp_sample))
        .with_resource(Resource::builder().with_service_name("kinsync").build())
        .build();
    let layer = Export(provider.tracer("kinsync"));
    let layer = layer.with_filter(filter_fn(|metadata| metadata.target() == trace::TARGET)).boxed();
    Ok((Some(Exporter(provider)), Some(layer)))
}

fn headers(config: &config::Log) -> HashMap<String, String> {
    let text = config.otlp_headers.as_ref().map_or("", |headers| headers.expose_secret());
    let pairs = config::value::list(text).into_iter().filter_map(|pair| pair.split_once('='));
    pairs.map(|(name, value)| (name.trim().to_owned(), value.trim().to_owned())).collect()
}

/// The place of the spans of an event.
#[derive(Clone, Copy, Debug)]
struct Place {
    trace: TraceId,
    root: SpanId,
}

impl Place {
    /// Derives the place from the id of the event. No id hashes to the invalid id of zeros in practice.
    fn of(event_id: &str) -> Self {
        let hash = digest(&SHA256, event_id.as_bytes());
        let (trace, rest) = hash.as_ref().split_at(16);
        let bytes = |part: &[u8]| part.iter().fold(0_u128, |number, byte| number << 8 | u128::from(*byte));
        let root = u64::try_from(bytes(&rest[..8])).expect("8 bytes are 64 bits");
        Self { trace: TraceId::from(bytes(trace)), root: SpanId::from(root) }
    }

    /// The context of the spans below the root.
    fn below_root(self) -> Context {
        let root = SpanContext::new(self.trace, self.root, TraceFlags::SAMPLED, true, TraceState::default());
        Context::new().with_remote_span_context(root)
    }
}

thread_local! {
    /// The place of the root that this thread is about to build.
    static ROOT: Cell<Option<Place>> = const { Cell::new(None) };
}

/// Gives a root span the ids of its event.
#[derive(Debug, Default)]
struct RootIds(RandomIdGenerator);

impl IdGenerator for RootIds {
    fn new_trace_id(&self) -> TraceId {
        ROOT.get().map_or_else(|| self.0.new_trace_id(), |place| place.trace)
    }

    fn new_span_id(&self) -> SpanId {
        ROOT.get().map_or_else(|| self.0.new_span_id(), |place| place.root)
    }
}

/// Builds a span of OpenTelemetry for each span of a delivery, when it ends.
struct Export(SdkTracer);

/// What is known of a span so far.
struct Recorded {
    start: std::time::SystemTime,
    event_id: Option<String>,
    attributes: Vec<KeyValue>,
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Export {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        let mut recorded =
            Recorded { start: opentelemetry::time::now(), event_id: None, attributes: Vec::new() };
        attributes.record(&mut recorded);
        span.extensions_mut().insert(recorded);
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, context: layer::Context<'_, S>) {
        let Some(span) = context.span(id) else { return };
        if let Some(recorded) = span.extensions_mut().get_mut::<Recorded>() {
            values.record(recorded);
        }
    }

    fn on_close(&self, id: Id, context: layer::Context<'_, S>) {
        let Some(span) = context.span(&id) else { return };
        let Some(recorded) = span.extensions_mut().remove::<Recorded>() else { return };
        self.export(span.name(), &recorded);
    }
}

impl Export {
    fn export(&self, name: &'static str, recorded: &Recorded) {
        let Some(event_id) = &recorded.event_id else { return };
        let place = Place::of(event_id);
        // A repeated delivery is a second span of the same name, below the root.
        let is_root = name == trace::RECEIVE && recorded.has_outcome("accepted");
        let kind = if name == trace::RECEIVE { SpanKind::Server } else { SpanKind::Consumer };
        let id = KeyValue::new("event_id", event_id.clone());
        let attributes = recorded.attributes.iter().cloned().chain([id]);
        let builder = self.0.span_builder(name).with_kind(kind).with_start_time(recorded.start);
        let builder = builder.with_attributes(attributes);
        ROOT.set(is_root.then_some(place));
        let parent = if is_root { Context::new() } else { place.below_root() };
        self.0.build_with_context(builder, &parent).end();
        ROOT.set(None);
    }
}

impl Recorded {
    fn has_outcome(&self, outcome: &str) -> bool {
        self.attributes.iter().any(|one| one.key.as_str() == "outcome" && one.value.as_str() == outcome)
    }
}

impl Visit for Recorded {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "event_id" {
            self.event_id = Some(value.to_owned());
        } else {
            self.attributes.push(KeyValue::new(field.name(), value.to_owned()));
        }
    }

    fn record_u64(&mut self, field: &Field, value: u64) {
        self.attributes.push(KeyValue::new(field.name(), i64::try_from(value).unwrap_or(i64::MAX)));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        self.record_str(field, &format!("{value:?}"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_place_of_an_event_is_the_same_in_every_process() {
        let place = Place::of("event_1");
        // The first bytes of the SHA-256 of the id: `printf event_1 | sha256sum`.
        assert_eq!(place.trace.to_string(), "41bda90b8a83b739486622bc6ee28f44");
        assert_eq!(place.root.to_string(), "4300144a6ff1d3e0");
    }
}
