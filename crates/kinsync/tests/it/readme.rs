//! The commands of the README's tour with a MongoDB, as a reader pastes them. The first block builds the binary and the second and
//! the last one need `mongod` at its usual port and `mongosh`: the test has its own binary and server instead of them.

use std::{
    fs,
    path::Path,
    process::{Child, Command, Stdio},
};

use bson::{Document, doc};
use kinsync_testing::{free_port, mongo::TestMongo};
use serde_json::Value;
use tempfile::TempDir;
use tokio::time::{Instant, sleep};

use crate::{deployment::DEADLINE, forward_auth::ROOT};

/// The addresses in the README.
const MONGODB: &str = "mongodb://localhost:27017/myapp?replicaSet=rs0";
const KINSYNC: &str = "http://localhost:5000";

/// The blocks of commands of the section.
fn blocks() -> Vec<String> {
    let readme = fs::read_to_string(format!("{ROOT}/README.md")).unwrap();
    let section = readme.split("## Five minutes with your own MongoDB").nth(1).unwrap();
    let section = section.split("\n## ").next().unwrap();
    let blocks = section.split("```sh\n").skip(1).map(|rest| rest.split("```").next().unwrap());
    blocks.map(|block| block.lines().map(str::trim_start).collect::<Vec<_>>().join("\n")).collect()
}

fn replaced(block: &str, from: &str, to: &str) -> String {
    assert!(block.contains(from), "{from} is not in {block}");
    block.replace(from, to)
}

/// Runs commands in the folder of the reader.
fn bash(folder: &Path, commands: &str) -> Command {
    let binary = Path::new(env!("CARGO_BIN_EXE_kinsync")).parent().unwrap();
    let commands = format!("export PATH='{}':\"$PATH\"\n{commands}", binary.display());
    let path = std::env::vars_os().filter(|(name, _)| name == "PATH");
    let mut bash = Command::new("bash");
    bash.args(["-euo", "pipefail", "-c", &commands]).env_clear().envs(path).current_dir(folder);
    bash
}

fn output(folder: &Path, commands: &str) -> Value {
    let output = bash(folder, commands).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    serde_json::from_slice(&output.stdout).unwrap()
}

/// The server, killed when the test ends.
struct Serve(Child);

impl Drop for Serve {
    fn drop(&mut self) {
        _ = self.0.kill();
        _ = self.0.wait();
    }
}

async fn serve(folder: &TempDir, block: &str, url: &str, port: u16) -> Serve {
    // The shell becomes the server, so that a signal reaches it.
    let commands = replaced(block, "kinsync serve", "exec kinsync serve");
    let log = fs::File::create(folder.path().join("log")).unwrap();
    let mut bash = bash(folder.path(), &commands);
    let mut serve =
        Serve(bash.env("PORT", port.to_string()).stderr(log).stdin(Stdio::null()).spawn().unwrap());
    let deadline = Instant::now() + DEADLINE;
    while !reqwest::get(format!("{url}/health/ready")).await.is_ok_and(|answer| answer.status() == 200) {
        let ended = serve.0.try_wait().unwrap();
        let log = || fs::read_to_string(folder.path().join("log")).unwrap();
        assert!(ended.is_none() && Instant::now() < deadline, "{ended:?}: {}", log());
        sleep(std::time::Duration::from_millis(50)).await;
    }
    serve
}

#[tokio::test(flavor = "multi_thread")]
async fn the_commands_of_the_tour_work_as_they_are_written() {
    let blocks = blocks();
    let [build, replica_set, start, wrong, right, find] = &blocks[..] else { panic!("{blocks:#?}") };
    assert!(build.contains("cargo build") && replica_set.contains("rs.initiate") && find.contains("mongosh"));
    let (mongo, folder, port) = (TestMongo::shared().await, tempfile::tempdir().unwrap(), free_port());
    let (database, url) = (mongo.database(), format!("http://127.0.0.1:{port}"));
    let uri = mongo.uri().replace("/?", &format!("/{database}?"));
    let _serve = serve(&folder, &replaced(start, MONGODB, &uri), &url, port).await;

    let refused = output(folder.path(), &replaced(wrong, KINSYNC, &url));
    assert_eq!(
        (&refused["status"], &refused["reason"]),
        (&401.into(), &"malformed_signature".into()),
        "{refused}"
    );
    let accepted = output(folder.path(), &replaced(right, KINSYNC, &url));
    assert_eq!(accepted["eventId"], "event_1", "{accepted}");
    let users = mongo.client().await.database(&database).collection::<Document>("users");
    let deadline = Instant::now() + DEADLINE;
    while users.find_one(doc! { "kindeId": "test", "email": "test@example.com" }).await.unwrap().is_none() {
        assert!(
            Instant::now() < deadline,
            "no user: {}",
            fs::read_to_string(folder.path().join("log")).unwrap()
        );
        sleep(std::time::Duration::from_millis(50)).await;
    }
}
