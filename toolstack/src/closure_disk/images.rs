//! Images of closures, kept: an erofs file system for each, with the store paths of the closure at its root.
//!
//! An image is known by its store path, which never changes. It is made once, under a lock: a [layer](super::layer) with
//! what no layer has yet, the metadata, and last the record that says which parts make the image, each written as
//! `NAME.new`, put on the disk, and renamed. So what has its name is whole, whatever crashes. The time of a record is that
//! of the image's last use; the least recently used go when all have more than their share, and what no record names goes
//! with them. Whoever has an image has its files open, so that no qube minds.

use super::erofs::{self, BLOCK, Root};
use super::layer::{LayerWriter, Segment, hex};
use super::requisites::{hash, requisites};
use super::tree::Tree;
use super::{ClosureDiskError, Extent};
use crate::progress::Progress;
use crate::{cache_folder, lock};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::ffi::OsStr;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::SystemTime;

/// Where the images of this host are.
pub const CLOSURE_IMAGES: &str = "/var/cache/nxl/images";
/// What the folder may hold, in bytes, where the file system has twice that to give.
pub const CLOSURE_IMAGES_LIMIT: u64 = 64 << 30;
const STORE: &str = "/nix/store";

/// What records an image: JSON, named after its store path.
const IMAGE: &str = "image";
/// An image's metadata, named after their hash.
const METADATA: &str = "metadata";
/// A layer's data, named after their hash, and where which store path's are in it: JSON.
const LAYER: &str = "layer";
const SEGMENTS: &str = "segments";
const NEW: &str = "new";
const LOCK: &str = "lock";
/// Version of the records.
const VERSION: u32 = 1;
/// The most layers of an image, the one that is made for it among them: each is a loop device of its qubes.
const LAYERS: usize = 16;

/// A store path of this host.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StorePath {
    path: PathBuf,
    name: String,
}

/// The folder of images, and what they are made with.
#[derive(Debug, Clone)]
pub struct ClosureImages {
    folder: PathBuf,
    limit: u64,
    store: PathBuf,
    nix_store: PathBuf,
    progress: Progress,
}

/// Of what an image consists.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Record {
    version: u32,
    digest: String,
    metadata: String,
    metadata_blocks: u64,
    segments: Vec<Part>,
}

/// A segment in an image: where its bytes are on this host.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Part {
    name: String,
    layer: String,
    at: u64,
    blocks: u64,
}

/// What a layer has.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Contents {
    version: u32,
    blocks: u64,
    segments: Vec<Segment>,
}

/// What it took to make an image.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Made {
    /// Bytes that were written to the disk.
    pub written: u64,
    /// Bytes of layers that were there.
    pub reused: u64,
}

/// An image, with its files open.
#[derive(Debug)]
pub struct ClosureImage {
    path: PathBuf,
    record: Record,
    /// The metadata, and the layers.
    files: Vec<(PathBuf, File)>,
    extents: Vec<Extent>,
    made: Option<Made>,
}

impl ClosureImage {
    /// Its record.
    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// What identifies its bytes, the same on every host: SHA-256 of its metadata's hash and those of its segments.
    #[must_use]
    pub fn digest(&self) -> &str {
        &self.record.digest
    }

    /// In bytes.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.extents.iter().map(|extent| extent.len).sum()
    }

    /// How many store paths it has.
    #[must_use]
    pub fn store_paths(&self) -> usize {
        self.record.segments.len()
    }

    /// What it took; `None` if it was there.
    #[must_use]
    pub fn made(&self) -> Option<Made> {
        self.made
    }

    /// The files that it consists of.
    #[must_use]
    pub fn files(&self) -> &[(PathBuf, File)] {
        &self.files
    }

    /// Which parts of them, in the order of the image.
    #[must_use]
    pub fn extents(&self) -> &[Extent] {
        &self.extents
    }

    /// Writes the image in one piece, and tells of it.
    ///
    /// # Errors
    /// What the file systems say.
    pub fn copy_to(&self, target: &File, progress: &Progress) -> io::Result<()> {
        let mut at = 0;
        let mut buffer = vec![0; 1 << 20];
        for extent in &self.extents {
            let mut done = 0;
            while done < extent.len {
                let len = (extent.len - done).min(buffer.len() as u64);
                let bytes = &mut buffer[..len as usize];
                self.files[extent.file].1.read_exact_at(bytes, extent.offset + done)?;
                if bytes.iter().any(|byte| *byte != 0) {
                    target.write_all_at(bytes, at)?;
                }
                (at, done) = (at + len, done + len);
                progress.tell(at, self.size());
            }
        }
        target.set_len(at)
    }
}

