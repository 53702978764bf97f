//! Files and tests that the documents name exist, and so do the targets of their links.

use std::{
    fs,
    path::{Path, PathBuf},
};

pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Documents in which every file and test in backticks must exist.
const MAPS: [&str; 3] = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md"];
/// Folders that no document describes.
const IGNORED: [&str; 5] = ["target", "node_modules", ".git", ".tools", "corpus"];
const EXTENSIONS: [&str; 7] = [".rs", ".md", ".toml", ".mjs", ".yml", ".json", ".html"];
/// Folders of the repository: a name that starts with one of them is a path.
const FOLDERS: [&str; 8] =
    [".ci/", ".github/", "bench/", "config/", "crates/", "docs/", "examples/", "fuzz/"];

/// Every file and folder of the repository, relative to its root, with `/` at the end of a folder.
pub(crate) fn tree() -> Vec<String> {
    fn walk(folder: &Path, found: &mut Vec<String>) {
        for entry in fs::read_dir(folder).unwrap().map(Result::unwrap) {
            let path = entry.path();
            let name = path.strip_prefix(ROOT).unwrap().to_str().unwrap().to_owned();
            if IGNORED.iter().any(|ignored| path.ends_with(ignored)) {
            } else if path.is_dir() {
                found.push(format!("{name}/"));
                walk(&path, found);
            } else {
                found.push(name);
            }
        }
    }
    let mut found = Vec::new();
    walk(Path::new(ROOT), &mut found);
    found
}

pub(crate) fn read(path: &str) -> String {
    fs::read_to_string(Path::new(ROOT).join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// The text without its code blocks, which hold commands and examples.
fn prose(document: &str) -> String {
    document.split("```").step_by(2).collect()
}

/// What stands in single backticks.
pub(crate) fn quoted(text: &str) -> impl Iterator<Item = &str> {
    text.split('`').skip(1).step_by(2)
}

/// `store/{mongo,embedded}.rs` is two files.
pub(crate) fn expanded(name: &str) -> Vec<String> {
    let parts = name.split_once('{').and_then(|(before, rest)| Some((before, rest.split_once('}')?)));
    parts.map_or_else(
        || vec![name.to_owned()],
        |(before, (choices, after))| {
            choices.split(',').map(|choice| format!("{before}{choice}{after}")).collect()
        },
    )
}

fn is_path(name: &str) -> bool {
    let has_extension = EXTENSIONS.iter().any(|extension| name.ends_with(extension));
    let is_in_folder = FOLDERS.iter().any(|folder| name.starts_with(folder));
    let is_folder = name.ends_with('/') && name.matches('/').count() > 1;
    (has_extension || is_in_folder || is_folder)
        && !name.starts_with(['/', '<'])
        && !name.contains([' ', '<', '…', ':'])
}

/// The file that a document means: a path from the root or from `crates/`, or the end of a path in a crate's sources.
fn find<'a>(tree: &'a [String], name: &str) -> Option<&'a String> {
    let is_short = |path: &&String| path.contains("/src/") && path.ends_with(&format!("/{name}"));
    let is_full = |path: &&String| **path == name || **path == format!("crates/{name}");
    tree.iter().find(is_full).or_else(|| tree.iter().find(is_short))
}

/// Whether a source defines the test, as a function or as a line `name: …;` of a macro that makes one test for each store.
fn has_test(source: &str, test: &str) -> bool {
    source.contains(&format!("fn {test}("))
        || source.lines().any(|line| line.trim_start().starts_with(&format!("{test}: ")))
}

/// What is wrong with the names in one document.
fn unknown_names(tree: &[String], document: &str) -> Vec<String> {
    let (mut unknown, mut last) = (Vec::new(), None);
    let prose = prose(&read(document));
    for name in quoted(&prose) {
        let (path, test) = name.split_once("::").map_or((name, None), |(path, test)| (path, Some(test)));
        if path != "…" && !is_path(path) {
            continue;
        }
        for path in if path == "…" { Vec::new() } else { expanded(path) } {
            last = find(tree, &path);
            if last.is_none() {
                unknown.push(format!("{document} names `{path}`, which does not exist"));
            }
        }
        let Some((test, file)) = test.zip(last) else { continue };
        if !has_test(&read(file), test) {
            unknown.push(format!("{document} names the test `{test}`, which is not in {file}"));
        }
    }
    unknown
}

/// Targets of `[text](target)` in this repository.
fn broken_links(document: &str) -> Vec<String> {
    let text = prose(&read(document));
    let targets = text.split("](").skip(1).filter_map(|rest| rest.split_once(')')).map(|(target, _)| target);
    let folder: PathBuf = Path::new(ROOT).join(document).parent().unwrap().into();
    let local = targets.filter(|target| !target.contains("://") && !target.starts_with('#'));
    let path = |target: &str| folder.join(target.split('#').next().unwrap());
    local
        .filter(|target| !path(target).exists())
        .map(|target| format!("{document} links to {target}, which does not exist"))
        .collect()
}

#[test]
fn every_file_and_test_that_the_documents_name_exists() {
    let tree = tree();
    let unknown: Vec<String> = MAPS.iter().flat_map(|document| unknown_names(&tree, document)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

#[test]
fn every_local_link_of_every_document_leads_to_a_file() {
    let tree = tree();
    let documents: Vec<&String> = tree
        .iter()
        .filter(|path| Path::new(path).extension().is_some_and(|extension| extension == "md"))
        .collect();
    assert!(documents.len() > 10, "{documents:?}");
    let broken: Vec<String> = documents.iter().flat_map(|document| broken_links(document)).collect();
    assert!(broken.is_empty(), "{broken:#?}");
}
