//! Deliveries per second at full speed: kinsync (a), the baseline (b) and the peer (c), turn by turn.
//!
//! Each turn of kinsync starts with an empty queue and an empty database, sends only events that it has not seen, and
//! ends with a check that what was answered 200 is in MongoDB, each event once.

mod parts;

use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bson::{Document, doc};

use crate::events::{Event, Source};
use crate::jwt::{Jwks, Tokens};
use crate::kinsync::{EVENTS, Kinsync, SECRET, Settings, USERS};
use crate::load::{self, Outcome, Pace, Plan, off_thread};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::peer::{Me, Peer};
use crate::report::{Report, Row, Target, Unit};
use crate::requests::Requests;
use crate::series::{Series, Spread, Turn};
use crate::work::{Work, free_address};

const PART: &str = "deliveries";
const WARMUP: Duration = Duration::from_secs(1);
const TIMEOUT: Duration = Duration::from_mins(3);
/// Users of the events.
const PEOPLE: u64 = 50_000;

/// What the turns of one scheme gave.
#[derive(Debug)]
struct Scheme {
    kinsync: Series,
    alone: Series,
    baseline: Series,
    /// The simplest durable server.
    durable: Series,
    peer: Series,
    drained: Vec<f64>,
    /// Deliveries that shared one sync in the turns of `alone`, on average.
    groups: Vec<f64>,
    /// The same in the turns of `durable`.
    durable_groups: Vec<f64>,
    /// Bytes of a body.
    body: usize,
}

impl Scheme {
    fn new() -> Self {
        let series = || Series::new(PART);
        let (kinsync, alone, baseline, durable, peer) = (series(), series(), series(), series(), series());
        let (drained, groups, durable_groups) = (Vec::new(), Vec::new(), Vec::new());
        Self { kinsync, alone, baseline, durable, peer, drained, groups, durable_groups, body: 0 }
    }
}

/// Measures both schemes.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mongod = Mongod::start(work, "mongod-deliveries").await?;
    report.machine().version("mongod", mongod.version().await?);
    let tokens = Tokens::prepare(&work.cache(), options.tokens).await?;
    let (jwks, public_key) = (Jwks::serve(&tokens).await?, tokens.write_public_key(work.path())?);
    let jwt = Arc::new(Requests::jwt(tokens.iter()));
    let bench = Bench { work, options, mongod: &mongod, jwks: &jwks };
    let pool = bench.calibrate().await?;
    let (mut hmac, mut tokens) = (Scheme::new(), Scheme::new());
    for round in 1..=options.rounds {
        eprintln!("  round {round} of {}", options.rounds);
        let load = Load::hmac(pool).await?;
        hmac.body = load.requests.body_bytes();
        bench.kinsync(&format!("hmac{round}"), &load, &mut hmac).await?;
        hmac.baseline.push(bench.baseline(&load).await?);
        bench.durable(&format!("durable{round}"), &load, None, &mut hmac).await?;
        hmac.peer.push(bench.peer(&format!("peer{round}"), &load).await?);
        bench.kinsync_alone(&format!("alone{round}"), &load, &mut hmac).await?;
        let load = Load { requests: Arc::clone(&jwt), events: Arc::default() };
        bench.kinsync(&format!("jwt{round}"), &load, &mut tokens).await?;
        tokens.baseline.push(bench.baseline(&load).await?);
        bench.durable(&format!("jwt-durable{round}"), &load, Some(&public_key), &mut tokens).await?;
        bench.kinsync_alone(&format!("jwt-alone{round}"), &load, &mut tokens).await?;
    }
    tokens.body = jwt.body_bytes();
    drop(mongod);
    parts::add_rows(work, options, &hmac, &tokens, report).await?;
    report_hmac(&hmac, options, report);
    report_jwt(&tokens, &jwt, options, report);
    Ok(())
}

/// What is sent in a turn.
#[derive(Debug)]
struct Load {
    requests: Arc<Requests>,
    /// The users of the events, if known.
    events: Arc<Vec<Event>>,
}

