//! The Kinde tenant and its credentials.

use super::{ROW, Secrecy, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "kinde.domain",
        env: "KINDE_DOMAIN",
        flag: "kinde-domain",
        example: "https://acme.kinde.com",
        help: "The Kinde tenant; its signing keys verify the webhooks that Kinde signs itself",
        set: |config, text| put(&mut config.kinde.domain, value::domain(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "kinde.issuers",
        env: "KINDE_ISSUERS",
        flag: "kinde-issuers",
        example: "https://acme.kinde.com,https://auth.acme.com",
        help: "The trusted issuers of access tokens, comma separated, for tenants with custom domains \
               [default: KINDE_DOMAIN]",
        set: |config, text| {
            put(&mut config.kinde.issuers, value::list(text).into_iter().map(value::domain).collect())
        },
        ..ROW
    },
    Setting {
        key: "kinde.audience",
        env: "KINDE_AUDIENCE",
        flag: "kinde-audience",
        example: "https://api.acme.com",
        help: "The accepted audiences of access tokens, comma separated [default: any]",
        set: |config, text| {
            put(&mut config.kinde.audience, Ok(value::list(text).into_iter().map(str::to_owned).collect()))
        },
        ..ROW
    },
    Setting {
        key: "kinde.allowed_client_ids",
        env: "KINDE_ALLOWED_CLIENT_IDS",
        flag: "kinde-allowed-client-ids",
        example: "dee7f3c57b3c47e8b96edde2c7ecab7d",
        help: "Client ids of the applications: only access tokens issued to them are accepted; comma separated [default: all]",
        set: |config, text| {
            put(
                &mut config.kinde.allowed_client_ids,
                Ok(value::list(text).into_iter().map(str::to_owned).collect()),
            )
        },
        ..ROW
    },
    Setting {
        key: "kinde.webhook_secret",
        env: "KINDE_WEBHOOK_SECRET",
        flag: "kinde-webhook-secret",
        example: "new-secret,old-secret",
        secrecy: Secrecy::Hidden,
        help: "The secrets that verify deliveries signed by HMAC-SHA256, comma separated; several during a rotation",
        set: |config, text| put(&mut config.kinde.webhook_secrets, value::secrets(text)),
        ..ROW
    },
    Setting {
        key: "kinde.standard_webhooks_secret",
        env: "KINSYNC_STANDARD_WEBHOOKS_SECRET",
        flag: "standard-webhooks-secret",
        example: "whsec_bmV3LXNlY3JldC1vZi0zMi1ieXRlcy0wMDAwMDAwMDA=",
        secrecy: Secrecy::Hidden,
        help: "The secrets that verify deliveries signed by Standard Webhooks, in base64, comma separated; several \
               during a rotation",
        set: |config, text| put(&mut config.kinde.standard_webhooks_secrets, value::secrets(text)),
        ..ROW
    },
    Setting {
        key: "kinde.m2m_client_id",
        env: "KINDE_M2M_CLIENT_ID",
        flag: "kinde-m2m-client-id",
        example: "0f1e2d3c4b5a69788796a5b4c3d2e1f0",
        help: "The client id of the machine-to-machine application that reads Kinde's Management API",
        set: |config, text| put(&mut config.kinde.m2m_client_id, Ok(Some(text.into()))),
        ..ROW
    },
    Setting {
        key: "kinde.m2m_client_secret",
        env: "KINDE_M2M_CLIENT_SECRET",
        flag: "kinde-m2m-client-secret",
        example: "the-secret-that-kinde-shows-once",
        secrecy: Secrecy::Hidden,
        help: "The client secret of that application",
        set: |config, text| put(&mut config.kinde.m2m_client_secret, value::secret(text).map(Some)),
        ..ROW
    },
];
