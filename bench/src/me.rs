//! Requests of users per second at full speed: `/api/me` of kinsync (a), a constant document (b) and the peer (c) in turn.
//! kinsync is measured with known tokens and with new ones.
//!
//! All servers have the same users from the same deliveries. A response counts if it is 200 and has the id of the user.

use std::fs;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::Context as _;

use crate::events::{Event, Kind, Source, user_id};
use crate::http::Connection;
use crate::inside::{self, PART};
use crate::jwt::{Jwks, Tokens};
use crate::kinsync::{Kinsync, SECRET, Settings};
use crate::load::{self, Pace, Plan};
use crate::mongo::Mongod;
use crate::options::Options;
use crate::peer::{Me, Peer};
use crate::report::{Report, Row, Target, Unit};
use crate::requests::Requests;
use crate::series::{Series, Spread, Turn};
use crate::work::Work;

const PEOPLE: u64 = 2_000;
const WARMUP: Duration = Duration::from_secs(1);
/// Timeout for creating the users, and for requesting each once.
const TIMEOUT: Duration = Duration::from_mins(1);

/// Measures all servers.
pub async fn measure(work: &Work, options: &Options, report: &mut Report) -> anyhow::Result<()> {
    let mongod = Mongod::start(work, "mongod-requests").await?;
    report.machine().version("mongod", mongod.version().await?);
    // Only its key is used.
    let tokens = Tokens::prepare(&work.cache(), 1).await?;
    let jwks = Jwks::serve(&tokens).await?;
    let load = Load::prepare(&tokens, &jwks.domain(), options.cold_tokens).await?;
    let bench = Bench { work, options, mongod: &mongod, domain: jwks.domain(), load };
    let mut turns = Turns::new();
    for round in 1..=options.rounds {
        eprintln!("  round {round} of {}", options.rounds);
        let document = bench.kinsync(&format!("requests{round}"), &mut turns).await?;
        turns.baseline.push(bench.baseline(Me::Constant(&document)).await?);
        turns.lookup.push(bench.baseline(Me::ByToken(&document)).await?);
        turns.peer.push(bench.peer(&format!("requests-peer{round}"), &mut turns.sizes).await?);
    }
    drop(mongod);
    add_rows(&turns, options, report);
    inside::measure(work, options, report).await
}

/// The requests.
struct Load {
    /// Deliveries that create the users.
    deliveries: Arc<Requests>,
    /// A request for each user with the same token each time.
    warm: Arc<Requests>,
    /// The same requests; the response must be the document of the first user.
    constant: Arc<Requests>,
    /// Requests with many tokens for each user, each sent once.
    cold: Arc<Requests>,
}

impl Load {
    async fn prepare(tokens: &Tokens, issuer: &str, cold: usize) -> anyhow::Result<Self> {
        eprintln!("  signing {cold} access tokens");
        let mut source = Source::now();
        let events: Vec<Event> = (0..PEOPLE).map(|user| source.event(user, Kind::Created)).collect();
        let people: Vec<u64> = (0..PEOPLE).collect();
        let once: Vec<u64> = (0..PEOPLE).cycle().take(cold).collect();
        let warm = tokens.access(issuer, people.clone()).await?;
        let cold = tokens.access(issuer, once.clone()).await?;
        let of = |tokens: &[String], users: &mut dyn Iterator<Item = u64>| {
            Arc::new(Requests::me(tokens.iter().map(String::as_str).zip(users.map(user_id))))
        };
        Ok(Self {
            deliveries: Arc::new(Requests::hmac(SECRET, &events)),
            warm: of(&warm, &mut people.into_iter()),
            constant: of(&warm, &mut std::iter::repeat(0)),
            cold: of(&cold, &mut once.into_iter()),
        })
    }
}

/// The results of the turns.
struct Turns {
    warm: Series,
    cold: Series,
    baseline: Series,
    lookup: Series,
    peer: Series,
    /// Calls to MongoDB per second with known tokens.
    calls: Vec<f64>,
    /// Sizes of the documents of kinsync and of the peer in bytes.
    sizes: [usize; 2],
}

impl Turns {
    fn new() -> Self {
        let series = || Series::new(PART);
        let (warm, cold, peer) = (series(), series(), series());
        let (baseline, lookup) = (series(), series());
        Self { warm, cold, baseline, lookup, peer, calls: Vec::new(), sizes: [0; 2] }
    }
}

struct Bench<'a> {
    work: &'a Work,
    options: &'a Options,
    mongod: &'a Mongod,
    domain: String,
    load: Load,
}

