//! The structure of the source: allowed dependencies between parts, and no cycles between modules.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    path::{Path, PathBuf},
};

/// A module, as the segments of its path: `["tools", "top_traffic", "sample"]`.
type Module = Vec<String>;

fn source() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("src")
}

/// The modules of the library, each with its text.
fn modules() -> BTreeMap<Module, String> {
    let mut found = BTreeMap::new();
    let mut folders = vec![source()];
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path()) {
            if entry.is_dir() && !entry.ends_with("bin") {
                folders.push(entry);
            } else if entry.extension().is_some_and(|extension| extension == "rs") {
                let name = entry.strip_prefix(source()).unwrap().with_extension("");
                let mut module: Module = name.iter().map(|part| part.to_string_lossy().into_owned()).collect();
                if module.last().is_some_and(|last| last == "mod" || last == "lib") {
                    module.pop();
                }
                found.insert(module, fs::read_to_string(&entry).unwrap());
            }
        }
    }
    found
}

/// Every path of a `use` in the text, with groups expanded: `["crate", "wire", "Error"]`.
fn uses(text: &str) -> Vec<Module> {
    let mut found = Vec::new();
    for statement in text.split("use ").skip(1).filter_map(|rest| rest.split(';').next()) {
        let flat: String = statement.split_whitespace().collect::<Vec<_>>().join(" ");
        if flat.starts_with("crate::") || flat.starts_with("super::") || flat.starts_with("self::") {
            expand(&flat, &[], &mut found);
        }
    }
    found
}

fn expand(tree: &str, prefix: &[String], found: &mut Vec<Module>) {
    let (head, group) = tree.split_once('{').map_or((tree, None), |(head, group)| (head, group.strip_suffix('}')));
    let mut path = prefix.to_vec();
    path.extend(
        head.split("::")
            .map(|part| part.split(" as ").next().unwrap().trim().to_owned())
            .filter(|part| !part.is_empty()),
    );
    let Some(group) = group else { return found.push(path) };
    let (mut depth, mut begin) = (0, 0);
    for (at, character) in group.char_indices().chain([(group.len(), ',')]) {
        match character {
            '{' => depth += 1,
            '}' => depth -= 1,
            ',' if depth == 0 => {
                let part = group[begin..at].trim();
                begin = (at + 1).min(group.len());
                if !part.is_empty() {
                    expand(part, &path, found);
                }
            }
            _ => {}
        }
    }
}

/// The modules that each module uses, without its own ancestors and descendants.
fn dependencies() -> BTreeMap<Module, BTreeSet<Module>> {
    let modules = modules();
    let known = |mut path: Module| {
        while !modules.contains_key(&path) {
            path.pop();
        }
        path
    };
    let resolve = |module: &Module, path: Module| {
        let mut at = module.clone();
        let mut rest = &path[..];
        match rest[0].as_str() {
            "crate" => at.clear(),
            "super" => {}
            _ => return None,
        }
        while rest.first().is_some_and(|part| part == "super") {
            at.pop();
            rest = &rest[1..];
        }
        let rest = if path[0] == "crate" { &path[1..] } else { rest };
        at.extend_from_slice(rest);
        Some(known(at))
    };
    let of = |(module, text): (&Module, &String)| {
        let code = text.split("\n#[cfg(test)]\n").next().unwrap();
        let used = uses(code).into_iter().filter_map(|path| resolve(module, path));
        (module.clone(), used.filter(|other| !other.starts_with(module) && !module.starts_with(other)).collect())
    };
    modules.iter().map(of).collect()
}

/// Modules below `tools` that are not a tool: the common code.
fn is_shared(part: &str) -> bool {
    ["input", "past", "recollect", "schema", "structured"].contains(&part)
}

fn name(module: &Module) -> String {
    module.join("::")
}

#[test]
fn each_part_uses_only_allowed_parts() {
    let mut wrong = Vec::new();
    for (module, used) in dependencies() {
        let part = module.first().map_or("", String::as_str);
        let file = module.last().map_or("", String::as_str);
        for other in used {
            let target = other.first().map_or("", String::as_str);
            let allowed = match (part, target) {
                ("gateway", "daemon") | ("daemon", "gateway") => false,
                // The host runs the samplers of the list, and names no tool.
                ("daemon", "tools") => other.len() == 1 && file == "host",
                // The recorder judges its samples, and a gateway reads the recording.
                ("recorder", "tools") => true,
                ("gateway", "tools") | ("daemon" | "gateway", _) => true,
                ("tools", "daemon") => !["report", "text"].contains(&file),
                ("tools", "gateway") => false,
                // diagnose reads the other tools' answers.
                ("tools", "tools") => {
                    other.len() == 1
                        || module[1] == "diagnose"
                        || module[1] == other[1]
                        || is_shared(&module[1])
                        || is_shared(&other[1])
                }
                ("tools", _) => true,
                _ => !["daemon", "gateway", "tools"].contains(&target),
            };
            if !allowed {
                wrong.push(format!("{} uses {}", name(&module), name(&other)));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn modules_have_no_cycles() {
    let dependencies = dependencies();
    let reaches = |from: &Module, to: &Module| {
        let (mut seen, mut next) = (BTreeSet::new(), vec![from.clone()]);
        while let Some(module) = next.pop() {
            for other in dependencies.get(&module).into_iter().flatten() {
                if other == to {
                    return true;
                }
                if seen.insert(other.clone()) {
                    next.push(other.clone());
                }
            }
        }
        false
    };
    let circles: Vec<String> = dependencies.keys().filter(|module| reaches(module, module)).map(name).collect();
    assert!(circles.is_empty(), "these modules use each other, directly or not:\n{}", circles.join("\n"));
}

#[test]
fn every_tool_has_the_same_files() {
    for tool in modules().keys().filter(|module| module.len() == 2 && module[0] == "tools" && !is_shared(&module[1])) {
        for file in ["mod", "sample", "report", "text", "tests"] {
            let path = source().join("tools").join(&tool[1]).join(file).with_extension("rs");
            assert!(path.exists(), "{}", path.display());
        }
    }
}

#[test]
fn use_groups_are_expanded() {
    let found = uses("use crate::{a, b::{self, C}, d::E as F};\nuse super::g;\n");
    let paths: Vec<String> = found.iter().map(|path| path.join("::")).collect();
    assert_eq!(paths, ["crate::a", "crate::b::self", "crate::b::C", "crate::d::E", "super::g"]);
}
