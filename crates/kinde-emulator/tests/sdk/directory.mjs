// Kinde's packages on organizations, members, roles, permissions, properties and tokens of a running emulator. Reads the
// address, the credentials and a user as JSON from the environment variable CHECK, and prints what the package returned as JSON.
import { MemoryStorage, StorageKeys, getCurrentOrganization, getPermissions, getRoles, setActiveStorage } from "@kinde/js-utils";
import { Organizations, Permissions, Properties, Roles, Search, Users, init } from "@kinde/management-api-js";

const { issuer, clientId, clientSecret, user } = JSON.parse(process.env.CHECK);
init({ kindeDomain: issuer, clientId, clientSecret });

const made = await Organizations.createOrganization({ requestBody: { name: "Acme", external_id: "a-1" } });
const orgCode = made.organization.code;
await Organizations.updateOrganization({ orgCode, requestBody: { name: "Acme Ltd" } });
const organization = await Organizations.getOrganization({ code: orgCode });
const organizations = (await Organizations.getOrganizations({ pageSize: 100 })).organizations;

const roleId = (await Roles.createRole({ requestBody: { key: "admin", name: "Admin" } })).role.id;
await Roles.updateRoles({ roleId, requestBody: { key: "owner", name: "Owner" } });
const role = (await Roles.getRole({ roleId })).role;
await Permissions.createPermission({ requestBody: { key: "edit", name: "Edit" } });
const permissionId = (await Permissions.getPermissions()).permissions[0].id;
await Permissions.updatePermissions({ permissionId, requestBody: { key: "write", name: "Write" } });
await Roles.updateRolePermissions({ roleId, requestBody: { permissions: [{ id: permissionId }] } });
const rolePermissions = (await Roles.getRolePermissions({ roleId })).permissions;

const member = { orgCode, userId: user };
await Organizations.addOrganizationUsers({ orgCode, requestBody: { users: [{ id: user }] } });
await Organizations.createOrganizationUserRole({ ...member, requestBody: { role_id: roleId } });
await Organizations.createOrganizationUserPermission({ ...member, requestBody: { permission_id: permissionId } });
const members = (await Organizations.getOrganizationUsers({ orgCode })).organization_users;
const roles = (await Organizations.getOrganizationUserRoles(member)).roles;
const permissions = (await Organizations.getOrganizationUserPermissions({ ...member, expand: "roles" })).permissions;
const withRole = (await Roles.getRoleUsers({ roleId })).users;
const withRoleHere = (await Organizations.getOrganizationRoleUsers({ orgCode, roleId })).users;

const body = JSON.stringify({ user, token: { org: orgCode, roles: true } });
const minted = await fetch(`${issuer}/_emulator/tokens/access`, { method: "POST", headers: { "content-type": "application/json" }, body });
const session = new MemoryStorage();
await session.setSessionItem(StorageKeys.accessToken, (await minted.json()).token);
setActiveStorage(session);
const token = { org: await getCurrentOrganization(), roles: await getRoles(), permissions: await getPermissions() };

await Properties.createProperty({
  requestBody: { key: "tier", name: "Tier", type: "single_line_text", context: "usr", is_private: true, category_id: "cat_1" },
});
const defined = (await Properties.getProperties({ context: "usr" })).properties;
await Users.updateUserProperties({ userId: user, requestBody: { properties: { tier: "gold" } } });
await Users.updateUserProperty({ userId: user, propertyKey: "plan", value: "pro" });
const properties = (await Users.getUserPropertyValues({ userId: user })).properties;
const searched = (await Search.searchUsers({ query: "*", expand: "properties" })).results;

await Organizations.deleteOrganizationUserPermission({ ...member, permissionId });
await Organizations.deleteOrganizationUserRole({ ...member, roleId });
const update = { users: [{ id: user, operation: "delete" }] };
const updated = await Organizations.updateOrganizationUsers({ orgCode, requestBody: update });
await Organizations.addOrganizationUsers({ orgCode, requestBody: { users: [{ id: user, roles: ["owner"] }] } });
await Organizations.removeOrganizationUser(member);
await Roles.removeRolePermission({ roleId, permissionId });
await Permissions.deletePermission({ permissionId });
await Roles.deleteRole({ roleId });
await Organizations.deleteOrganization({ orgCode });
const left = {
  organizations: (await Organizations.getOrganizations()).organizations.length,
  roles: (await Roles.getRoles()).roles.length,
  permissions: (await Permissions.getPermissions()).permissions.length,
};

const answer = { orgCode, roleId, permissionId, organization, organizations, role, rolePermissions, members, roles };
Object.assign(answer, { permissions, withRole, withRoleHere, token, properties, defined, searched, updated, left });
process.stdout.write(JSON.stringify(answer));
