// Loads the user behind a proxy that calls kinsync for each request (see docs/guides/forward-auth.md). The proxy sets these
// headers and removes those of the client. Therefore the application must be reachable only through the proxy.

export const proxied = (req, res, next) => {
  const kindeId = req.get('x-kinsync-user-id');
  if (!kindeId) return res.status(500).json({ title: 'the proxy does not call kinsync', status: 500 });
  req.user = { kindeId, email: req.get('x-kinsync-email') || null };
  next();
};
