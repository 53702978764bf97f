//! `kinsync users list|show|explain`

use std::process::ExitCode;

use clap::Subcommand;
use serde_json::{Value, json};

use super::{client::Client, exit::Exit, flags::ClientFlags, output, runtime::block_on};

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List users in the order of their ids
    #[command(after_help = "Examples:\n  kinsync users list --email ada@example.com\n  kinsync users list \
                            --deleted --limit 1000 --json | jq '.users[].kindeId'")]
    List(List),
    /// Show one user as an application reads it
    Show(Show),
    /// Show what was told of a user, in order: what each word set, what was ignored and why, and what the next scan
    /// would do
    #[command(
        after_help = "Every event is told, from the log. Of reads of Kinde and of tokens what still counts is told: \
                            what later words\novertook is not kept. The next scan is found out by asking Kinde, for a \
                            few seconds.\n\nExample:\n  kinsync users explain kp_0190932d7592c68bda50d62b2ffa8cbb"
    )]
    Explain(Show),
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    /// Only the user who has this address, or claims it
    #[arg(long)]
    email: Option<String>,
    /// Deleted users too
    #[arg(long)]
    deleted: bool,
    /// Continue after this id
    #[arg(long, value_name = "ID")]
    after: Option<String>,
    /// At most this many, up to 1000
    #[arg(long, default_value_t = 50)]
    limit: usize,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

#[derive(Debug, clap::Args)]
pub(super) struct Show {
    /// The Kinde id, such as `kp_0190932d7592c68bda50d62b2ffa8cbb`
    id: String,
    /// Print JSON
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(args) => block_on(list(args)),
        Command::Show(args) => block_on(show(args)),
        Command::Explain(args) => block_on(explain(args)),
    }
}

async fn list(args: List) -> Result<ExitCode, Exit> {
    let query = [
        ("email", args.email),
        ("deleted", args.deleted.then(|| "true".to_owned())),
        ("after", args.after),
        ("limit", Some(args.limit.to_string())),
    ];
    let page = Client::new(args.flags)?.get(&["users"], &query).await?;
    let columns = [
        ("ID", "kindeId"),
        ("EMAIL", "email"),
        ("FIRST NAME", "firstName"),
        ("LAST NAME", "lastName"),
        ("UPDATED", "updatedAt"),
        ("DELETED", "deletedAt"),
    ];
    output::page(&page, "users", &columns, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn show(args: Show) -> Result<ExitCode, Exit> {
    let user = Client::new(args.flags)?.get(&["users", &args.id], &[]).await?;
    output::one(&user, args.json);
    Ok(ExitCode::SUCCESS)
}

async fn explain(args: Show) -> Result<ExitCode, Exit> {
    let answer = Client::new(args.flags)?.get(&["users", &args.id, "explain"], &[]).await?;
    if args.json {
        output::json(&answer);
        return Ok(ExitCode::SUCCESS);
    }
    let told = answer["told"].as_array().map(Vec::as_slice).unwrap_or_default();
    let rows: Vec<Value> = told.iter().flat_map(lines).collect();
    let columns = [
        ("KINDE'S TIME", "at"),
        ("CAME", "receivedAt"),
        ("WHAT", "kind"),
        ("SAID", "said"),
        ("WHAT BECAME OF IT", "fate"),
    ];
    if rows.is_empty() {
        output::say("nothing is kept but that somebody made a request with this id in the token");
    } else {
        output::table(&rows, &columns);
    }
    output::say(
        "\nOf reads of Kinde and of tokens this is what still counts: what later words overtook is not kept.",
    );
    if answer["olderEventsLeftOut"] == true {
        output::say("… and older events: kinsync events list --user");
    }
    output::say(&format!("\nThe next scan: {}", next_scan(&answer["nextScan"])));
    Ok(ExitCode::SUCCESS)
}

/// One line for what was told, and one for each field.
fn lines(told: &Value) -> Vec<Value> {
    let mut lines = vec![json!({
        "at": told["at"], "receivedAt": told["receivedAt"], "kind": told["kind"], "fate": told["fate"], "said": "",
    })];
    for word in told["fields"].as_array().into_iter().flatten() {
        let fate = match (&word["overtakenBy"], &word["isSet"]) {
            (Value::String(by), _) => format!("overtaken by {by}"),
            (_, Value::Bool(true)) => "is in the store".to_owned(),
            _ => "not in the store yet".to_owned(),
        };
        let said = format!("{} = {}", word["field"].as_str().unwrap_or_default(), word["value"]);
        lines.push(json!({ "at": "", "receivedAt": "", "kind": "", "said": said, "fate": fate }));
    }
    lines
}

fn next_scan(next: &Value) -> String {
    match (&next["unknown"], &next["drift"]) {
        (Value::String(why), _) => format!("unknown: {why}"),
        (_, Value::String(kind)) => {
            let fields: Vec<&str> =
                next["fields"].as_array().into_iter().flatten().filter_map(Value::as_str).collect();
            let would = super::scan::would(kind);
            if fields.is_empty() {
                format!("the user {would}")
            } else {
                format!("the user {would}: {}", fields.join(", "))
            }
        }
        _ => "nothing to do, the user is as Kinde has it".to_owned(),
    }
}
