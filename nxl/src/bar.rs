//! A bar on the terminal for bytes that take long: how many of how many, and how long the rest will take. Where stderr is no
//! terminal, there is none.

use indicatif::{ProgressBar, ProgressFinish, ProgressStyle};
use std::sync::OnceLock;
use toolstack::progress::{Bytes, Progress};

/// What is over before anybody has read the bar has none: 32 MiB.
const LEAST: u64 = 32 << 20;

const TEMPLATE: &str = "{prefix} [{bar:30}] {bytes} of {total_bytes}, {bytes_per_sec}, {eta} left";

/// One bar, named after the work, for each long piece of it.
pub(crate) fn of_bytes(what: impl Into<String>) -> Progress {
    let what = what.into();
    let bar = OnceLock::new();
    Progress::new(move |Bytes { done, all }| {
        if all < LEAST {
            return;
        }
        let bar: &ProgressBar = bar.get_or_init(|| {
            let style = style(TEMPLATE).progress_chars("=> ");
            ProgressBar::new(all)
                .with_style(style)
                .with_prefix(what.clone())
                .with_finish(ProgressFinish::AndClear)
        });
        bar.set_position(done);
        if done == all {
            bar.finish_using_style();
        }
    })
}

/// The style of a constant template, and of one that indicatif understands, as the tests show.
pub(crate) fn style(template: &str) -> ProgressStyle {
    ProgressStyle::with_template(template).unwrap_or_else(|_| ProgressStyle::default_bar())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn indicatif_understands_the_template() {
        ProgressStyle::with_template(TEMPLATE).unwrap();
    }
}
