//! Each secret of `docs/guides/security.md` is rotated by the steps of the guide, while a sender delivers without a pause: no delivery
//! is refused.

use std::{
    io::Write as _,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed},
    },
    thread,
    time::Duration,
};

use kinde_emulator::{Config, DeliveryState, Emulator, NewUser, Overlap, TokenSpec, WebhookSpec};

use crate::server::{Server, answer};

const OLD: &str = "the-old-secret-of-32-characters-x";
const NEW: &str = "the-new-secret-of-32-characters-x";
/// The same in base64, as Standard Webhooks has them.
const OLD_STANDARD: &str = "whsec_dGhlLW9sZC1zZWNyZXQtb2YtMzItY2hhcmFjdGVycy14";
const NEW_STANDARD: &str = "whsec_dGhlLW5ldy1zZWNyZXQtb2YtMzItY2hhcmFjdGVycy14";

/// How a sender signs, and the setting with its secrets.
#[derive(Clone, Copy)]
enum Signing {
    Hmac,
    StandardWebhooks,
}

impl Signing {
    fn setting(self) -> &'static str {
        match self {
            Self::Hmac => "KINDE_WEBHOOK_SECRET",
            Self::StandardWebhooks => "KINSYNC_STANDARD_WEBHOOKS_SECRET",
        }
    }

    fn headers(self, secret: &str, id: &str, body: &str) -> String {
        match self {
            Self::Hmac => {
                format!("x-kinde-signature: {}\r\n", kinde::sign::hmac_hex(secret, body.as_bytes()))
            }
            Self::StandardWebhooks => {
                let now = std::time::UNIX_EPOCH.elapsed().unwrap().as_secs();
                let signature =
                    kinde::sign::standard_webhooks(secret, id, now.try_into().unwrap(), body.as_bytes())
                        .unwrap();
                format!("webhook-id: {id}\r\nwebhook-timestamp: {now}\r\nwebhook-signature: {signature}\r\n")
            }
        }
    }
}

/// Sends a delivery: the status, or 0 without a response.
fn deliver(address: std::net::SocketAddr, signing: Signing, secret: &str, n: usize) -> u16 {
    let Ok(mut stream) = std::net::TcpStream::connect(address) else { return 0 };
    stream.set_read_timeout(Some(Duration::from_mins(2))).unwrap();
    let id = format!("e{n}");
    let body = format!(r#"{{"type":"user.created","event_id":"{id}","data":{{"user":{{"id":"u{n}"}}}}}}"#);
    let head = "POST /api/webhook HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\n";
    let headers = signing.headers(secret, &id, &body);
    _ = write!(stream, "{head}{headers}content-length: {}\r\n\r\n{body}", body.len());
    answer(&mut stream).0
}

fn rotate(signing: Signing, old: &'static str, new: &'static str) {
    let setting = signing.setting();
    let mut server = Server::start(&[(setting, old)]);
    let (secret, stop, sent) = (Mutex::new(old), AtomicBool::new(false), AtomicUsize::new(0));
    let (statuses, address) = (Mutex::new(Vec::new()), server.address);
    thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Relaxed) {
                let n = sent.fetch_add(1, Relaxed);
                let status = deliver(address, signing, *secret.lock().unwrap(), n);
                statuses.lock().unwrap().push(status);
            }
        });
        let accepted = || statuses.lock().unwrap().iter().filter(|status| **status == 200).count();
        let wait_for_more = || {
            let before = accepted();
            let deadline = tokio::time::Instant::now() + Duration::from_secs(30);
            while accepted() < before + 5 {
                assert!(tokio::time::Instant::now() < deadline, "{:?}", statuses.lock().unwrap());
                thread::yield_now();
            }
        };
        wait_for_more();
        server.restart(&[(setting, &format!("{new},{old}"))]);
        wait_for_more();
        *secret.lock().unwrap() = new;
        wait_for_more();
        server.restart(&[(setting, new)]);
        wait_for_more();
        stop.store(true, Relaxed);
    });
    let statuses = statuses.into_inner().unwrap();
    assert!(statuses.iter().all(|status| matches!(status, 0 | 200)), "{statuses:?}");
    assert_eq!(deliver(address, signing, old, usize::MAX), 401, "the old secret is of no use any more");
}

#[test]
fn the_secret_of_hmac_deliveries_is_rotated_without_a_refused_delivery() {
    rotate(Signing::Hmac, OLD, NEW);
}

#[test]
fn the_secret_of_standard_webhooks_is_rotated_without_a_refused_delivery() {
    rotate(Signing::StandardWebhooks, OLD_STANDARD, NEW_STANDARD);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_signing_key_of_kinde_is_rotated_without_a_refused_delivery_or_login() {
    let kinde = Emulator::start(Config::default()).await.unwrap();
    let issuer = kinde.issuer().to_owned();
    let server =
        tokio::task::spawn_blocking(move || Server::start(&[("KINDE_DOMAIN", &issuer)])).await.unwrap();
    kinde.add_webhook(WebhookSpec::new(format!("{}/api/webhook", server.url()).parse().unwrap()));
    let client = reqwest::Client::builder().timeout(Duration::from_mins(2)).build().unwrap();
    let login = async |user: &str| {
        let token = kinde.access_token(user, &TokenSpec::default()).unwrap();
        let request = client.get(format!("{}/api/me", server.url())).bearer_auth(token);
        request.send().await.unwrap().status().as_u16()
    };
    let deadline = tokio::time::Instant::now() + Duration::from_mins(3);
    for n in 0..2 {
        let user =
            kinde.create_user(NewUser::named(&format!("user{n}@example.com"), "First", "Last")).unwrap().id;
        // The keys are fetched again at most once per cool-down: until then 503, with `Retry-After`.
        loop {
            let status = login(&user).await;
            assert!(
                matches!(status, 200 | 503) && tokio::time::Instant::now() < deadline,
                "{status} after {n} rotations"
            );
            if status == 200 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        kinde.quiesce(Duration::from_mins(2)).await.unwrap();
        kinde.rotate_keys(Overlap::Keep).unwrap();
    }
    let deliveries = kinde.deliveries();
    assert!(deliveries.iter().all(|delivery| delivery.state == DeliveryState::Delivered), "{deliveries:?}");
    let page = client.get(format!("{}/metrics", server.url())).send().await.unwrap().text().await.unwrap();
    let refused = |line: &&str| {
        line.starts_with("kinsync_delivery_verification_failures_total") && !line.ends_with(" 0")
    };
    assert_eq!(page.lines().find(refused), None);
}
