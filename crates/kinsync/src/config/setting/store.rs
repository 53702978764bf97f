//! The store of users.

use kinsync_engine::config::Derived;

use super::{ROW, Secrecy, Setting, put};
use crate::config::{Config, value};

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "store.mongodb_uri",
        env: "MONGODB_URI",
        flag: "mongodb-uri",
        example: "mongodb://127.0.0.1:27017/app?replicaSet=rs0",
        secrecy: Secrecy::Credentials,
        help: "The MongoDB deployment that stores the users [default: a file in the data folder]",
        set: |config, text| put(&mut config.store.mongodb_uri, value::mongodb_uri(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.database",
        env: "KINSYNC_DATABASE",
        flag: "database",
        example: "app",
        help: "The database [default: the one in MONGODB_URI, else kinsync]",
        set: |config, text| put(&mut config.store.database, value::name(text).map(Some)),
        ..ROW
    },
    Setting {
        key: "store.users_collection",
        env: "KINSYNC_USERS_COLLECTION",
        flag: "users-collection",
        default: Some("users"),
        example: "users",
        help: "The collection of users; fields of your own in it are not changed",
        set: |config, text| put(&mut config.store.users, value::name(text)),
        ..ROW
    },
    Setting {
        key: "store.events_collection",
        env: "KINSYNC_EVENTS_COLLECTION",
        flag: "events-collection",
        default: Some("user_events"),
        example: "user_events",
        help: "The collection of the event log",
        set: |config, text| put(&mut config.store.events, value::name(text)),
        ..ROW
    },
    Setting {
        key: "store.organizations_collection",
        env: "KINSYNC_ORGANIZATIONS_COLLECTION",
        flag: "organizations-collection",
        example: "organizations",
        help: "The collection with one document per organization; fields of your own in it are not changed [default: none, because many applications have a collection of that name]",
        set: |config, text| derived(config, Derived::Organizations, text),
        ..ROW
    },
    Setting {
        key: "store.roles_collection",
        env: "KINSYNC_ROLES_COLLECTION",
        flag: "roles-collection",
        example: "kinde_roles",
        help: "The collection with one document per role [default: none]",
        set: |config, text| derived(config, Derived::Roles, text),
        ..ROW
    },
    Setting {
        key: "store.memberships_collection",
        env: "KINSYNC_MEMBERSHIPS_COLLECTION",
        flag: "memberships-collection",
        example: "memberships",
        help: "The collection with one document per user and organization [default: none]",
        set: |config, text| derived(config, Derived::Memberships, text),
        ..ROW
    },
    Setting {
        key: "store.unique_email",
        env: "KINSYNC_UNIQUE_EMAIL",
        flag: "unique-email",
        default: Some("true"),
        example: "false",
        help: "Whether a unique index prevents two live users from showing the same email address",
        set: |config, text| put(&mut config.store.unique_email, value::flag(text)),
        ..ROW
    },
    Setting {
        key: "store.link_by_email",
        env: "KINSYNC_LINK_BY_EMAIL",
        flag: "link-by-email",
        default: Some("verified"),
        example: "never",
        help: "When to link a document without a Kinde id to the user with its email address: `verified` (once Kinde \
               has verified the address), `verified-ignore-case` (also if the case differs) or `never`",
        set: |config, text| put(&mut config.store.link_by_email, value::link_by_email(text)),
        ..ROW
    },
    Setting {
        key: "store.lowercase_email",
        env: "KINSYNC_LOWERCASE_EMAIL",
        flag: "lowercase-email",
        default: Some("false"),
        example: "true",
        help: "Whether documents in MongoDB show `email` in lower case, as Mongoose writes a key with `lowercase: true`; users \
               with one address in different cases then compete for it",
        set: |config, text| put(&mut config.store.lowercase_email, value::flag(text)),
        ..ROW
    },
    Setting {
        key: "store.tombstone_email",
        env: "KINSYNC_TOMBSTONE_EMAIL",
        flag: "tombstone-email",
        default: Some("keep"),
        example: "placeholder",
        help: "What happens to the address of a deleted user where a unique index or a validator of the database refuses a \
               document without one: `keep`, or `placeholder` (`deleted+<Kinde id>@kinsync.invalid`)",
        set: |config, text| put(&mut config.store.tombstone_email, value::tombstone_email(text)),
        ..ROW
    },
    Setting {
        key: "store.retention",
        env: "KINSYNC_RETENTION",
        flag: "retention",
        default: Some("off"),
        example: "user.updated=90d,*=365d",
        help: "How long entries of the event log are kept, by type, comma separated, at least 7d; `*` for all other types. Before old \
               entries of a user are removed, one entry with their content is written, so `kinsync rebuild` works as before; `off`: without a limit",
        set: |config, text| put(&mut config.store.retention, value::retention(text)),
        ..ROW
    },
    Setting {
        key: "store.erase_deleted_after",
        env: "KINSYNC_ERASE_DELETED_AFTER",
        flag: "erase-deleted-after",
        default: Some("off"),
        example: "30d",
        help: "The time after the deletion of a user at which the personal data is erased, as by `kinsync users erase`; at least 7d; \
               `off`: only on request",
        set: |config, text| put(&mut config.store.erase_deleted_after, value::age(text)),
        ..ROW
    },
    Setting {
        key: "store.refused_users",
        env: "KINSYNC_REFUSED_USERS",
        flag: "refused-users",
        default: Some("refuse"),
        example: "pass",
        help: "The answer to requests of a user if an index or a validator of the database refuses the document: \
               `refuse` (503 document_refused, 403 at /auth/verify) or `pass` (marked as degraded)",
        set: |config, text| put(&mut config.store.refused_users, value::refused_users(text)),
        ..ROW
    },
];

fn derived(config: &mut Config, derived: Derived, text: &str) -> Result<(), String> {
    let collection = &mut config.store.derived.entry(derived).or_default().collection;
    put(collection, value::name(text).map(Some))
}
