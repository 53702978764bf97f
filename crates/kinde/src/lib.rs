//! What Kinde says on the wire: webhook and token verification, JWKS, typed events, API clients.
