// A notebook: each user has notes. Users are kinsync's, notes are ours, both are in one MongoDB.

import express from 'express';
import mongoose from 'mongoose';
import { kinsync } from './kinsync.mjs';
import { proxied } from './proxied.mjs';

const { MONGODB_URI, KINSYNC_URL, PORT = '3000', HOST = '127.0.0.1' } = process.env;
if (!MONGODB_URI) throw new Error('set MONGODB_URI to the database that kinsync writes to');

// What kinsync writes, as far as we read it, and one field of our own. kinsync makes the indexes and keeps its fields
// true; it never touches ours. We never save() a whole document, so we never overwrite its fields either.
const User = mongoose.model('User', new mongoose.Schema(
  { kindeId: String, email: String, firstName: String, lastName: String, isDeleted: Boolean, visits: Number },
  { collection: 'users', autoIndex: false, autoCreate: false, versionKey: false },
));
const Note = mongoose.model('Note', new mongoose.Schema({ kindeId: { type: String, index: true }, text: String }));

// KINSYNC_URL set: ask kinsync for each request. Not set: a proxy in front has asked.
const user = KINSYNC_URL ? kinsync(KINSYNC_URL) : proxied;

const app = express();
app.disable('x-powered-by').use(express.json());

app.get('/', (req, res) => res.json({ hello: 'anybody', try: ['/me', '/notes'] }));

app.get('/me', user, async (req, res) => {
  const { kindeId } = req.user;
  const mine = await User.findOneAndUpdate({ kindeId }, { $inc: { visits: 1 } }, { new: true }).lean();
  // Null only while MongoDB was away when kinsync was asked: the user appears when it is back.
  const { email, firstName, lastName, visits } = mine ?? req.user;
  res.json({ kindeId, email, firstName, lastName, visits });
});

app.get('/notes', user, async (req, res) => {
  res.json(await Note.find({ kindeId: req.user.kindeId }, { _id: 0, text: 1 }).lean());
});

app.post('/notes', user, async (req, res) => {
  const { text } = req.body ?? {};
  if (typeof text !== 'string') return res.status(400).json({ title: 'send {"text": "…"}', status: 400 });
  await Note.create({ kindeId: req.user.kindeId, text });
  res.status(201).end();
});

await mongoose.connect(MONGODB_URI);
const server = app.listen(Number(PORT), HOST, () => {
  console.log(`listening on http://${HOST}:${server.address().port}`);
});
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => server.close(() => mongoose.disconnect()));
}
