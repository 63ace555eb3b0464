use super::*;
use crate::image::Codec;
use crate::image::synthetic::{SyntheticElf, bzimage, packed_bzimage};
use std::os::unix::fs::PermissionsExt;
use std::sync::{Arc, Barrier, Mutex};
use std::time::Duration;

struct Host {
    folder: tempfile::TempDir,
    problems: Arc<Mutex<Vec<String>>>,
}

impl Host {
    fn new() -> Self {
        Self { folder: tempfile::tempdir().unwrap(), problems: Arc::default() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.folder.path().canonicalize().unwrap().join(name)
    }

    fn cache(&self) -> KernelCache {
        self.cache_of(1 << 20)
    }

    fn cache_of(&self, limit: u64) -> KernelCache {
        let problems = Arc::clone(&self.problems);
        let cache = KernelCache::new(self.path("cache"), limit)
            .on_problem(move |error| problems.lock().unwrap().push(error.to_string()));
        KernelCache { store: self.path("store"), ..cache }
    }

    fn problems(&self) -> Vec<String> {
        self.problems.lock().unwrap().clone()
    }

    /// The names in the cache's folder.
    fn names(&self) -> Vec<String> {
        let names = fs::read_dir(self.path("cache")).unwrap();
        let mut names: Vec<String> =
            names.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    fn only(&self, extension: &str) -> PathBuf {
        let names = self.names();
        let mut found = names.iter().filter(|name| name.ends_with(extension));
        let path = self.path("cache").join(found.next().unwrap());
        assert!(found.next().is_none(), "{names:?}");
        path
    }
}

impl KernelCache {
    /// As for a PV guest: what is not there is unpacked into the cache.
    fn kernel(&self, path: &Path, packed: &Bytes) -> Result<Option<CachedKernel<'_>>, ImageError> {
        match self.look(path, packed)? {
            Some(Lookup::Found(kernel)) => Ok(Some(kernel)),
            Some(Lookup::Missing(entry)) => entry.unpack(packed),
            None => Ok(None),
        }
    }
}

impl CachedKernel<'_> {
    fn made(&self) -> bool {
        self._new.is_some()
    }
}

/// A kernel that differs from those of other seeds.
fn elf(seed: u8) -> SyntheticElf {
    let mut elf = SyntheticElf::pvh();
    elf.loads[1].data[0] = seed;
    elf
}

fn packed(seed: u8) -> Bytes {
    bytes(packed_bzimage(Codec::Zstd, &elf(seed).build()))
}

fn bytes(packed: Vec<u8>) -> Bytes {
    let sha256 = Sha256::digest(&packed).into();
    Bytes::Read(packed, sha256)
}

fn mapped(path: &Path) -> Bytes {
    let file = MappedFile::open(path).unwrap();
    let whole = 0..file.len();
    Bytes::Mapped(Arc::new(file), whole)
}

/// Asks the cache, and makes sure that it has that kernel. Returns whether it was unpacked.
fn get(cache: &KernelCache, seed: u8) -> bool {
    let cached = cache.kernel(Path::new("/boot/vmlinuz"), &packed(seed)).unwrap().unwrap();
    assert!(*cached.file == elf(seed).build());
    let kernel = cached.open().unwrap();
    assert_eq!(kernel.format().to_string(), "bzImage, zstd");
    assert_eq!(kernel.footprint(), Kernel::open(&packed(seed)).unwrap().footprint());
    let mut memory = vec![1; kernel.footprint().size() as usize];
    kernel.load_into(&mut memory).unwrap();
    assert_eq!(memory[0x4000], seed);
    cached.made()
}

/// So that a file's time differs from what was before.
fn later() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn the_second_time_nothing_is_unpacked() {
    let host = Host::new();
    assert!(get(&host.cache(), 1));
    assert!(!get(&host.cache(), 1));
    assert!(get(&host.cache(), 2));
    assert!(!get(&host.cache(), 1));
    assert_eq!(host.names().len(), 4, "two files each: {:?}", host.names());
    assert_eq!(fs::metadata(host.path("cache")).unwrap().mode() & 0o7777, 0o700);
    assert_eq!(host.problems(), [""; 0]);
}

