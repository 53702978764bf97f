//! Modules for the other crates of kinsync and for tests. Not part of the public interface: items change without notice.

/// Re-exports the public items of modules of this crate.
macro_rules! expose {
    ($($(#[$condition:meta])? $module:ident)*) => {$(
        $(#[$condition])?
        pub mod $module {
            pub use crate::$module::*;
        }
    )*};
}

expose! {
    apply audit breaker clock decode derived directory email_ownership engine erasure explain fields known_users
    #[cfg(feature = "mongodb")] link
    log_entry log_follower log_snapshots pending_checks projections projector queue random rebuild reconcile refused_users replay retention scan_watermark sighting snapshot spread state_records store
    supervisor trace
}
