//! A shell that supervises a server, and kills it when the test process ends, however it ends.

use std::{
    io::{BufRead, BufReader, Write},
    os::unix::process::CommandExt,
    process::{Child, ChildStdin, ChildStdout, Command, Stdio},
    time::Duration,
};

use tokio::time::Instant;

/// A script that reads one command a line, and answers each with a line.
#[derive(Debug)]
pub(crate) struct Shell {
    child: Child,
    commands: Option<ChildStdin>,
    answers: BufReader<ChildStdout>,
}

impl Shell {
    /// Runs the script with what `arrange` adds to the command.
    pub(crate) fn new(script: &str, arrange: impl FnOnce(&mut Command)) -> Self {
        let mut command = Command::new("sh");
        command.args(["-c", script, "supervisor"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        // A process group of its own: Ctrl-C must not end it before it cleans up.
        command.process_group(0);
        arrange(&mut command);
        let mut child = command.spawn().expect("there is a shell");
        let commands = child.stdin.take();
        let answers = BufReader::new(child.stdout.take().expect("it is piped"));
        Self { child, commands, answers }
    }

    /// Sends a command and waits until it is done.
    pub(crate) fn send(&mut self, command: &str) -> bool {
        let mut answer = String::new();
        let commands = self.commands.as_mut().expect("taken only when dropped");
        writeln!(commands, "{command}").expect("the supervisor reads until its input ends");
        self.answers.read_line(&mut answer).expect("the supervisor answers");
        answer.trim() == "yes"
    }

    /// Starts the server and waits until it answers. `false` when it ends, or does not answer in time.
    pub(crate) fn start(&mut self, within: Duration, answers: impl Fn() -> bool) -> bool {
        self.send("start");
        let deadline = Instant::now() + within;
        while Instant::now() < deadline && self.send("alive") {
            if answers() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        false
    }
}

impl Drop for Shell {
    fn drop(&mut self) {
        drop(self.commands.take());
        let _ = self.child.wait();
    }
}
