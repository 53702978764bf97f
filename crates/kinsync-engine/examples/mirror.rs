//! Mirrors the users of a local Kinde into an SQLite file, by one scan.
//!
//! `cargo run -p kinsync-engine --example mirror`

#![expect(clippy::print_stdout, reason = "it prints the users")]

use std::{error::Error, time::Duration};

use kinde::management;
use kinde_emulator::{Emulator, NewUser};
use kinsync_engine::{Engine, UserFilter};

#[tokio::main]
async fn main() -> Result<(), Box<dyn Error>> {
    // With a real tenant: its domain, and a machine-to-machine application with the scope `read:users`.
    let kinde = Emulator::start(kinde_emulator::Config::default()).await?;
    kinde.import_user(NewUser::named("ada@example.com", "Ada", "Lovelace"))?;
    kinde.import_user(NewUser::named("grace@example.com", "Grace", "Hopper"))?;
    let application = kinde.config();
    let tenant = kinde::parse_domain(kinde.issuer())?;
    let api =
        management::Config::new(tenant, &application.client_id, application.client_secret.clone().into());

    let folder = tempfile::tempdir()?;
    let engine = Engine::builder(folder.path()).management(api).open().await?;
    engine.start();
    engine.request_scan().await?;
    let all = UserFilter { limit: 10, ..UserFilter::default() };
    let users = loop {
        let users = engine.users(&all).await?;
        if users.len() == 2 {
            break users;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    };
    for user in users {
        println!("{} {}", user.kinde_id, user.email.unwrap_or_default());
    }
    engine.stop().await;
    kinde.shutdown().await;
    Ok(())
}
