//! `kinsync users list|show|explain|export|erase`

use std::process::ExitCode;

use clap::Subcommand;
use kinsync_core::Part;

use super::{
    client::Client,
    exit::Exit,
    flags::ClientFlags,
    list::{Column, List, Page, Show},
    output::{self, cell},
    runtime::block_on,
};
use crate::api::{
    Time,
    explain::{Explanation, Membership, Memberships, NextScan, Observation, ObservedField, Permission},
    export::{ExportQuery, UserExport},
    users::{User, UserPage, UsersQuery},
};
use crate::plural::counted;

const LIST_HELP: &str = "\
--email, --phone and --provided-id can be combined with every other filter. Of the other filters only one is possible at a time, because \
an index answers it: --email-prefix, --name-prefix, --organization with --role, --state, or --changed-since. A page that is shorter than \
the limit is not always the last one.

Examples:
  kinsync users list --email ada@example.com
  kinsync users list --name-prefix ada
  kinsync users list --state suspended
  kinsync users list --changed-since 2026-11-01T00:00:00Z --deleted
  kinsync users list --deleted --limit 1000 --json | jq '.users[].kindeId'";

const EXPLAIN_HELP: &str = "\
All observations that changed the user are listed, from the event log: events, reads of Kinde and tokens. After an upgrade from a version \
without a complete log, the log begins with the stored user: of earlier reads and tokens, only the values that are still current are \
known. For the next scan the user is read from Kinde, for at most a few seconds.

Example:
  kinsync users explain kp_0190932d7592c68bda50d62b2ffa8cbb";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List users, in the order of their ids or of the value of the filter
    #[command(after_help = LIST_HELP)]
    List(Box<List<UsersQuery>>),
    /// Show one user as an application reads it
    Show(Show),
    /// Show every observation of a user, its outcome, and what the next scan would change
    #[command(after_help = EXPLAIN_HELP)]
    Explain(Show),
    /// Erase the personal data of a deleted user
    #[command(after_help = super::erase::AFTER_HELP)]
    Erase(super::erase::Args),
    /// Print everything that is stored about a user as JSON
    #[command(after_help = EXPORT_HELP)]
    Export(Export),
}

const EXPORT_HELP: &str = "\
For requests of users about their data (GDPR articles 15 and 20). Prints the document, the state, all entries of the event log, dead \
letters, queued deliveries, records of kinsync, and requests of operators about the user. Fields of your application are not part of it. \
The dead letters and queued deliveries are those of the shared queue and of the server that answers: with several servers, run the command \
once for each. The export itself is recorded in the audit log. With RabbitMQ it fails while deliveries wait: they cannot be listed.

Example:
  kinsync users export kp_0190932d7592c68bda50d62b2ffa8cbb > export.json";

#[derive(Debug, clap::Args)]
pub(super) struct Export {
    /// The id of the user
    id: String,
    /// Print JSON, as without this flag
    #[arg(long)]
    json: bool,
    #[command(flatten)]
    flags: ClientFlags,
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(list) => list.run::<UserPage>(),
        Command::Show(show) => show.run::<User>(UserPage::PATH),
        Command::Explain(args) => block_on(explain(args)),
        Command::Erase(args) => block_on(super::erase::erase(args)),
        Command::Export(args) => block_on(export(args)),
    }
}

async fn export(args: Export) -> Result<ExitCode, Exit> {
    let (client, path) = (Client::new(args.flags)?, [UserPage::PATH, args.id.as_str(), "export"]);
    let mut export: UserExport = client.get(&path).await?;
    while let Some(after) = export.next.take() {
        let query = ExportQuery { after: Some(after) };
        let page: UserExport = client.list(&path, &query).await?;
        export.entries.extend(page.entries);
        export.damaged_entries.extend(page.damaged_entries);
        export.next = page.next;
    }
    output::json(&export);
    Ok(ExitCode::SUCCESS)
}

impl Page for UserPage {
    type Query = UsersQuery;
    type Item = User;

