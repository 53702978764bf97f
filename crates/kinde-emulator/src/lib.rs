//! A local Kinde: keys, tokens, users, signed webhooks on Kinde's retry schedule, and faults on demand.
