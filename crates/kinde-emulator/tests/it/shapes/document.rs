//! The responses of Kinde's `OpenAPI` document, by method and path.

use super::Shape::{self, Count, Expanded, Flag, List, MissingText, Object, Open, OrNull, Text, Time};

const ERROR: Shape = Object(&[("code", Text), ("message", Text)]);
pub(super) const ERRORS: Shape = Object(&[("errors", List(&ERROR))]);
pub(super) const NOT_FOUND: Shape = Object(&[("errors", ERROR)]);
const SUCCESS: Shape = Object(&[("code", Text), ("message", Text)]);
const BILLING: Shape = Object(&[("customer_id", Text)]);
const SIGN_IN: Shape = Object(&[("org_code", Text), ("last_signed_in", Text)]);
const LISTED_IDENTITY: Shape =
    Object(&[("type", Text), ("identity", Text), ("connection_id", OrNull(&Text))]);
const LISTED_USER: Shape = Object(&[
    ("id", Text),
    ("provided_id", MissingText),
    ("email", MissingText),
    ("phone", MissingText),
    ("username", MissingText),
    ("last_name", MissingText),
    ("first_name", MissingText),
    ("is_suspended", Flag),
    ("picture", MissingText),
    ("total_sign_ins", OrNull(&Count)),
    ("failed_sign_ins", OrNull(&Count)),
    ("last_signed_in", OrNull(&Text)),
    ("created_on", OrNull(&Text)),
    ("last_organization_sign_ins", OrNull(&List(&SIGN_IN))),
    ("organizations", Expanded(&List(&Text))),
    ("identities", Expanded(&List(&LISTED_IDENTITY))),
    ("billing", Expanded(&BILLING)),
]);
pub(super) const USERS: Shape =
    Object(&[("code", Text), ("message", Text), ("users", List(&LISTED_USER)), ("next_token", MissingText)]);
const USER: Shape = Object(&[
    ("id", Text),
    ("provided_id", MissingText),
    ("preferred_email", MissingText),
    ("phone", MissingText),
    ("username", MissingText),
    ("last_name", MissingText),
    ("first_name", MissingText),
    ("is_suspended", Flag),
    ("picture", MissingText),
    ("total_sign_ins", OrNull(&Count)),
    ("failed_sign_ins", OrNull(&Count)),
    ("last_signed_in", OrNull(&Text)),
    ("created_on", OrNull(&Text)),
    ("organizations", Expanded(&List(&Text))),
    ("identities", Expanded(&List(&Object(&[("type", Text), ("identity", Text)])))),
    ("billing", Expanded(&BILLING)),
]);
const MADE_IDENTITY: Shape = Object(&[("type", Text), ("result", Object(&[("created", Flag)]))]);
const USER_CREATED: Shape = Object(&[("id", Text), ("created", Flag), ("identities", List(&MADE_IDENTITY))]);
const USER_UPDATED: Shape = Object(&[
    ("id", Text),
    ("given_name", MissingText),
    ("family_name", MissingText),
    ("email", MissingText),
    ("is_suspended", Flag),
    ("is_password_reset_requested", Flag),
    ("picture", OrNull(&Text)),
]);
const WEBHOOK: Shape = Object(&[
    ("id", Text),
    ("name", Text),
    ("endpoint", Text),
    ("description", MissingText),
    ("event_types", List(&Text)),
    ("created_on", Text),
]);
const WEBHOOKS: Shape = Object(&[("code", Text), ("message", Text), ("webhooks", List(&WEBHOOK))]);
const WEBHOOK_CREATED: Shape =
    Object(&[("code", Text), ("message", Text), ("webhook", Object(&[("id", Text), ("endpoint", Text)]))]);
const WEBHOOK_UPDATED: Shape =
    Object(&[("code", Text), ("message", Text), ("webhook", Object(&[("id", Text)]))]);
const EVENT_TYPE: Shape =
    Object(&[("id", Text), ("code", Text), ("name", Text), ("origin", Text), ("schema", Open)]);
const EVENT_TYPES: Shape = Object(&[("code", Text), ("message", Text), ("event_types", List(&EVENT_TYPE))]);
const EVENT: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    (
        "event",
        Object(&[("type", Text), ("source", Text), ("event_id", Text), ("timestamp", Time), ("data", Open)]),
    ),
]);

