//! Which numbered rules of `docs/design.md` have code (`Source: W-3`) and tests (`Proves: W-3`).
//!
//! A rule whose paragraph says *not built* may have neither; every other one needs both mentions.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

#[derive(Default)]
struct Rule {
    title: String,
    not_built: bool,
    sources: usize,
    proofs: usize,
}

/// Prints the table.
///
/// Errors: rules with neither code nor test, and mentions of rules that the page does not have.
pub fn check(root: &Path) -> Result<(), String> {
    let page = fs::read_to_string(root.join("docs/design.md"))
        .map_err(|error| format!("docs/design.md cannot be read: {error}"))?;
    let mut rules = rules_of(&page);
    let mut unknown = BTreeSet::new();
    for folder in ["crates", "xtask"] {
        walk(&root.join(folder), &mut |text, path| {
            let heads = head_sources(text);
            for (marker, proof) in [("Source: ", false), ("Proves: ", true)] {
                let lines = text.lines().filter_map(|line| Some(line.split_once(marker)?.1));
                let heads = heads.iter().copied().filter(|_| !proof);
                for line in lines.chain(heads) {
                    for name in names_in(line) {
                        match rules.get_mut(&name) {
                            Some(rule) if proof => rule.proofs += 1,
                            Some(rule) => rule.sources += 1,
                            None => {
                                unknown.insert(format!("{name} in {}", path.display()));
                            }
                        }
                    }
                }
            }
        })?;
    }
    let mut bare = Vec::new();
    println!("{:<6} {:>5} {:>6}  title", "rule", "code", "tests");
    for (name, rule) in &rules {
        let note = if rule.not_built { "  [not built]" } else { "" };
        println!("{name:<6} {:>5} {:>6}  {}{note}", rule.sources, rule.proofs, rule.title);
        if rule.sources + rule.proofs == 0 && !rule.not_built {
            bare.push(name.as_str());
        }
    }
    if !unknown.is_empty() {
        let list: Vec<_> = unknown.into_iter().collect();
        return Err(format!("mentions of rules that docs/design.md lacks: {}", list.join(", ")));
    }
    if bare.is_empty() {
        Ok(())
    } else {
        Err(format!("rules with neither code nor test: {}", bare.join(", ")))
    }
}

/// Lines below a `# Source` of a file's head.
fn head_sources(text: &str) -> Vec<&str> {
    let head = text.lines().map_while(|line| line.strip_prefix("//!"));
    let below = head.skip_while(|line| line.trim() != "# Source").skip(1);
    below.take_while(|line| !line.trim_start().starts_with('#')).collect()
}

/// Rules are paragraphs that begin with `- **W-3**`.
fn rules_of(page: &str) -> BTreeMap<String, Rule> {
    let mut rules = BTreeMap::new();
    let mut last: Option<String> = None;
    for line in page.lines() {
        if let Some((name, text)) = line.strip_prefix("- **").and_then(|l| l.split_once("**"))
            && is_rule(name)
        {
            let title = text.trim().split_once(". ").map_or(text.trim(), |(first, _)| first);
            let mut rule = Rule { title: title.chars().take(70).collect(), ..Rule::default() };
            rule.not_built = line.contains("*not built*");
            rules.insert(name.to_owned(), rule);
            last = Some(name.to_owned());
            continue;
        }
        if !line.starts_with("  ") {
            last = None;
        } else if line.contains("*not built*")
            && let Some(rule) = last.as_ref().and_then(|name| rules.get_mut(name))
        {
            rule.not_built = true;
        }
    }
    rules
}

fn is_rule(name: &str) -> bool {
    name.split_once('-').is_some_and(|(letter, number)| {
        matches!(letter, "O" | "W" | "F" | "S" | "G" | "N")
            && !number.is_empty()
            && number.bytes().all(|byte| byte.is_ascii_digit())
    })
}

fn names_in(text: &str) -> Vec<String> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '-');
    words.filter(|word| is_rule(word)).map(str::to_owned).collect()
}

fn walk(folder: &Path, visit: &mut dyn FnMut(&str, &Path)) -> Result<(), String> {
    let entries = fs::read_dir(folder).map_err(|e| format!("{}: {e}", folder.display()))?;
    for entry in entries.flatten() {
        let path = entry.path();
        if path.is_dir() {
            walk(&path, visit)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            let text = fs::read_to_string(&path).map_err(|e| format!("{}: {e}", path.display()))?;
            visit(&text, &path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_found_in_a_page() {
        let page = "# x\n- **W-3** *decided*: when every. More.\n  and *not built* yet\n- **bold**\n- **O-1** One.\n";
        let rules = rules_of(page);
        assert_eq!(rules.keys().map(String::as_str).collect::<Vec<_>>(), ["O-1", "W-3"]);
        assert!(rules["W-3"].not_built);
        assert!(!rules["O-1"].not_built);
        assert_eq!(names_in("W-3, O-5 (lemma). F-x"), ["W-3", "O-5"]);
    }
}
