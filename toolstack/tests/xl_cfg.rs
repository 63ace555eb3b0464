//! What is an `xl.cfg`, and what it says: the same as libxlutil answers, for texts chosen and random.

#![allow(clippy::unwrap_used, reason = "what fails in here fails the test")]

use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::TestRunner;
use std::fmt::Write as _;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::LazyLock;
use toolstack::config::{Data, Settings, Value};

/// Texts that must be accepted, and texts that must not be.
const TEXTS: [(&str, bool); 62] = [
    ("", true),
    ("\n", true),
    (";", true),
    ("a=1", true),
    ("a=1\n", true),
    ("a=1;b=2", true),
    ("a=1;;b=2;", true),
    (" \t a \t = \t 1 \t ", true),
    ("a='b'", true),
    ("a=\"b\"", true),
    ("a='b\"c'", true),
    ("a='it\\'s'", true),
    ("a=0x1fabc", true),
    ("a=1x2f", true),
    ("a=[]", true),
    ("a=[\n]", true),
    ("a=[1]", true),
    ("a=[1,]", true),
    ("a=[1\n,\n2\n,\n]", true),
    ("a=[1 # one\n, # comma\n2]", true),
    ("a=[[1,2],[],'x']", true),
    ("a=1 # comment\n", true),
    ("# comment\n", true),
    ("a='x'\na+='y'", true),
    ("a=[1]\na+=[2]", true),
    ("a+=1", true),
    ("a=1\na=[2]", true),
    ("a='\\a\\b\\f\\n\\r\\t\\v\\\\\\\"'", true),
    ("a='q\\101z'", true),
    ("a='q\\1 1z'", true),
    ("a='q\\1\t+1z'", true),
    ("a='\u{e9}'", true),
    ("b.c_9=1", true),
    ("a", false),
    ("a=", false),
    ("a=\n", false),
    ("=1", false),
    ("a==1", false),
    ("a=b", false),
    ("a=1 b=2", false),
    ("a=1 2", false),
    ("a=-1", false),
    ("a=1.5", false),
    ("a=(1)", false),
    ("A=1", false),
    ("9=1", false),
    ("a=1k", false),
    ("a='b", false),
    ("a='b\nc'", false),
    ("a='b\\\nc'", false),
    ("a='\\x41'", false),
    ("a='\\1'", false),
    ("a='\\12'", false),
    ("a='\\q'", false),
    ("a=[,]", false),
    ("a=[1,,2]", false),
    ("a=[1 2]", false),
    ("a=[1", false),
    ("a=1\na+=[2]", false),
    ("a=[1]\na+=2", false),
    ("a=1 # no line end", false),
    ("a=1\r\n", false),
];

/// How many random texts.
const TEXTS_AT_RANDOM: usize = 5_000;

/// The program that asks libxlutil.
static PROGRAM: LazyLock<PathBuf> = LazyLock::new(|| {
    let program = PathBuf::from(env!("CARGO_TARGET_TMPDIR")).join("xlutil");
    let compiled = Command::new("cc")
        .arg("-o")
        .arg(&program)
        .arg(concat!(env!("CARGO_MANIFEST_DIR"), "/tests/xlutil.c"))
        .arg("-lxlutil")
        .status()
        .expect("a C compiler");
    assert!(compiled.success(), "libxlutil (package libxen-dev) is needed");
    program
});

/// What libxlutil makes of each text.
fn theirs(texts: &[String]) -> Vec<String> {
    let mut child = Command::new(&*PROGRAM).stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut input = child.stdin.take().unwrap();
    let bytes: Vec<u8> =
        texts.iter().flat_map(|text| format!("{}\n{text}", text.len()).into_bytes()).collect();
    let writer = std::thread::spawn(move || input.write_all(&bytes));
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap().unwrap();
    assert!(output.status.success(), "{}", output.status);
    String::from_utf8(output.stdout).unwrap().lines().map(str::to_owned).collect()
}

/// What we make of a text, in the same notation.
fn ours(text: &str) -> String {
    fn show(value: &Value, out: &mut String) {
        match &value.data {
            Data::Text(text) => {
                out.push('"');
                text.bytes().for_each(|byte| write!(out, "{byte:02x}").unwrap());
            }
            Data::List(list) => {
                out.push('[');
                for item in list {
                    show(item, out);
                    out.push(',');
                }
                out.push(']');
            }
        }
    }
    let Ok(settings) = Settings::parse("text", text.as_bytes(), &[] as &[&str]) else {
        return "refused".to_owned();
    };
    let mut out = String::new();
    for name in ["a", "b", "c", "d", "e"] {
        out.push(' ');
        if let Some(setting) = settings.get(name) {
            show(&setting.value, &mut out);
        }
    }
    out
}

fn compare(texts: &[String]) {
    let theirs = theirs(texts);
    assert_eq!(theirs.len(), texts.len());
    for (text, theirs) in texts.iter().zip(theirs) {
        assert_eq!(ours(text), theirs, "ours is on the left; the text: {text:?}");
    }
}

#[test]
fn chosen_texts_are_read_as_libxlutil_reads_them() {
    let texts: Vec<String> = TEXTS.iter().map(|(text, _)| (*text).to_owned()).collect();
    for (text, good) in TEXTS {
        assert_eq!(ours(text) != "refused", good, "{text:?}");
    }
    compare(&texts);
}

#[test]
fn random_texts_are_read_as_libxlutil_reads_them() {
    // Pieces of the grammar in any order, so that a good part of the texts is valid.
    let piece = prop_oneof![
        4 => "[a-e] ?\\+?= ?",
        4 => "[0-9][0-9a-fx]{0,3}",
        4 => "'[a-c\\\\'\"0-9xn ]{0,5}'",
        3 => "\"[a-cé\\\\'\"0-9xn+ ]{0,5}\"",
        4 => "[\\[\\],]",
        4 => "[\n;]",
        1 => "#[a-z'\\[]{0,3}\n?",
        1 => "[ \tA-Z.()+:\\\\'\"-]",
        2 => "[a-e]=\\['[a-c]', ?[0-9],?\\]\n",
        2 => "[a-e]=[0-9]\n",
    ];
    // A token at the end, because of what `a_stray_last_character_is_refused` tells.
    let end = prop_oneof!["\n", "a=1", "\\]", "'x'", "7"];
    let text = (proptest::collection::vec(piece, 0..8), end).prop_map(|(pieces, end)| pieces.concat() + &end);
    let mut runner = TestRunner::deterministic();
    let texts: Vec<String> =
        (0..TEXTS_AT_RANDOM).map(|_| text.new_tree(&mut runner).unwrap().current()).collect();
    let good = texts.iter().filter(|text| ours(text) != "refused").count();
    assert!(good > TEXTS_AT_RANDOM / 50, "only {good} texts are valid: the pieces do not fit together");
    compare(&texts);
}

#[test]
fn a_stray_last_character_is_refused() {
    // libxlutil drops it: its lexer never comes to report it. That cannot be what the author of a file wanted.
    let text = "a=1\n?".to_owned();
    assert_eq!(theirs(std::slice::from_ref(&text)), [" \"31    "]);
    assert_eq!(ours(&text), "refused");
}