impl Default for ClosureImages {
    fn default() -> Self {
        Self::new(CLOSURE_IMAGES, STORE)
    }
}

impl ClosureImages {
    /// Images in `folder` of what is in `store`.
    #[must_use]
    pub fn new(folder: impl Into<PathBuf>, store: impl Into<PathBuf>) -> Self {
        Self {
            folder: folder.into(),
            limit: CLOSURE_IMAGES_LIMIT,
            store: store.into(),
            nix_store: "nix-store".into(),
            progress: Progress::default(),
        }
    }

    /// Who is told of the bytes as an image is made.
    #[must_use]
    pub fn with_progress(self, progress: Progress) -> Self {
        Self { progress, ..self }
    }

    /// The store path that a disk's target means: one, something in it, or a link to it, such as a profile.
    ///
    /// # Errors
    /// [`ClosureDiskError::Target`]
    pub fn store_path(&self, target: &Path) -> Result<StorePath, ClosureDiskError> {
        let refuse = |reason: String| ClosureDiskError::Target { target: target.to_owned(), reason };
        let real = target.canonicalize().map_err(|error| refuse(error.to_string()))?;
        let first = real.strip_prefix(&self.store).ok().and_then(|inside| inside.iter().next());
        let name = first.filter(|name| hash(name).is_some()).and_then(|name| name.to_str());
        let name = name.ok_or_else(|| refuse(format!("it is no path of {}", self.store.display())))?;
        Ok(StorePath { path: self.store.join(name), name: name.to_owned() })
    }

    fn path(&self, name: &str, extension: &str) -> PathBuf {
        self.folder.join(format!("{name}.{extension}"))
    }

    /// The image of a store path, if there is one; it is used now.
    #[must_use]
    pub fn find(&self, store_path: &StorePath) -> Option<ClosureImage> {
        let path = self.path(&store_path.name, IMAGE);
        let file = File::options().read(true).write(true).open(&path).ok()?;
        // What is not whole is made anew.
        let record: Record = serde_json::from_reader(io::BufReader::new(&file)).ok()?;
        let image = self.open(path, record)?;
        // An image that is removed too early is made anew.
        let _ = file.set_modified(SystemTime::now());
        Some(image)
    }

    /// Opens what a record names; `None` if a file lacks what the record says is in it.
    fn open(&self, path: PathBuf, record: Record) -> Option<ClosureImage> {
        if record.version != VERSION {
            return None;
        }
        let mut files = Vec::new();
        let mut numbers: HashMap<&str, usize> = HashMap::new();
        let mut extents: Vec<Extent> = Vec::new();
        let mut add = |name, extension, offset: u64, len: u64| {
            let number = match numbers.get(name) {
                Some(number) => *number,
                None => {
                    let path = self.path(name, extension);
                    files.push((path.clone(), File::open(path).ok()?));
                    numbers.insert(name, files.len() - 1);
                    files.len() - 1
                }
            };
            let end = offset.checked_add(len)?;
            if files[number].1.metadata().ok()?.len() < end {
                return None;
            }
            match extents.last_mut() {
                Some(last) if last.file == number && last.offset + last.len == offset => last.len += len,
                _ if len == 0 => {}
                _ => extents.push(Extent { file: number, offset, len }),
            }
            Some(())
        };
        add(&record.metadata, METADATA, 0, record.metadata_blocks.checked_mul(BLOCK)?)?;
        for part in &record.segments {
            add(&part.layer, LAYER, part.at.checked_mul(BLOCK)?, part.blocks.checked_mul(BLOCK)?)?;
        }
        Some(ClosureImage { path, record, files, extents, made: None })
    }

