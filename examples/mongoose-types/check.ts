// Reads a user document that kinsync wrote, changes a field of the application, and prints what it saw as JSON.

import mongoose, { Schema, type HydratedDocument } from 'mongoose';
import { kinsyncKeys, type KinsyncUser } from './kinsync-user.js';

interface User extends KinsyncUser {
  plan?: string;
  team?: mongoose.Types.ObjectId;
}

declare const process: { env: Record<string, string | undefined> };

const schema = new Schema<User>(
  { ...kinsyncKeys, plan: String, team: { type: Schema.Types.ObjectId, ref: 'Team' } },
  { collection: 'users', autoIndex: false, strict: 'throw' },
);
const Users = mongoose.model<User>('User', schema);
const Notes = mongoose.model('Note', new Schema({ kindeId: String, text: String }, { collection: 'notes' }));

await mongoose.connect(process.env['MONGODB_URI'] ?? '');
const user: HydratedDocument<User> = await Users.findOne({ kindeId: process.env['KINDE_ID'] ?? '' }).orFail();
// Compiles only if the type and the schema agree.
const roles: string[] | undefined = user.organizations?.[0]?.roles;
const conflict: string | undefined = user.emailConflict?.heldBy;
user.plan = 'pro';
await user.save();
await Notes.create({ kindeId: user.kindeId, text: 'a note' });
const joined = await Users.aggregate([
  { $match: { kindeId: user.kindeId } },
  { $lookup: { from: 'notes', localField: 'kindeId', foreignField: 'kindeId', as: 'notes' } },
]);
const shown = { ...user.toJSON(), roles, conflict, notes: joined[0].notes.length };
console.log(JSON.stringify(shown));
await mongoose.disconnect();
