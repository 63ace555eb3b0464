use super::layer::hex;
use super::*;
use crate::device::tests::Kernel;
use crate::progress::{Bytes, Progress};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::os::unix::net::UnixListener;
use std::process::Command;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use xen::mock::Machine;
use xen::{DomId, Platform};

const PATH: &str = "backend/vbd/3/51712";

fn name(name: &str) -> String {
    let letter = name.bytes().next().map_or(b'0', |byte| b'0' + byte % 10);
    format!("{}-{name}", char::from(letter).to_string().repeat(31) + "0")
}

/// A store in a folder, and images of it in another.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new() -> Self {
        let place = Self { folder: tempfile::tempdir().unwrap() };
        fs::create_dir(place.at("store")).unwrap();
        place.add("a-system", &[("init", b"#!/bin/sh\n")]);
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn images(&self) -> ClosureImages {
        ClosureImages::new(self.at("images"), self.at("store")).with_limit(1 << 40)
    }

    /// A store path with these files.
    fn add(&self, path: &str, files: &[(&str, &[u8])]) -> PathBuf {
        let path = self.at("store").join(name(path));
        fs::create_dir_all(&path).unwrap();
        for (name, contents) in files {
            let file = path.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, contents).unwrap();
        }
        path
    }

    fn target(&self) -> PathBuf {
        self.at("store").join(name("a-system"))
    }

    fn make(&self, target: &Path) -> ClosureImage {
        let images = self.images();
        images.make(&images.store_path(target).unwrap()).unwrap()
    }

    fn files(&self) -> BTreeSet<String> {
        let Ok(entries) = fs::read_dir(self.at("images")) else { return BTreeSet::new() };
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
    }

    fn count(&self, extension: &str) -> usize {
        self.files().iter().filter(|name| name.ends_with(&format!(".{extension}"))).count()
    }
}

fn flat(image: &ClosureImage) -> File {
    let file = tempfile::tempfile().unwrap();
    image.copy_to(&file, &Progress::default()).unwrap();
    file
}

fn sum(image: &ClosureImage) -> String {
    let file = flat(image);
    let mut bytes = vec![0; file.metadata().unwrap().len() as usize];
    file.read_exact_at(&mut bytes, 0).unwrap();
    hex(&Sha256::digest(&bytes).into())
}

/// What another reader of erofs finds in an image: fsck.erofs unpacks it.
fn unpacked(place: &Place, image: &ClosureImage) -> PathBuf {
    let (packed, folder) = (place.at("flat"), place.at("unpacked"));
    let _ = fs::remove_dir_all(&folder);
    image.copy_to(&File::create(&packed).unwrap(), &Progress::default()).unwrap();
    let mut command = Command::new("fsck.erofs");
    let output = command.arg(format!("--extract={}", folder.display())).arg(&packed).output();
    let output = output.expect("fsck.erofs is in the Debian package erofs-utils");
    let said = String::from_utf8_lossy(&output.stdout) + String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}");
    folder
}

/// Whether two trees have the same names, links, contents and executable files.
fn same(one: &Path, other: &Path) {
    let [a, b] = [one, other].map(|path| fs::symlink_metadata(path).unwrap());
    assert_eq!(a.file_type(), b.file_type(), "{one:?}");
    if a.is_dir() {
        let names = |path: &Path| -> BTreeSet<_> {
            fs::read_dir(path).unwrap().map(|entry| entry.unwrap().file_name()).collect()
        };
        assert_eq!(names(one), names(other), "{one:?}");
        names(one).iter().for_each(|name| same(&one.join(name), &other.join(name)));
    } else if a.is_symlink() {
        assert_eq!(fs::read_link(one).unwrap(), fs::read_link(other).unwrap());
    } else {
        assert_eq!((a.len(), a.mode() & 0o100), (b.len(), b.mode() & 0o100), "{one:?}");
        assert!(fs::read(one).unwrap() == fs::read(other).unwrap(), "{one:?}");
    }
}

