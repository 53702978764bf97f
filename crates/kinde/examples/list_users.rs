//! Lists the users of a tenant with the Management API.
//!
//! ```sh
//! KINDE_DOMAIN=https://acme.kinde.com KINDE_CLIENT_ID=… KINDE_CLIENT_SECRET=… \
//!     cargo run -p kinde --example list_users --features management
//! ```
#![expect(clippy::print_stdout, clippy::disallowed_methods, reason = "an example without configuration")]

use kinde::management::{Client, Config};

#[tokio::main]
async fn main() -> Result<(), Box<dyn std::error::Error>> {
    let domain = kinde::parse_domain(&std::env::var("KINDE_DOMAIN")?)?;
    let (id, secret) = (std::env::var("KINDE_CLIENT_ID")?, std::env::var("KINDE_CLIENT_SECRET")?);
    let client = Client::new(Config::new(domain, id, secret.into()))?;
    let mut pages = client.users();
    while let Some(page) = pages.next().await? {
        for user in page.items {
            println!("{} {}", user.id, user.email.into_value().unwrap_or_default());
        }
    }
    Ok(())
}
