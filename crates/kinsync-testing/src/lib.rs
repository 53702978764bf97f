//! Proves it: real servers, a test application, seeded histories.
