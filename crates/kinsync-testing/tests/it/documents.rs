//! Files, tests, features and metrics that the documents name exist, and so do the targets of their links.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

pub(crate) const ROOT: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/../..");
/// Documents in which every file and test in backticks must exist, besides the READMEs of the crates and examples.
const MAPS: [&str; 5] = ["ARCHITECTURE.md", "CONTRIBUTING.md", "README.md", "docs/guides/", "docs/adr/"];
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
        && !name.contains([' ', '<', '…', ':', '*'])
}

/// The file that a document means: a path from the root, from `crates/` or from the folder of the document, or the end of a path in
/// a crate's sources or tests.
fn find<'a>(tree: &'a [String], document: &str, name: &str) -> Option<&'a String> {
    let folder = document.rsplit_once('/').map_or("", |(folder, _)| folder);
    let name = name.trim_end_matches('/');
    let full = [name.to_owned(), format!("crates/{name}"), format!("{folder}/{name}")];
    let is_full = |path: &&String| full.iter().any(|full| path.trim_end_matches('/') == full);
    let is_source = |path: &&String| ["/src/", "/tests/"].iter().any(|folder| path.contains(folder));
    let is_short = |path: &&String| is_source(path) && path.ends_with(&format!("/{name}"));
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
            last = find(tree, document, &path);
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
    let is_map = |path: &&String| {
        let is_readme = path.starts_with("crates/") || path.starts_with("examples/");
        let is_named = MAPS.iter().any(|map| path == map || (map.ends_with('/') && path.starts_with(map)));
        path.strip_suffix(".md").is_some() && (is_named || (is_readme && path.ends_with("/README.md")))
    };
    let maps: Vec<&String> = tree.iter().filter(is_map).collect();
    assert!(maps.len() > 40, "{maps:?}");
    let unknown: Vec<String> = maps.iter().flat_map(|document| unknown_names(&tree, document)).collect();
    assert!(unknown.is_empty(), "{unknown:#?}");
}

/// The public features of a manifest, and whether each is a default one.
fn features(manifest: &str) -> BTreeMap<String, bool> {
    let section = manifest.split("[features]").nth(1).map_or("", |rest| rest.split("\n[").next().unwrap());
    let lines = section.lines().filter_map(|line| line.split_once(" = "));
    let features: BTreeMap<&str, &str> = lines.collect();
    let defaults = features.get("default").copied().unwrap_or_default();
    let is_default = |name: &str| defaults.contains(&format!("\"{name}\""));
    let public = features.keys().filter(|name| **name != "default" && !name.starts_with('_'));
    public.map(|name| ((*name).to_owned(), is_default(name))).collect()
}

/// The features in the table of a README.
fn documented_features(readme: &str) -> BTreeMap<String, bool> {
    let section = readme.split("## Features").nth(1).map_or("", |rest| rest.split("\n## ").next().unwrap());
    let rows = section.lines().filter(|line| line.starts_with("| `"));
    let cells = rows.map(|row| row.split('|').map(|cell| cell.trim().trim_matches('`')));
    cells.map(|mut cells| (cells.nth(1).unwrap().to_owned(), cells.next().unwrap() == "yes")).collect()
}

#[test]
fn the_readme_of_a_crate_lists_its_features() {
    let tree = tree();
    let is_readme = |path: &&String| path.starts_with("crates/") && path.matches('/').count() == 2;
    let readmes = tree.iter().filter(|path| path.ends_with("/README.md")).filter(is_readme);
    let mut count = 0;
    for readme in readmes {
        let features = features(&read(&readme.replace("README.md", "Cargo.toml")));
        assert_eq!(documented_features(&read(readme)), features, "{readme}");
        count += features.len();
    }
    assert!(count > 8, "{count}");
}

/// The text literals in the sources of a crate that begin like the name of a metric in a macro.
fn metrics(tree: &[String], folder: &str) -> BTreeSet<String> {
    let sources = tree.iter().filter(|path| path.starts_with(folder) && path.strip_suffix(".rs").is_some());
    let names = |source: &String| {
        let source = read(source);
        let literals = ["counter!(\"", "gauge!(\"", "histogram!(\""]
            .iter()
            .flat_map(|start| source.split(start).skip(1));
        literals.map(|rest| rest.split('"').next().unwrap().to_owned()).collect::<Vec<_>>()
    };
    sources.flat_map(names).collect()
}

#[test]
fn the_readme_of_a_library_lists_its_metrics() {
    let tree = tree();
    // The engine records the state of a breaker for the authenticator.
    for (library, inner) in [("kinde", None), ("kinsync-tower", Some("kinsync_breaker_state"))] {
        let readme = read(&format!("crates/{library}/README.md"));
        let section = readme.split("## Metrics").nth(1).unwrap();
        let rows = section.lines().filter_map(|line| line.strip_prefix("| `")?.split('`').next());
        let recorded = metrics(&tree, &format!("crates/{library}/src/"));
        let expected: BTreeSet<&str> = recorded.iter().map(String::as_str).chain(inner).collect();
        assert_eq!(rows.collect::<BTreeSet<_>>(), expected, "{library}");
    }
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

#[test]
fn a_list_of_modules_in_a_crate_names_each_module() {
    let mut count = 0;
    for path in tree().iter().filter(|path| path.starts_with("crates/") && path.ends_with("/src/lib.rs")) {
        let source = read(path);
        let list: String = source.lines().filter(|line| line.starts_with("//! - ")).collect();
        let modules = source.lines().filter_map(|line| {
            line.strip_prefix("pub ").unwrap_or(line).strip_prefix("mod ")?.strip_suffix(';')
        });
        for module in modules.filter(|_| !list.is_empty()) {
            assert!(list.contains(&format!("`{module}`")), "the list in {path} lacks `{module}`");
            count += 1;
        }
    }
    assert!(count > 60, "{count}");
}
