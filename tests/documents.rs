//! What the documents say of each other and of the tree: that links lead somewhere, that the book has every page, that pictures are
//! there, that the tutorial has no command that is not run, and that what SPECIFICATION.md promises is held by tests, benches and
//! checks that exist.

#![allow(clippy::unwrap_used, reason = "what fails in here fails the test")]

use pulldown_cmark::{CodeBlockKind, Event, Options, Parser, Tag, TagEnd};
use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Component, Path, PathBuf};

/// Folders that are not of the project, or not its text.
const PASSED_OVER: [&str; 4] = ["target", ".cache", ".git", "corpus"];

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// The files below a folder whose names end so, by their paths from the root.
fn files(ending: &str) -> Vec<PathBuf> {
    let (mut found, mut folders) = (Vec::new(), vec![root().to_owned()]);
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_str().unwrap_or_default();
            if path.is_symlink() || PASSED_OVER.contains(&name) {
            } else if path.is_dir() {
                folders.push(path);
            } else if name.ends_with(ending) {
                found.push(path.strip_prefix(root()).unwrap().to_owned());
            }
        }
    }
    found.sort();
    found
}

fn text(path: &Path) -> String {
    fs::read_to_string(root().join(path)).unwrap()
}

/// What a document has that others can lead to, and where it leads to.
#[derive(Default)]
struct Document {
    anchors: BTreeSet<String>,
    links: Vec<String>,
    /// Where each picture is, and what is read to those who do not see it.
    pictures: Vec<(String, String)>,
}

impl Document {
    fn read(text: &str) -> Self {
        let (mut document, mut heading, mut picture) = (Self::default(), None::<String>, None::<String>);
        for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
            match event {
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    let anchor = anchor(&heading.take().unwrap());
                    // A second one of the same words gets a number, on GitHub and in the book.
                    let same = |number: usize| {
                        if number == 0 { anchor.clone() } else { format!("{anchor}-{number}") }
                    };
                    let free = (0..).map(same).find(|anchor| !document.anchors.contains(anchor)).unwrap();
                    document.anchors.insert(free);
                }
                Event::Text(part) | Event::Code(part) => {
                    if let Some(words) = picture.as_mut().or(heading.as_mut()) {
                        words.push_str(&part);
                    }
                }
                Event::Start(Tag::Link { dest_url, .. }) => document.links.push(dest_url.into_string()),
                Event::Start(Tag::Image { dest_url, .. }) => {
                    document.links.push(dest_url.to_string());
                    document.pictures.push((dest_url.into_string(), String::new()));
                    picture = Some(String::new());
                }
                Event::End(TagEnd::Image) => {
                    document.pictures.last_mut().unwrap().1 = picture.take().unwrap();
                }
                _ => {}
            }
        }
        document
    }
}

/// The anchor of a heading, as GitHub and mdBook make it.
fn anchor(heading: &str) -> String {
    let lower = heading.trim().to_lowercase();
    let kept = lower.chars().filter(|&c| c.is_alphanumeric() || c == '-' || c == '_' || c == ' ');
    kept.map(|c| if c == ' ' { '-' } else { c }).collect()
}

/// The path without `.` and `..`.
fn plain(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for component in path.components() {
        match component {
            Component::ParentDir => assert!(plain.pop(), "{} leaves the project", path.display()),
            Component::CurDir => {}
            other => plain.push(other),
        }
    }
    plain
}

#[test]
fn links_and_anchors_lead_somewhere() {
    let (mut broken, mut seen) = (Vec::new(), 0);
    for file in files(".md") {
        for link in Document::read(&text(&file)).links {
            if link.contains("://") || link.starts_with("mailto:") {
                continue;
            }
            seen += 1;
            let (path, anchor) = link.split_once('#').unwrap_or((&link, ""));
            let target = match path {
                "" => file.clone(),
                path => plain(&file.parent().unwrap().join(path)),
            };
            if !root().join(&target).exists() {
                broken.push(format!("{}: {link}: there is no {}", file.display(), target.display()));
            } else if !anchor.is_empty() && !Document::read(&text(&target)).anchors.contains(anchor) {
                broken.push(format!("{}: {link}: {} has no such heading", file.display(), target.display()));
            }
        }
    }
    assert!(broken.is_empty(), "\n{}", broken.join("\n"));
    assert!(seen > 20, "{seen} links are too few to be all of them");
}

#[test]
fn the_book_has_every_page() {
    let docs = Path::new("docs");
    let named: BTreeSet<PathBuf> =
        Document::read(&text(&docs.join("SUMMARY.md"))).links.iter().map(|link| docs.join(link)).collect();
    let there: BTreeSet<PathBuf> = files(".md")
        .into_iter()
        .filter(|file| file.starts_with(docs) && !file.ends_with("SUMMARY.md"))
        .collect();
    assert_eq!(named, there);
}

