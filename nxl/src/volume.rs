//! `nxl volume`: what qubes keep.

use crate::bar;
use crate::error::Error;
use clap::{Args, Subcommand};
use serde_json::{Value, json};
use std::io::{self, Write};
use std::path::PathBuf;
use toolstack::events::{Event, EventLog, Step};
use toolstack::volume::{Copied, Format, Name, VOLUMES, Volume, VolumeError, Volumes};

#[derive(Debug, Args)]
pub(crate) struct VolumeOptions {
    /// Where the volumes are.
    #[arg(long, value_name = "FOLDER", default_value = VOLUMES, global = true)]
    folder: PathBuf,
    /// Say what there is, or what became of it, as JSON: sizes in bytes, times in seconds since 1970.
    #[arg(long, global = true)]
    json: bool,
    #[command(subcommand)]
    command: VolumeCommand,
}

#[derive(Debug, Subcommand)]
pub(crate) enum VolumeCommand {
    /// List volumes and their snapshots. `Disk' is what they have of it: blocks that two share are counted in each.
    #[command(visible_alias = "ls")]
    #[command(after_help = "Examples:\n  nxl volume list\n  nxl volume list --json work")]
    List {
        /// Only these.
        #[arg(value_name = "VOLUME")]
        names: Vec<String>,
    },
    /// Make a volume: an empty disk, which takes room as it is written.
    #[command(after_help = "Example:
  nxl volume create work 20g
  disk = [ '/var/lib/nxl/volumes/work.raw,raw,xvdb,w' ]     # in the qube's configuration")]
    Create {
        /// Its name.
        volume: String,
        /// MiB, or a number with its unit: b, k, m, g or t.
        size: String,
        /// Give it a file system: ext4, xfs or btrfs. Without, the qube does at its first start (docs/storage.md).
        #[arg(long, value_name = "TYPE")]
        format: Option<String>,
        /// That there is one of that name is well, and it stays as it is.
        #[arg(long)]
        if_missing: bool,
    },
    /// Let a volume grow; a qube that has it sees that at once, and lets its file system grow.
    #[command(after_help = "Example:\n  nxl volume resize work 40g")]
    Resize {
        /// Which.
        volume: String,
        /// What it is to have: MiB, or a number with its unit: b, k, m, g or t.
        size: String,
    },
    /// Keep what a volume has now. Where the file system shares blocks between files (XFS, btrfs), also of a qube that
    /// runs, as after a power failure; elsewhere the volume is copied, and may not be in use.
    #[command(after_help = "Example:\n  nxl volume snapshot work before-upgrade")]
    Snapshot {
        /// Which.
        volume: String,
        /// What the snapshot is called.
        snapshot: String,
    },
    /// Give a volume back what a snapshot has. The qube must be down; the snapshot stays.
    #[command(after_help = "Example:\n  nxl volume restore work before-upgrade")]
    Restore {
        /// Which.
        volume: String,
        /// From which snapshot.
        snapshot: String,
    },
    /// Remove a volume, or a snapshot.
    #[command(visible_alias = "rm")]
    #[command(after_help = "Example:\n  nxl volume remove work@before-upgrade")]
    Remove {
        /// Which: VOLUME, or VOLUME@SNAPSHOT.
        volume: String,
        /// The volume's snapshots, too.
        #[arg(long)]
        snapshots: bool,
    },
}

pub(crate) fn volume(options: &VolumeOptions) -> Result<(), Error> {
    let volumes = Volumes::new(&options.folder).with_progress(bar::of_bytes("copy"));
    let text = run(&volumes, &options.command, options.json, &EventLog::default())?;
    io::stdout().write_all(text.as_bytes()).map_err(Error::Output)
}

