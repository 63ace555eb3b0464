use super::*;
use crate::config::Settings;
use crate::create::tests::{Host, host};
use crate::watch::tests::watch;
use std::io::Write;
use std::sync::mpsc;
use std::thread::JoinHandle;
use xen::{ErrorKind, Platform};

/// A guest that suspends itself when it is asked to, so many times.
fn listening(host: &Host, qube: &Qube, times: usize) -> JoinHandle<()> {
    let guest = host.machine.domain(qube.info.domid).xenstore().unwrap();
    let (machine, domid) = (host.machine.clone(), qube.info.domid);
    std::thread::spawn(move || {
        let path = format!("{}/control/shutdown", home(domid));
        let asked = format!("{path} = {SUSPEND:?} ");
        for _ in 0..times {
            // Not through xenstore, whose calls are counted, and which fails for whoever comes.
            while !machine.inventory().iter().any(|line| line.starts_with(&asked)) {
                std::thread::sleep(Duration::from_micros(100));
            }
            while guest.write(Transaction::NONE, &path, b"").is_err() {}
            machine.shut_down(domid, ShutdownReason::Suspend);
        }
    })
}

fn running(host: &Host, more: &str) -> Qube {
    let config = host.config_with("work", &format!("memory=64\n{more}"));
    host.qubes.start(&config, true, &*host.foreign).unwrap()
}

fn save(host: &Host, qube: &Qube, path: &Path, afterwards: Afterwards) -> Result<(), SaveError> {
    host.qubes.save(qube, None, path, false, afterwards, &Progress::default())
}

/// Saves a qube whose guest obeys.
fn save_and_end(host: &Host, qube: &Qube, path: &Path) {
    let guest = listening(host, qube, 1);
    save(host, qube, path, Afterwards::Destroy).unwrap();
    guest.join().unwrap();
}

fn restore(host: &Host, path: &Path) -> Result<Qube, SaveError> {
    let saved = SavedQube::open(path)?;
    host.qubes.restore(saved, None, true, &Progress::default()).map(|(qube, _)| qube)
}

/// What is in the guest's memory.
const KEPT: &[u8] = b"what the guest has in memory";
const AT: u64 = 40 << 20;

fn remember(host: &Host, qube: &Qube) {
    let frame = xen::Gfn(AT >> xen::PAGE_SHIFT);
    host.foreign.map(qube.info.domid, &[frame], xen::Access::ReadWrite).unwrap().copy_from(0, KEPT);
}

#[test]
fn a_qube_is_saved_and_restored_with_all_that_it_had() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "on_crash='preserve'");
    host.qubes.rename(&qube, "play").unwrap();
    let before = host.qubes.current_config(&host.qubes.find("play").unwrap()).unwrap();
    let records = |host: &Host, domid: DomId| {
        let mut lines = host.machine.inventory();
        lines.retain(|line| line.starts_with('/') && !line.contains("start_time"));
        lines.iter().map(|line| line.replace(&format!("/{domid}"), "/ID")).collect::<Vec<_>>()
    };
    let nodes = records(&host, qube.info.domid);
    remember(&host, &qube);
    let guest = listening(&host, &qube, 1);
    save(&host, &host.qubes.find("play").unwrap(), &path, Afterwards::Destroy).unwrap();
    guest.join().unwrap();
    assert!(matches!(host.qubes.find("play"), Err(QubeError::NotFound { .. })));
    assert_eq!(host.files(), 0);
    let mode = std::os::unix::fs::PermissionsExt::mode(&fs::metadata(&path).unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600, "the guest's memory is nobody else's to read");

    let again = restore(&host, &path).unwrap();
    assert_eq!((again.uuid(), again.name.as_deref()), (qube.uuid(), Some("play")));
    assert!(again.info.paused && again.info.shutdown.is_none());
    assert_eq!(host.machine.guest(again.info.domid).unwrap().read(AT, KEPT.len()), KEPT);
    assert_eq!(host.qubes.current_config(&again).unwrap(), before);
    assert_eq!(host.qubes.known_config(&again).unwrap().unwrap().name, "play");
    // What daemons and guest find in xenstore is what they found, but for the ports and the domain's number.
    let changed = |lines: &[String]| {
        let mut lines = lines.to_vec();
        lines.retain(|line| {
            !line.contains("/port = ") && !line.contains("domid = ") && !line.contains("frontend-id")
        });
        lines
    };
    assert_eq!(changed(&records(&host, again.info.domid)).len(), changed(&nodes).len());
    // Its file is still there, and cannot be restored beside it.
    assert!(restore(&host, &path).unwrap_err().to_string().starts_with("the name play is taken"));
}

