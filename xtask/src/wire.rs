//! The message tables of `docs/wire.md`, taken from the types themselves, so that they stay true.
//!
//! In postcard an enum is the number of its variant, counted from 0, and then the fields; a struct is
//! its fields: their order is all there is to say. The sources are formatted by rustfmt, so a few
//! kinds of lines are enough to read them.
//! # Failure
//! A line that is none of those kinds ends the run: better no table than a wrong one.

use std::fmt::Write;
use std::fs;
use std::path::Path;

const PAGE: &str = "docs/wire.md";
const BEGIN: &str = "<!-- made by `cargo xtask wire` from here on -->\n";

const SOURCES: [(&str, &str); 12] = [
    ("I/O server", "crates/wire/src/io.rs"),
    ("LCC", "crates/wire/src/lcc.rs"),
    ("Changes over several groups", "crates/wire/src/joint.rs"),
    ("Coordinator", "crates/wire/src/coordinator.rs"),
    ("Main controller", "crates/wire/src/main_controller.rs"),
    ("Numbers", "crates/terms/src/numbers.rs"),
    ("Portion names", "crates/terms/src/portion_name.rs"),
    ("Schemes", "crates/terms/src/scheme.rs"),
    ("Layouts", "crates/terms/src/layout.rs"),
    ("Facts", "crates/terms/src/facts.rs"),
    ("The map", "crates/terms/src/map.rs"),
    ("Policies", "crates/terms/src/policy.rs"),
];

/// Writes the tables, or with `check` compares them.
///
/// Errors: a source that is not understood; a page that is not up to date.
pub fn run(root: &Path, check: bool) -> Result<(), String> {
    let read = |path: &str| {
        fs::read_to_string(root.join(path)).map_err(|error| format!("{path}: {error}"))
    };
    let page = read(PAGE)?;
    let (kept, _) = page.split_once(BEGIN).ok_or_else(|| format!("{PAGE} lacks {BEGIN}"))?;
    let mut made = format!("{kept}{BEGIN}");
    for (title, path) in SOURCES {
        let types = types_of(&read(path)?).map_err(|error| format!("{path}: {error}"))?;
        let _ = write!(made, "\n### {title}\n");
        types.iter().for_each(|found| found.print(&mut made));
    }
    if made == page {
        return Ok(());
    }
    if check {
        return Err(format!("{PAGE} is not what the types say: run `cargo xtask wire`"));
    }
    fs::write(root.join(PAGE), made).map_err(|error| format!("{PAGE}: {error}"))
}

#[derive(Default)]
struct Type {
    name: String,
    doc: String,
    is_enum: bool,
    /// Name and what follows; for a struct its fields.
    rows: Vec<Row>,
}

#[derive(Default)]
struct Row {
    name: String,
    fields: Vec<String>,
    doc: String,
}

impl Type {
    fn print(&self, page: &mut String) {
        let _ = write!(page, "\n`{}`: {}\n\n", self.name, self.doc);
        if self.rows.is_empty() {
            return;
        }
        let head = if self.is_enum {
            "| | variant | fields | meaning |"
        } else {
            "| field | type | meaning |"
        };
        let rule = if self.is_enum { "|---|---|---|---|" } else { "|---|---|---|" };
        let _ = write!(page, "{head}\n{rule}\n");
        for (index, row) in self.rows.iter().enumerate() {
            let fields = row.fields.join(", ");
            let code = if fields.is_empty() { "–".to_owned() } else { format!("`{fields}`") };
            if self.is_enum {
                let _ = writeln!(page, "| {index} | {} | {code} | {} |", row.name, row.doc);
            } else {
                let _ = writeln!(page, "| {} | {code} | {} |", row.name, row.doc);
            }
        }
    }
}

