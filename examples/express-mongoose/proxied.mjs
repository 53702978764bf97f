// The same behind a proxy that asks kinsync for each request (see docs/guides/forward-auth.md): the proxy writes these
// headers itself and takes away the caller's own. So this application must be reachable through the proxy alone.

export const proxied = (req, res, next) => {
  const kindeId = req.get('x-kinsync-user-id');
  if (!kindeId) return res.status(500).json({ title: 'the proxy in front does not ask kinsync', status: 500 });
  req.user = { kindeId, email: req.get('x-kinsync-email') || null };
  next();
};
