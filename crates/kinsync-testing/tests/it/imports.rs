//! Imports between the files of a crate have no cycles, except those that `ARCHITECTURE.md` lists with their reason.
//!
//! A module and its own submodules are one part: what they import of each other does not count here. Neither do tests.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::Path,
};

use proc_macro2::{Delimiter, TokenStream, TokenTree};

use crate::documents::{ROOT, expanded, quoted, read, tree};

/// A file by the names of its module, such as `queue`, `redis`; empty for the root of the crate.
type Module = Vec<String>;

/// The paths in a source that begin with `use`, `crate`, `self` or `super`, each with the name that it gets.
fn paths(source: &str) -> Vec<(Vec<String>, String)> {
    let mut tokens = Vec::new();
    flatten(source.parse().unwrap(), &mut tokens);
    let tokens: Vec<&str> = tokens.iter().map(String::as_str).collect();
    let (mut rest, mut found) = (tokens.as_slice(), Vec::new());
    while let [first, after @ ..] = rest {
        rest = match (*first, after) {
            ("#", ["(", "cfg", "(", "test", ")", ")", "mod", _, "{", ..]) => &[],
            ("#", ["(", "cfg", "(", "test", ")", ")", "mod", name, ";", after @ ..]) => {
                found.push((vec!["cfg(test)".to_owned()], (*name).to_owned()));
                after
            }
            ("use", _) => import(after, &[], &mut found),
            ("crate" | "self" | "super", [":", ":", ..]) => import(rest, &[], &mut found),
            _ => after,
        };
    }
    found
}

fn flatten(stream: TokenStream, tokens: &mut Vec<String>) {
    for tree in stream {
        if let TokenTree::Group(group) = tree {
            let is_brace = group.delimiter() == Delimiter::Brace;
            tokens.push(if is_brace { "{" } else { "(" }.into());
            flatten(group.stream(), tokens);
            tokens.push(if is_brace { "}" } else { ")" }.into());
        } else {
            tokens.push(tree.to_string());
        }
    }
}

/// Adds the paths of a tree of imports, and returns what follows it.
fn import<'a>(
    mut tokens: &'a [&'a str],
    prefix: &[String],
    found: &mut Vec<(Vec<String>, String)>,
) -> &'a [&'a str] {
    let mut path = prefix.to_vec();
    while let [name, ":", ":", rest @ ..] = tokens {
        path.push((*name).to_owned());
        tokens = rest;
    }
    if let ["{", inner @ ..] = tokens {
        tokens = inner;
        while !matches!(tokens, ["}", ..] | []) {
            tokens = import(tokens, &path, found);
            tokens = tokens.strip_prefix(&[","]).unwrap_or(tokens);
        }
        return tokens.get(1..).unwrap_or_default();
    }
    let [name, rest @ ..] = tokens else { return tokens };
    let alias = if let ["as", alias, ..] = rest { alias } else { name };
    path.push((*name).to_owned());
    found.push((path, (*alias).to_owned()));
    rest
}

/// The files of a crate, each with the names in it and the paths from the root that they mean.
struct Crate(BTreeMap<Module, Vec<(String, Vec<String>)>>);

impl Crate {
    /// Reads the files of a folder, without those that only tests have.
    fn read(folder: &str, tree: &[String]) -> Self {
        let file = |path: &String| {
            let name = path.strip_prefix(folder)?.strip_suffix(".rs")?;
            let module = name.split('/').filter(|name| *name != "lib").map(str::to_owned).collect();
            Some((module, paths(&read(path))))
        };
        let files: BTreeMap<Module, _> = tree.iter().filter_map(file).collect();
        let is_for_tests = |module: &Module| {
            let declares =
                |(path, name): &(Vec<String>, String), child| path[0] == "cfg(test)" && name == child;
            let is_declared = |at: usize| files[&module[..at]].iter().any(|one| declares(one, &module[at]));
            (0..module.len()).any(is_declared)
        };
        let from_root = |module: &Module, path: &[String]| {
            let ups = path.iter().take_while(|name| *name == "super").count();
            Some(match path[0].as_str() {
                "crate" => path[1..].to_vec(),
                "self" => [module, &path[1..]].concat(),
                "super" => [&module[..module.len().checked_sub(ups)?], &path[ups..]].concat(),
                // A submodule, or another crate.
                _ => {
                    Some([module, path].concat()).filter(|path| files.contains_key(&path[..=module.len()]))?
                }
            })
        };
        let names = files.iter().filter(|(module, _)| !is_for_tests(module)).map(|(module, paths)| {
            let named = |(path, name): &(Vec<String>, String)| Some((name.clone(), from_root(module, path)?));
            (module.clone(), paths.iter().filter_map(named).collect())
        });
        Self(names.collect())
    }