#[test]
fn a_target_is_a_store_path_or_leads_to_one() {
    let place = Place::new();
    symlink(place.target(), place.at("system-1-link")).unwrap();
    fs::write(place.at("store/no-hash"), "").unwrap();
    let images = place.images();
    let expected = images.store_path(&place.target()).unwrap();
    for target in [place.target().join("init"), place.at("system-1-link"), place.at("system-1-link/init")] {
        assert_eq!(images.store_path(&target).unwrap(), expected);
    }
    for (target, reason) in [
        (place.at("store"), "no path of"),
        (place.at("store/no-hash"), "no path of"),
        (place.folder.path().to_owned(), "no path of"),
        (place.at("none"), "No such file"),
    ] {
        let error = images.store_path(&target).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn an_image_holds_its_closure_and_nothing_else() {
    let place = Place::new();
    let long = "n".repeat(255);
    let link = format!("/nix/store/{}", "l".repeat(3000));
    let many: Vec<(String, Vec<u8>)> =
        (0..700).map(|number| (format!("many/{number:0>40}"), vec![b'm'; number * 13])).collect();
    let many: Vec<(&str, &[u8])> = many.iter().map(|(name, bytes)| (name.as_str(), &bytes[..])).collect();
    let library = place.add("b-library", &many);
    let block = vec![b'x'; 4096];
    let system = place.add(
        "a-system",
        &[
            ("init", b"#!/bin/sh\n"),
            ("empty", b""),
            ("block", &block),
            ("block-and-a-byte", &[&block[..], b"y"].concat()),
            (&long, b"a long name"),
            ("-before-the-dots", b"-"),
            ("refers", library.as_os_str().as_bytes()),
        ],
    );
    fs::set_permissions(system.join("init"), fs::Permissions::from_mode(0o4755)).unwrap();
    symlink("/etc/shadow", system.join("out")).unwrap();
    symlink(&link, system.join("long-link")).unwrap();
    symlink("l".repeat(4090), system.join("longest-link")).unwrap();
    fs::create_dir(system.join("folder")).unwrap();
    fs::write(system.join(OsStr::from_bytes(b"no\xfftext")), "bytes").unwrap();
    let sparse = File::create(system.join("sparse")).unwrap();
    sparse.write_all_at(b"end", 5 << 20).unwrap();
    // A store path that is a file, and one that is a link.
    let file = place.at("store").join(name("c-file"));
    fs::write(&file, "just a file").unwrap();
    let linked = place.at("store").join(name("d-link"));
    symlink(&file, &linked).unwrap();
    fs::write(system.join("more"), linked.as_os_str().as_bytes()).unwrap();
    place.add("e-other", &[("secret", b"of somebody else")]);

    let image = place.make(&system);
    assert_eq!(image.store_paths(), 4);
    let unpacked = unpacked(&place, &image);
    let names: BTreeSet<_> =
        fs::read_dir(&unpacked).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["a-system", "b-library", "c-file", "d-link"].map(|path| name(path).into()).into());
    names.iter().for_each(|name| same(&place.at("store").join(name), &unpacked.join(name)));
    // As in a store: nobody is set by a file.
    assert_eq!(fs::metadata(unpacked.join(name("a-system")).join("init")).unwrap().mode() & 0o7777, 0o555);
    // A hole stays one.
    let layer = &image.files()[1].1;
    let hole = rustix::fs::seek(layer, rustix::fs::SeekFrom::Hole(0)).unwrap();
    assert!(hole < layer.metadata().unwrap().len() && layer.metadata().unwrap().len() > 5 << 20, "{hole}");
}

/// A closure of three paths, made in this order, with files of that mode.
fn three(order: [usize; 3], mode: u32) -> Place {
    let place = Place::new();
    for number in order {
        let path = match number {
            0 => place.add("a-system", &[("init", name("b-library").as_bytes()), ("bin/run", b"run")]),
            1 => place.add("b-library", &[("lib/z", &[7; 9000]), ("lib/a", b"a"), ("lib/same", &[7; 9000])]),
            _ => place.add("c-data", &[("text", b"text")]),
        };
        if number == 1 {
            symlink(format!("/nix/store/{}/text", name("c-data")), path.join("link")).unwrap();
        }
    }
    fs::set_permissions(place.target().join("bin/run"), fs::Permissions::from_mode(mode)).unwrap();
    place
}

#[test]
fn a_closure_has_one_image_on_every_host() {
    let (one, other) = (three([0, 1, 2], 0o755), three([2, 1, 0], 0o511));
    let first = one.make(&one.target());
    // Elsewhere a part of it was there already, in another layer.
    let part = other.make(&other.at("store").join(name("b-library")));
    assert_eq!((part.store_paths(), part.files().len()), (2, 2));
    let second = other.make(&other.target());
    assert_eq!((second.store_paths(), second.files().len()), (3, 3));
    assert_eq!(first.digest(), second.digest());
    assert_eq!(sum(&first), sum(&second));
    assert_eq!(sum(&first), "09bcafef644eea13af4e80c065ebe86de1d65c54c9494d5285cdf7be81dc18a9");
    assert_eq!(first.size(), second.size());
    // Files of the same contents are there once: a block each for three small ones, three for the large.
    assert_eq!(second.extents().iter().map(|extent| extent.len).sum::<u64>() - 4096, (4 + 3) * 4096);
    // A byte more, and it is another.
    fs::write(one.target().join("bin/run"), "ruN").unwrap();
    fs::remove_dir_all(one.at("images")).unwrap();
    assert_ne!(one.make(&one.target()).digest(), first.digest());
}

#[test]
fn an_image_reuses_what_another_has() {
    let place = Place::new();
    let large = vec![b'L'; 3 << 20];
    place.add("b-library", &[("lib", &large)]);
    place.add("c-config-1", &[("config", b"one")]);
    let system = |path: &str, config: &str| {
        place.add(path, &[("init", format!("{} {}", name("b-library"), name(config)).as_bytes())])
    };
    let first = place.make(&system("a-system", "c-config-1"));
    assert!(first.made().unwrap().written > 3 << 20 && first.made().unwrap().reused == 0);

    place.add("d-config-2", &[("config", b"two")]);
    let second = place.make(&system("f-system", "d-config-2"));
    let made = second.made().unwrap();
    assert!(made.reused == 3 << 20 && made.written <= 5 * 4096, "{made:?}");
    let unpacked = unpacked(&place, &second);
    let names: BTreeSet<_> =
        fs::read_dir(&unpacked).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(names, ["b-library", "d-config-2", "f-system"].map(|path| name(path).into()).into());
    names.iter().for_each(|name| same(&place.at("store").join(name), &unpacked.join(name)));
    // The qube's device shows nothing of the layers but that.
    let extents: u64 = second.extents().iter().map(|extent| extent.len).sum();
    let files: u64 = second.files().iter().map(|(_, file)| file.metadata().unwrap().len()).sum();
    assert_eq!(files - extents, 2 * 4096, "the first system's init and configuration");
    assert!(place.make(&place.target()).made().is_none(), "it is there");
}

#[test]
fn an_image_has_no_more_layers_than_a_qube_can_have_loop_devices() {
    let place = Place::new();
    let mut text = String::new();
    for number in 0..40 {
        let part = format!("{}part-{number}", char::from(b'a' + number % 10));
        let path = place.at("store").join(format!("{:0>32}-{part}", format!("{number:0>2}z")));
        fs::create_dir(&path).unwrap();
        fs::write(path.join("file"), vec![number; 5000]).unwrap();
        place.make(&path);
        text += &format!("{} ", path.file_name().unwrap().to_str().unwrap());
    }
    assert_eq!(place.count("layer"), 40);
    let image = place.make(&place.add("a-system", &[("all", text.as_bytes())]));
    assert_eq!((image.store_paths(), image.files().len()), (41, 1 + 16));
    let unpacked = unpacked(&place, &image);
    for entry in fs::read_dir(place.at("store")).unwrap() {
        let name = entry.unwrap().file_name();
        same(&place.at("store").join(&name), &unpacked.join(&name));
    }
}

#[test]
fn what_no_store_has_is_refused() {
    let place = Place::new();
    let socket = place.target().join("socket");
    let listener = UnixListener::bind(&socket).unwrap();
    let refused = |reason: &str| {
        let images = place.images();
        let error = images.make(&images.store_path(&place.target()).unwrap()).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
        assert!(place.files().iter().all(|name| name == "lock"), "{:?}", place.files());
    };
    refused("socket is a socket: a store path has files, folders and links");
    drop(listener);
    fs::remove_file(&socket).unwrap();
    let fifo = place.target().join("fifo");
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, 0o600.into()).unwrap();
    refused("fifo is a FIFO");
    fs::remove_file(&fifo).unwrap();
    let device = place.target().join("null");
    let kind = rustix::fs::FileType::CharacterDevice;
    // Only root makes devices: who else runs this has the other two.
    if rustix::fs::mknodat(rustix::fs::CWD, &device, kind, 0o600.into(), rustix::fs::makedev(1, 3)).is_ok() {
        refused("null is a device");
        fs::remove_file(&device).unwrap();
    }
    // 17 TiB of nothing.
    let sparse = File::create(place.target().join("sparse")).unwrap();
    if sparse.set_len(15 << 40).is_ok() {
        let more = File::create(place.target().join("sparse-2")).unwrap();
        more.set_len(2 << 40).unwrap();
        refused("and an image has at most 2^32 in all");
    }
}

