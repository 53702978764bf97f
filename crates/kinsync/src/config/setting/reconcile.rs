//! Scans of Kinde, and what they may delete without approval.

use super::{ROW, Setting, put};
use crate::config::value;

/// The settings of this area, in the order in which they are shown.
pub(super) static ROWS: &[Setting] = &[
    Setting {
        key: "reconcile.every",
        env: "KINSYNC_RECONCILE_EVERY",
        flag: "reconcile-every",
        default: Some("1h"),
        example: "1h",
        help: "The interval between two scans of all users at Kinde, when KINDE_M2M_CLIENT_ID is set; `off`: \
               only on request",
        set: |config, text| put(&mut config.reconcile.every, value::interval(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.page_size",
        env: "KINSYNC_RECONCILE_PAGE_SIZE",
        flag: "reconcile-page-size",
        default: Some("200"),
        example: "200",
        help: "The number of users in one request to the Management API, up to 500",
        set: |config, text| put(&mut config.reconcile.page_size, value::page_size(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.roles",
        env: "KINSYNC_RECONCILE_ROLES",
        flag: "reconcile-roles",
        default: Some("false"),
        example: "true",
        help: "Whether scans compare the roles of the members of every organization too; needs the scopes \
               read:organizations, read:organization_users, read:organization_user_roles, \
               read:organization_user_permissions, read:roles, read:role_permissions and read:permissions, and at \
               least one request per organization and role",
        set: |config, text| put(&mut config.reconcile.roles, value::flag(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.roles_every",
        env: "KINSYNC_RECONCILE_ROLES_EVERY",
        flag: "reconcile-roles-every",
        example: "6h",
        help: "The shortest interval between two scans that compare roles; the other scans compare only the users [default: each scan]",
        set: |config, text| put(&mut config.reconcile.roles_every, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.permission_reads",
        env: "KINSYNC_PERMISSION_READS",
        flag: "permission-reads",
        default: Some("1000"),
        example: "1000",
        help: "The number of members with unknown permissions that one scan with `reconcile.roles` reads, with two requests for each; the next \
               scans continue",
        set: |config, text| put(&mut config.reconcile.permission_reads, value::whole(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.properties",
        env: "KINSYNC_PROPERTIES",
        flag: "properties",
        example: "kp_usr_city,plan",
        help: "The properties of users to mirror under `properties` of the user document, by key, comma separated; `*` for all that \
               are not private (needs the scope read:properties); a private property only by its key [default: none]",
        set: |config, text| {
            config.reconcile.properties = value::list(text).into_iter().map(str::to_owned).collect();
            Ok(())
        },
        ..ROW
    },
    Setting {
        key: "reconcile.properties_every",
        env: "KINSYNC_PROPERTIES_EVERY",
        flag: "properties-every",
        default: Some("24h"),
        example: "24h",
        help: "The shortest interval between two scans that compare properties, for which Kinde sends no events; such a scan lists all users once more",
        set: |config, text| put(&mut config.reconcile.properties_every, value::duration(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.max_deletes",
        env: "KINSYNC_RECONCILE_MAX_DELETES",
        flag: "reconcile-max-deletes",
        default: Some("20"),
        example: "20",
        help: "The number of deletions in 24 hours, over all scans, that need no approval by an operator",
        set: |config, text| put(&mut config.reconcile.max_deletes, value::whole(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.max_delete_share",
        env: "KINSYNC_RECONCILE_MAX_DELETE_SHARE",
        flag: "reconcile-max-delete-share",
        default: Some("5%"),
        example: "5%",
        help: "The share of live users that may be deleted without approval in 24 hours; deletions are held when both \
               limits, or half of the live users, are exceeded",
        set: |config, text| put(&mut config.reconcile.max_delete_share, value::share(text)),
        ..ROW
    },
    Setting {
        key: "reconcile.unknown_user_codes",
        env: "KINSYNC_UNKNOWN_USER_CODES",
        flag: "unknown-user-codes",
        example: "NO_SUCH_USER",
        help: "Further error codes with which Kinde reports, with status 400, that a user does not exist, \
               comma separated; a user with another code is left as it is, and the log names the code",
        set: |config, text| {
            let codes = value::list(text).into_iter().map(str::to_owned).collect();
            put(&mut config.reconcile.unknown_user_codes, Ok(codes))
        },
        ..ROW
    },
];
