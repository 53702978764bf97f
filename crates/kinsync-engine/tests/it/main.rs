//! The engine on real files and real servers.

mod histories;
mod stores;

mod audit;
mod explain;
mod fault_matrix;
mod faults;
mod faulty;
mod isolation;
mod lists;
mod pipeline;
mod projections;
mod receipt_order;

mod sightings;

mod deletion_budget;
mod derived;
mod directory;
mod directory_proofs;
mod erasure;
mod erasure_files;
mod erasure_records;
mod proofs;
mod properties;
mod quarantine;
mod rebuild;
mod rebuild_damage;
mod rebuild_histories;
mod rebuild_losses;
mod reconcile;
mod reconcile_deletions;
mod reconcile_interrupted;
mod reconcile_requests;
mod reconcile_scans;
mod reconcile_schedule;
mod state_records;
mod suspended;
mod unreadable;

mod queue_bounds;
mod queue_conformance;
mod queue_crash;
mod queue_damage;
mod queue_disk;
mod queue_embedded;
mod queue_lease;
mod queue_model;
mod queue_newer_version;
mod queue_rabbitmq;
mod queue_rabbitmq_promises;
mod queue_redis;
mod queue_sentinel;
mod queue_spool_states;
mod queue_spooled;

mod removals;
mod replay;
mod replica_set;
mod requests;
mod retention;
mod roles;
mod roles_convergence;
mod roles_held;
mod roles_history;
mod roles_permissions;
mod roles_truth;
mod spread;

mod address_case;
mod email_conflicts;
mod linking;
mod log_follower;
mod lost_documents;
mod mongoose;
mod own_keys;
mod store_conformance;
mod store_conformance_records;
mod store_connection;
mod store_disk;
mod store_embedded;
mod store_indexes;
mod store_mongo;
mod store_outages;
mod store_rows;
