// A notebook application: kinsync writes the users, this application writes their notes, both in one MongoDB.

import express from 'express';
import mongoose from 'mongoose';
import { kinsync, verifiesRole } from './kinsync.mjs';
import { hasRole, proxied } from './proxied.mjs';

const { MONGODB_URI, KINSYNC_URL, PORT = '3000', HOST = '127.0.0.1' } = process.env;
if (!MONGODB_URI) throw new Error('set MONGODB_URI to the database that kinsync writes to');

// The fields of kinsync that this application reads, and one field of the application. kinsync creates the indexes and does
// not change `visits`. The application never sets fields of kinsync.
const User = mongoose.model('User', new mongoose.Schema(
  { kindeId: String, email: String, firstName: String, lastName: String, isDeleted: Boolean, visits: Number },
  { collection: 'users', autoIndex: false, autoCreate: false, versionKey: false },
));
const Note = mongoose.model('Note', new mongoose.Schema({ kindeId: { type: String, index: true }, text: String }));

// With KINSYNC_URL the application calls kinsync for each request. Without it the proxy does.
const user = KINSYNC_URL ? kinsync(KINSYNC_URL) : proxied;
const admin = KINSYNC_URL ? verifiesRole(KINSYNC_URL, 'admin') : hasRole('admin');

const app = express();
app.disable('x-powered-by').use(express.json());

app.get('/', (req, res) => res.json({ routes: ['/me', '/notes', '/statistics'] }));

app.get('/me', user, async (req, res) => {
  const { kindeId } = req.user;
  const mine = await User.findOneAndUpdate({ kindeId }, { $inc: { visits: 1 } }, { new: true }).lean();
  // Null only if MongoDB was unavailable during the call of kinsync. The user is written when it is available again.
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

app.get('/statistics', user, admin, async (req, res) => {
  res.json({ notes: await Note.countDocuments() });
});

await mongoose.connect(MONGODB_URI);
const server = app.listen(Number(PORT), HOST, () => {
  console.log(`listening on http://${HOST}:${server.address().port}`);
});
for (const signal of ['SIGINT', 'SIGTERM']) {
  process.once(signal, () => server.close(() => mongoose.disconnect()));
}