    /// The image of a store path, made when there is none. Whoever comes while one is being made waits.
    ///
    /// # Errors
    /// See [`ClosureDiskError`]; nothing is left then.
    pub fn make(&self, store_path: &StorePath) -> Result<ClosureImage, ClosureDiskError> {
        if let Some(image) = self.find(store_path) {
            return Ok(image);
        }
        self.make_folder()?;
        // One for all: what one writes, the next finds.
        let lock_path = self.folder.join(LOCK);
        let lock =
            lock::wait(&lock_path).map_err(|source| ClosureDiskError::File { path: lock_path, source })?;
        if let Some(image) = self.find(store_path) {
            return Ok(image);
        }
        self.remove_unfinished()?;
        let made = self.compose(store_path);
        if made.is_err() {
            // What went wrong is the thing to say.
            let _ = self.remove_unfinished();
        }
        let image = made?;
        // The image is here: that others cannot be removed is no reason to fail.
        let _ = self.prune(&image.path);
        drop(lock);
        Ok(image)
    }

    fn make_folder(&self) -> Result<(), ClosureDiskError> {
        let error = |source| ClosureDiskError::File { path: self.folder.clone(), source };
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder).map_err(error)?;
        let metadata = fs::symlink_metadata(&self.folder).map_err(error)?;
        let user = rustix::process::geteuid().as_raw();
        if cache_folder::openness(&metadata, user).is_some() {
            return Err(ClosureDiskError::NotPrivate { path: self.folder.clone(), user });
        }
        Ok(())
    }

    fn compose(&self, store_path: &StorePath) -> Result<ClosureImage, ClosureDiskError> {
        let error = |path: &Path| {
            let path = path.to_owned();
            move |source| ClosureDiskError::File { path, source }
        };
        let paths =
            requisites(&self.store, &store_path.path, &self.nix_store).map_err(error(&store_path.path))?;
        let mut trees: BTreeMap<String, Tree> = BTreeMap::new();
        for path in paths {
            let name = path.file_name().and_then(OsStr::to_str).map(str::to_owned);
            let name = name.ok_or_else(|| ClosureDiskError::Target {
                target: path.clone(),
                reason: "its name is no text".to_owned(),
            })?;
            trees.insert(name, Tree::of(&path)?);
        }

        let sizes = trees.values().flat_map(|tree| &tree.files).map(|(_, size)| size.div_ceil(BLOCK));
        let blocks = sizes.fold(0_u64, u64::saturating_add);
        let too_large = |blocks| ClosureDiskError::TooLarge { target: store_path.path.clone(), blocks };
        // Before they are read.
        if blocks > u64::from(u32::MAX) {
            return Err(too_large(blocks));
        }

        let (mut found, mut written) = (self.reusable(&trees)?, 0);
        let reused: u64 = found.values().map(|(_, segment)| segment.blocks * BLOCK).sum();
        if found.len() < trees.len() {
            let new = self.folder.join(format!("{LAYER}.{NEW}"));
            let file = create(&new)?;
            let new_trees = || trees.iter().filter(|(name, _)| !found.contains_key(*name));
            let mut layer = LayerWriter {
                file: &file,
                path: &new,
                blocks: 0,
                segments: Vec::new(),
                progress: &self.progress,
                bytes: 0,
                of_bytes: new_trees().flat_map(|(_, tree)| &tree.files).map(|(_, size)| size).sum(),
            };
            for (name, tree) in new_trees() {
                layer.add(name, tree)?;
            }
            file.set_len(layer.blocks * BLOCK).map_err(error(&new))?;
            let id = layer.id();
            found.extend(
                layer.segments.iter().map(|segment| (segment.name.clone(), (id.clone(), segment.clone()))),
            );
            let contents = Contents {
                version: VERSION,
                blocks: layer.blocks,
                segments: std::mem::take(&mut layer.segments),
            };
            written += self.put(&file, &new, &self.path(&id, LAYER))?;
            written += self.put_json(&contents, &self.path(&id, SEGMENTS))?;
        }

        let (mut roots, mut base) = (Vec::new(), 0);
        let mut parts = Vec::new();
        let mut sums = Vec::new();
        for (name, tree) in &trees {
            let Some((layer, segment)) = found.get(name) else { continue };
            roots.push(Root { name: OsStr::new(name), node: &tree.node, base, blocks: &segment.files });
            base += segment.blocks;
            sums.extend_from_slice(segment.sha256.as_bytes());
            parts.push(Part {
                name: name.clone(),
                layer: layer.clone(),
                at: segment.at,
                blocks: segment.blocks,
            });
        }
        let metadata =
            erofs::metadata(&roots, base, |metadata| uuid(metadata, &sums)).map_err(|_| too_large(base))?;
        let metadata_sum = hex(&Sha256::digest(&metadata).into());
        let digest = Sha256::new().chain_update(&metadata_sum).chain_update(&sums).finalize();
        let new = self.folder.join(format!("{METADATA}.{NEW}"));
        let file = create(&new)?;
        file.write_all_at(&metadata, 0).map_err(error(&new))?;
        written += self.put(&file, &new, &self.path(&metadata_sum, METADATA))?;

        let record = Record {
            version: VERSION,
            digest: hex(&digest.into()),
            metadata: metadata_sum,
            metadata_blocks: metadata.len() as u64 / BLOCK,
            segments: parts,
        };
        let path = self.path(&store_path.name, IMAGE);
        written += self.put_json(&record, &path)?;
        let image = self.open(path.clone(), record);
        let mut image = image.ok_or_else(|| error(&path)(io::ErrorKind::NotFound.into()))?;
        image.made = Some(Made { written, reused });
        Ok(image)
    }

    /// The segments of store paths that layers have, by name, with their layers.
    ///
    /// Of the layers those are taken that have the most; and none of which most is nobody's any more, so that it goes with
    /// the last image that has a part of it.
    fn reusable(
        &self,
        trees: &BTreeMap<String, Tree>,
    ) -> Result<HashMap<String, (String, Segment)>, ClosureDiskError> {
        let mut used: HashMap<String, HashSet<String>> = HashMap::new();
        for (_, record) in self.records()? {
            for part in record.segments {
                used.entry(part.layer).or_default().insert(part.name);
            }
        }
        let mut layers = Vec::new();
        for path in self.files(SEGMENTS)? {
            let (Some(contents), Some(id)) = (read_json::<Contents>(&path), path.file_stem()) else {
                continue;
            };
            let id = id.to_string_lossy().into_owned();
            let whole =
                fs::metadata(self.path(&id, LAYER)).is_ok_and(|file| file.len() >= contents.blocks * BLOCK);
            if contents.version != VERSION || !whole {
                continue;
            }
            let is_used = |segment: &&Segment| {
                trees.contains_key(&segment.name)
                    || used.get(&id).is_some_and(|names| names.contains(&segment.name))
            };
            let live: u64 = contents.segments.iter().filter(is_used).map(|segment| segment.blocks).sum();
            if live * 2 < contents.blocks {
                continue;
            }
            let has = |segment: &Segment| {
                trees.get(&segment.name).is_some_and(|tree| tree.files.len() == segment.files.len())
            };
            let wanted: Vec<Segment> = contents.segments.into_iter().filter(has).collect();
            let blocks: u64 = wanted.iter().map(|segment| segment.blocks).sum();
            layers.push((blocks, id, wanted));
        }
        // What decides between two that have as much is nothing that could change.
        layers.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        let mut found = HashMap::new();
        for (_, id, segments) in layers.into_iter().take(LAYERS - 1) {
            for segment in segments {
                found.entry(segment.name.clone()).or_insert_with(|| (id.clone(), segment));
            }
        }
        Ok(found)
    }

    /// Gives what was written its name: what has it is whole, even if the host crashes now. The answer is how many bytes
    /// of the disk it has.
    fn put(&self, file: &File, new: &Path, path: &Path) -> Result<u64, ClosureDiskError> {
        let put = || {
            file.sync_all()?;
            fs::rename(new, path)?;
            File::open(&self.folder)?.sync_all()?;
            // In units of 512 bytes, whatever the file system has (stat(2)).
            Ok(file.metadata()?.blocks() * 512)
        };
        put().map_err(|source| ClosureDiskError::File { path: path.to_owned(), source })
    }

    fn put_json(&self, value: &impl Serialize, path: &Path) -> Result<u64, ClosureDiskError> {
        let new = path.with_extension(NEW);
        let file = create(&new)?;
        let error = |source| ClosureDiskError::File { path: new.clone(), source };
        let bytes = serde_json::to_vec(value).map_err(|source| error(source.into()))?;
        (&file).write_all(&bytes).map_err(error)?;
        self.put(&file, &new, path)
    }

    /// The files with that extension.
    fn files(&self, extension: &str) -> Result<Vec<PathBuf>, ClosureDiskError> {
        let error = |source| ClosureDiskError::File { path: self.folder.clone(), source };
        let mut paths = Vec::new();
        for entry in fs::read_dir(&self.folder).map_err(error)? {
            let path = entry.map_err(error)?.path();
            if path.extension() == Some(OsStr::new(extension)) {
                paths.push(path);
            }
        }
        Ok(paths)
    }

    /// The records of images that can be read.
    fn records(&self) -> Result<Vec<(PathBuf, Record)>, ClosureDiskError> {
        let paths = self.files(IMAGE)?.into_iter();
        Ok(paths.filter_map(|path| Some((path.clone(), read_json(&path)?))).collect())
    }

    /// Removes what a crash has left. Whoever has the lock knows that nobody is writing it.
    fn remove_unfinished(&self) -> Result<(), ClosureDiskError> {
        self.files(NEW)?.into_iter().try_for_each(|path| remove(&path))
    }

    /// Removes the least recently used images but `keep` until the others have their share of the disk: at most half of
    /// what it could give; and all that belongs to no image.
    fn prune(&self, keep: &Path) -> Result<(), ClosureDiskError> {
        let mut images = Vec::new();
        for path in self.files(IMAGE)? {
            let error = |source| ClosureDiskError::File { path: path.clone(), source };
            match read_json::<Record>(&path) {
                Some(record) => {
                    let used = fs::metadata(&path).and_then(|metadata| metadata.modified()).map_err(error)?;
                    images.push((used, path, record));
                }
                None => remove(&path)?,
            }
        }
        images.sort_by(|a, b| b.0.cmp(&a.0).then_with(|| a.1.cmp(&b.1)));
        loop {
            let named: BTreeSet<PathBuf> = images
                .iter()
                .flat_map(|(_, _, record)| {
                    let layers = record.segments.iter().map(|part| part.layer.as_str());
                    let layers = layers.collect::<HashSet<_>>().into_iter();
                    let of_layer = |id| [self.path(id, LAYER), self.path(id, SEGMENTS)];
                    layers.flat_map(of_layer).chain([self.path(&record.metadata, METADATA)])
                })
                .collect();
            let mut held = 0;
            for extension in [LAYER, SEGMENTS, METADATA] {
                for path in self.files(extension)? {
                    if named.contains(&path) {
                        held += fs::metadata(&path).map_or(0, |metadata| metadata.blocks() * 512);
                    } else {
                        remove(&path)?;
                    }
                }
            }
            let error = |source| ClosureDiskError::File { path: self.folder.clone(), source };
            let allowed = cache_folder::allowed(&self.folder, self.limit, held).map_err(error)?;
            let oldest = images.iter().rposition(|(_, path, _)| path != keep);
            match oldest {
                Some(oldest) if held > allowed => remove(&images.remove(oldest).1)?,
                _ => return Ok(()),
            }
        }
    }

    #[cfg(test)]
    pub(super) fn with_limit(self, limit: u64) -> Self {
        Self { limit, nix_store: "/nonexistent/nix-store".into(), ..self }
    }
}

fn create(path: &Path) -> Result<File, ClosureDiskError> {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(path);
    file.map_err(|source| ClosureDiskError::File { path: path.to_owned(), source })
}

fn remove(path: &Path) -> Result<(), ClosureDiskError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => {
            Err(ClosureDiskError::File { path: path.to_owned(), source })
        }
        _ => Ok(()),
    }
}

fn read_json<T: DeserializeOwned>(path: &Path) -> Option<T> {
    serde_json::from_slice(&fs::read(path).ok()?).ok()
}

/// A UUID that says which image it is: version 8 of RFC 9562, by what is in it.
fn uuid(metadata: &[u8], sums: &[u8]) -> [u8; 16] {
    let sum: [u8; 32] = Sha256::new().chain_update(metadata).chain_update(sums).finalize().into();
    let mut uuid = [0; 16];
    uuid.copy_from_slice(&sum[..16]);
    uuid[6] = uuid[6] & 0x0f | 0x80;
    uuid[8] = uuid[8] & 0x3f | 0x80;
    uuid
}
