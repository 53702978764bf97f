//! The endpoints of Kinde's APIs, as the label `endpoint` of `kinde_api_requests_total` names them.

macro_rules! endpoints {
    ($($(#[$doc:meta])* $endpoint:ident = $name:literal,)+) => {
        /// An endpoint of Kinde's APIs.
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[non_exhaustive]
        pub enum Endpoint { $($(#[$doc])* $endpoint,)+ }

        impl Endpoint {
            /// Every endpoint.
            pub const ALL: &[Self] = &[$(Self::$endpoint),+];
            /// The name of every endpoint, in the order of [`Self::ALL`].
            pub const NAMES: &[&str] = &[$($name),+];

            /// Returns the name in metrics.
            pub const fn as_str(self) -> &'static str {
                match self { $(Self::$endpoint => $name,)+ }
            }
        }
    };
}

endpoints! {
    /// The token endpoint of the tenant, for the Management API.
    Token = "token",
    /// A page of users.
    Users = "users",
    /// One user.
    User = "user",
    /// A page of users with properties.
    SearchUsers = "search_users",
    /// The properties of one user.
    UserProperties = "user_properties",
    /// A page of the definitions of properties.
    Properties = "properties",
    /// A page of organizations.
    Organizations = "organizations",
    /// One organization.
    Organization = "organization",
    /// A page of the members of an organization.
    OrganizationUsers = "organization_users",
    /// The roles of a member.
    UserRoles = "user_roles",
    /// The permissions of a member.
    UserPermissions = "user_permissions",
    /// A page of roles.
    Roles = "roles",
    /// One role.
    Role = "role",
    /// The permissions of a role.
    RolePermissions = "role_permissions",
    /// The members with a role.
    RoleUsers = "role_users",
    /// A page of permissions.
    Permissions = "permissions",
    /// The event types that webhooks can deliver.
    EventTypes = "event_types",
    /// One event.
    Event = "event",
    /// All webhooks.
    Webhooks = "webhooks",
    /// Creates a webhook.
    CreateWebhook = "create_webhook",
    /// Updates a webhook.
    UpdateWebhook = "update_webhook",
    /// The profile of the user of an access token.
    UserProfile = "user_profile",
}
