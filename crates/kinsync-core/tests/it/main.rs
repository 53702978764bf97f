//! The law of convergence, clause by clause, on small domains where ties are common.

mod convergence;
mod documents;
mod emails;
mod strategies;
