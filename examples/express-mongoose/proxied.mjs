// Loads the user behind a proxy that calls kinsync for each request (see docs/guides/forward-auth.md). The proxy sets these
// headers and removes those of the client. Therefore the application must be reachable only through the proxy.

// Keys, separated by commas and percent-encoded. Unknown ones are an empty header: the user has none of them here.
const list = (header) => (header ? header.split(',').map(decodeURIComponent) : []);

export const proxied = (req, res, next) => {
  const kindeId = req.get('x-kinsync-user-id');
  if (!kindeId) return res.status(500).json({ title: 'the proxy does not call kinsync', status: 500 });
  req.user = { kindeId, email: req.get('x-kinsync-email') || null, roles: list(req.get('x-kinsync-roles')) };
  next();
};

export const hasRole = (role) => (req, res, next) => {
  if (req.user.roles.includes(role)) return next();
  res.status(403).json({ title: `the role ${role} is required`, status: 403 });
};