const LISTED_ORGANIZATION: Shape = Object(&[
    ("code", Text),
    ("name", Text),
    ("handle", MissingText),
    ("is_default", Flag),
    ("external_id", MissingText),
    ("is_auto_membership_enabled", Flag),
]);
const ORGANIZATIONS: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("organizations", List(&LISTED_ORGANIZATION)),
    ("next_token", MissingText),
]);
/// Without the members about the design of the sign-in pages, which are not emulated.
const ORGANIZATION: Shape = Object(&[
    ("code", Text),
    ("name", Text),
    ("handle", MissingText),
    ("is_default", Flag),
    ("external_id", MissingText),
    ("is_auto_membership_enabled", Flag),
    ("created_on", Text),
    ("is_allow_registrations", OrNull(&Flag)),
    ("is_suspended", Flag),
]);
const ORGANIZATION_CREATED: Shape =
    Object(&[("code", Text), ("message", Text), ("organization", Object(&[("code", Text)]))]);
const MEMBER: Shape = Object(&[
    ("id", Text),
    ("email", MissingText),
    ("full_name", Text),
    ("last_name", MissingText),
    ("first_name", MissingText),
    ("picture", MissingText),
    ("joined_on", Text),
    ("last_accessed_on", OrNull(&Text)),
    ("is_suspended", Flag),
    ("roles", List(&Text)),
]);
const MEMBERS: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("organization_users", List(&MEMBER)),
    ("next_token", MissingText),
]);
const MEMBERS_ADDED: Shape = Object(&[("code", Text), ("message", Text), ("users_added", List(&Text))]);
const MEMBERS_UPDATED: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("users_added", List(&Text)),
    ("users_updated", List(&Text)),
    ("users_removed", List(&Text)),
]);
const MEMBER_ROLES: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("roles", List(&Object(&[("id", Text), ("key", Text), ("name", Text)]))),
    ("next_token", MissingText),
]);
const MEMBER_PERMISSION: Shape = Object(&[
    ("id", Text),
    ("key", Text),
    ("name", Text),
    ("description", MissingText),
    ("roles", Expanded(&List(&Object(&[("id", Text), ("key", Text)])))),
]);
const MEMBER_PERMISSIONS: Shape =
    Object(&[("code", Text), ("message", Text), ("permissions", List(&MEMBER_PERMISSION))]);
const ROLE: Shape = Object(&[
    ("id", Text),
    ("key", Text),
    ("name", Text),
    ("description", MissingText),
    ("is_default_role", Flag),
]);
const ROLES: Shape =
    Object(&[("code", Text), ("message", Text), ("roles", List(&ROLE)), ("next_token", MissingText)]);
const ONE_ROLE: Shape = Object(&[("code", Text), ("message", Text), ("role", ROLE)]);
const ROLE_CREATED: Shape = Object(&[("code", Text), ("message", Text), ("role", Object(&[("id", Text)]))]);
const PERMISSION: Shape =
    Object(&[("id", Text), ("key", Text), ("name", Text), ("description", MissingText)]);
const PERMISSIONS: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("permissions", List(&PERMISSION)),
    ("next_token", MissingText),
]);
const ROLE_PERMISSIONS_UPDATED: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("permissions_added", List(&Text)),
    ("permissions_removed", List(&Text)),
]);
const ROLE_USERS: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("users", List(&Object(&[("id", Text), ("org_codes", List(&Text))]))),
    ("next_token", MissingText),
]);
const ORGANIZATION_ROLE_USERS: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("users", List(&Object(&[("id", Text)]))),
    ("next_token", MissingText),
]);
const PROPERTY: Shape = Object(&[
    ("id", Text),
    ("name", Text),
    ("description", MissingText),
    ("key", Text),
    ("value", MissingText),
]);
const PROPERTIES: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    ("properties", List(&PROPERTY)),
    ("next_token", MissingText),
]);
const PROPERTY_DEFINITIONS: Shape = Object(&[
    ("code", Text),
    ("message", Text),
    (
        "properties",
        List(&Object(&[
            ("id", Text),
            ("key", Text),
            ("name", Text),
            ("is_private", Flag),
            ("description", MissingText),
            ("is_kinde_property", Flag),
        ])),
    ),
    ("has_more", Flag),
]);
const PROPERTY_CREATED: Shape =
    Object(&[("message", Text), ("code", Text), ("property", Object(&[("id", Text)]))]);
