//! What a user's state is, and how observations from any source join into it. Pure: no I/O, no clock.
