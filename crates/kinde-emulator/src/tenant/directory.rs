//! Changes of organizations, memberships, roles, permissions and properties, with the events that Kinde sends for them.
//!
//! Kinde sends `user.updated` to the members with changed roles or permissions of their own, and to no member when a role, a
//! permission or an organization changes or is deleted.

use serde_json::json;

use super::{Draft, Error, Tenant};
use crate::directory::{Organization, OrganizationEdit, Permission, Property, PropertyEdit, Role, RoleEdit};
use crate::event::Source;
use crate::user::{Grant, Membership, User};

/// Which assignments of a member to add or remove.
#[derive(Clone, Copy)]
pub(crate) enum Assign<'a> {
    /// Adds a role by id.
    Role(&'a str),
    /// Removes a role by id.
    RemoveRole(&'a str),
    /// Adds a permission by id.
    Permission(&'a str),
    /// Removes a permission by id.
    RemovePermission(&'a str),
}

type Changed<T> = Result<(T, Vec<Draft>), Error>;

impl Tenant {
    /// Adds an organization. Its code must be new.
    pub(crate) fn add_organization(
        &mut self,
        new: OrganizationEdit,
        source: Source,
    ) -> Changed<Organization> {
        let code = new.code.clone().unwrap_or_else(|| self.clock.org_code());
        if self.directory.organizations.get(&code).is_some() {
            return Err(Error::Used(code));
        }
        let mut organization = Organization::new(&code, self.clock.tick());
        organization.apply(new);
        self.directory.organizations.add(&code, organization.clone());
        let draft = Draft::new("organization.created", source, organization.created());
        Ok((organization, vec![draft]))
    }

    pub(crate) fn edit_organization(
        &mut self,
        code: &str,
        edit: OrganizationEdit,
        source: Source,
    ) -> Changed<Organization> {
        let unknown = || Error::UnknownOrganization(code.to_owned());
        let organization = self.directory.organizations.get_mut(code).ok_or_else(unknown)?;
        organization.apply(edit);
        let organization = organization.clone();
        let draft = Draft::new("organization.updated", source, organization.updated());
        Ok((organization, vec![draft]))
    }

    /// Deletes an organization and all memberships in it.
    pub(crate) fn delete_organization(&mut self, code: &str, source: Source) -> Result<Vec<Draft>, Error> {
        if code == self.config.org_code {
            return Err(Error::DefaultOrganization(code.to_owned()));
        }
        let removed = self.directory.organizations.remove(code);
        removed.ok_or_else(|| Error::UnknownOrganization(code.to_owned()))?;
        self.users.remove_organization(code);
        Ok(vec![Draft::new("organization.deleted", source, json!({"organization": {"code": code}}))])
    }

    /// Adds the user to an organization or replaces the roles and permissions in it. Unknown organizations, roles and
    /// permissions are added without events.
    pub(crate) fn join(
        &mut self,
        id: &str,
        code: &str,
        roles: &[String],
        permissions: &[String],
    ) -> Changed<User> {
        let (position, user) = self.existing(id)?;
        let at = self.clock.tick();
        self.directory.ensure_organization(code, at);
        let Self { directory, clock, .. } = self;
        let mut member = user.membership(code).cloned().unwrap_or_else(|| Membership::new(code, at));
        member.roles = roles.iter().map(|key| directory.ensure_role(key, clock)).collect();
        member.permissions = permissions.iter().map(|key| directory.ensure_permission(key, clock)).collect();
        Ok(self.change(position, user, Source::Admin, |user| {
            match user.organizations.iter_mut().find(|known| known.code == code) {
                Some(known) => *known = member,
                None => user.organizations.push(member),
            }
        }))
    }

    /// Removes the user from an organization.
    pub(crate) fn leave(&mut self, id: &str, code: &str, source: Source) -> Changed<User> {
        let (position, user) = self.existing(id)?;
        user.membership(code).ok_or_else(|| Error::NotAMember(id.to_owned()))?;
        let leave = |user: &mut User| user.organizations.retain(|member| member.code != code);
        let (user, mut drafts) = self.change(position, user, source, leave);
        drafts.retain(|_| self.config.unknowns.leaving_sends_user_updated);
        Ok((user, drafts))
    }

    /// Suspends a member in one organization, or ends that suspension. No payload shows it, and it sends no event.
    pub(crate) fn suspend_member(&mut self, id: &str, code: &str, is_suspended: bool) -> Result<User, Error> {
        let (position, user) = self.existing(id)?;
        user.membership(code).ok_or_else(|| Error::NotAMember(id.to_owned()))?;
        let suspend = |user: &mut User| {
            let members = user.organizations.iter_mut().filter(|member| member.code == code);
            members.for_each(|member| member.is_suspended = is_suspended);
        };
        Ok(self.change(position, user, Source::Admin, suspend).0)
    }

    /// Changes one assignment of a member.
    pub(crate) fn assign(
        &mut self,
        id: &str,
        code: &str,
        assign: Assign<'_>,
        source: Source,
    ) -> Changed<User> {
        let (position, user) = self.existing(id)?;
        user.membership(code).ok_or_else(|| Error::NotAMember(id.to_owned()))?;
        let grant = match assign {
            Assign::Role(role) | Assign::RemoveRole(role) => self.role(role)?.grant(),
            Assign::Permission(id) | Assign::RemovePermission(id) => self.permission(id)?.grant(),
        };
        let change = |user: &mut User| {
            let Some(member) = user.organizations.iter_mut().find(|member| member.code == code) else {
                return;
            };
            match assign {
                Assign::Role(_) => add(&mut member.roles, grant),
                Assign::RemoveRole(_) => member.roles.retain(|known| *known != grant),
                Assign::Permission(_) => add(&mut member.permissions, grant),
                Assign::RemovePermission(_) => member.permissions.retain(|known| *known != grant),
            }
        };
        Ok(self.change(position, user, source, change))
    }

    pub(crate) fn role(&self, id: &str) -> Result<&Role, Error> {
        self.directory.roles.get(id).ok_or_else(|| Error::UnknownRole(id.to_owned()))
    }

    pub(crate) fn permission(&self, id: &str) -> Result<&Permission, Error> {
        self.directory.permissions.get(id).ok_or_else(|| Error::UnknownPermission(id.to_owned()))
    }

    pub(crate) fn add_role(&mut self, new: RoleEdit, source: Source) -> Changed<Role> {
        let key = new.key.clone().or_else(|| new.name.clone()).unwrap_or_default();
        self.check_role_key(None, &key)?;
        let mut role = Role::new(self.clock.uuid(), &key);
        role.apply(new);
        self.directory.roles.add(&role.id, role.clone());
        let draft = Draft::new("role.created", source, role.data());
        Ok((role, vec![draft]))
    }

    pub(crate) fn edit_role(&mut self, id: &str, edit: RoleEdit, source: Source) -> Changed<Role> {
        let key = edit
            .key
            .clone()
            .unwrap_or_else(|| self.role(id).map(|role| role.key.clone()).unwrap_or_default());
        self.role(id)?;
        self.check_role_key(Some(id), &key)?;
        let role = self.directory.roles.get_mut(id).expect("the role was found above");
        role.apply(edit);
        let role = role.clone();
        self.users.rename_role(&role.grant());
        let draft = Draft::new("role.updated", source, role.data());
        Ok((role, vec![draft]))
    }

    /// Deletes a role and takes it from all members.
    pub(crate) fn delete_role(&mut self, id: &str, source: Source) -> Result<Vec<Draft>, Error> {
        self.directory.roles.remove(id).ok_or_else(|| Error::UnknownRole(id.to_owned()))?;
        self.users.remove_role(id);
        Ok(vec![Draft::new("role.deleted", source, json!({"role": {"id": id}}))])
    }

    /// Adds permissions to a role, and removes others. Kinde documents no event for it.
    pub(crate) fn set_role_permissions(
        &mut self,
        id: &str,
        added: &[String],
        removed: &[String],
    ) -> Result<Role, Error> {
        added.iter().chain(removed).try_for_each(|id| self.permission(id).map(drop))?;
        let role = self.directory.roles.get_mut(id).ok_or_else(|| Error::UnknownRole(id.to_owned()))?;
        role.permissions.retain(|known| !removed.contains(known) && !added.contains(known));
        role.permissions.extend(added.iter().cloned());
        Ok(role.clone())
    }

    pub(crate) fn add_permission(&mut self, new: RoleEdit, source: Source) -> Changed<Permission> {
        let key = new.key.clone().or_else(|| new.name.clone()).unwrap_or_default();
        self.check_permission_key(None, &key)?;
        let mut permission = Permission::new(self.clock.uuid(), &key);
        permission.apply(new);
        self.directory.permissions.add(&permission.id, permission.clone());
        let draft = Draft::new("permission.created", source, permission.data());
        Ok((permission, vec![draft]))
    }

    pub(crate) fn edit_permission(
        &mut self,
        id: &str,
        edit: RoleEdit,
        source: Source,
    ) -> Changed<Permission> {
        let known = self.permission(id)?.key.clone();
        self.check_permission_key(Some(id), edit.key.as_ref().unwrap_or(&known))?;
        let permission = self.directory.permissions.get_mut(id).expect("the permission was found above");
        permission.apply(edit);
        let permission = permission.clone();
        self.users.change_stored(|user| {
            let grants = user.organizations.iter_mut().flat_map(|member| &mut member.permissions);
            grants.filter(|grant| grant.id == id).for_each(|grant| grant.key.clone_from(&permission.key));
        });
        let draft = Draft::new("permission.updated", source, permission.data());
        Ok((permission, vec![draft]))
    }

    /// Deletes a permission and takes it from all roles and members.
    pub(crate) fn delete_permission(&mut self, id: &str, source: Source) -> Result<Vec<Draft>, Error> {
        self.directory.permissions.remove(id).ok_or_else(|| Error::UnknownPermission(id.to_owned()))?;
        self.directory.roles.iter_mut().for_each(|role| role.permissions.retain(|known| known != id));
        self.users.change_stored(|user| {
            let members = user.organizations.iter_mut();
            members.for_each(|member| member.permissions.retain(|grant| grant.id != id));
        });
        Ok(vec![Draft::new("permission.deleted", source, json!({"permission": {"id": id}}))])
    }

    /// Sets properties of a user, or removes those without a value. Kinde sends no event for it.
    pub(crate) fn set_properties(
        &mut self,
        id: &str,
        values: Vec<(String, Option<String>)>,
    ) -> Result<User, Error> {
        let (position, mut user) = self.existing(id)?;
        for (key, value) in values {
            let Self { directory, clock, .. } = self;
            let property = || {
                Property::new(
                    clock.property_id(),
                    PropertyEdit { key: key.clone(), ..PropertyEdit::default() },
                )
            };
            directory.properties.entry(key.clone()).or_insert_with(property);
            match value {
                Some(value) => drop(user.properties.insert(key, value)),
                None => drop(user.properties.remove(&key)),
            }
        }
        let at = self.clock.tick();
        self.users.put(position, Some(user.clone()), at);
        Ok(user)
    }

    /// Creates a property that users can have.
    pub(crate) fn create_property(&mut self, edit: PropertyEdit) -> Result<Property, Error> {
        if edit.key.is_empty() || self.directory.properties.contains_key(&edit.key) {
            return Err(Error::Used(edit.key));
        }
        let property = Property::new(self.clock.property_id(), edit);
        self.directory.properties.insert(property.key.clone(), property.clone());
        Ok(property)
    }

    fn check_role_key(&self, id: Option<&str>, key: &str) -> Result<(), Error> {
        let is_other = |role: &Role| role.key == key && Some(role.id.as_str()) != id;
        let used = key.is_empty() || self.directory.roles.iter().any(is_other);
        if used { Err(Error::Used(key.to_owned())) } else { Ok(()) }
    }

    fn check_permission_key(&self, id: Option<&str>, key: &str) -> Result<(), Error> {
        let is_other = |known: &Permission| known.key == key && Some(known.id.as_str()) != id;
        let used = key.is_empty() || self.directory.permissions.iter().any(is_other);
        if used { Err(Error::Used(key.to_owned())) } else { Ok(()) }
    }
}

fn add(grants: &mut Vec<Grant>, grant: Grant) {
    if !grants.contains(&grant) {
        grants.push(grant);
    }
}
