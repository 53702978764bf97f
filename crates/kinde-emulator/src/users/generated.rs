//! Generated users: user `k` is a pure function of the settings and `k`, and is not stored.

mod directory;

use std::collections::BTreeMap;

use jiff::Timestamp;

use crate::config;
use crate::user::{Grant, User};
use directory::Memberships;

const NAMES: &[(&str, &str)] = &[
    ("Ada", "ada"),
    ("Zoë", "zoe"),
    ("李", "li"),
    ("Søren", "soren"),
    ("Nguyễn", "nguyen"),
    ("محمد", "mohamed"),
    ("Иван", "ivan"),
    ("José", "jose"),
    ("Grace", "grace"),
    ("Linus", "linus"),
    ("Mary", "mary"),
    ("O'Brien", "obrien"),
    ("Anna", "anna"),
    ("Edsger", "edsger"),
    ("Barbara", "barbara"),
    ("👩‍🚀", "astronaut"),
];
const FAMILIES: &[&str] = &[
    "Lovelace",
    "Müller",
    "Ōe",
    "García",
    "Ångström",
    "Smith",
    "van der Berg",
    "العربي",
    "Hopper",
    "Liskov",
];
const DOMAIN: &str = "@generated.example";

/// Creation time of the first user, 2024-01-01T00:00:00Z, and seconds until the next user is created.
const FIRST_CREATED_ON: i64 = 1_704_067_200;
const INTERVAL: i64 = 7;

/// The largest count. More users would be created after the year 9999.
const MAX: u64 = 1 << 34;

/// A number of generated users.
pub(crate) struct Generated {
    settings: config::Generated,
    count: u64,
    key: u64,
    memberships: Memberships,
}

impl Generated {
    pub(crate) fn new(settings: config::Generated, org_code: &str) -> Self {
        let key = mix(settings.seed.wrapping_add(0x9e37_79b9_7f4a_7c15));
        let memberships = Memberships::new(&settings, org_code);
        Self { settings, count: settings.users.min(MAX), key, memberships }
    }

    pub(crate) fn settings(&self) -> config::Generated {
        self.settings
    }

    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// Returns user `k` if it is below the count.
    pub(crate) fn user(&self, k: u64) -> Option<User> {
        if k >= self.count {
            return None;
        }
        let (hi, lo) = self.words(k);
        let one_in = |part: u32, n: u64| (lo >> part) & 0xff < 256_u64.div_ceil(n);
        let random = mix(lo);
        let (first, _) = NAMES[index(random, NAMES.len())];
        let last = FAMILIES[index(random >> 8, FAMILIES.len())];
        let phone_only = one_in(0, 50);
        let created = FIRST_CREATED_ON + INTERVAL * i64::try_from(k).ok()?;
        let micros = i64::try_from(random >> 44).ok()? % 1_000_000;
        let at = |seconds: i64| Timestamp::from_microsecond((created + seconds) * 1_000_000 + micros).ok();
        let since = i64::try_from(random >> 40).ok()? % (180 * 86400);
        let signed_in = !one_in(8, 4);
        Some(User {
            id: format!("kp_{hi:016x}{lo:016x}"),
            provided_id: one_in(16, 8).then(|| format!("legacy-{k}")),
            email: (!phone_only).then(|| self.email(k)),
            email_verified: !phone_only && !one_in(24, 5),
            first_name: Some(first.to_owned()),
            last_name: Some(last.to_owned()),
            phone: phone_only.then(|| format!("+614{:08}", k % 100_000_000)),
            username: None,
            picture: one_in(32, 3).then(|| format!("https://pictures.example/{lo:016x}.png")),
            is_suspended: one_in(40, 200),
            is_password_reset_requested: false,
            organizations: self.memberships.of(k, lo, at(0)?),
            properties: BTreeMap::new(),
            created_on: at(0)?,
            updated_on: at(0)?,
            last_signed_in: if signed_in { at(since) } else { None },
            total_sign_ins: if signed_in { random % 100 + 1 } else { 0 },
            failed_sign_ins: 0,
            deleted_on: None,
        })
    }

