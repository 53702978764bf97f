//! Does it: queue, projector and stores on tokio.
