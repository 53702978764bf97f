//! Decoding: any bytes become an event or an error, and what is decoded keeps its promises.

use kinde::event::{self, Body};

pub fn run(payload: &[u8]) {
    let Ok(event) = event::decode(payload) else { return };
    assert!(is_id(&event.event_type));
    assert!(event.id.as_deref().is_none_or(is_id));
    assert!(event.body.user_id().is_none_or(is_id));
    if let Body::UserCreated(user) | Body::UserUpdated(user) = event.body {
        assert_ne!(user.email.value().map(String::as_str), Some(""));
        let organizations = user.organizations.into_value().unwrap_or_default();
        assert!(organizations.iter().all(|organization| is_id(&organization.code)));
    }
}

fn is_id(text: &str) -> bool {
    (1..=256).contains(&text.len()) && !text.chars().any(char::is_control)
}