impl Load {
    async fn hmac(count: usize) -> anyhow::Result<Self> {
        off_thread(move || {
            let events = Source::now().traffic(PEOPLE, count);
            Self { requests: Arc::new(Requests::hmac(SECRET, &events)), events: Arc::new(events) }
        })
        .await
    }
}

#[derive(Debug, Clone, Copy)]
struct Bench<'a> {
    work: &'a Work,
    options: &'a Options,
    mongod: &'a Mongod,
    jwks: &'a Jwks,
}

impl Bench<'_> {
    /// How many distinct requests a turn can use up: as many as the baseline answers.
    async fn calibrate(&self) -> anyhow::Result<usize> {
        let load = Load::hmac(10_000).await?;
        let server = Peer::baseline(self.work, Me::Empty).await?;
        let plan = self.plan(server.address(), &load, true);
        let rate = load::run(Plan { window: Duration::from_secs(2), ..plan }).await?.rate();
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count")]
        Ok((rate * (WARMUP + self.options.window()).as_secs_f64()) as usize)
    }

    fn plan(&self, to: std::net::SocketAddr, load: &Load, cycle: bool) -> Plan {
        Plan {
            to,
            connections: self.options.connections,
            requests: Arc::clone(&load.requests),
            cycle,
            warmup: WARMUP,
            window: self.options.window(),
            pace: Pace::Closed,
        }
    }

    async fn kinsync(&self, name: &str, load: &Load, scheme: &mut Scheme) -> anyhow::Result<()> {
        let settings = Settings {
            mongodb: Some(self.mongod.uri(name)),
            domain: Some(self.jwks.domain()),
            ..Settings::default()
        };
        let mut kinsync = Kinsync::start(self.work, name, &settings).await?;
        let plan = self.plan(kinsync.address(), load, false);
        let (outcome, mut turn) = Turn::run(plan, kinsync.process(), self.mongod).await?;
        let (stopped, left) = (Instant::now(), kinsync.metrics().await?.queue_depth()?);
        let empty = kinsync.drained(TIMEOUT).await?;
        eprintln!("  {left} events were still queued, for {:.1?}", empty - stopped);
        scheme.drained.push(1.0 - left as f64 / outcome.accepted.max(1) as f64);
        turn.fail(self.missing(name, EVENTS, outcome.accepted).await?);
        if !load.events.is_empty() {
            turn.fail(self.missing(name, USERS, users_of(&outcome, load)).await?);
        }
        scheme.kinsync.push(turn);
        self.drop_database(name).await
    }

    /// Kinsync while MongoDB is unavailable: the durable queue alone.
    async fn kinsync_alone(&self, name: &str, load: &Load, scheme: &mut Scheme) -> anyhow::Result<()> {
        let nowhere = format!("mongodb://{}/{name}?replicaSet=rs0", free_address()?);
        let domain = Some(self.jwks.domain());
        let settings = Settings { mongodb: Some(nowhere), domain, ..Settings::default() };
        let kinsync = Kinsync::start_without_store(self.work, name, &settings).await?;
        let plan = self.plan(kinsync.address(), load, false);
        scheme.alone.push(Turn::run(plan, kinsync.process(), self.mongod).await?.1);
        let metrics = kinsync.metrics().await?;
        let commits = |what| metrics.total(&format!("kinsync_queue_commit_entries_{what}"));
        scheme.groups.push(commits("sum") / commits("count"));
        Ok(())
    }

    async fn baseline(&self, load: &Load) -> anyhow::Result<Turn> {
        let server = Peer::baseline(self.work, Me::Empty).await?;
        Ok(Turn::run(self.plan(server.address(), load, true), server.process(), self.mongod).await?.1)
    }

    /// `key` is the file with the public key of JWTs.
    async fn durable(
        &self,
        name: &str,
        load: &Load,
        key: Option<&Path>,
        scheme: &mut Scheme,
    ) -> anyhow::Result<()> {
        let server = Peer::durable(self.work, name, key).await?;
        let plan = self.plan(server.address(), load, false);
        scheme.durable.push(Turn::run(plan, server.process(), self.mongod).await?.1);
        scheme.durable_groups.push(server.rows_per_transaction().await?);
        Ok(())
    }

    async fn peer(&self, name: &str, load: &Load) -> anyhow::Result<Turn> {
        let server = Peer::express(self.work, &self.mongod.uri(name), &self.jwks.domain()).await?;
        let plan = self.plan(server.address(), load, false);
        let (outcome, mut turn) = Turn::run(plan, server.process(), self.mongod).await?;
        turn.fail(self.missing(name, "users", users_of(&outcome, load)).await?);
        drop(server);
        self.drop_database(name).await?;
        Ok(turn)
    }

    /// What is wrong if the collection has not this many documents.
    async fn missing(&self, database: &str, collection: &str, expect: u64) -> anyhow::Result<Option<String>> {
        let documents = self.mongod.database(database).collection::<Document>(collection);
        let found = documents.count_documents(doc! {}).await?;
        Ok((found != expect).then(|| format!("{found} of {expect} documents are in `{collection}`")))
    }

    async fn drop_database(&self, database: &str) -> anyhow::Result<()> {
        Ok(self.mongod.database(database).drop().await?)
    }
}

