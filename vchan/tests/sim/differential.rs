//! Our library beside Debian's libxenvchan, call by call: the same schedule between two ends of libxenvchan, which is the
//! reference, and between two of which one or both are ours. Every answer has to be the same, and what remains in the
//! shared pages; where not, `difference` says why.
//!
//! The schedules are drawn from seeds: always the same ones, unless `VCHAN_SCHEDULES` has a number, from which others
//! are drawn. What fails says its seed.

mod difference;
mod page;
mod schedule;
mod stage;

use difference::Difference;
use page::Page;
use schedule::{Call, Random, Schedule, Step, Who};
use stage::{PAIRS, Stage, Theatre};
use std::env;

/// The seeds of a test.
fn seeds(test: u64) -> Random {
    let drawn = env::var("VCHAN_SCHEDULES").map_or(0, |number| number.parse().expect("a number"));
    Random(Random(drawn).next() ^ test)
}

/// All pairs of orders that a server can choose. The page has a place for a ring of order 10 and one for a ring of order
/// 11; the first is only taken if both rings fit there.
fn order_pairs() -> Vec<(u16, u16)> {
    let all = (10..=20).flat_map(|left| (10..=20).map(move |right| (left, right)));
    all.filter(|&(left, right)| match (left, right) {
        (10, _) | (_, 10) => left + right == 21,
        _ => (left, right) != (11, 11),
    })
    .collect()
}

#[test]
fn every_pair_of_rings_answers_as_libxenvchans_do() {
    let pairs = order_pairs();
    assert_eq!(pairs.len(), 101);
    let mut theatre = Theatre::new("orders");
    let mut seeds = seeds(1);
    for orders in pairs {
        theatre.compare(seeds.next(), orders, 60);
    }
    assert_eq!(
        theatre.kinds_of_differences(),
        Difference::KINDS,
        "one that never comes up is to be taken out"
    );
}

#[test]
fn long_schedules_answer_as_libxenvchans_do() {
    let mut theatre = Theatre::new("long");
    let mut seeds = seeds(2);
    for orders in [(10, 11), (11, 10), (11, 12), (12, 11), (12, 12), (13, 16), (16, 16)] {
        theatre.compare(seeds.next(), orders, 3000);
    }
}

/// The page as each pair has it after the server set it up, with its client, and after that has left.
#[test]
fn the_control_page_is_libxenvchans_byte_for_byte() {
    let mut theatre = Theatre::new("page");
    let mut seeds = seeds(3);
    for (left, right) in order_pairs() {
        let steps = Schedule::new(seeds.next(), (left, right), 0).steps;
        let Some(Step::Do(Who::Server, Call::Serve { left_min, right_min, .. }, _)) = steps.first() else {
            panic!("a schedule begins with its server");
        };
        let serve = Call::Serve { left_min: *left_min, right_min: *right_min, persist: false };
        let pages = theatre.0.each_mut().map(|stage| {
            assert_eq!(stage.server.ask(serve).unwrap(), format!("orders {left} {right}"));
            let page = |stage: &mut Stage| Page::parse(&stage.observer.ask(Call::Page).unwrap()).unwrap();
            let set_up = page(stage);
            assert_eq!(stage.client.ask(Call::Connect).unwrap(), format!("orders {left} {right}"));
            let connected = page(stage);
            assert_eq!(stage.client.ask(Call::Close).unwrap(), "done");
            let left_again = page(stage);
            assert_eq!(stage.server.ask(Call::Close).unwrap(), "done");
            [set_up, connected, left_again]
        });
        let [reference, others @ ..] = &pages;
        let shown = format!("{left_min}, {right_min}");
        // The four bytes: which of the two live, and of what they ask to be told.
        let expected = |live_and_notify: [u8; 4]| {
            let mut bytes = vec![0; 4096];
            (bytes[16], bytes[18]) = (left as u8, right as u8);
            bytes[20..24].copy_from_slice(&live_and_notify);
            bytes
        };
        for (page, live_and_notify) in reference.iter().zip([[2, 1, 1, 0], [1, 1, 1, 1], [0, 1, 1, 1]]) {
            let (references, rest) = page.divided();
            // Both makes take the references of a ring in a row, but share the page before the rings or after them.
            for (references, order) in references.iter().zip([left, right]) {
                assert_eq!(references.len(), (1 << order) >> 12, "{shown}");
                assert!(references.iter().copied().eq(0..references.len() as u32), "{shown}");
            }
            assert_eq!(rest, expected(live_and_notify), "{shown}");
        }
        for (pages, pair) in others.iter().zip(&PAIRS[1..]) {
            for (page, reference) in pages.iter().zip(reference) {
                assert_eq!(page.divided(), reference.divided(), "{pair:?}, {shown}");
            }
        }
    }
}

/// What cannot begin does not with either.
#[test]
fn what_libxenvchan_refuses_is_refused() {
    let mut theatre = Theatre::new("refused");
    for stage in &mut theatre.0 {
        for (left_min, right_min) in [((1 << 20) + 1, 0), (0, (1 << 20) + 1)] {
            let serve = Call::Serve { left_min, right_min, persist: false };
            assert_eq!(stage.server.ask(serve).unwrap(), "refused", "{:?}", stage.pair);
        }
        assert_eq!(stage.client.ask(Call::Connect).unwrap(), "refused", "{:?}: no server", stage.pair);
        let serve = Call::Serve { left_min: 0, right_min: 0, persist: false };
        assert_eq!(stage.server.ask(serve).unwrap(), "orders 10 11");
        assert_eq!(stage.client.ask(Call::Connect).unwrap(), "orders 10 11");
        assert_eq!(
            stage.observer.ask(Call::Connect).unwrap(),
            "refused",
            "{:?}: a second client",
            stage.pair
        );
        assert_eq!(stage.server.ask(Call::Close).unwrap(), "done");
        assert_eq!(stage.client.ask(Call::Close).unwrap(), "done");
        assert_eq!(stage.client.ask(Call::Connect).unwrap(), "refused", "{:?}: no longer", stage.pair);
    }
}
