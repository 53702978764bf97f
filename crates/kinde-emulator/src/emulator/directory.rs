//! Operations on organizations, memberships, roles, permissions and properties.

use crate::directory::{Organization, OrganizationEdit, Permission, Property, PropertyEdit, Role, RoleEdit};
use crate::event::Source;
use crate::tenant::{Assign, Draft, Error, Tenant};
use crate::user::User;

use super::Emulator;

/// Organizations and memberships. Kinde sends no event to the members of a deleted organization.
impl Emulator {
    /// Adds an organization: `organization.created`.
    pub fn create_organization(&self, new: OrganizationEdit) -> Result<Organization, Error> {
        self.create_organization_as(new, Source::Admin)
    }

    pub(crate) fn create_organization_as(
        &self,
        new: OrganizationEdit,
        source: Source,
    ) -> Result<Organization, Error> {
        self.change(|tenant| tenant.add_organization(new, source))
    }

    /// Changes an organization: `organization.updated`. `code` of the edit is ignored.
    pub fn update_organization(&self, code: &str, edit: OrganizationEdit) -> Result<Organization, Error> {
        self.update_organization_as(code, edit, Source::Admin)
    }

    pub(crate) fn update_organization_as(
        &self,
        code: &str,
        edit: OrganizationEdit,
        source: Source,
    ) -> Result<Organization, Error> {
        self.change(|tenant| tenant.edit_organization(code, edit, source))
    }

    /// Deletes an organization with all memberships: `organization.deleted`.
    pub fn delete_organization(&self, code: &str) -> Result<(), Error> {
        self.delete_organization_as(code, Source::Admin)
    }

    pub(crate) fn delete_organization_as(&self, code: &str, source: Source) -> Result<(), Error> {
        self.change(|tenant| tenant.delete_organization(code, source).map(|drafts| ((), drafts)))
    }

    /// Returns all organizations in the order of creation.
    pub fn organizations(&self) -> Vec<Organization> {
        self.tenant().directory.organizations.iter().cloned().collect()
    }

    /// Adds a user to an organization or replaces its roles and permissions there, by key: `user.updated`. Unknown
    /// organizations, roles and permissions are added without events.
    pub fn add_to_organization(
        &self,
        id: &str,
        code: &str,
        roles: &[String],
        permissions: &[String],
    ) -> Result<User, Error> {
        self.change(|tenant| tenant.join(id, code, roles, permissions))
    }

    /// Removes a user from an organization: `user.updated`, unless `unknowns.leaving_sends_user_updated` is off.
    pub fn remove_from_organization(&self, id: &str, code: &str) -> Result<User, Error> {
        self.remove_from_organization_as(id, code, Source::Admin)
    }

    pub(crate) fn remove_from_organization_as(
        &self,
        id: &str,
        code: &str,
        source: Source,
    ) -> Result<User, Error> {
        self.change(|tenant| tenant.leave(id, code, source))
    }

    /// Suspends a member in one organization, or ends that suspension. Sends no event.
    pub fn suspend_in_organization(&self, id: &str, code: &str, is_suspended: bool) -> Result<User, Error> {
        self.tenant().suspend_member(id, code, is_suspended)
    }

    pub(crate) fn assign_as(
        &self,
        id: &str,
        code: &str,
        assign: Assign<'_>,
        source: Source,
    ) -> Result<User, Error> {
        self.change(|tenant| tenant.assign(id, code, assign, source))
    }

    /// The properties that users can have, in the order of their keys.
    pub fn properties(&self) -> Vec<Property> {
        self.tenant().directory.properties.values().cloned().collect()
    }

    /// Creates a property that users can have. Setting a value under an unknown key creates the property too.
    pub fn create_property(&self, edit: PropertyEdit) -> Result<Property, Error> {
        self.tenant().create_property(edit)
    }

    /// Sets properties of a user, or removes those without a value. Sends no event.
    pub fn set_properties(
        &self,
        id: &str,
        values: impl IntoIterator<Item = (String, Option<String>)>,
    ) -> Result<User, Error> {
        self.tenant().set_properties(id, values.into_iter().collect())
    }

    fn change<T>(
        &self,
        change: impl FnOnce(&mut Tenant) -> Result<(T, Vec<Draft>), Error>,
    ) -> Result<T, Error> {
        let mut tenant = self.tenant();
        let (changed, drafts) = change(&mut tenant)?;
        self.emit_all(&mut tenant, drafts);
        Ok(changed)
    }
}

/// Roles and permissions. Kinde sends no `user.updated` to the users that have them.
impl Emulator {
    /// Adds a role: `role.created`.
    pub fn create_role(&self, new: RoleEdit) -> Result<Role, Error> {
        self.create_role_as(new, Source::Admin)
    }

    pub(crate) fn create_role_as(&self, new: RoleEdit, source: Source) -> Result<Role, Error> {
        self.change(|tenant| tenant.add_role(new, source))
    }

    /// Changes a role: `role.updated`. Its key changes in all memberships.
    pub fn update_role(&self, id: &str, edit: RoleEdit) -> Result<Role, Error> {
        self.update_role_as(id, edit, Source::Admin)
    }

    pub(crate) fn update_role_as(&self, id: &str, edit: RoleEdit, source: Source) -> Result<Role, Error> {
        self.change(|tenant| tenant.edit_role(id, edit, source))
    }

    /// Deletes a role and takes it from all members: `role.deleted`.
    pub fn delete_role(&self, id: &str) -> Result<(), Error> {
        self.delete_role_as(id, Source::Admin)
    }

    pub(crate) fn delete_role_as(&self, id: &str, source: Source) -> Result<(), Error> {
        self.change(|tenant| tenant.delete_role(id, source).map(|drafts| ((), drafts)))
    }

    /// Adds permissions to a role and removes others, by id. Sends no event.
    pub fn set_role_permissions(
        &self,
        role: &str,
        added: &[String],
        removed: &[String],
    ) -> Result<Role, Error> {
        self.tenant().set_role_permissions(role, added, removed)
    }

    /// Returns all roles in the order of creation.
    pub fn roles(&self) -> Vec<Role> {
        self.tenant().directory.roles.iter().cloned().collect()
    }

    /// Adds a permission: `permission.created`.
    pub fn create_permission(&self, new: RoleEdit) -> Result<Permission, Error> {
        self.create_permission_as(new, Source::Admin)
    }

    pub(crate) fn create_permission_as(&self, new: RoleEdit, source: Source) -> Result<Permission, Error> {
        self.change(|tenant| tenant.add_permission(new, source))
    }

    /// Changes a permission: `permission.updated`. Its key changes in all memberships.
    pub fn update_permission(&self, id: &str, edit: RoleEdit) -> Result<Permission, Error> {
        self.update_permission_as(id, edit, Source::Admin)
    }

    pub(crate) fn update_permission_as(
        &self,
        id: &str,
        edit: RoleEdit,
        source: Source,
    ) -> Result<Permission, Error> {
        self.change(|tenant| tenant.edit_permission(id, edit, source))
    }

    /// Deletes a permission and takes it from all roles and members: `permission.deleted`.
    pub fn delete_permission(&self, id: &str) -> Result<(), Error> {
        self.delete_permission_as(id, Source::Admin)
    }

    pub(crate) fn delete_permission_as(&self, id: &str, source: Source) -> Result<(), Error> {
        self.change(|tenant| tenant.delete_permission(id, source).map(|drafts| ((), drafts)))
    }

    /// Returns all permissions in the order of creation.
    pub fn permissions(&self) -> Vec<Permission> {
        self.tenant().directory.permissions.iter().cloned().collect()
    }
}
