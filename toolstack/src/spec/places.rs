//! Where in the text of a JSON document each of its attributes stands, for messages: serde knows a line and no
//! attribute, and a check that looks at values knows an attribute and no line.

use std::collections::BTreeMap;
use std::fmt;

/// A place in a text, both from 1; columns are bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Place {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// The path of a member: `qubes.work`, or with a key that is no word `policy."50-nexus.policy"`.
pub(crate) fn member(path: &str, key: &str) -> String {
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    let plain = key.starts_with(|c: char| c.is_ascii_alphabetic() || c == '_') && key.chars().all(word);
    let key = if plain { key.to_owned() } else { serde_json::Value::from(key).to_string() };
    if path.is_empty() { key } else { format!("{path}.{key}") }
}

/// The places of all attributes.
#[derive(Debug)]
pub(super) struct Places {
    known: BTreeMap<String, Place>,
    by_place: BTreeMap<Place, String>,
    /// The first attribute that is there twice.
    pub(super) doubled: Option<(String, Place)>,
}

impl Places {
    /// Of a text that is JSON, nested no deeper than serde_json reads.
    pub(super) fn of(text: &str) -> Self {
        let places = Self { known: BTreeMap::new(), by_place: BTreeMap::new(), doubled: None };
        let mut scanner = Scanner { rest: text, place: Place { line: 1, column: 1 }, places };
        scanner.value(String::new());
        scanner.places
    }

    /// Where an attribute is; of one that is not there, where the innermost is that would have it.
    pub(super) fn of_attribute(&self, path: &str) -> Place {
        let mut path = path;
        loop {
            if let Some(place) = self.known.get(path) {
                return *place;
            }
            match path.rfind(['.', '[']) {
                Some(end) => path = &path[..end],
                None => return Place { line: 1, column: 1 },
            }
        }
    }

    /// The attribute that is at a place, or last before it.
    pub(super) fn attribute_at(&self, place: Place) -> &str {
        self.by_place.range(..=place).next_back().map_or("", |(_, path)| path)
    }

    fn add(&mut self, path: String, place: Place) {
        if self.known.contains_key(&path) {
            self.doubled.get_or_insert((path.clone(), place));
        }
        self.by_place.insert(place, path.clone());
        self.known.insert(path, place);
    }
}

struct Scanner<'a> {
    rest: &'a str,
    place: Place,
    places: Places,
}

impl<'a> Scanner<'a> {
    /// Passes so many bytes.
    fn pass(&mut self, count: usize) -> &'a str {
        let (passed, rest) = self.rest.split_at(count);
        for byte in passed.bytes() {
            if byte == b'\n' {
                self.place = Place { line: self.place.line + 1, column: 1 };
            } else {
                self.place.column += 1;
            }
        }
        self.rest = rest;
        passed
    }

    /// Passes blanks, and says what follows.
    fn next(&mut self) -> Option<char> {
        let blank = self.rest.len() - self.rest.trim_start_matches([' ', '\t', '\n', '\r']).len();
        self.pass(blank);
        self.rest.chars().next()
    }

    fn value(&mut self, path: String) {
        match self.next() {
            Some('{') => {
                self.pass(1);
                while let Some(c) = self.next() {
                    match c {
                        '"' => {
                            let place = self.place;
                            let key = self.string();
                            let path = member(&path, &key);
                            self.places.add(path.clone(), place);
                            self.next();
                            // The colon.
                            self.pass(1);
                            self.value(path);
                        }
                        ',' => drop(self.pass(1)),
                        _ => {
                            self.pass(1);
                            return;
                        }
                    }
                }
            }
            Some('[') => {
                self.pass(1);
                let mut number = 0;
                while let Some(c) = self.next() {
                    match c {
                        ']' => {
                            self.pass(1);
                            return;
                        }
                        ',' => drop(self.pass(1)),
                        _ => {
                            let path = format!("{path}[{number}]");
                            self.places.add(path.clone(), self.place);
                            number += 1;
                            self.value(path);
                        }
                    }
                }
            }
            Some('"') => drop(self.string()),
            _ => {
                let end = self.rest.find([',', ']', '}', ' ', '\t', '\n', '\r']).unwrap_or(self.rest.len());
                // A word that is none would not be passed, and the text is JSON: this is for the loop's sake.
                self.pass(end.max(usize::from(!self.rest.is_empty() && end == 0)));
            }
        }
    }

    fn string(&mut self) -> String {
        let mut escaped = false;
        let end = self.rest.char_indices().skip(1).find(|(_, c)| {
            let ends = *c == '"' && !escaped;
            escaped = *c == '\\' && !escaped;
            ends
        });
        let text = self.pass(end.map_or(self.rest.len(), |(at, _)| at + 1));
        serde_json::from_str(text).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const TEXT: &str = r#"{
  "version": 1,
  "qubes": {
    "work": { "disks": [ { "vdev": "xvda" }, {"vdev":"\"}]"} ], "memory": -5 },
    "a b": { "tags": [] }
  },
  "policy": { "50-nexus.policy": "x" }
}"#;

    #[test]
    fn an_attribute_has_a_place() {
        let places = Places::of(TEXT);
        for (path, line, column) in [
            ("version", 2, 3),
            ("qubes.work", 4, 5),
            ("qubes.work.disks[0].vdev", 4, 28),
            ("qubes.work.disks[1].vdev", 4, 47),
            ("qubes.work.memory", 4, 65),
            ("qubes.\"a b\".tags", 5, 14),
            ("policy.\"50-nexus.policy\"", 7, 15),
            // Not there: where it would be.
            ("qubes.work.vcpus", 4, 5),
            ("nothing", 1, 1),
        ] {
            assert_eq!(places.of_attribute(path), Place { line, column }, "{path}");
        }
        assert_eq!(places.attribute_at(Place { line: 4, column: 77 }), "qubes.work.memory");
        assert_eq!(places.attribute_at(Place { line: 1, column: 1 }), "");
        assert_eq!(places.doubled, None);
    }

    #[test]
    fn an_attribute_that_is_there_twice_is_found() {
        let places = Places::of("{\"a\":{\"b\":1,\n\"b\":2}}");
        assert_eq!(places.doubled, Some(("a.b".to_owned(), Place { line: 2, column: 1 })));
    }
}
