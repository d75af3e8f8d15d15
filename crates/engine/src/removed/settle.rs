//! What a daemon that was killed left of a removal or of its opposite, before anything else looks at records and files.

use std::path::Path;

use super::trim::remove_all;
use super::{BinRecord, Thing};
use crate::container::record::{Record, State, Status};
use crate::error::Context;
use crate::paths::Paths;
use crate::volumes::VolumeRecord;
use crate::{Result, Store};

/// Finishes or takes back what was under way.
pub(crate) fn settle(paths: &Paths, store: &Store) -> Result<()> {
    let bin = store.table::<BinRecord>("bin");
    let entries = bin.all()?;
    let containers = store.table::<Record>("containers");
    let states = store.table::<State>("states");
    let volumes = store.table::<VolumeRecord>("volumes");
    for (key, entry) in &entries {
        let here = paths.removed().join(key);
        let kept = match &entry.thing {
            Thing::Container { record, .. } => {
                let there = paths.container(&record.id);
                match (containers.get(&record.id)?, here.exists()) {
                    // Its files have gone: it goes, too.
                    (Some(_), true) => {
                        states.delete_now(&record.id)?;
                        containers.delete_now(&record.id)?;
                        true
                    }
                    // The removal is under way and goes on; or it had not begun, or it is back.
                    (Some(_), false) => states
                        .get(&record.id)?
                        .is_some_and(|state| state.status == Status::Removing),
                    (None, true) => true,
                    // Its files were back, and it was not.
                    (None, false) => back_again(&there, &here)?,
                }
            }
            Thing::Volume { name, record } => {
                let there = paths.volumes().join(name);
                let recorded = volumes.get(name)?;
                let same = recorded.as_ref().is_some_and(|now| now.created == record.created);
                match (same, here.exists()) {
                    (true, true) if !there.exists() => {
                        volumes.delete_now(name)?;
                        true
                    }
                    (_, true) => true,
                    (true, false) => false,
                    (false, false) => recorded.is_none() && back_again(&there, &here)?,
                }
            }
            // Nothing is moved: bringing it back twice is bringing it back once.
            Thing::Image { .. } | Thing::Network { .. } => true,
        };
        if !kept {
            bin.delete_now(key)?;
        }
    }
    sweep(
        paths,
        &bin.all()?.into_iter().map(|(key, _)| key).collect::<Vec<_>>(),
    );
    Ok(())
}

/// Moves files from where they were brought back to; false when there are none.
fn back_again(there: &Path, here: &Path) -> Result<bool> {
    if !there.exists() {
        return Ok(false);
    }
    std::fs::rename(there, here).context(|| format!("move {} to {}", there.display(), here.display()))?;
    Ok(true)
}