fn run(
    volumes: &Volumes,
    command: &VolumeCommand,
    as_json: bool,
    events: &EventLog,
) -> Result<String, Error> {
    let name = |text: &String| text.parse::<Name>();
    let tell = |volume: &str, work: &str| {
        let step = Step::Volume { volume: volume.to_owned(), work: work.to_owned() };
        events.tell(&[Event::now(step)]);
    };
    Ok(match command {
        VolumeCommand::List { names } => {
            let list = match &names[..] {
                [] => volumes.list()?,
                names => names
                    .iter()
                    .map(|text| volumes.get(&name(text)?))
                    .collect::<Result<Vec<_>, VolumeError>>()?,
            };
            if as_json { text(&list.iter().map(described).collect()) } else { table(&list) }
        }
        VolumeCommand::Create { volume, size, format, if_missing } => {
            let format = format.as_deref().map(str::parse::<Format>).transpose()?;
            let (volume, size) = (name(volume)?, bytes(size)?);
            let there = *if_missing && volumes.size(&volume)?.is_some();
            let made = if *if_missing {
                volumes.ensure(&volume, size, format)?
            } else {
                volumes.create(&volume, size, format)?
            };
            if !there {
                tell(&made.name.to_string(), "create");
            }
            one(&made, as_json)
        }
        VolumeCommand::Resize { volume, size } => {
            let resized = volumes.resize(&name(volume)?, bytes(size)?)?;
            tell(volume, "resize");
            one(&resized, as_json)
        }
        VolumeCommand::Snapshot { volume, snapshot } => {
            let made = volumes.snapshot(&name(volume)?, &name(snapshot)?)?;
            tell(&format!("{volume}@{snapshot}"), "snapshot");
            copied(made, as_json)
        }
        VolumeCommand::Restore { volume, snapshot } => {
            let given_back = volumes.restore(&name(volume)?, &name(snapshot)?)?;
            tell(&format!("{volume}@{snapshot}"), "restore");
            copied(given_back, as_json)
        }
        VolumeCommand::Remove { volume, snapshots } => {
            match volume.split_once('@') {
                Some((volume, snapshot)) => {
                    volumes.remove_snapshot(&volume.parse()?, &snapshot.parse()?)?;
                }
                None => volumes.remove(&name(volume)?, *snapshots)?,
            }
            tell(volume, "remove");
            if as_json { text(&json!({ "removed": volume })) } else { String::new() }
        }
    })
}

/// A size with its unit; without one it is MiB, as elsewhere in nxl.
fn bytes(size: &str) -> Result<u64, Error> {
    let wrong = || Error::Size(size.to_owned());
    let split = size.find(|c: char| !c.is_ascii_digit()).unwrap_or(size.len());
    let (number, unit) = size.split_at(split);
    let shift = match unit.to_ascii_lowercase().as_str() {
        "b" => 0,
        "k" => 10,
        "" | "m" => 20,
        "g" => 30,
        "t" => 40,
        _ => return Err(wrong()),
    };
    number.parse::<u64>().ok().and_then(|number| number.checked_mul(1 << shift)).ok_or_else(wrong)
}

fn text(value: &Value) -> String {
    format!("{value:#}\n")
}

fn described(volume: &Volume) -> Value {
    let snapshots = volume.snapshots.iter().map(|(name, image)| {
        json!({
            "name": name.to_string(),
            "path": image.path,
            "size": image.size,
            "allocated": image.allocated,
            "modified": image.modified,
        })
    });
    json!({
        "name": volume.name.to_string(),
        "path": volume.image.path,
        "size": volume.image.size,
        "allocated": volume.image.allocated,
        "modified": volume.image.modified,
        "loop_devices": volume.loops.iter().map(|number| format!("/dev/loop{number}")).collect::<Vec<_>>(),
        "snapshots": snapshots.collect::<Vec<_>>(),
    })
}

fn one(volume: &Volume, as_json: bool) -> String {
    if as_json { text(&described(volume)) } else { table(std::slice::from_ref(volume)) }
}

fn copied(copied: Copied, as_json: bool) -> String {
    match copied {
        Copied::Shared if as_json => text(&json!({ "blocks_shared": true, "bytes_written": 0 })),
        Copied::Written(bytes) if as_json => text(&json!({ "blocks_shared": false, "bytes_written": bytes })),
        Copied::Shared => "Blocks are shared; nothing was copied.\n".to_owned(),
        Copied::Written(bytes) => {
            format!("Copied, {} MiB: this file system shares no blocks between files.\n", mib(bytes))
        }
    }
}