#[test]
fn a_qube_that_goes_on_is_attended_as_before() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "on_reboot='destroy'");
    let guest = listening(&host, &qube, 2);
    save(&host, &qube, &path, Afterwards::Resume).unwrap();
    let now = host.qubes.find("work").unwrap();
    assert_eq!((now.info.shutdown, now.info.paused), (None, false));
    save(&host, &qube, &path, Afterwards::Pause).unwrap();
    guest.join().unwrap();
    let now = host.qubes.find("work").unwrap();
    assert_eq!((now.info.domid, now.info.shutdown, now.info.paused), (qube.info.domid, None, true));
    assert_eq!(watch(&host), []);
    host.machine.shut_down(qube.info.domid, ShutdownReason::Reboot);
    assert_eq!(watch(&host).len(), 1, "the watcher still knows of it");
}

#[test]
fn the_watcher_leaves_a_suspended_qube_to_who_suspended_it() {
    let host = host();
    let qube = running(&host, "");
    host.machine.shut_down(qube.info.domid, ShutdownReason::Suspend);
    assert_eq!(watch(&host), []);
    host.qubes.resume(&qube).unwrap();
    host.machine.shut_down(qube.info.domid, ShutdownReason::Poweroff);
    assert_eq!(watch(&host).len(), 1);
}

#[test]
fn whichever_call_of_a_save_fails_the_guest_goes_on_and_the_file_is_as_it_was() {
    let mut kinds = std::collections::BTreeSet::new();
    for nth in 0.. {
        let host = host();
        let path = host.folder.path().join("work.saved");
        fs::write(&path, "an older one").unwrap();
        let qube = running(&host, "");
        let guest = listening(&host, &qube, 1);
        host.machine.fail(None, nth, ErrorKind::Other);
        let saved = save(&host, &qube, &path, Afterwards::Resume);
        let missed = host.machine.clear_failures();
        // One that was not asked any more is asked now, so that it comes to its end.
        let shutdown = format!("{}/control/shutdown", home(qube.info.domid));
        if !guest.is_finished() {
            host.qubes.store.write(Transaction::NONE, &shutdown, SUSPEND.as_bytes()).unwrap();
        }
        guest.join().unwrap();
        let text = fs::read(&path).unwrap();
        match saved {
            Ok(()) if missed == 1 => {
                assert!(nth > 15, "{nth} calls");
                assert!(kinds.len() > 3, "{kinds:?}");
                return;
            }
            // A failure that was of no consequence, such as that of an unwatch.
            Ok(()) => {}
            Err(SaveError::Afterwards { .. }) => assert_ne!(text, b"an older one", "call {nth}"),
            Err(error) => {
                kinds.insert(error.to_string());
                assert_eq!(text, b"an older one", "call {nth}: {error}");
                assert!(!path.with_file_name("work.saved.new").exists(), "call {nth}: {error}");
            }
        }
    }
}

