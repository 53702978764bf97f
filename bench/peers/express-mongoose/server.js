// The peer: a hand-written mirror of Kinde's users with Express and Mongoose.
// It verifies the signature of the raw body in constant time and awaits the upsert (majority) before the 200.
// It verifies requests of users with the keys of the tenant, which jose loads once and caches.
import { createHmac, timingSafeEqual } from 'node:crypto';
import express from 'express';
import { createRemoteJWKSet, jwtVerify } from 'jose';
import mongoose from 'mongoose';

const { KINDE_DOMAIN, KINDE_WEBHOOK_SECRET, MONGODB_URI, PORT } = process.env;
if (!KINDE_DOMAIN || !KINDE_WEBHOOK_SECRET || !MONGODB_URI || !PORT) {
  console.error('set KINDE_DOMAIN, KINDE_WEBHOOK_SECRET, MONGODB_URI and PORT');
  process.exit(78);
}

const userSchema = new mongoose.Schema(
  {
    kindeId: { type: String, required: true, unique: true },
    email: String,
    firstName: String,
    lastName: String,
    phone: String,
    username: String,
    isSuspended: Boolean,
    organizations: [{ _id: false, code: String, roles: [String], permissions: [String] }],
    lastSignedInAt: Date,
    lastSeenAt: Date,
    isDeleted: { type: Boolean, default: false },
    deletedAt: Date,
  },
  { timestamps: true },
);
const User = mongoose.model('User', userSchema);

const keys = (list) => (list ?? []).map(({ key }) => key);

const profile = (user) => ({
  email: user.email || null,
  firstName: user.first_name,
  lastName: user.last_name,
  phone: user.phone || null,
  username: user.username,
  isSuspended: user.is_suspended,
  organizations: (user.organizations ?? []).map(({ code, roles, permissions }) => ({
    code,
    roles: keys(roles),
    permissions: keys(permissions),
  })),
});

const changes = {
  'user.created': ({ data }) => profile(data.user),
  'user.updated': ({ data }) => profile(data.user),
  'user.authenticated': ({ timestamp }) => ({ lastSignedInAt: new Date(timestamp) }),
  'user.deleted': ({ timestamp }) => ({ isDeleted: true, deletedAt: new Date(timestamp) }),
};

const isSigned = (body, signature) => {
  const given = Buffer.from(signature ?? '', 'hex');
  const right = createHmac('sha256', KINDE_WEBHOOK_SECRET).update(body).digest();
  return given.length === right.length && timingSafeEqual(given, right);
};

const app = express();
app.disable('x-powered-by');
app.disable('etag');

app.post('/api/webhook', express.raw({ type: () => true, limit: '256kb' }), async (req, res) => {
  if (!isSigned(req.body, req.get('x-kinde-signature'))) {
    res.status(401).json({ error: 'wrong signature' });
    return;
  }
  const event = JSON.parse(req.body);
  const change = changes[event.type];
  if (change) {
    await User.updateOne({ kindeId: event.data.user.id }, { $set: change(event) }, { upsert: true });
  }
  res.sendStatus(200);
});

const keysOfTenant = createRemoteJWKSet(new URL('/.well-known/jwks.json', KINDE_DOMAIN));

const subjectOf = async (authorization) => {
  const token = /^Bearer (.+)$/i.exec(authorization ?? '')?.[1];
  if (!token) return null;
  try {
    const { payload } = await jwtVerify(token, keysOfTenant, { issuer: KINDE_DOMAIN, algorithms: ['RS256'] });
    return payload.sub;
  } catch {
    return null;
  }
};

const authenticated = async (req, res, next) => {
  const subject = await subjectOf(req.get('authorization'));
  if (!subject) {
    res.status(401).json({ error: 'no access token of a user' });
    return;
  }
  const user = await User.findOne({ kindeId: subject });
  if (!user || user.isDeleted || user.isSuspended) {
    res.status(403).json({ error: 'no such user' });
    return;
  }
  await User.updateOne({ kindeId: subject }, { $set: { lastSeenAt: new Date() } });
  req.user = user;
  next();
};

app.get('/api/me', authenticated, (req, res) => {
  res.json(req.user);
});

app.get('/health/ready', (_req, res) => {
  res.sendStatus(200);
});

await mongoose.connect(MONGODB_URI, { writeConcern: { w: 'majority' } });
await User.init(); // creates the unique index before the first delivery
const server = app.listen(Number(PORT), '127.0.0.1');

process.once('SIGTERM', () => {
  server.close(() => mongoose.disconnect());
});
