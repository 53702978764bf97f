//! The extractor on a route without the layer.

use std::{
    net::Ipv4Addr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use axum::{Router, routing::get};
use kinsync_tower::CurrentUser;
use serde_json::Value;

#[tokio::test]
async fn without_a_layer_in_front_the_answer_is_500_and_the_handler_does_not_run() {
    let ran = Arc::new(AtomicBool::new(false));
    let handler_ran = Arc::clone(&ran);
    let handler = async move |_: CurrentUser| handler_ran.store(true, Ordering::Relaxed);
    let listener = tokio::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let url = format!("http://{}/me", listener.local_addr().unwrap());
    let server = axum::serve(listener, Router::new().route("/me", get(handler)));
    let request = async {
        let client = reqwest::Client::builder().build().unwrap();
        // What a layer would have taken away proves nothing.
        client.get(&url).bearer_auth("token").header("x-kinsync-user-id", "kp_admin").send().await.unwrap()
    };
    let answer = tokio::select! {
        answer = request => answer,
        stopped = server => panic!("{stopped:?}"),
    };
    assert_eq!(answer.status(), 500);
    assert_eq!(answer.headers()["content-type"], "application/problem+json");
    let problem = answer.json::<Value>().await.unwrap();
    assert_eq!(problem["type"], "urn:problem-type:kinsync:internal");
    assert!(problem["requestId"].as_str().unwrap().starts_with("req_"), "{problem}");
    assert!(!ran.load(Ordering::Relaxed), "the handler ran");
}