fn mib(bytes: u64) -> String {
    format!("{:.1}", bytes as f64 / f64::from(1 << 20))
}

fn table(volumes: &[Volume]) -> String {
    let row = |name: &str, size: &str, disk: &str, rest: &str| {
        format!("{name:<32} {size:>10} {disk:>10}  {rest}").trim_end().to_owned() + "\n"
    };
    let mut table = row("Volume", "MiB", "Disk", "In use by");
    for volume in volumes {
        let loops: Vec<_> = volume.loops.iter().map(|number| format!("/dev/loop{number}")).collect();
        let image = &volume.image;
        table += &row(&volume.name.to_string(), &mib(image.size), &mib(image.allocated), &loops.join(" "));
        for (name, image) in &volume.snapshots {
            table += &row(&format!("{}@{name}", volume.name), &mib(image.size), &mib(image.allocated), "");
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(text: &str) -> String {
        text.to_owned()
    }

    #[test]
    fn sizes_have_units() {
        for (size, expected) in [
            ("1", 1 << 20),
            ("4096b", 4096),
            ("3k", 3 << 10),
            ("2M", 2 << 20),
            ("1g", 1 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(bytes(size).unwrap(), expected, "{size}");
        }
        for size in ["", "g", "-1", "1 g", "1gb", "1.5g", "99999999999999999999", "99999999t"] {
            bytes(size).unwrap_err();
        }
    }

    #[test]
    fn what_becomes_of_a_volume_is_said() {
        let folder = tempfile::tempdir().unwrap();
        let volumes = Volumes::new(folder.path().join("volumes"));
        let run = |command: VolumeCommand, json| run(&volumes, &command, json, &EventLog::nowhere());
        let list = || VolumeCommand::List { names: Vec::new() };
        assert_eq!(run(list(), true).unwrap(), "[]\n");
        let create = |if_missing| VolumeCommand::Create {
            volume: name("work"),
            size: name("3g"),
            format: None,
            if_missing,
        };
        let expected = "Volume                                  MiB       Disk  In use by\n\
                        work                                 3072.0        0.0\n";
        assert_eq!(run(create(false), false).unwrap(), expected);
        assert_eq!(run(create(true), false).unwrap(), expected);
        assert_eq!(run(create(false), false).unwrap_err().to_string(), "there is a volume work already");
        let resize = VolumeCommand::Resize { volume: name("work"), size: name("4g") };
        assert!(run(resize, true).unwrap().contains("\"size\": 4294967296"));
        let snapshot = VolumeCommand::Snapshot { volume: name("work"), snapshot: name("one") };
        let said = run(snapshot, true).unwrap();
        assert!(said.contains("\"bytes_written\": 0"), "{said}");
        let listed: Value = serde_json::from_str(&run(list(), true).unwrap()).unwrap();
        assert_eq!((&listed[0]["name"], &listed[0]["snapshots"][0]["name"]), (&"work".into(), &"one".into()));
        assert!(
            run(list(), false).unwrap().ends_with("work@one                             4096.0        0.0\n")
        );
        let restore = VolumeCommand::Restore { volume: name("work"), snapshot: name("one") };
        let said = run(restore, false).unwrap();
        assert!(said.starts_with("Blocks are shared") || said.starts_with("Copied, 0.0 MiB"), "{said}");
        let remove = |volume: &str, snapshots| VolumeCommand::Remove { volume: name(volume), snapshots };
        assert!(run(remove("work", false), false).unwrap_err().to_string().contains("--snapshots"));
        assert_eq!(run(remove("work@one", false), false).unwrap(), "");
        assert!(run(remove("work", false), true).unwrap().contains("\"removed\": \"work\""));
        assert!(run(remove("../x", false), false).unwrap_err().to_string().contains("no name of a volume"));
    }
}
