use super::*;
use crate::device::tests::Kernel;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::sync::Arc;
use std::thread;
use xen::mock::Machine;
use xen::{DomId, Platform};

const PATH: &str = "backend/vbd/3/51712";

fn name(name: &str) -> String {
    format!("{}-{name}", "0".repeat(32))
}

/// A store with one path, and a packer that notes that it ran, and writes its arguments as the image.
struct Place {
    folder: tempfile::TempDir,
}

impl Place {
    fn new(packer: &str) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let place = Self { folder };
        fs::create_dir_all(place.at("store").join(name("nixos-system-work-25.05"))).unwrap();
        fs::write(place.at("store").join(name("nixos-system-work-25.05")).join("init"), "").unwrap();
        // The image stands behind the last store path.
        let script = format!(
            "#!/bin/sh\necho run >> {}/runs\nfor new; do case $new in *.new) break; esac; done\n{packer}\n",
            place.folder.path().display()
        );
        fs::write(place.at("packer"), script).unwrap();
        fs::set_permissions(place.at("packer"), fs::Permissions::from_mode(0o755)).unwrap();
        place
    }

    fn at(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn images(&self) -> ClosureImages {
        ClosureImages::new(self.at("images"), self.at("store")).with_packer(self.at("packer"), 1 << 40)
    }

    fn target(&self) -> PathBuf {
        self.at("store").join(name("nixos-system-work-25.05"))
    }

    fn runs(&self) -> usize {
        fs::read_to_string(self.at("runs")).unwrap_or_default().lines().count()
    }

    fn files(&self) -> Vec<String> {
        let Ok(entries) = fs::read_dir(self.at("images")) else { return Vec::new() };
        let mut names: Vec<String> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }
}

#[test]
fn a_target_is_a_store_path_or_leads_to_one() {
    let place = Place::new("");
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
        (place.at("packer"), "no path of"),
        (place.at("none"), "No such file"),
    ] {
        let error = images.store_path(&target).unwrap_err().to_string();
        assert!(error.contains(reason), "{error}");
    }
}

#[test]
fn twenty_at_once_make_one_image() {
    let place = Arc::new(Place::new("sleep 0.3; echo \"$@\" > $new"));
    let makers: Vec<_> = (0..20)
        .map(|_| {
            let place = Arc::clone(&place);
            thread::spawn(move || {
                let images = place.images();
                images.make(&images.store_path(&place.target()).unwrap()).unwrap()
            })
        })
        .collect();
    let paths: Vec<_> = makers.into_iter().map(|maker| maker.join().unwrap()).collect();
    let expected = place.at("images").join(format!("{}.squashfs", name("nixos-system-work-25.05")));
    assert!(paths.iter().all(|path| *path == expected));
    assert_eq!(place.runs(), 1);
    assert_eq!(place.files(), [expected.file_name().unwrap().to_str().unwrap()]);
    let arguments = fs::read_to_string(&expected).unwrap();
    let first = format!("{} ", place.target().display());
    assert!(arguments.starts_with(&first) && arguments.contains("-keep-as-directory"), "{arguments}");
    let mode = fs::metadata(place.at("images")).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o700);
}

#[test]
fn what_a_crash_leaves_is_made_anew_and_no_failure_leaves_anything() {
    let place = Place::new("[ ! -e $new ] || exit 9; echo image > $new");
    let images = place.images();
    let path = images.store_path(&place.target()).unwrap();
    fs::create_dir(place.at("images")).unwrap();
    fs::set_permissions(place.at("images"), fs::Permissions::from_mode(0o700)).unwrap();
    let left = |name: &str| fs::write(place.at("images").join(name), "left").unwrap();
    for file in ["lock", "new"] {
        left(&format!("{}.{file}", name("nixos-system-work-25.05")));
        left(&format!("{}.{file}", name("other")));
    }
    assert_eq!(images.find(&path), None);
    assert_eq!(fs::read_to_string(images.make(&path).unwrap()).unwrap(), "image\n");
    assert_eq!(place.files().len(), 1, "{:?}", place.files());

    for (packer, reason) in [
        ("echo half > $new; echo no room >&2; exit 1", "exit status: 1: no room"),
        ("kill -9 $$", "signal: 9 (SIGKILL): it said nothing"),
    ] {
        let place = Place::new(packer);
        let images = place.images();
        let error = images.make(&images.store_path(&place.target()).unwrap()).unwrap_err().to_string();
        assert!(error.ends_with(reason), "{error}");
        assert_eq!(place.files(), [""; 0]);
    }
    let none = images.clone().with_packer("/nonexistent/mksquashfs", 1);
    fs::remove_dir_all(place.at("images")).unwrap();
    let error = none.make(&path).unwrap_err().to_string();
    assert!(error.ends_with("the Debian package squashfs-tools has it"), "{error}");
    fs::set_permissions(place.at("images"), fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(images.make(&path), Err(ClosureDiskError::NotPrivate { .. })));
}