impl Bench<'_> {
    /// Sends each request once at full speed.
    fn once(&self, to: SocketAddr, requests: &Arc<Requests>, window: Duration) -> Plan {
        let (requests, connections) = (Arc::clone(requests), self.options.connections);
        Plan { to, connections, requests, cycle: false, warmup: Duration::ZERO, window, pace: Pace::Closed }
    }

    /// Repeats the requests.
    fn again(&self, to: SocketAddr, requests: &Arc<Requests>) -> Plan {
        Plan { cycle: true, warmup: WARMUP, ..self.once(to, requests, self.options.window()) }
    }

    /// Sends each request once and checks each response.
    async fn all(&self, to: SocketAddr, requests: &Arc<Requests>) -> anyhow::Result<()> {
        let outcome = load::run(self.once(to, requests, TIMEOUT)).await?;
        anyhow::ensure!(outcome.problem().is_none(), "before the measurement: {:?}", outcome.problem());
        anyhow::ensure!(outcome.accepted == requests.len() as u64, "not done in {TIMEOUT:?}");
        Ok(())
    }

    /// Runs two turns. Returns the file with the document of the first user.
    async fn kinsync(&self, name: &str, turns: &mut Turns) -> anyhow::Result<PathBuf> {
        let settings = Settings {
            mongodb: Some(self.mongod.uri(name)),
            domain: Some(self.domain.clone()),
            ..Settings::default()
        };
        let mut kinsync = Kinsync::start(self.work, name, &settings).await?;
        let to = kinsync.address();
        self.all(to, &self.load.deliveries).await?;
        kinsync.drained(TIMEOUT).await?;
        self.all(to, &self.load.warm).await?;
        let document = self.document(to).await?;
        let (before, start) = (kinsync.metrics().await?, Instant::now());
        let (_, mut warm) =
            Turn::run(self.again(to, &self.load.warm), kinsync.process(), self.mongod).await?;
        let (after, took) = (kinsync.metrics().await?, start.elapsed());
        let grown = |name: &str| after.total(name) - before.total(name);
        turns.calls.push(grown("kinsync_store_call_duration_seconds_count") / took.as_secs_f64());
        let without = |samples: &crate::metrics::Samples| {
            samples.labelled("kinsync_authentications_total", "outcome", "degraded")
        };
        let degraded = without(&after) - without(&before);
        warm.fail((degraded > 0.0).then(|| format!("{degraded} responses without MongoDB")));
        let plan = self.once(to, &self.load.cold, self.options.window());
        let (_, cold) = Turn::run(plan, kinsync.process(), self.mongod).await?;
        turns.warm.push(warm);
        turns.cold.push(cold);
        turns.sizes[0] = document.len();
        let file = self.work.path().join(format!("{name}.json"));
        fs::write(&file, document)?;
        self.mongod.database(name).drop().await?;
        Ok(file)
    }

    async fn baseline(&self, me: Me<'_>) -> anyhow::Result<Turn> {
        let server = Peer::baseline(self.work, me).await?;
        let plan = self.again(server.address(), &self.load.constant);
        Ok(Turn::run(plan, server.process(), self.mongod).await?.1)
    }

    async fn peer(&self, name: &str, sizes: &mut [usize; 2]) -> anyhow::Result<Turn> {
        let server = Peer::express(self.work, &self.mongod.uri(name), &self.domain).await?;
        let to = server.address();
        self.all(to, &self.load.deliveries).await?;
        self.all(to, &self.load.warm).await?;
        sizes[1] = self.document(to).await?.len();
        let turn = Turn::run(self.again(to, &self.load.warm), server.process(), self.mongod).await?.1;
        drop(server);
        self.mongod.database(name).drop().await?;
        Ok(turn)
    }

    /// The document of the first user.
    async fn document(&self, to: SocketAddr) -> anyhow::Result<Vec<u8>> {
        let mut connection = Connection::open(to).await?;
        let (status, body) = connection.send(self.load.warm.get(0)).await.context("requesting a document")?;
        anyhow::ensure!(status == 200, "/api/me answered {status}");
        Ok(body.to_vec())
    }
}

fn add_rows(turns: &Turns, options: &Options, report: &mut Report) {
    let Turns { warm, cold, baseline, lookup, peer, calls, sizes } = turns;
    let load = format!("{} B, {PEOPLE} users, {} connections", sizes[0], options.connections);
    report.add(baseline.row(&format!("(b) a constant document: {load}")));
    let calls = format!("{:.0} calls to MongoDB per second", Spread::of(calls).median);
    report.add(warm.row("(a) kinsync /api/me, known tokens").note(calls));
    report.add(lookup.row("(b') a document for each token, from a map in memory"));
    report.add(baseline.cpu_row("(b) CPU time per request"));
    report.add(lookup.cpu_row("(b') CPU time per request"));
    report.add(warm.cpu_row("(a) CPU time per request"));
    let Spread { median, min, max } = warm.cpu_over(baseline, 0.0);
    let problem = warm.problem().or_else(|| baseline.problem());
    let row = Row::new(PART, "/api/me: CPU per request, (a)/(b)", median, Unit::Ratio);
    report.add(row.spread(min, max).unless(problem).target(Target::AtMost(1.25)));
    let row = peer.row("(c) Express + jose + Mongoose: findOne and updateOne awaited");
    report.add(row.note(format!("{} B", sizes[1])));
    let why = format!("CPU {}", warm.cpu());
    report.add(warm.ratio("/api/me (a)/(b)", baseline).target(Target::AtLeast(0.8)).because(&why));
    report.add(warm.ratio("/api/me (a)/(b')", lookup));
    report.add(warm.ratio("/api/me (a)/(c)", peer).target(Target::AtLeast(40.0)).because(&why));
    let each = format!("{} tokens of the same users, each sent once", options.cold_tokens);
    report.add(cold.row("(a) kinsync /api/me, new tokens").note(each));
    report.add(warm.ratio("known / new tokens: gain of the token cache", cold));
    let Spread { median, min, max } = cold.cpu_beyond(warm);
    let row = Row::new(PART, "CPU time of kinsync for a new token, beyond a known one", median, Unit::Micros);
    let problem = warm.problem().or_else(|| cold.problem());
    report.add(row.spread(min, max).unless(problem).note("includes its share of background work"));
}