const SEARCHED_USER: Shape = Object(&[
    ("id", Text),
    ("provided_id", MissingText),
    ("email", MissingText),
    ("username", MissingText),
    ("last_name", MissingText),
    ("first_name", MissingText),
    ("is_suspended", Flag),
    ("picture", MissingText),
    ("total_sign_ins", OrNull(&Count)),
    ("failed_sign_ins", OrNull(&Count)),
    ("last_signed_in", OrNull(&Text)),
    ("created_on", OrNull(&Text)),
    ("organizations", Expanded(&List(&Text))),
    ("identities", Expanded(&List(&Object(&[("type", Text), ("identity", Text)])))),
    ("properties", Expanded(&Open)),
]);
const SEARCH: Shape = Object(&[("code", Text), ("message", Text), ("results", List(&SEARCHED_USER))]);

/// The responses with status 200, or 201 where the document has it, by method and path.
pub(super) const ANSWERS: &[(&str, &str, Shape)] = &[
    ("GET", "users", USERS),
    ("GET", "user", USER),
    ("POST", "user", USER_CREATED),
    ("PATCH", "user", USER_UPDATED),
    ("DELETE", "user", SUCCESS),
    ("GET", "webhooks", WEBHOOKS),
    ("POST", "webhooks", WEBHOOK_CREATED),
    ("PATCH", "webhooks/{id}", WEBHOOK_UPDATED),
    ("DELETE", "webhooks/{id}", SUCCESS),
    ("GET", "event_types", EVENT_TYPES),
    ("GET", "events/{id}", EVENT),
    ("GET", "organizations", ORGANIZATIONS),
    ("GET", "organization", ORGANIZATION),
    ("POST", "organization", ORGANIZATION_CREATED),
    ("PATCH", "organization/{code}", SUCCESS),
    ("DELETE", "organization/{code}", SUCCESS),
    ("GET", "organizations/{code}/users", MEMBERS),
    ("POST", "organizations/{code}/users", MEMBERS_ADDED),
    ("PATCH", "organizations/{code}/users", MEMBERS_UPDATED),
    ("DELETE", "organizations/{code}/users/{id}", SUCCESS),
    ("GET", "organizations/{code}/users/{id}/roles", MEMBER_ROLES),
    ("POST", "organizations/{code}/users/{id}/roles", SUCCESS),
    ("DELETE", "organizations/{code}/users/{id}/roles/{role}", SUCCESS),
    ("GET", "organizations/{code}/users/{id}/permissions", MEMBER_PERMISSIONS),
    ("POST", "organizations/{code}/users/{id}/permissions", SUCCESS),
    ("DELETE", "organizations/{code}/users/{id}/permissions/{permission}", SUCCESS),
    ("GET", "organizations/{code}/roles/{role}/users", ORGANIZATION_ROLE_USERS),
    ("GET", "roles", ROLES),
    ("POST", "roles", ROLE_CREATED),
    ("GET", "roles/{role}", ONE_ROLE),
    ("PATCH", "roles/{role}", SUCCESS),
    ("DELETE", "roles/{role}", SUCCESS),
    ("GET", "roles/{role}/users", ROLE_USERS),
    ("GET", "roles/{role}/permissions", PERMISSIONS),
    ("PATCH", "roles/{role}/permissions", ROLE_PERMISSIONS_UPDATED),
    ("DELETE", "roles/{role}/permissions/{permission}", SUCCESS),
    ("GET", "permissions", PERMISSIONS),
    ("POST", "permissions", SUCCESS),
    ("PATCH", "permissions/{permission}", SUCCESS),
    ("DELETE", "permissions/{permission}", SUCCESS),
    ("GET", "users/{id}/properties", PROPERTIES),
    ("PATCH", "users/{id}/properties", SUCCESS),
    ("PUT", "users/{id}/properties/{key}", SUCCESS),
    ("GET", "properties", PROPERTY_DEFINITIONS),
    ("POST", "properties", PROPERTY_CREATED),
    ("GET", "search/users", SEARCH),
];

/// The responses with status 201 in the document.
pub(super) const CREATED: &[(&str, &str)] =
    &[("POST", "properties"), ("POST", "roles"), ("PATCH", "roles/{role}"), ("POST", "permissions")];
