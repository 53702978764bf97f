//! Versions in a stored value: each one once, because one event or list sets most registers.

use crate::version::Version;

/// The versions of a value that is being stored.
#[derive(Default)]
pub(crate) struct Versions(Vec<Version>);

impl Versions {
    /// Adds a version, if it is new. Returns its position.
    pub(crate) fn position(&mut self, version: Version) -> u32 {
        let known = self.0.iter().position(|known| *known == version);
        let position = known.unwrap_or_else(|| {
            self.0.push(version);
            self.0.len() - 1
        });
        u32::try_from(position).expect("a document holds fewer than 2^32 versions")
    }

    pub(crate) fn into_list(self) -> Vec<Version> {
        self.0
    }
}

/// Returns the version at a position.
pub(crate) fn at(versions: &[Version], position: u32) -> Result<Version, &'static str> {
    let known = usize::try_from(position).ok().and_then(|position| versions.get(position));
    known.cloned().ok_or("a register refers to a version that is not stored")
}