    /// Returns the file that defines what a path means, through the files that pass it on.
    fn file_of(&self, path: &[String], depth: u8) -> Module {
        let at = (0..=path.len()).rev().find(|at| self.0.contains_key(&path[..*at])).unwrap();
        let (module, rest) = path.split_at(at);
        let named = |name| self.0[module].iter().find(|(known, _)| known == name);
        match rest.split_first().map(|(name, rest)| (named(name), rest)) {
            Some((Some((_, target)), rest)) if depth > 0 => self.file_of(&[target, rest].concat(), depth - 1),
            _ => module.to_vec(),
        }
    }

    /// Returns the files that import each other, directly or through others.
    fn cycles(&self) -> BTreeSet<BTreeSet<Module>> {
        let others = |(module, names): (&Module, &Vec<(String, Vec<String>)>)| {
            let files = names.iter().map(|(_, path)| self.file_of(path, 16));
            let others = files.filter(|other| !other.starts_with(module) && !module.starts_with(other));
            (module.clone(), others.collect::<BTreeSet<Module>>())
        };
        let imported: BTreeMap<Module, BTreeSet<Module>> = self.0.iter().map(others).collect();
        let reached = |from: &Module| {
            let (mut reached, mut next) = (BTreeSet::new(), vec![from]);
            while let Some(module) = next.pop() {
                next.extend(imported[module].iter().filter(|other| reached.insert((*other).clone())));
            }
            reached
        };
        let reached: BTreeMap<&Module, _> = self.0.keys().map(|module| (module, reached(module))).collect();
        let in_a_cycle = reached.iter().filter(|(module, reached)| reached.contains(**module));
        let cycle = |(module, others): (&&Module, &BTreeSet<Module>)| {
            others.iter().filter(|other| reached[other].contains(*module)).cloned().collect()
        };
        in_a_cycle.map(cycle).collect()
    }
}

/// The cycles that `ARCHITECTURE.md` lists.
fn listed() -> BTreeSet<BTreeSet<String>> {
    let document = read("ARCHITECTURE.md");
    let section = document.split("## Files that import each other").nth(1).unwrap();
    let rows = section.split("\n## ").next().unwrap().lines().filter(|line| line.starts_with("| `"));
    rows.map(|row| quoted(row.split(" | ").next().unwrap()).flat_map(expanded).collect()).collect()
}

#[test]
fn the_only_cycles_of_imports_are_those_that_the_architecture_lists() {
    let (tree, mut found) = (tree(), BTreeSet::new());
    for entry in fs::read_dir(Path::new(ROOT).join("crates")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let cycles = Crate::read(&format!("crates/{name}/src/"), &tree).cycles();
        let path = |module: Module| format!("{name}/src/{}.rs", module.join("/"));
        found.extend(cycles.into_iter().map(|cycle| cycle.into_iter().map(path).collect()));
    }
    let listed: BTreeSet<BTreeSet<String>> = listed();
    let new: Vec<_> = found.difference(&listed).collect();
    let gone: Vec<_> = listed.difference(&found).collect();
    assert!(new.is_empty() && gone.is_empty(), "not listed: {new:#?}, listed and not found: {gone:#?}");
}
