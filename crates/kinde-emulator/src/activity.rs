//! Generated activity: a seeded stream of user actions, with names that reveal escaping errors.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng, SeedableRng};
use tokio_util::sync::CancellationToken;

use crate::emulator::Emulator;
use crate::tenant::{self, Profile};
use crate::user::{NewUser, UserEdit};

const FIRST_NAMES: &[&str] = &[
    "Ada",
    "Zoë",
    "李",
    "Søren",
    "Nguyễn",
    "محمد",
    "Иван",
    "José",
    "$$NOW",
    "$set",
    "a.b.c",
    "__proto__",
    "Robert'); DROP TABLE users;--",
    "👩‍🚀",
    "𝕬𝖉𝖆",
    "null",
    "<script>alert(1)</script>",
    "O'Brien",
    "{{7*7}}",
    "e\u{301}\u{323}",
];
const LAST_NAMES: &[&str] = &[
    "Lovelace",
    "Müller",
    "Ōe",
    "García",
    "Ångström",
    "$where",
    "",
    "العربي",
    "Smith",
    "🦀🦀🦀",
    "Ivanov",
    "van der Berg",
    "\u{202e}reversed",
];

/// An action of a user or an administrator.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Action {
    /// A user signs up.
    SignUp,
    /// A user signs in, or is refused because of a suspension.
    SignIn,
    /// The name of a user changes.
    Edit,
    /// The email of a user changes.
    ChangeEmail,
    /// Two users exchange their emails.
    SwapEmails,
    /// A user joins an organization.
    JoinOrganization,
    /// A user is suspended or unsuspended.
    Suspend,
    /// A user is deleted.
    Delete,
    /// A user is imported. Kinde sends no event for imports.
    Import,
}

/// The actions with their probabilities in percent.
const WEIGHTS: &[(Action, u32)] = &[
    (Action::SignUp, 22),
    (Action::SignIn, 36),
    (Action::Edit, 18),
    (Action::ChangeEmail, 6),
    (Action::SwapEmails, 2),
    (Action::JoinOrganization, 5),
    (Action::Suspend, 5),
    (Action::Delete, 4),
    (Action::Import, 2),
];

/// Generates actions at an emulator. The same seed generates the same actions.
#[derive(Debug)]
pub struct Activity {
    rng: StdRng,
    user_ids: Vec<String>,
    emails: u64,
}

impl Activity {
    /// Creates a generator without users.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), user_ids: Vec::new(), emails: 0 }
    }

    /// Runs `rate` actions per second until `cancel` is cancelled or the emulator stops.
    pub async fn run(&mut self, emulator: &Emulator, rate: f64, cancel: &CancellationToken) {
        let pause = Duration::from_secs_f64(1.0 / rate.clamp(0.001, 100_000.0));
        let mut ticks = tokio::time::interval(pause);
        loop {
            tokio::select! {
                () = cancel.cancelled() => return,
                () = emulator.stopped() => return,
                _ = ticks.tick() => self.step(emulator),
            };
        }
    }

    /// Runs the next action and returns it. It is a sign-up as long as there are fewer than three users.
    pub fn step(&mut self, emulator: &Emulator) -> Action {
        let action = if self.user_ids.len() < 3 { Action::SignUp } else { self.choose() };
        if let Err(error) = self.act(action, emulator) {
            // The user is suspended, or was changed or deleted through the API.
            tracing::debug!(?action, %error, "a generated action was refused");
        }
        action
    }

    fn choose(&mut self) -> Action {
        let choice = WEIGHTS.choose_weighted(&mut self.rng, |(_, weight)| *weight);
        choice.map_or(Action::SignUp, |(action, _)| *action)
    }

    fn act(&mut self, action: Action, emulator: &Emulator) -> Result<(), tenant::Error> {
        match action {
            Action::SignUp => {
                let new = self.new_user();
                self.user_ids.push(emulator.sign_up(new)?.id);
            }
            Action::Import => {
                let new = self.new_user();
                self.user_ids.push(emulator.import_user(new)?.id);
            }
            Action::SignIn => drop(emulator.sign_in(&self.user_id())?),
            Action::Edit => drop(emulator.update_user(&self.user_id(), self.new_name())?),
            Action::ChangeEmail => {
                let edit = UserEdit { email: Some(self.email()), ..UserEdit::default() };
                drop(emulator.update_user(&self.user_id(), edit)?);
            }
            Action::SwapEmails => emulator.swap_emails(&self.user_id(), &self.user_id())?,
            Action::JoinOrganization => {
                let code = format!("org_{:011x}", self.rng.random_range(0..5));
                drop(emulator.add_to_organization(&self.user_id(), &code, &["member".to_owned()], &[])?);
            }
            Action::Suspend => self.toggle_suspension(emulator)?,
            Action::Delete => {
                let index = self.rng.random_range(0..self.user_ids.len());
                let id = self.user_ids.swap_remove(index);
                let profile = if self.rng.random_bool(0.5) { Profile::Keep } else { Profile::Remove };
                emulator.delete_user(&id, profile)?;
            }
        }
        Ok(())
    }

    fn toggle_suspension(&mut self, emulator: &Emulator) -> Result<(), tenant::Error> {
        let id = self.user_id();
        let suspended = emulator.user(&id).is_some_and(|user| user.is_suspended);
        let edit = UserEdit { is_suspended: Some(!suspended), ..UserEdit::default() };
        emulator.update_user(&id, edit).map(drop)
    }

    /// One user in twelve has a phone and no email.
    fn new_user(&mut self) -> NewUser {
        let (first, last) = self.name();
        let phone_only = self.rng.random_ratio(1, 12);
        let phone = format!("+61426{:06}", self.rng.random_range(0..1_000_000));
        NewUser {
            email: (!phone_only).then(|| self.email()),
            email_verified: !phone_only && self.rng.random_bool(0.8),
            phone: phone_only.then_some(phone),
            first_name: Some(first),
            last_name: Some(last),
            ..NewUser::default()
        }
    }

    fn new_name(&mut self) -> UserEdit {
        let (first, last) = self.name();
        UserEdit { first_name: Some(first), last_name: Some(last), ..UserEdit::default() }
    }

    fn name(&mut self) -> (String, String) {
        let mut pick = |names: &[&str]| names.choose(&mut self.rng).copied().unwrap_or_default().to_owned();
        (pick(FIRST_NAMES), pick(LAST_NAMES))
    }

    fn email(&mut self) -> String {
        self.emails += 1;
        format!("user.{}.{:04x}@activity.example", self.emails, self.rng.random::<u16>())
    }

    fn user_id(&mut self) -> String {
        self.user_ids.choose(&mut self.rng).cloned().unwrap_or_default()
    }
}