#[test]
fn what_was_unpacked_elsewhere_is_kept_when_it_is_dropped() {
    let host = Host::new();
    let cache = host.cache();
    let keep = |seed: u8, file: &[u8]| {
        let Some(Lookup::Missing(entry)) = cache.look(Path::new("/boot/vmlinuz"), &packed(seed)).unwrap()
        else {
            panic!("it is there")
        };
        let packed = packed(seed);
        let kernel = Kernel::open(&packed).unwrap();
        entry.keep(kernel.format(), kernel.footprint().cmdline_limit, file);
        assert!(host.only(".new").exists());
    };
    // What could not be unpacked, or booted, leaves nothing.
    drop(cache.look(Path::new("/boot/vmlinuz"), &packed(1)).unwrap());
    keep(1, &elf(1).build()[..0x1000]);
    assert_eq!((host.names(), host.problems()), (vec![], vec![]));
    keep(1, &elf(1).build());
    assert!(!get(&cache, 1));
    assert_eq!(host.names().len(), 2, "{:?}", host.names());
    let small = host.cache_of(1 << 10);
    if let Some(Lookup::Missing(entry)) = small.look(Path::new("/boot/vmlinuz"), &packed(2)).unwrap() {
        entry.keep(Format { bzimage: true, codec: Some(Codec::Zstd) }, None, &elf(2).build());
    }
    assert_eq!(host.problems(), ["the kernel unpacks to more than the 1024 bytes that the cache may hold"]);
}

#[test]
fn what_is_not_packed_is_not_kept() {
    let host = Host::new();
    assert!(host.cache().kernel(Path::new("vmlinux"), &bytes(elf(1).build())).unwrap().is_none());
    assert!(!host.path("cache").exists());
    // A bzImage may have an ELF file as it is.
    let image = bytes(bzimage(&elf(1).build()));
    assert!(host.cache().kernel(Path::new("bzImage"), &image).unwrap().unwrap().made());
}

#[test]
fn a_store_path_is_known_by_its_name_alone() {
    let host = Host::new();
    let folder = host.path("store").join(format!("{}-linux-6.12", "0".repeat(32)));
    fs::create_dir_all(&folder).unwrap();
    let kernel = folder.join("bzImage");
    fs::write(&kernel, &*packed(1)).unwrap();
    fs::set_permissions(&kernel, PermissionsExt::from_mode(0o444)).unwrap();
    let link = host.path("profile");
    std::os::unix::fs::symlink(&kernel, &link).unwrap();
    let get = |path: &Path| host.cache().kernel(path, &mapped(path)).unwrap().unwrap().made();
    assert!(get(&kernel));
    assert!(!get(&link));
    assert_eq!(host.cache().list().unwrap()[0].source, kernel);
    assert!(host.only(KERNEL).file_name().unwrap().to_str().unwrap().starts_with("store-"));
    // Another part of the same file is another kernel.
    let file = Arc::new(MappedFile::open(&kernel).unwrap());
    let part = Bytes::Mapped(Arc::clone(&file), 0..file.len() - 1);
    assert_ne!(host.cache().key(&kernel, &part).name, host.cache().key(&kernel, &mapped(&kernel)).name);
    // What could be written to, or is not in the store, is known by its contents.
    let copy = host.path("copy");
    fs::copy(&kernel, &copy).unwrap();
    assert!(get(&copy) && !get(&copy));
    fs::set_permissions(&kernel, PermissionsExt::from_mode(0o644)).unwrap();
    assert!(!get(&kernel), "the copy's");
    assert_eq!(host.cache().list().unwrap().len(), 2);
}

#[test]
fn twenty_at_once_unpack_a_kernel_once() {
    let host = Host::new();
    let start = Barrier::new(20);
    let mut plain = elf(1).build();
    // Some work to do, so that the others come while it is done.
    plain.extend((0..500_000_u32).flat_map(|i| (i.wrapping_mul(2_654_435_761) >> 20).to_le_bytes()));
    let packed = bytes(packed_bzimage(Codec::Xz, &plain));
    let cache = host.cache_of(1 << 30);
    let made = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..20)
            .map(|_| {
                scope.spawn(|| {
                    start.wait();
                    let cached = cache.kernel(Path::new("k"), &packed).unwrap().unwrap();
                    assert!(*cached.file == plain);
                    cached.made()
                })
            })
            .collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).filter(|made| *made).count()
    });
    assert_eq!(made, 1);
    assert_eq!(host.names().len(), 2, "{:?}", host.names());
    assert_eq!(host.problems(), [""; 0]);
}

