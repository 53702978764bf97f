// Initiates a replica set with one member: node initiate.mjs PORT

import mongoose from 'mongoose';

const port = process.argv[2];
const connect = () =>
  mongoose.createConnection(`mongodb://127.0.0.1:${port}/?directConnection=true&serverSelectionTimeoutMS=30000`).asPromise();

const connection = await connect();
const admin = connection.getClient().db('admin');
const members = [{ _id: 0, host: `127.0.0.1:${port}` }];
await admin.command({ replSetInitiate: { _id: 'rs0', members } }).catch((error) => {
  if (error.codeName !== 'AlreadyInitialized') throw error;
});
for (const deadline = Date.now() + 30000; !(await admin.command({ hello: 1 })).isWritablePrimary; ) {
  if (Date.now() > deadline) throw new Error('MongoDB did not become primary');
  await new Promise((later) => setTimeout(later, 50));
}
await connection.close();
