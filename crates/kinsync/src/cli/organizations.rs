//! `kinsync organizations list|show`

use std::process::ExitCode;

use clap::Subcommand;

use super::{
    exit::Exit,
    list::{Column, List, Page, Show},
    output::cell,
};
use crate::api::organizations::{OrganizationDetails, OrganizationPage, OrganizationsQuery};

const LIST_HELP: &str = "\
Organizations are known from events, and from scans with KINSYNC_RECONCILE_ROLES=true.

Examples:
  kinsync organizations list --json | jq -r '.organizations[].code'
  kinsync users list --organization org_590d7f1a86a";

#[derive(Debug, Subcommand)]
pub(super) enum Command {
    /// List organizations in the order of their codes
    #[command(after_help = LIST_HELP)]
    List(List<OrganizationsQuery>),
    /// Show one organization
    Show(Show),
}

pub(super) fn run(command: Command) -> Result<ExitCode, Exit> {
    match command {
        Command::List(list) => list.run::<OrganizationPage>(),
        Command::Show(show) => show.run::<OrganizationDetails>(OrganizationPage::PATH),
    }
}

impl Page for OrganizationPage {
    type Query = OrganizationsQuery;
    type Item = OrganizationDetails;

    const PATH: &'static str = "organizations";
    const COLUMNS: &'static [Column<OrganizationDetails>] = &[
        ("CODE", |one| one.code.clone()),
        ("NAME", |one| cell(one.name.as_ref())),
        ("HANDLE", |one| cell(one.handle.as_ref())),
        ("EXTERNAL ID", |one| cell(one.external_id.as_ref())),
        ("MEMBERS", |one| one.member_count.to_string()),
        ("DELETED", |one| cell(one.deleted_at.as_ref())),
    ];

    fn items(&self) -> &[OrganizationDetails] {
        &self.organizations
    }

    fn next(&self) -> Option<&str> {
        self.next.as_deref()
    }
}