    const PATH: &'static str = "users";
    const COLUMNS: &'static [Column<User>] = &[
        ("ID", |user| user.kinde_id.to_string()),
        ("EMAIL", |user| cell(user.email.as_ref())),
        ("FIRST NAME", |user| cell(user.first_name.as_ref())),
        ("LAST NAME", |user| cell(user.last_name.as_ref())),
        ("UPDATED", |user| Time::from(user.updated_at).to_string()),
        ("DELETED", |user| cell(user.deleted_at.map(Time::from).as_ref())),
    ];

    fn items(&self) -> &[User] {
        &self.users
    }

    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn undecodable(&self) -> &[String] {
        &self.undecodable
    }
}

async fn explain(args: Show) -> Result<ExitCode, Exit> {
    let explanation: Explanation =
        Client::new(args.flags)?.get(&[UserPage::PATH, args.id.as_str(), "explain"]).await?;
    if args.json {
        output::json(&explanation);
        return Ok(ExitCode::SUCCESS);
    }
    if let Some(refused) = &explanation.refused {
        let what = if refused.is_missing { "the document" } else { "the newest state" };
        let (since, reason) = (&refused.since, &refused.reason);
        output::say(&format!("The database refuses {what} of this user since {since}: {reason}\n"));
    }
    for (key, reason) in &explanation.refused_keys {
        output::say(&format!("The document does not show {key}: {reason}"));
    }
    for (key, value) in explanation.user.iter().flat_map(|user| &user.kept) {
        output::say(&format!(
            "The document keeps {key} of your application, which Kinde does not change: {value}"
        ));
    }
    explanation.memberships.iter().flat_map(membership_lines).for_each(|line| output::say(&line));
    let rows: Vec<_> = explanation.observations.iter().flat_map(lines).collect();
    if rows.is_empty() {
        output::say("only an authenticated request of this user is known");
    } else {
        output::text_table(["KINDE'S TIME", "OBSERVATION", "OUTCOME"], rows);
    }
    if explanation.older_entries_omitted > 0 {
        let omitted = counted(explanation.older_entries_omitted, "older entry", "older entries");
        output::say(&format!("\n{omitted} of the log not listed: kinsync events list --user {}", args.id));
    }
    if !explanation.damaged_entries.is_empty() {
        let damaged = explanation.damaged_entries.join(", ");
        output::say(&format!("\nDamaged entries of the log, changed after they were written: {damaged}"));
    }
    output::say(&format!("\nThe next scan: {}", next_scan(&explanation.next_scan)));
    Ok(ExitCode::SUCCESS)
}

/// One line for each membership, with what is known and what is not.
fn membership_lines(memberships: &Memberships) -> Vec<String> {
    let known = |list: Option<Vec<String>>| match list {
        None => "unknown".to_owned(),
        Some(list) if list.is_empty() => "none".to_owned(),
        Some(list) => list.join(", "),
    };
    let permission = |permission: &Permission| match permission.roles.as_slice() {
        [] => format!("{} (direct)", permission.key),
        roles => format!("{} (from {})", permission.key, roles.join(" and ")),
    };
    let line = |one: &Membership| {
        let permissions = one.permissions.as_ref().map(|list| list.iter().map(permission).collect());
        let (roles, permissions) = (known(one.roles.clone()), known(permissions));
        format!("Member of {}: roles {roles}; permissions {permissions}", one.code)
    };
    let others = "Other memberships are unknown: no event or scan has listed them all.".to_owned();
    let others = (!memberships.are_all_known).then_some(others);
    memberships.list.iter().map(line).chain(others).collect()
}

/// One line for the observation, one for the time of its receipt, and one for each of its fields.
fn lines(observation: &Observation) -> Vec<[String; 3]> {
    let line = |what: String, outcome: String| [String::new(), what, outcome];
    let mut lines =
        vec![[cell(observation.at.as_ref()), observation.kind.clone(), observation.outcome.clone()]];
    lines.extend(observation.received_at.iter().map(|at| line(format!("received {at}"), String::new())));
    for field in &observation.fields {
        let outcome = match (&field.superseded_by, field.is_current) {
            (Some(by), _) => format!("superseded by {by}"),
            (None, true) => "is in the store".to_owned(),
            (None, false) => "not in the store yet".to_owned(),
        };
        let value = serde_json::to_string(&field.value).expect("a value has only text keys");
        lines.push(line(format!("{} = {value}", field_name(field)), outcome));
    }
    lines
}