#[test]
fn whichever_call_of_a_restore_fails_nothing_is_left_but_the_file() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "");
    save_and_end(&host, &qube, &path);
    let before = host.inventory();
    for nth in 0.. {
        host.machine.fail(None, nth, ErrorKind::Other);
        let restored = restore(&host, &path);
        if host.machine.clear_failures() == 1 {
            assert!(nth > 20, "{nth} calls");
            restored.unwrap();
            return;
        }
        if let Ok(qube) = restored {
            host.qubes.destroy(&qube).unwrap();
        }
        assert_eq!(host.inventory(), before, "call {nth}");
        assert_eq!(host.files(), 0, "call {nth}");
    }
}

#[test]
fn a_file_that_was_cut_off_anywhere_leaves_no_domain() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "");
    remember(&host, &qube);
    save_and_end(&host, &qube, &path);
    let before = host.inventory();
    let whole = fs::read(&path).unwrap();
    // Within the magic, the configuration, the guest's state and the end.
    for len in [0, 7, 40, 300, whole.len() - 5_000, whole.len() - 100, whole.len() - 9, whole.len() - 1] {
        fs::write(&path, &whole[..len]).unwrap();
        restore(&host, &path).unwrap_err();
        assert_eq!((host.inventory(), host.files()), (before.clone(), 0), "{len} bytes of {}", whole.len());
    }
    let mut longer = whole.clone();
    let end = longer.len() - 8;
    longer[end] = 3;
    fs::write(&path, &longer).unwrap();
    assert!(restore(&host, &path).unwrap_err().to_string().contains("record 0x3"));
    assert_eq!((host.inventory(), host.files()), (before, 0));
}

#[test]
fn what_xl_saved_is_restored_and_what_it_cannot_have_known_of_is_not_missed() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "vcpus=1\nmaxvcpus=2");
    remember(&host, &qube);
    save_and_end(&host, &qube, &path);
    // As xl writes it: without our part.
    let text = fs::read(&path).unwrap();
    let head = file::read_head(&mut &*text).unwrap();
    let Some(file::Config::Json(json)) = head.config else { panic!("{head:?}") };
    let ours = head.ours.unwrap();
    let stream = 48 + 4 + json.len() + 1 + 8 + ours.len();
    let mut theirs = Vec::new();
    let optional = 4 + json.len() as u32 + 1;
    theirs.extend_from_slice(&text[..44]);
    theirs.extend(optional.to_le_bytes());
    theirs.extend_from_slice(&text[48..48 + optional as usize]);
    theirs.extend_from_slice(&text[stream..]);
    File::create(&path).unwrap().write_all(&theirs).unwrap();
    let again = restore(&host, &path).unwrap();
    assert_eq!((again.uuid(), again.display_name()), (qube.uuid(), "work"));
    assert_eq!(host.machine.guest(again.info.domid).unwrap().read(AT, KEPT.len()), KEPT);
    assert_eq!(host.qubes.known_config(&again).unwrap().unwrap().max_vcpus, 2);
}

#[test]
fn another_configuration_may_be_given() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "");
    save_and_end(&host, &qube, &path);
    let config = host.config_with("elsewhere", "memory=64\non_crash='preserve'");
    let saved = SavedQube::open(&path).unwrap();
    let (again, used) = host.qubes.restore(saved, Some(config), false, &Progress::default()).unwrap();
    assert_eq!((again.display_name(), again.uuid()), ("elsewhere", qube.uuid()));
    assert_eq!(used.actions.crash, crate::config::Action::Preserve);
    assert_eq!(host.qubes.attended().unwrap(), 0);
}

