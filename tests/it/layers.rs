//! Imports go downwards only, as the table in `src/lib.rs` has it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn floors() -> BTreeMap<String, u32> {
    let lib = fs::read_to_string("src/lib.rs").expect("src/lib.rs");
    let mut floors = BTreeMap::new();
    for line in lib.lines() {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let ["//!", floor, modules, ..] = cells[..] else { continue };
        let Ok(floor) = floor.parse() else { continue };
        for module in modules.split([',', ';']) {
            floors.insert(module.trim().trim_matches(['[', ']', '`']).to_owned(), floor);
        }
    }
    floors
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The modules that a file names as `crate::module`, alone or in braces.
fn imports(text: &str) -> Vec<String> {
    let mut modules = Vec::new();
    for (at, _) in text.match_indices("crate::") {
        let rest = &text[at + "crate::".len()..];
        let word = |text: &str| {
            text.chars().take_while(|c| c.is_alphanumeric() || *c == '_').collect::<String>()
        };
        if let Some(braces) = rest.strip_prefix('{') {
            let mut depth = 0;
            let mut start = true;
            for (index, character) in braces.char_indices() {
                match character {
                    '{' => depth += 1,
                    '}' if depth == 0 => break,
                    '}' => depth -= 1,
                    ',' if depth == 0 => start = true,
                    _ if depth == 0 && start && !character.is_whitespace() => {
                        modules.push(word(&braces[index..]));
                        start = false;
                    }
                    _ => {}
                }
            }
        } else {
            modules.push(word(rest));
        }
    }
    modules
}

#[test]
fn imports_go_downwards_only() {
    let floors = floors();
    let mut files = Vec::new();
    sources(Path::new("src"), &mut files);
    let mut looked_at = 0;
    for file in files {
        let relative = file.strip_prefix("src").expect("below src");
        let room = relative.iter().next().and_then(|first| first.to_str()).expect("a name");
        let room = room.trim_end_matches(".rs");
        if ["lib", "main"].contains(&room) {
            continue;
        }
        let floor = floors.get(room).unwrap_or_else(|| panic!("{room} is not in lib.rs's table"));
        // Tests may reach down to whatever they set up; they are below the line that opens them.
        let text = fs::read_to_string(&file).expect("a file");
        for import in imports(&text) {
            looked_at += 1;
            let below = floors.get(&import).unwrap_or_else(|| panic!("{import} in {file:?}"));
            assert!(
                below < floor || import == room,
                "{} (floor {floor}) imports {import} (floor {below})",
                file.display()
            );
        }
    }
    assert!(looked_at > 30, "only {looked_at} imports were found");
}

#[test]
fn imports_are_read_from_braces_too() {
    let text = "use crate::{\n    config::{self, Store},\n    domain::Change,\n};\ncrate::pb::X";
    assert_eq!(imports(text), ["config", "domain", "pb"]);
}