    /// Returns the number of the user with this id.
    pub(crate) fn by_id(&self, id: &str) -> Option<u64> {
        let hex = id.strip_prefix("kp_").filter(|hex| hex.len() == 32 && hex.is_ascii())?;
        let word = |text| u64::from_str_radix(text, 16).ok();
        let (hi, lo) = (word(&hex[..16])?, word(&hex[16..])?);
        let k = unmix(hi) ^ self.key;
        (k < self.count && self.words(k) == (hi, lo)).then_some(k)
    }

    /// Returns the number of the user with this lower-case email.
    pub(crate) fn by_email(&self, email: &str) -> Option<u64> {
        let (_, number) = email.strip_suffix(DOMAIN)?.rsplit_once('.')?;
        let k = number.parse().ok()?;
        (self.user(k)?.email.as_deref() == Some(email)).then_some(k)
    }

    /// The numbers of the users from `from` on that are members of an organization; `None` if all of them are.
    pub(crate) fn members(&self, code: &str, from: u64) -> Option<Vec<u64>> {
        self.memberships.members(code, from, self.count)
    }

    pub(crate) fn remove_organization(&mut self, code: &str) {
        self.memberships.remove_organization(code);
    }

    pub(crate) fn set_role(&mut self, id: &str, grant: Option<&Grant>) {
        self.memberships.set_role(id, grant);
    }

    fn email(&self, k: u64) -> String {
        let (_, lo) = self.words(k);
        let (_, slug) = NAMES[index(mix(lo), NAMES.len())];
        format!("{slug}.{k}{DOMAIN}")
    }

    /// The 128 bits of an id. `k` follows from the first word; the second word is a check.
    fn words(&self, k: u64) -> (u64, u64) {
        let hi = mix(k ^ self.key);
        (hi, mix(hi ^ self.key.rotate_left(32)))
    }
}

fn index(random: u64, length: usize) -> usize {
    usize::from(random.to_le_bytes()[0]) % length
}

/// The finalizer of `SplitMix64`: a bijection, so that ids are unique.
///
/// Source: <https://prng.di.unimi.it/splitmix64.c>.
fn mix(mut x: u64) -> u64 {
    x = (x ^ x >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ x >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ x >> 31
}

fn unmix(mut x: u64) -> u64 {
    x = (x ^ x >> 31 ^ x >> 62).wrapping_mul(0x3196_42b2_d24d_8ec3);
    x = (x ^ x >> 27 ^ x >> 54).wrapping_mul(0x96de_1b17_3f11_9089);
    x ^ x >> 30 ^ x >> 60
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    fn generated(users: u64, seed: u64) -> Generated {
        Generated::new(config::Generated { users, seed, ..config::Generated::default() }, "org_1")
    }

    #[test]
    fn users_are_found_by_id_and_email() {
        let users = generated(1_000_000, 7);
        let mut seen = HashSet::new();
        for k in (0..1_000_000).step_by(997) {
            let user = users.user(k).unwrap();
            assert_eq!((user.id.len(), users.by_id(&user.id)), (35, Some(k)));
            if let Some(email) = &user.email {
                assert_eq!(users.by_email(email), Some(k));
            }
            assert!(seen.insert(user.id));
        }
        let ada = users.user(3).unwrap();
        assert_eq!(users.user(3).unwrap(), ada, "the same user each time");
        assert_eq!(users.by_id(&ada.id.replace("kp_", "kp:")), None);
        assert_eq!(generated(3, 7).by_id(&ada.id), None, "above the count");
        assert_eq!(generated(9, 8).by_id(&ada.id), None, "another seed");
        assert_eq!(users.by_email("ada.x@generated.example"), None);
        assert_eq!(users.by_id("kp_ö123456789012345678901234567890"), None);
    }

    #[test]
    fn generated_users_differ() {
        let users = generated(10_000, 1);
        let count =
            |wanted: fn(&User) -> bool| (0..10_000).filter(|k| wanted(&users.user(*k).unwrap())).count();
        assert!((100..500).contains(&count(|user| user.email.is_none())));
        assert!((10..200).contains(&count(|user| user.is_suspended)));
        assert!((2_000..5_000).contains(&count(|user| user.picture.is_some())));
        assert!((1_500..3_500).contains(&count(|user| user.last_signed_in.is_none())));
        assert!(users.user(1).unwrap().created_on > users.user(0).unwrap().created_on);
    }
}
