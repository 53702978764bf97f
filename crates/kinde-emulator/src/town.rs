//! A scripted town: a seeded stream of what users do all day, with names that break careless code.

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

/// What happened in one step.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[non_exhaustive]
pub enum Step {
    /// Someone signed up.
    SignUp,
    /// Someone signed in, or tried to.
    SignIn,
    /// Someone's profile changed.
    Edit,
    /// Someone got another email.
    ChangeEmail,
    /// Two users exchanged their emails.
    SwapEmails,
    /// Someone joined an organization.
    Join,
    /// Someone was suspended or unsuspended.
    Suspend,
    /// Someone was deleted.
    Delete,
    /// Someone was imported, of which Kinde tells nobody.
    Import,
}

/// What people do, and how often out of a hundred.
const WEIGHTS: &[(Step, u32)] = &[
    (Step::SignUp, 22),
    (Step::SignIn, 36),
    (Step::Edit, 18),
    (Step::ChangeEmail, 6),
    (Step::SwapEmails, 2),
    (Step::Join, 5),
    (Step::Suspend, 5),
    (Step::Delete, 4),
    (Step::Import, 2),
];

/// A town with its own dice.
#[derive(Debug)]
pub struct Town {
    rng: StdRng,
    residents: Vec<String>,
    names: u64,
}

impl Town {
    /// An empty town; the same seed lives the same life.
    #[must_use]
    pub fn new(seed: u64) -> Self {
        Self { rng: StdRng::seed_from_u64(seed), residents: Vec::new(), names: 0 }
    }

    /// Lives at `rate` steps per second until `cancel` is cancelled or the emulator stops.
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

    /// Does the next thing. A step that nobody is there for is a sign-up.
    pub fn step(&mut self, emulator: &Emulator) -> Step {
        let step = if self.residents.len() < 3 { Step::SignUp } else { self.choose() };
        if let Err(error) = self.act(step, emulator) {
            // Someone else changed the user behind the town's back, or a suspended one tried to sign in.
            tracing::debug!(?step, %error, "a step of the town was refused");
        }
        step
    }

    fn choose(&mut self) -> Step {
        WEIGHTS.choose_weighted(&mut self.rng, |(_, weight)| *weight).map_or(Step::SignUp, |(step, _)| *step)
    }

    fn act(&mut self, step: Step, emulator: &Emulator) -> Result<(), tenant::Error> {
        match step {
            Step::SignUp => {
                let new = self.newcomer();
                self.residents.push(emulator.sign_up(new)?.id);
            }
            Step::Import => {
                let new = self.newcomer();
                self.residents.push(emulator.import_user(new)?.id);
            }
            Step::SignIn => drop(emulator.sign_in(&self.resident())?),
            Step::Edit => drop(emulator.update_user(&self.resident(), self.new_name())?),
            Step::ChangeEmail => {
                let edit = UserEdit { email: Some(self.email()), ..UserEdit::default() };
                drop(emulator.update_user(&self.resident(), edit)?);
            }
            Step::SwapEmails => emulator.swap_emails(&self.resident(), &self.resident())?,
            Step::Join => {
                let code = format!("org_{:011x}", self.rng.random_range(0..5));
                drop(emulator.add_to_organization(&self.resident(), &code, &["member".to_owned()], &[])?);
            }
            Step::Suspend => self.toggle_suspension(emulator)?,
            Step::Delete => {
                let index = self.rng.random_range(0..self.residents.len());
                let id = self.residents.swap_remove(index);
                let profile = if self.rng.random_bool(0.5) { Profile::Keep } else { Profile::Remove };
                emulator.delete_user(&id, profile)?;
            }
        }
        Ok(())
    }

    fn toggle_suspension(&mut self, emulator: &Emulator) -> Result<(), tenant::Error> {
        let id = self.resident();
        let suspended = emulator.user(&id).is_some_and(|user| user.is_suspended);
        let edit = UserEdit { is_suspended: Some(!suspended), ..UserEdit::default() };
        emulator.update_user(&id, edit).map(drop)
    }

    /// One in twelve has a phone and no email.
    fn newcomer(&mut self) -> NewUser {
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
        self.names += 1;
        format!("resident.{}.{:04x}@town.example", self.names, self.rng.random::<u16>())
    }

    fn resident(&mut self) -> String {
        self.residents.choose(&mut self.rng).cloned().unwrap_or_default()
    }
}