/// Removes files that no record is about: they were on their way out.
fn sweep(paths: &Paths, known: &[String]) {
    for name in crate::reconcile::entries(&paths.removed()) {
        if !known.contains(&name)
            && let Err(error) = remove_all(&paths.removed().join(&name))
        {
            tracing::warn!("{error}");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::removed::container_key;

    struct World {
        _directory: tempfile::TempDir,
        paths: Paths,
        store: Store,
    }

    fn world() -> World {
        let directory = tempfile::tempdir().unwrap();
        let paths = Paths {
            root: directory.path().to_owned(),
            run: directory.path().join("run"),
        };
        for directory in paths.directories() {
            std::fs::create_dir_all(directory).unwrap();
        }
        let (store, _) = Store::open(directory.path()).unwrap();
        World {
            _directory: directory,
            paths,
            store,
        }
    }

    fn made(created: i64) -> VolumeRecord {
        let mut record = VolumeRecord::default();
        record.created = created;
        record
    }

    fn entry(thing: Thing) -> BinRecord {
        BinRecord {
            operation: "one".into(),
            client: String::new(),
            time: 1,
            size: None,
            thing,
        }
    }

    /// Every moment at which a removal of a container and its opposite may be cut: which of the record, the state
    /// `removing`, the files in place and the files here there are, and what is left: the container, or its entry.
    #[test]
    fn a_container_is_there_or_in_the_bin_whenever_the_daemon_is_killed() {
        let moments = [
            // Removal: the entry is written; being removed; moved; the state is gone.
            (true, false, true, false, true),
            (true, true, true, false, false),
            (true, true, false, true, false),
            (true, false, false, true, false),
            // Done.
            (false, false, false, true, false),
            // Back: moved; recorded.
            (false, false, true, false, false),
            (true, false, true, false, true),
        ];
        for (recorded, removing, there, here, stays) in moments {
            let World { paths, store, .. } = &world();
            let record = Record {
                id: "ab".into(),
                ..Record::default()
            };
            let key = container_key("ab");
            let (containers, states) = (
                store.table::<Record>("containers"),
                store.table::<State>("states"),
            );
            if recorded {
                containers.put_now("ab", &record).unwrap();
            }
            if removing {
                let state = State {
                    status: Status::Removing,
                    ..State::default()
                };
                states.put_now("ab", &state).unwrap();
            }
            for (place, wanted) in [(paths.container("ab"), there), (paths.removed().join(&key), here)] {
                if wanted {
                    std::fs::create_dir_all(&place).unwrap();
                    std::fs::write(place.join("file"), "").unwrap();
                }
            }
            let thing = Thing::Container {
                record: Box::new(record),
                state: Box::default(),
                owned: Vec::new(),
            };
            let bin = store.table::<BinRecord>("bin");
            bin.put_now(&key, &entry(thing)).unwrap();
            settle(paths, store).unwrap();
            let what = format!("{recorded} {removing} {there} {here}");
            let in_bin = bin.get(&key).unwrap().is_some();
            assert_eq!(in_bin, !stays, "{what}");
            let going = recorded && removing && there;
            if stays || going {
                assert!(paths.container("ab").join("file").exists(), "{what}");
            } else {
                assert!(paths.removed().join(&key).join("file").exists(), "{what}");
                assert!(containers.get("ab").unwrap().is_none(), "{what}");
                assert!(!paths.container("ab").exists(), "{what}");
            }
        }
    }

    #[test]
    fn a_volume_is_there_or_in_the_bin_whenever_the_daemon_is_killed() {
        let moments = [
            // Removal: the entry is written; moved; done.
            (true, true, false, true),
            (true, false, true, false),
            (false, false, true, false),
            // Back: moved; recorded.
            (false, true, false, false),
            (true, true, false, true),
        ];
        for (recorded, there, here, stays) in moments {
            let World { paths, store, .. } = &world();
            let volumes = store.table::<VolumeRecord>("volumes");
            let record = made(7);
            if recorded {
                volumes.put_now("data", &record).unwrap();
            }
            for (place, wanted) in [
                (paths.volumes().join("data"), there),
                (paths.removed().join("x-1"), here),
            ] {
                if wanted {
                    std::fs::create_dir_all(&place).unwrap();
                    std::fs::write(place.join("file"), "").unwrap();
                }
            }
            let thing = Thing::Volume {
                name: "data".into(),
                record: Box::new(record),
            };
            let bin = store.table::<BinRecord>("bin");
            bin.put_now("x-1", &entry(thing)).unwrap();
            settle(paths, store).unwrap();
            let what = format!("{recorded} {there} {here}");
            assert_eq!(bin.get("x-1").unwrap().is_none(), stays, "{what}");
            assert_eq!(volumes.get("data").unwrap().is_some(), stays, "{what}");
            assert_eq!(paths.volumes().join("data/file").exists(), stays, "{what}");
            assert_eq!(paths.removed().join("x-1/file").exists(), !stays, "{what}");
        }
    }

    #[test]
    fn another_volume_of_the_name_is_left_alone_and_files_of_nobody_go() {
        let World { paths, store, .. } = &world();
        let volumes = store.table::<VolumeRecord>("volumes");
        volumes.put_now("data", &made(8)).unwrap();
        for place in [
            paths.volumes().join("data"),
            paths.removed().join("x-1"),
            paths.removed().join("x-2"),
        ] {
            std::fs::create_dir_all(place).unwrap();
        }
        let thing = Thing::Volume {
            name: "data".into(),
            record: Box::new(made(7)),
        };
        store
            .table::<BinRecord>("bin")
            .put_now("x-1", &entry(thing))
            .unwrap();
        settle(paths, store).unwrap();
        assert_eq!(volumes.get("data").unwrap().unwrap().created, 8);
        assert!(paths.volumes().join("data").exists() && paths.removed().join("x-1").exists());
        assert!(!paths.removed().join("x-2").exists());
    }
}
