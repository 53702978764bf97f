//! To be filled by the next commit.