#[test]
fn twenty_at_once_make_one_image_and_two_closures_share() {
    let place = Arc::new(three([0, 1, 2], 0o755));
    let other = place.add("f-system", &[("init", name("b-library").as_bytes())]);
    let makers: Vec<_> = (0..20)
        .map(|number| {
            let (place, other) = (Arc::clone(&place), other.clone());
            let target = if number % 2 == 0 { other } else { place.target() };
            thread::spawn(move || place.make(&target).made())
        })
        .collect();
    let made: Vec<_> = makers.into_iter().filter_map(|maker| maker.join().unwrap()).collect();
    assert_eq!(made.len(), 2, "{made:?}");
    assert_eq!(made.iter().map(|made| made.reused).max(), Some((1 + 3 + 1) * 4096));
    assert_eq!((place.count("image"), place.count("layer"), place.count("new")), (2, 2, 0));
    let mode = fs::metadata(place.at("images")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn what_a_crash_leaves_is_made_anew() {
    let place = three([0, 1, 2], 0o755);
    let whole = place.make(&place.target());
    let files = place.files();
    // Every file that may be missing, cut off or garbage after a crash.
    for name in files.iter().filter(|name| *name != "lock") {
        let path = place.at("images").join(name);
        for damage in ["missing", "short", "unfinished"] {
            match damage {
                "missing" => fs::remove_file(&path).unwrap(),
                "short" => File::options().write(true).open(&path).unwrap().set_len(20).unwrap(),
                _ => fs::rename(&path, path.with_extension("new")).unwrap(),
            }
            let again = place.make(&place.target());
            assert_eq!(sum(&again), sum(&whole), "{name} {damage}");
            // An image does without the list of what else its layer has; nobody else will use the layer then.
            if name.ends_with(".segments") {
                fs::remove_dir_all(place.at("images")).unwrap();
                place.make(&place.target());
            }
            assert_eq!(place.files(), files, "{name} {damage}");
        }
    }
    fs::set_permissions(place.at("images"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(place.at("images").join(name("a-system") + ".image")).unwrap();
    let images = place.images();
    let error = images.make(&images.store_path(&place.target()).unwrap()).unwrap_err();
    assert!(matches!(error, ClosureDiskError::NotPrivate { .. }));
}

#[test]
fn the_least_recently_used_images_go_and_what_they_shared_stays() {
    let place = Place::new();
    place.add("s-shared", &[("file", &[b's'; 100_000])]);
    let images = place.images().with_limit(450_000);
    let make = |path: &str| {
        let path = place.add(path, &[("own", &[b'o'; 100_000]), ("refers", name("s-shared").as_bytes())]);
        let path = images.store_path(&path).unwrap();
        images.make(&path).unwrap();
        // Times of files are no finer than a tick.
        thread::sleep(Duration::from_millis(20));
        path
    };
    // Of the same contents but in their names, so that each has a layer of its own.
    let (first, second) = (make("a-first"), make("b-second"));
    let held = images.find(&second).unwrap();
    let before = sum(&held);
    thread::sleep(Duration::from_millis(20));
    assert!(images.find(&first).is_some());
    make("c-third");
    make("d-fourth");
    assert!(images.find(&second).is_none());
    assert_eq!(sum(&held), before, "a qube that has one keeps it");
    let layers = place.count("layer");
    assert!(layers < 4 && layers == place.count("segments"), "{:?}", place.files());
}

/// The backend's half of a disk, as libxl leaves it for the script.
fn backend(machine: &Machine, records: &[(&str, &str)]) -> Arc<dyn Xenstore> {
    let store = machine.domain(DomId::DOM0).xenstore().unwrap();
    for (name, value) in records {
        store.write(Transaction::NONE, &format!("{PATH}/{name}"), value.as_bytes()).unwrap();
    }
    store
}

#[test]
fn a_disk_is_attached_and_taken_away_as_libxl_expects() {
    let place = Place::new();
    let (machine, kernel) = (Machine::new(), Kernel::default());
    let store =
        backend(&machine, &[("params", "/nix/store/x"), ("mode", "r"), ("state", "2"), ("dev", "xvda")]);
    let disk = ClosureDisk { store: &*store, plumbing: &kernel, path: PATH };
    let image_of = |target: &Path| {
        assert_eq!(target, Path::new("/nix/store/x"));
        Ok(place.make(&place.target()))
    };
    disk.add(image_of).unwrap();
    let read = |name: &str| disk.read(name).unwrap().unwrap_or_default();
    assert_eq!([read("node"), read("physical-device-path")], ["/dev/dm-3", "/dev/dm-3"]);
    assert_eq!([read("physical-device"), read("hotplug-status")], ["fe:3", "connected"]);
    assert_eq!(kernel.calls(), ["lock", "compose 3-51712 2 2", "hand over 3-51712"]);
    disk.add(|_| panic!("it is attached")).unwrap();
    disk.remove().unwrap();
    assert_eq!(kernel.composed(), [""; 0]);
    assert_eq!(kernel.calls(), ["take apart 3-51712"]);
}

#[test]
fn what_cannot_be_attached_is_told_to_libxl() {
    let place = Place::new();
    let cases: [(&[(&str, &str)], &str); 5] = [
        (&[("mode", "w"), ("state", "2"), ("dev", "xvda")], "xvda is to be writable"),
        (&[("state", "2")], "access=r"),
        (&[("mode", "r"), ("state", "6")], "its state is 6"),
        (&[("mode", "r")], "its state is none"),
        (&[("mode", "r"), ("state", "2"), ("params", "/x")], "cannot be a disk of block-nix"),
    ];
    for (records, reason) in cases {
        let (machine, kernel) = (Machine::new(), Kernel::default());
        let store = backend(&machine, records);
        let disk = ClosureDisk { store: &*store, plumbing: &kernel, path: PATH };
        let images = place.images();
        let error = disk.add(|target| images.make(&images.store_path(target)?)).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        disk.report(&error).unwrap();
        assert_eq!(disk.read("hotplug-status").unwrap().as_deref(), Some("error"));
        assert_eq!(disk.read("hotplug-error").unwrap(), Some(error.to_string()));
        assert_eq!(kernel.calls(), [""; 0]);
    }
}

#[test]
fn no_device_is_left_whatever_fails() {
    let place = Place::new();
    for nth in 1.. {
        let (machine, kernel) = (Machine::new(), Kernel::default());
        let store = backend(&machine, &[("mode", "r"), ("state", "2"), ("params", "/x")]);
        machine.fail(None, nth, xen::ErrorKind::Exhausted);
        let disk = ClosureDisk { store: &*store, plumbing: &kernel, path: PATH };
        let result = disk.add(|_| Ok(place.make(&place.target())));
        machine.clear_failures();
        if result.is_ok() {
            assert!(nth > 8, "{nth} calls");
            break;
        }
        // libxl runs `remove` after a failed `add`.
        disk.remove().unwrap();
        assert_eq!(kernel.composed(), [""; 0], "call {nth}");
    }
}

#[test]
fn it_is_told_how_far_an_image_has_come() {
    let place = Place::new();
    place.add("a-system", &[("large", &[7; 700_000]), ("twice", b"the same"), ("again", b"the same")]);
    let heard: Arc<std::sync::Mutex<Vec<Bytes>>> = Arc::default();
    let listening = {
        let heard = heard.clone();
        Progress::new(move |bytes| heard.lock().unwrap().push(bytes))
    };
    let images = place.images().with_progress(listening.clone());
    let image = images.make(&images.store_path(&place.target()).unwrap()).unwrap();
    let all = 10 + 700_000 + 2 * 8;
    let made = std::mem::take(&mut *heard.lock().unwrap());
    assert!(made.len() > 4 && made.is_sorted_by_key(|bytes| bytes.done), "{made:?}");
    assert_eq!(made.last(), Some(&Bytes { done: all, all }));
    assert!(made.iter().all(|bytes| bytes.all == all));
    // An image that is there takes no time.
    images.make(&images.store_path(&place.target()).unwrap()).unwrap();
    assert!(heard.lock().unwrap().is_empty());

    image.copy_to(&tempfile::tempfile().unwrap(), &listening).unwrap();
    let copied = std::mem::take(&mut *heard.lock().unwrap());
    assert_eq!(copied.last(), Some(&Bytes { done: image.size(), all: image.size() }));
}