#[test]
fn who_cannot_be_saved_is_told_so_before_the_guest_is_bothered() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "");
    let stored = host.qubes.stored_config(&qube).unwrap().unwrap();
    let mut forbidden: serde_json::Value = serde_json::from_str(&stored).unwrap();
    forbidden["b_info"]["disable_migrate"] = "True".into();
    let libxl = crate::userdata::Kind::Libxl;
    host.qubes.userdata.write(libxl, qube.info.domid, qube.uuid(), &forbidden.to_string()).unwrap();
    let error = save(&host, &qube, &path, Afterwards::Destroy).unwrap_err().to_string();
    assert!(error.contains("nomigrate=1"), "{error}");
    let node = format!("{}/control/shutdown", home(qube.info.domid));
    assert_eq!(host.qubes.read(&node).unwrap().as_deref(), Some(""), "it was not asked");
    host.machine.shut_down(qube.info.domid, ShutdownReason::Crash);
    let down = host.qubes.find("work").unwrap();
    assert!(matches!(host.qubes.suspend(&down), Err(SaveError::Down { .. })));
    assert!(!path.exists());
}

#[test]
fn how_far_it_has_come_is_told_to_the_end() {
    let host = host();
    let path = host.folder.path().join("work.saved");
    let qube = running(&host, "");
    let guest = listening(&host, &qube, 1);
    let (told, heard) = mpsc::channel();
    let told = std::sync::Mutex::new(told);
    let progress = Progress::new(move |bytes| told.lock().unwrap().send(bytes).unwrap());
    host.qubes.save(&qube, None, &path, false, Afterwards::Destroy, &progress).unwrap();
    guest.join().unwrap();
    drop(progress);
    let all: Vec<_> = heard.iter().collect();
    let last = all.last().unwrap();
    assert_eq!((last.done, last.all), (last.all, qube.info.pages * PAGE_SIZE as u64));
    assert!(all.is_sorted_by_key(|bytes| bytes.done));
}

#[test]
fn a_pv_qube_is_saved_and_restored_as_well() {
    use crate::image::synthetic::SyntheticElf;
    let host = host();
    fs::write(host.folder.path().join("pv"), SyntheticElf::pv().build()).unwrap();
    let text = format!("type='pv'\nname='old'\nmemory=64\nkernel='{}/pv'\n", host.folder.path().display());
    let settings = Settings::parse("pv.cfg", text.as_bytes(), &[""; 0]).unwrap();
    let config = QubeConfig::from_settings("pv.cfg", &settings, None).unwrap().0;
    let qube = host.qubes.start(&config, false, &*host.foreign).unwrap();
    let path = host.folder.path().join("old.saved");
    save_and_end(&host, &qube, &path);
    let again = restore(&host, &path).unwrap();
    let ring = format!("{}/store/ring-ref", home(again.info.domid));
    let ring: u64 = host.qubes.read(&ring).unwrap().unwrap().parse().unwrap();
    let guest = host.machine.guest(again.info.domid).unwrap();
    assert!(guest.frame(xen::Gfn(ring)).is_some(), "a frame of the machine, and its own");
}

#[test]
fn one_that_was_saved_with_its_id_is_restored_with_it_or_not_at_all() {
    let host = host();
    let (with, without) = (host.folder.path().join("with"), host.folder.path().join("without"));
    let make =
        |name: &str| host.qubes.create(&host.config_with(name, "memory=64"), false, &*host.foreign).unwrap();
    let other = make("other");
    let qube = running(&host, "");
    let guest = listening(&host, &qube, 2);
    host.qubes.save(&qube, None, &without, false, Afterwards::Resume, &Progress::default()).unwrap();
    host.qubes.save(&qube, None, &with, true, Afterwards::Destroy, &Progress::default()).unwrap();
    guest.join().unwrap();
    host.qubes.destroy(&other).unwrap();
    // The mock gives the first that is free.
    for (path, domid) in [(&without, other.info.domid), (&with, qube.info.domid)] {
        let again = restore(&host, path).unwrap();
        assert_eq!(again.info.domid, domid);
        host.qubes.destroy(&again).unwrap();
    }
    make("first");
    assert_eq!(make("second").info.domid, qube.info.domid);
    let taken = restore(&host, &with).unwrap_err();
    assert!(matches!(&taken, SaveError::Taken { domid, .. } if *domid == qube.info.domid), "{taken}");
}
