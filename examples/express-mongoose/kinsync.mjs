// Loads the user of a request: GET /api/me with the token of the request. `req.user` is the stored document, at most one
// second old. Without a response of kinsync the request is rejected.

export const kinsync = (url) => async (req, res, next) => {
  const { authorization } = req.headers;
  let response;
  try {
    const headers = authorization ? { authorization } : {};
    response = await fetch(`${url}/api/me`, { headers, signal: AbortSignal.timeout(2000) });
    if (response.ok) req.user = await response.json();
  } catch {
    return res.status(503).json({ title: 'the user cannot be determined at the moment', status: 503 });
  }
  if (req.user) return next();
  // 401 and 403 have a reason for the client. Any other status is an error of this server.
  if (![401, 403].includes(response.status)) return res.status(503).json({ title: 'try again', status: 503 });
  const challenge = response.headers.get('www-authenticate');
  if (challenge) res.set('www-authenticate', challenge);
  res.status(response.status).type('application/problem+json').send(await response.text());
};

// Requires a role in the organization of the token (see docs/guides/authorization.md).
export const verifiesRole = (url, role) => async (req, res, next) => {
  let status = 503;
  try {
    const headers = { authorization: req.headers.authorization };
    const query = new URLSearchParams({ role });
    const response = await fetch(`${url}/auth/verify?${query}`, { headers, signal: AbortSignal.timeout(2000) });
    if (response.ok) return next();
    if (response.status === 403) status = 403;
  } catch {
    // Answered 503.
  }
  res.status(status).json({ title: `the role ${role} is required`, status });
};
