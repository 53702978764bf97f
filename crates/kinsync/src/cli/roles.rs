//! `kinsync roles list|show`

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    exit::Exit,
    list::{Column, List, Page, Show},
    output::cell,
};
use crate::api::organizations::{RoleDetails, RolePage, RolesQuery};

const LIST_HELP: &str = "\
Roles are known from events, and from scans with KINSYNC_RECONCILE_ROLES=true, which also list their permissions.

Examples:
  kinsync roles list --json | jq '.roles[] | {key, permissions}'
  kinsync users list --role admin";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List roles in the order of their ids
    #[command(after_help = LIST_HELP)]
    List(List<RolesQuery>),
    /// Show one role
    Show(Show),
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(list) => list.run::<RolePage>(),
        Command::Show(show) => show.run::<RoleDetails>(RolePage::PATH),
    }
}

impl Page for RolePage {
    type Query = RolesQuery;
    type Item = RoleDetails;

    const PATH: &'static str = "roles";
    const COLUMNS: &'static [Column<RoleDetails>] = &[
        ("ID", |one| one.id.clone()),
        ("KEY", |one| cell(one.key.as_ref())),
        ("NAME", |one| cell(one.name.as_ref())),
        ("PERMISSIONS", |one| {
            one.permissions.as_ref().map_or_else(|| "-".to_owned(), |list| list.len().to_string())
        }),
        ("DELETED", |one| cell(one.deleted_at.as_ref())),
    ];

    fn items(&self) -> &[RoleDetails] {
        &self.roles
    }

    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }

    fn undecodable(&self) -> &[String] {
        &self.undecodable
    }
}
