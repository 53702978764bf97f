//! The HTTP server: addresses, tokens and browsers.

use super::{ROW, Reader, Secrecy, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "http.bind",
        env: "KINSYNC_BIND",
        flag: "bind",
        default: Some("127.0.0.1"),
        example: "0.0.0.0",
        help: "The address to listen on; 0.0.0.0 to accept connections from other machines",
        set: |config, text| {
            put(&mut config.http.bind, value::parsed(text, "an IP address without a port (the port is PORT)"))
        },
        ..ROW
    },
    Setting {
        key: "http.port",
        env: "PORT",
        flag: "port",
        default: Some("5000"),
        example: "5000",
        reader: Reader::Both,
        help: "The port to listen on; 0 for any free port",
        set: |config, text| put(&mut config.http.port, value::parsed(text, "a port from 0 to 65535")),
        ..ROW
    },
    Setting {
        key: "http.metrics_bind",
        env: "KINSYNC_METRICS_BIND",
        flag: "metrics-bind",
        example: "127.0.0.1:9090",
        help: "A separate address and port for /health and /metrics [default: the main address]",
        set: |config, text| put(&mut config.http.metrics_bind, value::socket(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.public_url",
        env: "KINSYNC_PUBLIC_URL",
        flag: "public-url",
        example: "https://app.example.com",
        help: "The address at which Kinde reaches this server, for `webhook setup` and `doctor`; the webhook \
               is /api/webhook below it",
        set: |config, text| put(&mut config.http.public_url, value::public_url(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.webhook_url",
        env: "KINSYNC_WEBHOOK_URL",
        flag: "webhook-url",
        example: "https://app.example.com/hooks/kinde",
        help: "The complete address of the webhook, when a proxy forwards another path to /api/webhook \
               [default: /api/webhook below KINSYNC_PUBLIC_URL]",
        set: |config, text| put(&mut config.http.webhook_url, value::public_url(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.admin_token",
        env: "KINSYNC_ADMIN_TOKEN",
        flag: "admin-token",
        example: "$(openssl rand -hex 32)",
        secrecy: Secrecy::Hidden,
        reader: Reader::Both,
        help: "The token for the admin routes, named `admin` in the audit log; without a token they are disabled. Commands \
               send it to the server",
        set: |config, text| put(&mut config.http.admin_token, value::secret(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.admin_tokens",
        env: "KINSYNC_ADMIN_TOKENS",
        flag: "admin-tokens",
        example: "ada:operate:4d9c1f0b7a6e5d3c2b1a09f8e7d6c5b4,grafana:read:a3928170b5c6d7e8f90a1b2c3d4e5f60",
        secrecy: Secrecy::Hidden,
        help: "Further tokens for the admin routes as NAME:SCOPE:TOKEN, comma separated; SCOPE is `read` or `operate`. \
               Tokens may share a name during a rotation",
        set: |config, text| put(&mut config.http.admin_tokens, value::admin_tokens(text)),
        ..ROW
    },
    Setting {
        key: "http.admin_bind",
        env: "KINSYNC_ADMIN_BIND",
        flag: "admin-bind",
        example: "127.0.0.1:5001",
        help: "A separate address and port for the admin routes [default: the main address]",
        set: |config, text| put(&mut config.http.admin_bind, value::socket(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.admin_hosts",
        env: "KINSYNC_ADMIN_HOSTS",
        flag: "admin-hosts",
        example: "kinsync.internal",
        help: "Further `Host`s of requests to the admin routes on a loopback address, comma separated: other hosts are refused, as a protection against DNS rebinding [default: localhost, IP addresses and the host of KINSYNC_PUBLIC_URL]",
        set: |config, text| put(&mut config.http.admin_hosts, value::hosts(text)),
        ..ROW
    },
    Setting {
        key: "http.tls_certificate",
        env: "KINSYNC_TLS_CERTIFICATE",
        flag: "tls-certificate",
        example: "/etc/kinsync/tls.crt",
        help: "A PEM file with the certificate chain for TLS on the main address and KINSYNC_ADMIN_BIND; read again when it \
               changes [default: plain HTTP]",
        set: |config, text| put(&mut config.http.tls_certificate, Ok(Some(text.into()))),
        ..ROW
    },
    Setting {
        key: "http.tls_key",
        env: "KINSYNC_TLS_KEY",
        flag: "tls-key",
        example: "/etc/kinsync/tls.key",
        help: "A PEM file with the private key of the certificate",
        set: |config, text| put(&mut config.http.tls_key, Ok(Some(text.into()))),
        ..ROW
    },
    Setting {
        key: "http.cors_origins",
        env: "KINSYNC_CORS_ORIGINS",
        flag: "cors-origins",
        example: "https://app.example.com",
        help: "Origins of front ends that may call /api/me and /api/profile from a browser, comma separated [default: \
               same origin only]",
        set: |config, text| put(&mut config.http.cors_origins, value::origins(text)),
        ..ROW
    },
    Setting {
        key: "http.token_cookie",
        env: "KINSYNC_TOKEN_COOKIE",
        flag: "token-cookie",
        example: "access_token",
        help: "Also read the access token from this cookie at /api/me, /api/profile and /auth/verify. Set the cookie with \
               SameSite=Lax or Strict, and protect your application against CSRF [default: `Authorization` only]",
        set: |config, text| put(&mut config.http.token_cookie, value::cookie_name(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "http.unknown_roles",
        env: "KINSYNC_UNKNOWN_ROLES",
        flag: "unknown-roles",
        default: Some("refuse"),
        example: "token",
        help: "What happens if a role or permission is required and those of the user are not known: `refuse` (403 roles_unknown), or `token` (the claims of the token are used, which may be a day old)",
        set: |config, text| put(&mut config.http.unknown_roles, value::unknown_roles(text)),
        ..ROW
    },
];