fn field_name(field: &ObservedField) -> String {
    let organization = field.organization.as_deref().unwrap_or("any other organization");
    if let Some(property) = &field.property {
        return format!("property {property}");
    }
    match field.part {
        None => field.field.clone(),
        Some(Part::Member) => format!("member of {organization}"),
        Some(Part::Roles) => format!("roles in {organization}"),
        Some(Part::Permissions) => format!("permissions in {organization}"),
        Some(Part::IsSuspended) => format!("suspended in {organization}"),
        Some(Part::JoinedOn) => format!("joined {organization}"),
    }
}

fn next_scan(next: &NextScan) -> String {
    match next {
        NextScan::Unknown { reason } => format!("unknown: {reason}"),
        NextScan::Unchanged => "nothing to do, the stored user equals Kinde's".to_owned(),
        NextScan::Drift { kind, fields } if fields.is_empty() => {
            format!("the user {}", super::scan::would(*kind))
        }
        NextScan::Drift { kind, fields } => {
            format!("the user {}: {}", super::scan::would(*kind), fields.join(", "))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::explain::FieldValue;

    #[test]
    fn unknown_roles_and_permissions_are_no_empty_lists() {
        let member = |roles: Option<&[&str]>, permissions: Option<Vec<Permission>>| Membership {
            code: "org_1".into(),
            roles: roles.map(|keys| keys.iter().map(|key| (*key).to_owned()).collect()),
            permissions,
        };
        let permission = |key: &str, roles: &[&str]| Permission {
            key: key.into(),
            roles: roles.iter().map(|key| (*key).to_owned()).collect(),
        };
        let known = vec![permission("delete", &["admin", "owner"]), permission("read", &[])];
        let list = vec![member(Some(&[]), None), member(None, None), member(Some(&["admin"]), Some(known))];
        let lines = membership_lines(&Memberships { are_all_known: false, list });
        let expected = [
            "Member of org_1: roles none; permissions unknown",
            "Member of org_1: roles unknown; permissions unknown",
            "Member of org_1: roles admin; permissions delete (from admin and owner), read (direct)",
            "Other memberships are unknown: no event or scan has listed them all.",
        ];
        assert_eq!(lines, expected);
    }

    #[test]
    fn each_part_of_a_membership_has_a_line_with_its_outcome() {
        let part = |part, organization: Option<&str>, value, superseded_by: Option<&str>| ObservedField {
            field: "organizations".into(),
            part: Some(part),
            organization: organization.map(Into::into),
            property: None,
            value,
            is_current: superseded_by.is_none(),
            superseded_by: superseded_by.map(Into::into),
            superseded_by_entries: Vec::new(),
        };
        let observation = Observation {
            at: None,
            received_at: Some(kinsync_core::Micros(0).into()),
            kind: "user.updated".into(),
            event_id: Some("event_1".into()),
            outcome: "set 2 of 3 fields".into(),
            fields: vec![
                part(Part::Member, Some("org_1"), FieldValue::Flag(true), Some("kinsync.scan.read")),
                part(Part::Roles, Some("org_1"), FieldValue::Codes(vec!["admin".into()]), None),
                part(Part::Member, None, FieldValue::Flag(false), None),
                ObservedField {
                    field: "properties".into(),
                    part: None,
                    property: Some("plan".into()),
                    ..part(Part::Member, None, FieldValue::Text("pro".into()), None)
                },
            ],
        };
        let expected = [
            ["-", "user.updated", "set 2 of 3 fields"],
            ["", "received 1970-01-01T00:00:00.000000Z", ""],
            ["", "member of org_1 = true", "superseded by kinsync.scan.read"],
            ["", "roles in org_1 = [\"admin\"]", "is in the store"],
            ["", "member of any other organization = false", "is in the store"],
            ["", "property plan = \"pro\"", "is in the store"],
        ];
        assert_eq!(lines(&observation), expected);
    }
}
