//! TLS to real servers of the shared queue, with an authority that the test makes.

#![expect(clippy::unwrap_used, reason = "tests")]

use std::fs;

use kinsync_testing::{
    app::TestApp,
    free_port,
    rabbitmq::TestRabbitmq,
    redis::{DURABLE, TestRedis},
};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use tempfile::TempDir;

use crate::{
    doctor::examine,
    queue_move::{counts, delivery, fill, folder, in_redis, queue_move},
    shared_queue::{WITHIN, created},
    tenant::Tenant,
};

/// An authority, and the certificate and key of a server with this name.
struct Files(TempDir);

impl Files {
    fn new(name: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        fs::write(folder.path().join("ca.pem"), authority.self_signed(&key).unwrap().pem()).unwrap();
        let issuer = Issuer::new(authority, key);
        let key = KeyPair::generate().unwrap();
        let server = CertificateParams::new([name.to_owned()]).unwrap().signed_by(&key, &issuer).unwrap();
        fs::write(folder.path().join("server.pem"), server.pem()).unwrap();
        fs::write(folder.path().join("server.key"), key.serialize_pem()).unwrap();
        Self(folder)
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn redis_with_tls_is_used_if_its_certificate_is_of_a_known_authority_and_its_name() {
    let files = Files::new("localhost");
    let (_redis, port) = redis_with_tls(&files);
    is_used(&format!("rediss://HOST:{port}"), &files).await;
}

/// A server with a port for TLS beside the usual one.
fn redis_with_tls(files: &Files) -> (TestRedis, u16) {
    let port = free_port();
    let (ca, certificate, key) = (files.path("ca.pem"), files.path("server.pem"), files.path("server.key"));
    let port_text = port.to_string();
    let tls = ["--tls-port", &port_text, "--tls-cert-file", &certificate, "--tls-key-file", &key];
    let clients = ["--tls-ca-cert-file", &ca, "--tls-auth-clients", "no"];
    (TestRedis::start(&[DURABLE, &tls, &clients].concat()), port)
}

/// Redis takes an entry that it knows as stored, so a move into itself would ack the only copy.
#[tokio::test(flavor = "multi_thread")]
async fn a_queue_in_redis_is_not_moved_into_itself_with_and_without_tls() {
    let (files, (_own, own)) = (Files::new("localhost"), folder());
    let ((redis, port), ca) = (redis_with_tls(&files), files.path("ca.pem"));
    let queue = in_redis(&redis, "kinsync");
    fill(&queue, (0..3).map(|id| delivery(&id.to_string(), 10))).await;
    let (plain, tls) = (redis.url(), format!("rediss://localhost:{port}"));
    for (to, from) in [(&plain, &tls), (&tls, &plain), (&tls, &tls), (&tls, &format!("{tls}/0"))] {
        let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &**to), ("SSL_CERT_FILE", &*ca)];
        let (code, _, error) = queue_move(&["--from", from], &vars).await;
        assert!(
            code == Some(1) && error.contains("is the queue of this"),
            "{from} to {to}: {code:?}: {error}"
        );
        assert_eq!(counts(&queue).await, (3, 0), "{from} to {to}");
    }
    let vars = [("KINSYNC_DATA_DIR", &*own), ("KINSYNC_QUEUE", &*plain), ("SSL_CERT_FILE", &*ca)];
    let (code, printed, error) = queue_move(&["--from", &format!("{tls}/1")], &vars).await;
    assert_eq!((code, &*printed), (Some(0), "0 deliveries moved\n"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn rabbitmq_with_tls_is_used_if_its_certificate_is_of_a_known_authority_and_its_name() {
    let (files, port) = (Files::new("localhost"), free_port());
    let _rabbitmq = TestRabbitmq::start_with(&format!(
        "listeners.ssl.1 = 127.0.0.1:{port}\nssl_options.cacertfile = {}\nssl_options.certfile = {}\nssl_options.keyfile = {}\n\
         ssl_options.verify = verify_none\nssl_options.fail_if_no_peer_cert = false\n",
        files.path("ca.pem"),
        files.path("server.pem"),
        files.path("server.key")
    ));
    is_used(&format!("amqps://HOST:{port}"), &files).await;
}

/// Sentinels and servers with TLS only.
#[tokio::test(flavor = "multi_thread")]
async fn sentinels_and_their_primary_with_tls_are_used() {
    let (files, port, sentinel_port) = (Files::new("127.0.0.1"), free_port(), free_port());
    let names =
        [("tls-cert-file", "server.pem"), ("tls-key-file", "server.key"), ("tls-ca-cert-file", "ca.pem")];
    let mut settings: Vec<String> = names.map(|(name, file)| format!("{name} {}", files.path(file))).into();
    settings.extend(["tls-auth-clients no".into(), "tls-replication yes".into()]);
    let options: Vec<String> =
        std::iter::once(format!("tls-port {port}")).chain(settings.iter().cloned()).collect();
    let options: Vec<String> = options
        .iter()
        .flat_map(|line| format!("--{line}").split(' ').map(str::to_owned).collect::<Vec<_>>())
        .collect();
    let options: Vec<&str> = options.iter().map(String::as_str).collect();
    let _primary = TestRedis::start(&[DURABLE, &options].concat());
    settings.push(format!("tls-port {sentinel_port}"));
    let lines: Vec<&str> = settings.iter().map(String::as_str).collect();
    let _sentinel = TestRedis::start_sentinel("main", port, 1, &lines);
    let mut tenant = Tenant::start().await;
    tenant.set("SSL_CERT_FILE", files.path("ca.pem"));
    tenant.set("KINSYNC_QUEUE", format!("rediss+sentinel://127.0.0.1:{sentinel_port}/main"));
    examine(&tenant, &[]).is("queue.reachable", "ok", &[&format!("127.0.0.1:{port}"), "`main`"]);
    let other = Files::new("127.0.0.1");
    tenant.set("SSL_CERT_FILE", other.path("ca.pem"));
    examine(&tenant, &[]).is("queue.reachable", "failed", &["certificate", "SSL_CERT_FILE"]);
}

async fn is_used(url: &str, files: &Files) {
    let mut tenant = Tenant::start().await;
    let (right, other) = (files.path("ca.pem"), Files::new("localhost"));
    let (named, unnamed) = (url.replace("HOST", "localhost"), url.replace("HOST", "127.0.0.1"));
    tenant.set("SSL_CERT_FILE", &right).set("KINSYNC_QUEUE", &named);
    examine(&tenant, &[]).is("queue.reachable", "ok", &["answers"]);
    tenant.set("KINSYNC_QUEUE", unnamed);
    examine(&tenant, &[]).is("queue.reachable", "failed", &["certificate", "one of its names"]);
    tenant.set("KINSYNC_QUEUE", &named).set("SSL_CERT_FILE", other.path("ca.pem"));
    examine(&tenant, &[]).is("queue.reachable", "failed", &["certificate", "SSL_CERT_FILE"]);
    let mut app = TestApp::new(env!("CARGO_BIN_EXE_kinsync")).unwrap();
    app.set("KINSYNC_QUEUE", named).set("SSL_CERT_FILE", right);
    app.start().await.unwrap();
    assert_eq!(app.deliver(created("kp_tls")).await.unwrap(), 200);
    app.drained(WITHIN).await.unwrap();
    assert_eq!(app.admin("/stats").await.unwrap().unwrap()["queue"]["spooled"], 0);
    app.stop().await.unwrap();
}