#[test]
fn the_least_recently_used_images_go() {
    let place = Place::new("head -c 1000 /dev/zero > $new");
    let images = place.images().with_packer(place.at("packer"), 2500);
    let make = |text: &str| {
        let target = place.at("store").join(name(text));
        fs::create_dir(&target).unwrap();
        let path = images.store_path(&target).unwrap();
        images.make(&path).unwrap();
        // Times of files are no finer than a tick.
        thread::sleep(std::time::Duration::from_millis(20));
        path
    };
    let (first, second) = (make("first"), make("second"));
    assert!(images.find(&first).is_some());
    make("third");
    assert!(images.find(&first).is_some() && images.find(&second).is_none());
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
    let place = Place::new("");
    fs::write(place.at("image"), "image").unwrap();
    let (machine, kernel) = (Machine::new(), Kernel::default());
    let store =
        backend(&machine, &[("params", "/nix/store/x"), ("mode", "r"), ("state", "2"), ("dev", "xvda")]);
    let disk = ClosureDisk { store: &*store, plumbing: &kernel, path: PATH };
    let image_of = |target: &Path| {
        assert_eq!(target, Path::new("/nix/store/x"));
        Ok(place.at("image"))
    };
    disk.add(image_of).unwrap();
    let read = |name: &str| disk.read(name).unwrap().unwrap_or_default();
    assert_eq!([read("node"), read("physical-device-path")], ["/dev/loop0", "/dev/loop0"]);
    assert_eq!([read("physical-device"), read("hotplug-status")], ["7:0", "connected"]);
    assert_eq!(kernel.calls(), ["lock", "attach r", "keep 0"]);
    disk.add(|_| panic!("it is attached")).unwrap();
    disk.remove().unwrap();
    assert_eq!(kernel.loop_count(), 0);
    assert_eq!(kernel.calls(), ["detach 0"]);
}

#[test]
fn what_cannot_be_attached_is_told_to_libxl() {
    let place = Place::new("");
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
        let error = disk.add(|target| images.store_path(target).map(|_| place.at("image"))).unwrap_err();
        assert!(error.to_string().contains(reason), "{error}");
        disk.report(&error).unwrap();
        assert_eq!(disk.read("hotplug-status").unwrap().as_deref(), Some("error"));
        assert_eq!(disk.read("hotplug-error").unwrap(), Some(error.to_string()));
        disk.remove().unwrap();
        assert_eq!(kernel.calls(), [""; 0]);
    }
}

#[test]
fn no_loop_device_is_left_whatever_fails() {
    let place = Place::new("");
    fs::write(place.at("image"), "image").unwrap();
    for nth in 1.. {
        let (machine, kernel) = (Machine::new(), Kernel::default());
        let store = backend(&machine, &[("mode", "r"), ("state", "2"), ("params", "/x")]);
        machine.fail(None, nth, xen::ErrorKind::Exhausted);
        let disk = ClosureDisk { store: &*store, plumbing: &kernel, path: PATH };
        let result = disk.add(|_| Ok(place.at("image")));
        machine.clear_failures();
        if result.is_ok() {
            assert!(nth > 8, "{nth} calls");
            break;
        }
        // libxl runs `remove` after a failed `add`.
        disk.remove().unwrap();
        assert_eq!(kernel.loop_count(), 0, "call {nth}");
    }
}