#[test]
fn a_damaged_entry_is_made_anew() {
    type Damage = fn(&Path);
    let damages: [(&str, Damage); 6] = [
        (KERNEL, |path| {
            let mut bytes = fs::read(path).unwrap();
            bytes[0x300] ^= 1;
            fs::write(path, bytes).unwrap();
        }),
        (KERNEL, |path| File::options().write(true).open(path).unwrap().set_len(100).unwrap()),
        (KERNEL, |path| fs::remove_file(path).unwrap()),
        (RECORD, |path| fs::write(path, "{}").unwrap()),
        (RECORD, |path| fs::remove_file(path).unwrap()),
        (RECORD, |path| {
            let record = fs::read_to_string(path).unwrap().replace("\"size\": ", "\"size\": 1");
            fs::write(path, record).unwrap();
        }),
    ];
    for (i, (extension, damage)) in damages.into_iter().enumerate() {
        let host = Host::new();
        get(&host.cache(), 1);
        later();
        damage(&host.only(extension));
        assert!(get(&host.cache(), 1), "damage {i}");
        assert!(!get(&host.cache(), 1), "damage {i}");
        assert_eq!(host.names().len(), 2, "damage {i}: {:?}", host.names());
        assert_eq!(host.problems(), [""; 0]);
    }
}

#[test]
fn an_entry_of_another_boot_is_compared_and_kept() {
    let host = Host::new();
    get(&host.cache(), 1);
    let record = host.only(RECORD);
    let text = fs::read_to_string(&record).unwrap();
    let boot = host.cache().record(record.file_stem().unwrap().to_str().unwrap()).unwrap().right.boot;
    fs::write(&record, text.replace(&boot, "another")).unwrap();
    assert!(!get(&host.cache(), 1));
    assert_eq!(fs::read_to_string(&record).unwrap(), text, "right for this boot, too");
    // Lost in a crash of the host: zeros of the right length, and the time of before.
    let kernel = host.only(KERNEL);
    let metadata = fs::metadata(&kernel).unwrap();
    fs::write(&kernel, vec![0; metadata.len() as usize]).unwrap();
    File::options().write(true).open(&kernel).unwrap().set_modified(metadata.modified().unwrap()).unwrap();
    fs::write(&record, text.replace(&boot, "another")).unwrap();
    assert!(get(&host.cache(), 1));
}

#[test]
fn what_a_crash_leaves_is_begun_anew_or_pruned() {
    let host = Host::new();
    get(&host.cache(), 1);
    let name = host.only(KERNEL);
    let cache = host.path("cache");
    fs::rename(&name, name.with_extension(NEW)).unwrap();
    assert!(get(&host.cache(), 1), "a crash before the end");
    for leftover in ["a.new", "a.json", "b.kernel", "c.12-3.tmp", "d.json"] {
        fs::write(cache.join(leftover), "half").unwrap();
    }
    fs::write(cache.join("README"), "not ours").unwrap();
    // Somebody is at work on this one.
    let at_work = File::create(cache.join("d.new")).unwrap();
    rustix::fs::flock(&at_work, FlockOperation::LockExclusive).unwrap();
    let pruned = host.cache().prune(None).unwrap();
    assert!(pruned.entries.is_empty());
    let mut leftovers: Vec<_> = pruned.leftovers.iter().map(|path| path.file_name().unwrap()).collect();
    leftovers.sort();
    assert_eq!(leftovers, ["a.json", "a.new", "b.kernel", "c.12-3.tmp"]);
    assert_eq!(host.names().len(), 5, "{:?}", host.names());
    assert!(!get(&host.cache(), 1));
}

#[test]
fn who_waits_for_one_that_dies_goes_on_in_its_place() {
    let host = Host::new();
    let cache = host.cache();
    cache.make_folder().unwrap();
    let key = cache.key(Path::new("/boot/vmlinuz"), &packed(1));
    let mut dying = cache.begin(&key).unwrap().unwrap();
    dying.write_all(b"half of it").unwrap();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&cache, 1));
        std::thread::sleep(Duration::from_millis(200));
        assert!(!waiting.is_finished());
        // As its end ends the lock.
        drop(dying);
        assert!(waiting.join().unwrap(), "unpacked anew");
    });
    assert_eq!(host.names().len(), 2, "{:?}", host.names());
}

