//! Refuses a data folder if another user of the machine could create files in it: the files hold personal data, and the queue
//! decides what is written to the store.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

/// The folder of the queue, inside the data folder.
const QUEUE: &str = "queue";

/// Why a data folder is refused. The text names the fix.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Unsafe {
    #[error(
        "other users of this machine can write to `{0}`: run `chmod 700 {0}`, or set KINSYNC_DATA_DIR to a new folder inside \
         it, which kinsync creates for itself alone"
    )]
    Writable(String),
    #[error(
        "`{0}` is a symbolic link, and another user may have created it: replace it with the file that it points to, or \
         remove it"
    )]
    Link(String),
}

/// Checks the folder, the folder of the queue in it, and the files of both. What does not exist is created later for this
/// user alone, and what cannot be read is reported by what opens it. The path of the data folder itself may have links.
pub(crate) fn check(dir: &Path) -> Result<(), Unsafe> {
    for folder in [dir.to_owned(), dir.join(QUEUE)] {
        if is_writable_by_others(&folder) {
            return Err(Unsafe::Writable(folder.display().to_string()));
        }
        if let Some(link) = links(&folder).next() {
            return Err(Unsafe::Link(link.display().to_string()));
        }
    }
    Ok(())
}

#[cfg(unix)]
fn is_writable_by_others(folder: &Path) -> bool {
    use std::os::unix::fs::PermissionsExt as _;
    fs::metadata(folder).is_ok_and(|found| found.permissions().mode() & 0o002 != 0)
}

#[cfg(not(unix))]
fn is_writable_by_others(_folder: &Path) -> bool {
    false
}

fn links(folder: &Path) -> impl Iterator<Item = PathBuf> {
    let entries = fs::read_dir(folder).into_iter().flatten();
    let is_link = |entry: &fs::DirEntry| entry.file_type().is_ok_and(|kind| kind.is_symlink());
    entries.filter_map(io::Result::ok).filter(is_link).map(|entry| entry.path())
}

#[cfg(all(test, unix))]
mod tests {
    use std::os::unix::fs::{PermissionsExt as _, symlink};

    use super::*;

    #[test]
    fn a_folder_that_others_can_write_to_and_links_inside_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let data = dir.path().join("data");
        assert!(check(&data).is_ok(), "it is created later");
        fs::create_dir_all(data.join(QUEUE)).unwrap();
        let refusal = || check(&data).err().map(|error| error.to_string()).unwrap_or_default();
        for folder in [&data, &data.join(QUEUE)] {
            for (mode, is_refused) in
                [(0o777, true), (0o1777, true), (0o770, false), (0o755, false), (0o700, false)]
            {
                fs::set_permissions(folder, fs::Permissions::from_mode(mode)).unwrap();
                let expected = format!("chmod 700 {}", folder.display());
                assert_eq!(
                    refusal().contains(&format!("{expected}`")),
                    is_refused,
                    "{mode:o}: {}",
                    refusal()
                );
            }
            let link = folder.join("kinsync.sqlite");
            for target in [dir.path().join("elsewhere"), dir.path().join("missing")] {
                symlink(target, &link).unwrap();
                assert!(
                    refusal().contains(&format!("`{}` is a symbolic link", link.display())),
                    "{}",
                    refusal()
                );
                fs::remove_file(&link).unwrap();
            }
        }
        let other = dir.path().join("other");
        symlink(&data, &other).unwrap();
        assert!(check(&other).is_ok(), "the folder itself may be a link of the operator");
    }
}
