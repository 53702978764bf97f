//! The listener with TLS: certificates made by the test, reloaded while the server runs.

use std::{fs, path::Path, time::Duration};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use reqwest::Certificate;
use tokio::time::Instant;

use crate::server::{Server, TOKEN, kinsync};

/// Writes a new certificate for 127.0.0.1 and its key.
fn certificate(folder: &Path) -> Certificate {
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(["127.0.0.1".to_owned()]).unwrap();
    fs::write(folder.join("tls.crt"), cert.pem()).unwrap();
    fs::write(folder.join("tls.key"), signing_key.serialize_pem()).unwrap();
    Certificate::from_pem(cert.pem().as_bytes()).unwrap()
}

fn vars(folder: &Path) -> [(&'static str, String); 2] {
    let path = |name| folder.join(name).to_str().unwrap().to_owned();
    [("KINSYNC_TLS_CERTIFICATE", path("tls.crt")), ("KINSYNC_TLS_KEY", path("tls.key"))]
}

fn start(folder: &Path, more: &[(&str, &str)]) -> Server {
    let vars = vars(folder);
    let vars: Vec<_> =
        vars.iter().map(|(name, value)| (*name, value.as_str())).chain(more.iter().copied()).collect();
    Server::start(&vars)
}

async fn status(server: &Server, trusted: &Certificate, path: &str) -> Option<u16> {
    let client = reqwest::Client::builder().tls_certs_only([trusted.clone()]).timeout(Duration::from_mins(2));
    let url = format!("https://{}{path}", server.address);
    let response = client.build().unwrap().get(url).bearer_auth(TOKEN).send().await;
    response.ok().map(|response| response.status().as_u16())
}

#[tokio::test]
async fn with_a_certificate_the_server_speaks_tls_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certificate(folder.path());
    let server = start(folder.path(), &[]);
    assert_eq!(status(&server, &trusted, "/api/admin/stats").await, Some(200));
    let other = certificate(tempfile::tempdir().unwrap().path());
    assert_eq!(status(&server, &other, "/health/live").await, None, "another certificate is not accepted");
    assert_eq!(server.request("GET", "/health/live", &[], "").0, 0, "plain HTTP has no answer");
}

#[tokio::test]
async fn a_renewed_certificate_is_used_without_a_restart_and_a_half_written_one_changes_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let old = certificate(folder.path());
    let server = start(folder.path(), &[]);
    let kept = fs::read(folder.path().join("tls.key")).unwrap();
    let new = certificate(folder.path());
    let key = fs::read(folder.path().join("tls.key")).unwrap();
    fs::write(folder.path().join("tls.key"), kept).unwrap();
    let deadline = Instant::now() + Duration::from_mins(1);
    server.wait_for_line("the certificate before them stays in use");
    assert_eq!(status(&server, &old, "/health/live").await, Some(200));
    fs::write(folder.path().join("tls.key"), key).unwrap();
    while status(&server, &new, "/health/live").await != Some(200) {
        assert!(Instant::now() < deadline, "the new certificate is not used");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test]
async fn a_client_that_sends_no_handshake_is_cut_off_and_keeps_no_one_out() {
    let folder = tempfile::tempdir().unwrap();
    let trusted = certificate(folder.path());
    let server = start(folder.path(), &[("KINSYNC_HEAD_DEADLINE", "3s")]);
    let mut silent = server.connect();
    assert_eq!(status(&server, &trusted, "/health/live").await, Some(200));
    assert_eq!(crate::server::answer(&mut silent).0, 0);
}

#[test]
fn files_that_cannot_be_used_are_named_at_the_start() {
    let folder = tempfile::tempdir().unwrap();
    let check = |expected: &str| {
        let vars = vars(folder.path());
        let data = folder.path().join("data");
        let mut command =
            kinsync(&["serve"], &[("PORT", "0"), ("KINDE_WEBHOOK_SECRET", crate::server::SECRET)]);
        let done = command.envs(vars).env("KINSYNC_DATA_DIR", data).output().unwrap();
        let output = String::from_utf8(done.stderr).unwrap();
        assert!(!done.status.success() && output.contains(expected), "{expected}: {output}");
    };
    check("cannot read");
    certificate(folder.path());
    fs::write(folder.path().join("tls.key"), "no key").unwrap();
    check("holds no private key in PEM");
    certificate(folder.path());
    fs::write(folder.path().join("tls.crt"), "").unwrap();
    check("holds no certificate in PEM");
    let kept = {
        certificate(folder.path());
        fs::read(folder.path().join("tls.key")).unwrap()
    };
    certificate(folder.path());
    fs::write(folder.path().join("tls.key"), kept).unwrap();
    check("cannot be used together");
}
