// The user document that kinsync writes, with the default names of its keys. Copy this file into your application.

import { Schema } from 'mongoose';

/** One membership. `roles` and `permissions` are absent until a webhook or a scan of the roles lists them; the others until a scan of the roles reads them. */
export interface KinsyncOrganization {
  code: string;
  name?: string;
  roles?: string[];
  permissions?: string[];
  isSuspended?: boolean;
  joinedOn?: Date;
}

/** One way in which the user signs in. */
export interface KinsyncIdentity {
  kind: string;
  identity: string | null;
}

/** The keys of kinsync. What no source has observed is absent, and so is a text, flag or date that is null at Kinde. */
export interface KinsyncUser {
  kindeId: string;
  email?: string;
  /** The address that the user has at Kinde and another document shows. */
  emailConflict?: { email: string; heldBy?: string };
  emailVerified?: boolean;
  firstName?: string;
  lastName?: string;
  phone?: string;
  username?: string;
  picture?: string;
  providedId?: string;
  organizations?: KinsyncOrganization[];
  identities?: KinsyncIdentity[];
  isSuspended?: boolean;
  isPasswordResetRequested?: boolean;
  createdAt: Date;
  updatedAt: Date;
  lastSeenAt?: Date;
  lastSignedInAt?: Date;
  isDeleted: boolean;
  deletedAt?: Date;
  source?: 'webhook' | 'login' | 'profile' | 'reconcile';
}

const organization = new Schema<KinsyncOrganization>(
  {
    code: String,
    name: String,
    roles: { type: [String], default: undefined },
    permissions: { type: [String], default: undefined },
    isSuspended: Boolean,
    joinedOn: Date,
  },
  { _id: false },
);

const identity = new Schema<KinsyncIdentity>({ kind: String, identity: String }, { _id: false });

/**
 * The keys of kinsync for a schema. Lists have no default, so that "not known" stays different from "none". kinsync creates
 * the indexes: declare none here, and set `autoIndex: false` or omit `unique`.
 */
export const kinsyncKeys = {
  kindeId: { type: String, immutable: true },
  email: String,
  emailConflict: { type: new Schema({ email: String, heldBy: String }, { _id: false }) },
  emailVerified: Boolean,
  firstName: String,
  lastName: String,
  phone: String,
  username: String,
  picture: String,
  providedId: String,
  organizations: { type: [organization], default: undefined },
  identities: { type: [identity], default: undefined },
  isSuspended: Boolean,
  isPasswordResetRequested: Boolean,
  createdAt: Date,
  updatedAt: Date,
  lastSeenAt: Date,
  lastSignedInAt: Date,
  isDeleted: Boolean,
  deletedAt: Date,
  source: String,
  // kinsync's own state. Never selected, so that `save()` and `toJSON()` do not contain it.
  kinsync: { type: Schema.Types.Mixed, select: false },
} as const;