#[test]
fn the_least_recently_used_go_first() {
    let host = Host::new();
    let size = elf(0).build().len() as u64;
    for seed in 1..=3 {
        assert!(get(&host.cache_of(3 * size), seed));
        later();
    }
    assert!(!get(&host.cache_of(3 * size), 1), "all three fit");
    later();
    assert!(get(&host.cache_of(3 * size), 4));
    assert!(!get(&host.cache_of(3 * size), 1));
    later();
    assert!(get(&host.cache_of(3 * size), 2), "had to go for the fourth");
    let used: Vec<SystemTime> = host.cache().list().unwrap().iter().map(|entry| entry.used).collect();
    assert!(used.is_sorted_by(|a, b| a >= b) && used.len() == 3);
    let pruned = host.cache().prune(Some(size)).unwrap();
    assert_eq!((pruned.entries.len(), pruned.leftovers.len()), (2, 0));
    assert!(!get(&host.cache(), 2));
    assert_eq!(host.cache().prune(Some(0)).unwrap().entries.len(), 1);
    assert_eq!(host.names(), [""; 0]);
}

#[test]
fn a_kernel_becomes_an_entry_when_its_first_qube_lets_it_go() {
    let host = Host::new();
    let cache = host.cache();
    let kernel = cache.kernel(Path::new("k"), &packed(1)).unwrap().unwrap();
    assert!(*kernel.file == elf(1).build());
    assert!(matches!(&host.names()[..], [name] if name.ends_with(NEW)), "{:?}", host.names());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| get(&cache, 1));
        std::thread::sleep(Duration::from_millis(50));
        assert!(!waiting.is_finished(), "who wants the same waits");
        drop(kernel);
        assert!(!waiting.join().unwrap(), "and unpacks nothing");
    });
    assert_eq!(cache.list().unwrap().len(), 1);
}

#[test]
fn a_kernel_in_use_survives_its_removal() {
    let host = Host::new();
    let cache = host.cache();
    drop(cache.kernel(Path::new("k"), &packed(1)).unwrap());
    let cached = cache.kernel(Path::new("k"), &packed(1)).unwrap().unwrap();
    host.cache().prune(Some(0)).unwrap();
    assert!(*cached.file == elf(1).build());
}

#[test]
fn without_a_folder_of_its_own_it_is_not_used_and_says_so_once() {
    let user = rustix::process::geteuid().as_raw();
    let refused = |host: &Host, message: &str| {
        let cache = host.cache();
        for _ in 0..3 {
            assert!(cache.kernel(Path::new("k"), &packed(1)).unwrap().is_none());
        }
        let problems = host.problems();
        assert!(problems.len() == 1 && problems[0].contains(message), "{problems:?}");
        assert!(host.cache().list().unwrap_err().to_string().contains(message));
    };
    let host = Host::new();
    fs::create_dir(host.path("cache")).unwrap();
    fs::set_permissions(host.path("cache"), PermissionsExt::from_mode(0o755)).unwrap();
    refused(
        &host,
        &format!("is open to others (mode 0755); it must be a folder of user {user} with mode 0700"),
    );

    let host = Host::new();
    fs::create_dir(host.path("elsewhere")).unwrap();
    std::os::unix::fs::symlink(host.path("elsewhere"), host.path("cache")).unwrap();
    refused(&host, "is no folder");

    let host = Host::new();
    fs::write(host.path("file"), "").unwrap();
    let cache = KernelCache::new(host.path("file/cache"), 1 << 20);
    assert!(cache.kernel(Path::new("k"), &packed(1)).unwrap().is_none());
    assert!(host.cache().list().unwrap().is_empty(), "not made yet");
}

#[test]
fn a_kernel_that_does_not_fit_is_not_kept() {
    let host = Host::new();
    let cache = host.cache_of(1_000);
    assert!(cache.kernel(Path::new("k"), &packed(1)).unwrap().is_none());
    assert_eq!(host.problems(), ["the kernel unpacks to more than the 1000 bytes that the cache may hold"]);
    assert_eq!(host.names(), [""; 0]);
}

#[test]
fn what_cannot_be_booted_is_not_kept() {
    let host = Host::new();
    let no_pvh = SyntheticElf { notes: Vec::new(), ..elf(1) };
    let mut cut = packed(1).to_vec();
    cut.truncate(cut.len() / 2);
    for (image, message) in [(packed_bzimage(Codec::Xz, &no_pvh.build()), "no PVH entry"), (cut, "cut off")] {
        let error = host.cache().kernel(Path::new("k"), &bytes(image)).unwrap_err();
        assert!(error.to_string().contains(message), "{error}");
        assert_eq!(host.names(), [""; 0]);
    }
    assert_eq!(host.problems(), [""; 0]);
}