/// The public types of a source that travel.
fn types_of(source: &str) -> Result<Vec<Type>, String> {
    let mut types = Vec::new();
    let (mut doc, mut travels) = (String::new(), false);
    let mut lines = source.lines();
    while let Some(line) = lines.next() {
        if let Some(text) = line.strip_prefix("///") {
            append(&mut doc, text);
        } else if line.starts_with("#[") {
            travels |= line.contains("Serialize");
        } else {
            let is_enum = line.starts_with("pub enum ");
            let named = line.strip_prefix("pub enum ").or(line.strip_prefix("pub struct "));
            if let (Some(rest), true) = (named, travels) {
                let mut found = Type { doc: cell(&doc), is_enum, ..Type::default() };
                found.name = name_of(rest);
                if rest.ends_with('{') {
                    found.rows = rows_of(&mut lines, is_enum)?;
                } else if let Some((_, inner)) = rest.split_once('(') {
                    let inner = inner.trim_end_matches(");").replace("pub ", "");
                    found.rows =
                        vec![Row { name: "0".to_owned(), fields: vec![inner], doc: String::new() }];
                } else if !rest.ends_with("{}") {
                    return Err(format!("not understood: {line}"));
                }
                types.push(found);
            }
            (doc, travels) = (String::new(), false);
        }
    }
    Ok(types)
}

/// The lines up to the closing brace of a type.
fn rows_of<'a>(
    lines: &mut impl Iterator<Item = &'a str>,
    is_enum: bool,
) -> Result<Vec<Row>, String> {
    let mut rows = Vec::new();
    let mut row = Row::default();
    let mut in_fields = false;
    for line in lines {
        let text = line.trim();
        if line == "}" {
            return Ok(rows);
        }
        if text.is_empty() || text.starts_with("#[") || text.starts_with("// ") {
            continue;
        }
        if let Some(doc) = text.strip_prefix("///") {
            // Of a field it says what the variant's own words leave open.
            append(&mut row.doc, doc);
        } else if in_fields && text == "}," {
            in_fields = false;
            rows.push(finish(&mut row));
        } else if in_fields || !is_enum {
            let field = text.trim_start_matches("pub ").trim_end_matches(',');
            let (name, kind) =
                field.split_once(": ").ok_or_else(|| format!("not understood: {line}"))?;
            if is_enum {
                row.fields.push(field.to_owned());
                row.doc = row.doc.trim_end().to_owned();
            } else {
                row.name = name.to_owned();
                row.fields = vec![kind.to_owned()];
                rows.push(finish(&mut row));
            }
        } else if let Some(name) = text.strip_suffix(" {") {
            row.name = name.to_owned();
            in_fields = true;
        } else if let Some(variant) = text.strip_suffix(',') {
            match variant.split_once('(') {
                Some((name, inner)) => {
                    row.name = name.to_owned();
                    row.fields = vec![inner.trim_end_matches(')').to_owned()];
                }
                None => row.name = variant.to_owned(),
            }
            rows.push(finish(&mut row));
        } else {
            return Err(format!("not understood: {line}"));
        }
    }
    Err("a type does not end".to_owned())
}

fn finish(row: &mut Row) -> Row {
    let mut row = std::mem::take(row);
    row.doc = cell(&row.doc);
    row
}

fn append(doc: &mut String, text: &str) {
    let text = text.trim();
    if !doc.is_empty() && !text.is_empty() {
        doc.push(' ');
    }
    doc.push_str(text);
}

/// Text that a table takes.
fn cell(doc: &str) -> String {
    doc.replace('|', "\\|")
}

fn name_of(rest: &str) -> String {
    rest.chars().take_while(|letter| letter.is_alphanumeric()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types_are_read_in_their_order() {
        let source = "\
/// Not sent.\npub struct Local {\n    a: u8,\n}\n
/// What is\n/// asked.\n#[derive(Serialize)]\npub enum Ask {\n    /// First.\n    One,\n    /// Second.\n    Two {\n        /// How | many.\n        count: u32,\n        names: Vec<u8>,\n    },\n    /// Third.\n    Three(Box<Local>),\n}\n
/// A number.\n#[derive(Serialize)]\npub struct Number(pub u64);\n";
        let types = types_of(source).expect("it is formatted");
        let mut page = String::new();
        types.iter().for_each(|found| found.print(&mut page));
        assert!(!page.contains("Local`:"), "{page}");
        assert!(page.contains("`Ask`: What is asked.\n"), "{page}");
        assert!(page.contains("| 0 | One | – | First. |"), "{page}");
        assert!(
            page.contains("| 1 | Two | `count: u32, names: Vec<u8>` | Second. How \\| many. |")
        );
        assert!(page.contains("| 2 | Three | `Box<Local>` | Third. |"), "{page}");
        assert!(page.contains("| 0 | `u64` |  |"), "{page}");
    }

    #[test]
    fn the_page_says_what_the_types_say() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        run(here.parent().expect("the root"), true).expect("docs/wire.md is up to date");
    }
}
