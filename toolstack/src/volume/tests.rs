use super::*;
use crate::device::tests::Kernel;
use std::os::unix::fs::{FileExt, PermissionsExt, symlink};
use std::sync::Arc;
use std::thread;

fn name(text: &str) -> Name {
    text.parse().unwrap()
}

fn volumes() -> (tempfile::TempDir, Kernel, Volumes) {
    let (folder, kernel) = (tempfile::tempdir().unwrap(), Kernel::default());
    let volumes = Volumes::new(folder.path().join("volumes")).with_plumbing(kernel.clone());
    (folder, kernel, volumes)
}

fn files(volumes: &Volumes) -> Vec<String> {
    let entries = fs::read_dir(&volumes.folder).unwrap();
    let mut names: Vec<_> = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// A qube that has the volume.
fn attach(volumes: &Volumes, kernel: &Kernel, volume: &Name) {
    let path = volumes.path(volume);
    let hold = kernel.attach_loop(&File::open(&path).unwrap(), &path, false).unwrap();
    hold.keep().unwrap();
}

#[test]
fn a_name_leads_nowhere_else() {
    for right in ["work", "a", "0", "work.private", "A-b_c.9", &"n".repeat(100)] {
        assert_eq!(name(right).to_string(), right);
    }
    for wrong in ["", ".", "..", "../x", "a/b", "-a", "_", "a@b", "a b", "a\n", "ä", &"n".repeat(101)] {
        assert!(matches!(wrong.parse::<Name>(), Err(VolumeError::Name(_))), "{wrong}");
    }
}

#[test]
fn a_volume_is_made_once_and_takes_no_room() {
    let (_folder, _kernel, volumes) = volumes();
    assert_eq!(volumes.list().unwrap(), []);
    let made = volumes.create(&name("work"), (10 << 30) - 1, None).unwrap();
    assert_eq!((made.image.size, made.image.allocated), (10 << 30, 0));
    assert_eq!(fs::metadata(&volumes.folder).unwrap().permissions().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(&made.image.path).unwrap().permissions().mode() & 0o777, 0o600);
    assert!(matches!(volumes.create(&name("work"), 1 << 20, None), Err(VolumeError::Exists(_))));
    assert_eq!(volumes.ensure(&name("work"), 1 << 20, None).unwrap(), made);
    for size in [0, LEAST - 4096, u64::MAX, i64::MAX as u64] {
        assert!(matches!(volumes.create(&name("other"), size, None), Err(VolumeError::Size(_))), "{size}");
    }
    assert_eq!(files(&volumes), ["work.raw"]);
    assert_eq!(volumes.list().unwrap(), [made]);
    volumes.remove(&name("work"), false).unwrap();
    assert!(matches!(volumes.remove(&name("work"), false), Err(VolumeError::None(_))));
    assert_eq!(files(&volumes), [""; 0]);
}

#[test]
fn a_volume_is_formatted_before_it_has_its_name() {
    let (_folder, _kernel, volumes) = volumes();
    let made = volumes.create(&name("work"), 16 << 20, Some(Format::Ext4)).unwrap();
    let mut magic = [0; 2];
    // s_magic of the superblock (fs/ext4/ext4.h).
    File::open(&made.image.path).unwrap().read_exact_at(&mut magic, 1024 + 56).unwrap();
    assert_eq!(magic, [0x53, 0xef]);
    assert_eq!(made.image.size, 16 << 20);
    // Too small for the file system, or no program for it: nothing is left.
    let error = volumes.create(&name("small"), 1 << 20, Some(Format::Btrfs)).unwrap_err();
    assert!(matches!(error, VolumeError::Mkfs { .. }), "{error}");
    assert_eq!(files(&volumes), ["work.raw"]);
    assert!(matches!("ntfs".parse::<Format>(), Err(VolumeError::Format(_))));
}

#[test]
fn a_volume_grows_under_its_qube_and_never_shrinks() {
    let (_folder, kernel, volumes) = volumes();
    let work = name("work");
    volumes.create(&work, 1 << 20, None).unwrap();
    attach(&volumes, &kernel, &work);
    kernel.calls();
    assert_eq!(volumes.resize(&work, 4 << 20).unwrap().image.size, 4 << 20);
    assert_eq!(kernel.calls(), ["lock", "loops", "grow 0", "loops"]);
    let error = volumes.resize(&work, 2 << 20).unwrap_err().to_string();
    assert_eq!(error, "volume work has 4194304 bytes, and does not get smaller");
    // As after a crash between the file and the device.
    volumes.resize(&work, 4 << 20).unwrap();
    assert!(kernel.calls().contains(&"grow 0".to_owned()));
    assert!(matches!(volumes.resize(&name("none"), 4 << 20), Err(VolumeError::None(_))));
    assert!(matches!(volumes.resize(&work, u64::MAX), Err(VolumeError::Size(_))));
}

#[test]
fn a_snapshot_brings_back_what_was() {
    let (_folder, kernel, volumes) = volumes();
    let (work, before) = (name("work"), name("before"));
    volumes.create(&work, 64 << 20, None).unwrap();
    let write = |text: &[u8], at| {
        let file = File::options().write(true).open(volumes.path(&work)).unwrap();
        file.write_all_at(text, at).unwrap();
    };
    let read = |path: &Path| {
        let mut bytes = [0; 4];
        File::open(path).unwrap().read_exact_at(&mut bytes, 40 << 20).unwrap();
        bytes
    };
    write(b"then", 40 << 20);
    let shares = {
        let (a, b) = (volumes.folder.join("probe-a"), volumes.folder.join("probe-b"));
        fs::write(&a, "x").unwrap();
        let shares = copy::share(&File::open(&a).unwrap(), &File::create(&b).unwrap()).unwrap();
        fs::remove_file(a).unwrap();
        fs::remove_file(b).unwrap();
        shares
    };
    // It says which: no more than the piece that was written.
    let copied = |copied: Copied| match copied {
        Copied::Shared => assert!(shares),
        Copied::Written(bytes) => assert!(!shares && (1..=1 << 20).contains(&bytes), "{bytes}"),
    };
    copied(volumes.snapshot(&work, &before).unwrap());
    assert!(matches!(volumes.snapshot(&work, &before), Err(VolumeError::Exists(_))));
    assert!(matches!(volumes.snapshot(&name("none"), &before), Err(VolumeError::None(_))));
    write(b"now!", 40 << 20);
    write(b"more", 10 << 20);
    let volume = volumes.get(&work).unwrap();
    let [(snapshot, image)] = &volume.snapshots[..] else { panic!("{volume:?}") };
    assert_eq!((snapshot, image.size, &read(&image.path)), (&before, 64 << 20, b"then"));
    assert!(image.allocated < 2 << 20);

    attach(&volumes, &kernel, &work);
    let in_use = |result: Result<(), VolumeError>| {
        let error = result.unwrap_err();
        assert!(matches!(&error, VolumeError::InUse { node, .. } if node == "/dev/loop0"), "{error}");
    };
    in_use(volumes.restore(&work, &before).map(drop));
    in_use(volumes.remove(&work, true));
    if !shares {
        in_use(volumes.snapshot(&work, &name("second")).map(drop));
    }
    kernel.detach_loop(0).unwrap();
    assert_eq!(&read(&volumes.path(&work)), b"now!");
    copied(volumes.restore(&work, &before).unwrap());
    assert_eq!(&read(&volumes.path(&work)), b"then");
    assert!(matches!(volumes.restore(&work, &name("none")), Err(VolumeError::None(_))));
    assert!(matches!(volumes.remove(&work, false), Err(VolumeError::Snapshots { count: 1, .. })));
    volumes.snapshot(&work, &name("third")).unwrap();
    volumes.remove_snapshot(&work, &name("third")).unwrap();
    volumes.remove(&work, true).unwrap();
    assert_eq!(files(&volumes), [""; 0]);
}

#[test]
fn of_a_crash_nothing_is_left_and_another_volumes_work_goes_on() {
    let (_folder, _kernel, volumes) = volumes();
    volumes.create(&name("work"), 1 << 20, None).unwrap();
    for left in ["work.new", "work@before.new", "work.lock", "workshop.new"] {
        fs::write(volumes.folder.join(left), "left").unwrap();
    }
    assert_eq!(volumes.list().unwrap().len(), 1);
    volumes.snapshot(&name("work"), &name("before")).unwrap();
    assert_eq!(files(&volumes), ["work.raw", "work@before.raw", "workshop.new"]);
    volumes.create(&name("workshop"), 1 << 20, None).unwrap();
    assert_eq!(files(&volumes), ["work.raw", "work@before.raw", "workshop.raw"]);
}

#[test]
fn of_twenty_at_once_one_makes_it() {
    let (_folder, _kernel, volumes) = volumes();
    let volumes = Arc::new(volumes);
    let makers: Vec<_> = (0..20)
        .map(|_| {
            let volumes = Arc::clone(&volumes);
            thread::spawn(move || volumes.create(&name("work"), 1 << 20, None).is_ok())
        })
        .collect();
    assert_eq!(makers.into_iter().map(|maker| maker.join().unwrap()).filter(|made| *made).count(), 1);
    assert_eq!(files(&volumes), ["work.raw"]);
}

#[test]
fn what_others_could_have_put_there_is_not_taken() {
    let (folder, _kernel, volumes) = volumes();
    volumes.create(&name("work"), 1 << 20, None).unwrap();
    symlink(folder.path(), volumes.path(&name("link"))).unwrap();
    assert!(matches!(volumes.resize(&name("link"), 2 << 20), Err(VolumeError::File { .. })));
    assert!(matches!(volumes.create(&name("link"), 1 << 20, None), Err(VolumeError::Exists(_))));
    fs::set_permissions(&volumes.folder, fs::Permissions::from_mode(0o755)).unwrap();
    assert!(matches!(volumes.resize(&name("work"), 2 << 20), Err(VolumeError::NotPrivate { .. })));
}
