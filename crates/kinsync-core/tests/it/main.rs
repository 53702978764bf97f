//! Convergence of the join, on small domains where ties are common.

mod convergence;
mod directory;
mod documents;
mod emails;
mod erased;
mod histories;
mod memberships;
mod strategies;
