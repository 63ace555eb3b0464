use super::*;

struct Site {
    folder: tempfile::TempDir,
    generations: Generations,
}

fn site() -> Site {
    let folder = tempfile::tempdir().unwrap();
    let generations = Generations::in_folder(folder.path().join("generations"));
    Site { folder, generations }
}

impl Site {
    fn system(&self, name: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        fs::create_dir_all(&path).unwrap();
        path
    }

    /// A qube is made from what is declared.
    fn begin(&self, declared: &str) {
        let declared = self.system(declared);
        let choice = self.generations.choice("work", &declared).unwrap();
        self.generations.begin("work", &choice, true).unwrap();
    }

    fn numbers(&self) -> Vec<u64> {
        self.generations.list("work").unwrap().iter().map(|generation| generation.number).collect()
    }

    fn booted(&self) -> u64 {
        self.generations.record("work").unwrap().booted.unwrap().generation
    }

    fn trial(&self) -> Option<u64> {
        self.generations.record("work").unwrap().trial.map(|trial| trial.previous.generation)
    }
}

fn plain(generation: u64) -> Variant {
    Variant { generation, specialisation: None }
}

#[test]
fn a_profile_is_laid_out_as_nix_lays_it_out() {
    let site = site();
    assert_eq!((site.numbers(), site.generations.default_of("work").unwrap()), (vec![], None));
    site.begin("a");
    site.begin("b");
    site.begin("b");
    assert_eq!((site.numbers(), site.generations.default_of("work").unwrap()), (vec![1, 2], Some(2)));
    let profile = site.generations.profile("work");
    assert_eq!(fs::read_link(&profile).unwrap(), Path::new("work-2-link"));
    assert_eq!(profile.canonicalize().unwrap(), site.system("b").canonicalize().unwrap());
    assert_eq!(config::generation(&profile, 1).unwrap(), profile.with_file_name("work-1-link"));
    site.begin("a");
    assert_eq!(site.numbers(), [1, 2, 3], "as nix-env: what is declared again is a new one");
    assert_eq!(site.generations.list("vault").unwrap(), []);
}

#[test]
fn a_new_one_is_on_trial_until_it_reports_ready() {
    let site = site();
    site.begin("a");
    assert_eq!(site.trial(), None, "there is nothing to go back to");
    site.begin("b");
    assert_eq!((site.booted(), site.trial()), (2, Some(1)));
    // Before it was judged, another is declared: what it goes back to is the last that was not on trial.
    site.begin("c");
    assert_eq!((site.booted(), site.trial()), (3, Some(1)));
    assert!(site.generations.choice("work", &site.system("c")).unwrap().on_trial);
    site.generations.confirm("work").unwrap();
    site.begin("c");
    assert_eq!((site.booted(), site.trial()), (3, None));
    assert!(site.generations.fall_back("work", &site.system("c"), "late").unwrap().is_none());
}

#[test]
fn what_failed_is_passed_over_until_something_else_is_declared() {
    let site = site();
    site.begin("a");
    site.begin("b");
    let (from, to) = site.generations.fall_back("work", &site.system("b"), "late").unwrap().unwrap();
    assert_eq!((from, to), (plain(2), plain(1)));
    let choice = site.generations.choice("work", &site.system("b")).unwrap();
    assert_eq!(choice.system, site.system("a"));
    assert_eq!(choice.held.unwrap().reason, Reason::FellBack);
    site.begin("b");
    assert_eq!((site.booted(), site.trial()), (1, None), "what it goes back to is not on trial");
    assert_eq!(site.generations.default_of("work").unwrap(), Some(1));
    assert_eq!(site.generations.record("work").unwrap().failed[&2], "late");
    site.begin("c");
    assert_eq!((site.booted(), site.trial()), (3, Some(1)));
    assert_eq!(site.generations.record("work").unwrap().held, None);
    // Asked for once more, it is given another chance.
    site.generations.confirm("work").unwrap();
    site.generations.hold("work", &site.system("c"), plain(2), Reason::Switched).unwrap();
    site.begin("c");
    assert_eq!((site.booted(), site.trial()), (2, Some(3)));
    assert!(site.generations.record("work").unwrap().failed.is_empty());
    // Switched to by hand, it fails again: what is declared runs, and nothing is held against that.
    site.generations.fall_back("work", &site.system("c"), "late").unwrap();
    let record = site.generations.record("work").unwrap();
    assert_eq!((record.held, record.failed.len()), (None, 1));
    assert_eq!(site.generations.choice("work", &site.system("c")).unwrap().system, site.system("c"));
}