/// Number of different users in the accepted requests.
fn users_of(outcome: &Outcome, load: &Load) -> u64 {
    let users: HashSet<_> = outcome.answered.iter().map(|(at, _)| load.events[*at].user).collect();
    users.len() as u64
}

fn report_hmac(scheme: &Scheme, options: &Options, report: &mut Report) {
    let Scheme { kinsync, alone, baseline, durable, peer, body, .. } = scheme;
    let load = format!("HMAC, {body} B, {} connections", options.connections);
    report.add(baseline.row(&format!("(b) only reads and answers: {load}")));
    report.add(kinsync.row("(a) kinsync: durable, then 200").note(drained(scheme)));
    report.add(peer.row("(c) Express + Mongoose: upsert awaited, then 200"));
    report.add(durable.row("(d) the simplest durable server: one transaction, then 200"));
    report.add(alone.row("(a') kinsync while MongoDB is unavailable: queue alone"));
    let why = format!("CPU {}; queue alone (a')/(b) = {:.2}", kinsync.cpu(), alone.over(baseline).median);
    report.add(kinsync.ratio("HMAC (a)/(b)", baseline).target(Target::AtLeast(0.6)).because(&why));
    report.add(kinsync.ratio("HMAC (a)/(c)", peer).target(Target::AtLeast(40.0)).because(&why));
    let (p99, p50) = (kinsync.p99(), peer.p50());
    let row = Row::new(PART, "p99 of (a), below p50 of (c)", p99, Unit::Millis).target(Target::Below(p50));
    report.add(row.unless(kinsync.problem().or_else(|| peer.problem())).because(&why));
}

fn report_jwt(scheme: &Scheme, requests: &Requests, options: &Options, report: &mut Report) {
    let Scheme { kinsync, alone, baseline, durable, .. } = scheme;
    let load = format!("JWT, {} B, {} connections", requests.body_bytes(), options.connections);
    report.add(
        baseline.row(&format!("(b) only reads and answers: {load}")).note("the same tokens again and again"),
    );
    let tokens = format!("{} distinct tokens, each once", requests.len());
    report.add(kinsync.row("(a) kinsync: durable, then 200").note(drained(scheme)).note(tokens));
    report.add(durable.row("(d) the simplest durable server: one transaction, then 200"));
    report.add(alone.row("(a') kinsync while MongoDB is unavailable: queue alone"));
    let row = kinsync.ratio("JWT (a)/(b)", baseline).target(Target::AtLeast(0.4));
    report.add(row.because(format!("CPU {}", kinsync.cpu())));
}

fn drained(scheme: &Scheme) -> String {
    let share = Spread::of(&scheme.drained).median;
    format!("drained into MongoDB meanwhile: {:.0} % of the events", share * 100.0)
}