#[test]
fn every_picture_is_shown_and_can_be_read() {
    let (folder, mut shown) = (Path::new("docs/pictures"), BTreeSet::new());
    for file in files(".md") {
        for (link, words) in Document::read(&text(&file)).pictures {
            let picture = plain(&file.parent().unwrap().join(&link));
            assert!(picture.starts_with(folder), "{}: {link} is not in {}", file.display(), folder.display());
            assert!(root().join(&picture).exists(), "{}: there is no {link}", file.display());
            assert!(words.split_whitespace().count() > 2, "{}: {link} is not described", file.display());
            shown.insert(picture);
        }
    }
    let there: BTreeSet<_> = files(".svg").into_iter().filter(|file| file.starts_with(folder)).collect();
    assert_eq!(shown, there);
    assert!(there.len() > 2, "{there:?}");
    for picture in there {
        let (name, text) = (picture.display(), text(&picture));
        // A ground of its own, so that it does not matter what colour the page has.
        for part in ["<title ", "<desc ", "viewBox=", "fill=\"#f6f8fa\""] {
            assert!(text.contains(part), "{name} has no {part}");
        }
        let elsewhere = text.replace("xmlns=\"http://www.w3.org/2000/svg\"", "").contains("http");
        assert!(!elsewhere && !text.contains("<script"), "{name} is not all that is needed to show it");
    }
}

/// How the blocks of the tutorial are marked, and what they say.
fn blocks(text: &str) -> Vec<(String, String)> {
    let mut blocks = Vec::new();
    let mut inside = false;
    for event in Parser::new_ext(text, Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::CodeBlock(kind)) => {
                let mark = match kind {
                    CodeBlockKind::Fenced(mark) => mark.into_string(),
                    CodeBlockKind::Indented => "indented".to_owned(),
                };
                blocks.push((mark, String::new()));
                inside = true;
            }
            Event::End(TagEnd::CodeBlock) => inside = false,
            Event::Text(part) if inside => blocks.last_mut().unwrap().1.push_str(&part),
            _ => {}
        }
    }
    blocks
}

/// The testbed runs what is marked `sh` in dom0, and compares it with the `text` that follows; what is marked `sh nix` it runs where
/// there is Nix.
#[test]
fn the_tutorial_has_no_command_that_is_not_run() {
    let examples: String = files(".nix")
        .iter()
        .filter(|file| file.starts_with("nixos/examples"))
        .map(|file| text(file))
        .collect();
    let blocks = blocks(&text(Path::new("docs/tutorial.md")));
    let (mut before, mut counts) = ("", BTreeMap::<&str, usize>::new());
    for (mark, block) in &blocks {
        *counts.entry(mark).or_default() += 1;
        match mark.as_str() {
            "sh" | "sh nix" => {}
            "text" => {
                assert_eq!(before, "sh", "no command writes {block}");
                assert!(
                    block.lines().any(|line| line.trim() != "…"),
                    "nothing is said of what a command writes"
                );
            }
            "nix" => assert!(examples.contains(block), "this is in no example:\n{block}"),
            other => panic!("who runs what is marked {other:?}?\n{block}"),
        }
        before = mark;
    }
    assert!(counts["sh"] > 10 && counts["text"] > 10, "{counts:?}");
    assert!(counts["sh nix"] <= 2, "{counts:?}");
}

/// The rows of the tables of SPECIFICATION.md that say what a promise is held by, each with the names in that column.
fn promises() -> Vec<(String, Vec<String>)> {
    let mut rows = Vec::new();
    // Of a row, each cell: its text, and what in it is set as code.
    let (mut cells, mut held) = (Vec::<(String, Vec<String>)>::new(), false);
    for event in Parser::new_ext(&text(Path::new("SPECIFICATION.md")), Options::ENABLE_TABLES) {
        match event {
            Event::Start(Tag::TableCell) => cells.push(Default::default()),
            Event::Text(part) => {
                if let Some((text, _)) = cells.last_mut() {
                    text.push_str(&part);
                }
            }
            Event::Code(name) => {
                if let Some((text, names)) = cells.last_mut() {
                    text.push_str(&name);
                    names.push(name.into_string());
                }
            }
            Event::End(TagEnd::TableHead) => {
                held = cells.last().is_some_and(|(title, _)| title == "held by");
                cells.clear();
            }
            Event::End(TagEnd::TableRow) => {
                let row = std::mem::take(&mut cells);
                if held {
                    rows.push((row[0].0.clone(), row[row.len() - 1].1.clone()));
                }
            }
            _ => {}
        }
    }
    rows
}

#[test]
fn every_promise_is_held_by_something_that_exists() {
    let sources: String = files(".rs").iter().map(|file| text(file)).collect();
    let checks: Vec<String> = fs::read_dir(root().join("tests/testbed/checks"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    let promises = promises();
    assert!(promises.len() > 40, "{} promises are too few to be all of them", promises.len());
    let mut wrong = Vec::new();
    for (promise, names) in promises {
        if names.is_empty() {
            wrong.push(format!("{promise}: nothing is named that holds it"));
        }
        for name in names {
            let check =
                || checks.iter().any(|check| check.split_once('-').is_some_and(|(_, rest)| rest == name));
            let test = || sources.contains(&format!("fn {name}("));
            // A bench, a folder of them, or what the build reads.
            let path = || root().join(&name).exists();
            if !(check() || test() || path()) {
                wrong.push(format!("{promise}: there is no test, check or file {name}"));
            }
        }
    }
    assert!(wrong.is_empty(), "\n{}", wrong.join("\n"));
}