#[test]
fn a_rollback_holds_against_what_was_declared_and_ends_when_it_is_released() {
    let site = site();
    assert!(matches!(site.generations.before("work"), Err(GenerationError::NoneYet(_))));
    site.begin("a");
    let error = site.generations.before("work").unwrap_err().to_string();
    assert_eq!(error, "work has no generation before 1");
    site.begin("b");
    site.generations.confirm("work").unwrap();
    let before = site.generations.before("work").unwrap();
    assert_eq!(before.number, 1);
    site.generations.hold("work", &site.system("b"), plain(1), Reason::RolledBack).unwrap();
    site.begin("b");
    site.begin("b");
    assert_eq!((site.booted(), site.trial()), (1, None));
    site.generations.release("work").unwrap();
    site.begin("b");
    assert_eq!((site.booted(), site.trial(), site.numbers()), (2, Some(1), vec![1, 2]));
    // To what is declared is no choice against it.
    site.generations.hold("work", &site.system("b"), plain(2), Reason::Switched).unwrap();
    assert_eq!(site.generations.record("work").unwrap().held, None);
    let special = Variant { generation: 2, specialisation: Some("rescue".to_owned()) };
    site.generations.hold("work", &site.system("b"), special.clone(), Reason::Switched).unwrap();
    let choice = site.generations.choice("work", &site.system("b")).unwrap();
    assert_eq!((choice.system, choice.specialisation.as_deref()), (site.system("b"), Some("rescue")));
    assert_eq!(special.to_string(), "generation 2, specialisation rescue");
    let error = site.generations.hold("work", &site.system("b"), plain(7), Reason::Switched).unwrap_err();
    assert!(error.to_string().ends_with("no generation 7 (it has 1, 2)"), "{error}");
}

#[test]
fn what_is_needed_is_not_forgotten() {
    let site = site();
    for system in ["a", "b", "c", "d"] {
        site.begin(system);
        if system != "d" {
            site.generations.confirm("work").unwrap();
        }
    }
    let remove =
        |numbers: &[u64]| site.generations.remove("work", numbers).map_err(|error| error.to_string());
    assert_eq!(remove(&[1, 4]).unwrap_err(), "generation 4 of work is the default one: it is kept");
    assert_eq!(remove(&[3]).unwrap_err(), "generation 3 of work is the one to fall back to: it is kept");
    assert_eq!(site.numbers(), [1, 2, 3, 4], "nothing is forgotten by half");
    remove(&[1, 2]).unwrap();
    assert_eq!(site.numbers(), [3, 4]);
    site.generations.fall_back("work", &site.system("d"), "late").unwrap();
    site.begin("d");
    site.generations.hold("work", &site.system("d"), plain(4), Reason::Switched).unwrap();
    remove(&[4]).unwrap();
    assert!(site.generations.record("work").unwrap().failed.is_empty());
    assert!(remove(&[4]).unwrap_err().contains("no generation 4"));
}

#[test]
fn one_that_other_means_removed_is_not_chosen_and_a_damaged_record_is_told_of() {
    let site = site();
    site.begin("a");
    site.begin("b");
    site.generations.hold("work", &site.system("b"), plain(1), Reason::RolledBack).unwrap();
    fs::remove_file(site.generations.link("work", 1)).unwrap();
    assert_eq!(site.generations.choice("work", &site.system("b")).unwrap().system, site.system("b"));
    // Left by one that was killed while it made the link.
    symlink("x", site.generations.links.join(".work.new")).unwrap();
    site.begin("c");
    assert_eq!(site.generations.default_of("work").unwrap(), Some(3));
    fs::write(site.generations.record_path("work"), "{").unwrap();
    let error = site.generations.record("work").unwrap_err().to_string();
    assert!(error.contains("work.json: EOF"), "{error}");
}
