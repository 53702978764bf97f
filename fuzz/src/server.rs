//! A server inside the process: the real routes on an embedded queue and store.

use std::sync::Arc;

use axum::Router;
use kinsync::app::{App, AppState};
use kinsync::config::Config;
use kinsync::http::router;
use tokio::runtime::{Builder, Runtime};

pub const ADMIN_TOKEN: &str = "a token that no input guesses: 7d1c2f2a9b";

pub struct Server {
    pub runtime: Runtime,
    pub router: Router,
    pub state: Arc<AppState>,
    _folder: tempfile::TempDir,
}

impl Server {
    pub fn start() -> Self {
        let runtime = Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
        // In memory where possible: the audit log is synced for each record.
        let folder = tempfile::tempdir_in("/dev/shm").or_else(|_| tempfile::tempdir()).expect("a folder");
        let config = Config::from_vars([
            ("PORT", "0"),
            // Nothing listens there: no token can be verified.
            ("KINDE_DOMAIN", "http://127.0.0.1:9"),
            ("KINDE_WEBHOOK_SECRET", "a secret that no input guesses: 7d1c2f2a9b"),
            ("KINSYNC_ADMIN_TOKEN", ADMIN_TOKEN),
            ("KINSYNC_TOKEN_COOKIE", "token"),
            ("KINSYNC_CORS_ORIGINS", "https://app.example.com"),
            ("KINSYNC_DATA_DIR", folder.path().to_str().expect("a UTF-8 path")),
        ]);
        let config = config.unwrap_or_else(|problems| panic!("{problems}"));
        let app = runtime.block_on(App::start(config)).expect("the server starts");
        let state = Arc::clone(app.state());
        let router = router::public(&state);
        Self { runtime, router, state, _folder: folder }
    }
}
