// Who makes this request? kinsync knows: GET /api/me with the caller's own token.
// No answer means no user: this fails closed. `req.user` is the document as stored, at most a second old.

export const kinsync = (url) => async (req, res, next) => {
  const { authorization } = req.headers;
  let answer;
  try {
    const headers = authorization ? { authorization } : {};
    answer = await fetch(`${url}/api/me`, { headers, signal: AbortSignal.timeout(2000) });
    if (answer.ok) req.user = await answer.json();
  } catch {
    return res.status(503).json({ title: 'cannot tell who you are right now', status: 503 });
  }
  if (req.user) return next();
  // 401 and 403 come with a reason that the caller can act on; anything else is our problem.
  if (![401, 403].includes(answer.status)) return res.status(503).json({ title: 'try again', status: 503 });
  const challenge = answer.headers.get('www-authenticate');
  if (challenge) res.set('www-authenticate', challenge);
  res.status(answer.status).type('application/problem+json').send(await answer.text());
};
