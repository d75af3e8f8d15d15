//! Images and volumes of a worker.

use std::path::PathBuf;

use crate::arena::Arena;
use crate::random::Random;
use crate::worker::Worker;

/// A small image in an archive.
pub struct Image {
    reference: String,
    archive: PathBuf,
    /// Whether it is loaded; none: not known.
    loaded: Option<bool>,
}

impl Image {
    /// Makes the archive.
    pub fn new(arena: &Arena, worker: &str) -> Self {
        let reference = format!("torture/{worker}:small");
        let archive = arena.dir.join(format!("{worker}.tar"));
        if !archive.exists() {
            let mut random = Random::new(worker.bytes().map(u64::from).sum());
            let content: Vec<u8> = (0..40_000).map(|_| random.next() as u8).collect();
            let mut root = tar::Builder::new(Vec::new());
            for number in 0..20 {
                let mut header = tar::Header::new_gnu();
                header.set_size(content.len() as u64);
                header.set_mode(0o644);
                let name = format!("etc/{worker}-{number}");
                root.append_data(&mut header, name, &content[..])
                    .expect("an archive in memory");
            }
            let source = archive.with_extension("root.tar");
            std::fs::write(&source, root.into_inner().expect("an archive in memory")).expect("a file");
            let path = |path: &PathBuf| path.to_string_lossy().into_owned();
            for args in [
                &["import", &path(&source), &reference][..],
                &["save", "-o", &path(&archive), &reference],
                &["rmi", &reference],
            ] {
                let said = arena.ask(args);
                assert_eq!(said.code, 0, "{args:?}: {said:?}");
            }
            std::fs::remove_file(source).expect("it was written");
        }
        Self {
            reference,
            archive,
            loaded: Some(false),
        }
    }
}

/// A volume with one file that only grows.
pub struct Volume {
    pub name: String,
    /// Whether it was made; none: maybe.
    pub there: Option<bool>,
    /// How many lines the file has, at least and at most.
    lines: (u64, u64),
}

impl Volume {
    pub fn new(worker: &str) -> Self {
        Self {
            name: format!("{worker}-volume"),
            there: Some(false),
            lines: (0, 0),
        }
    }
}

impl Worker<'_> {
    /// Loads, looks, removes.
    pub fn use_image(&mut self) {
        let archive = self.image.archive.to_string_lossy().into_owned();
        let reference = self.image.reference.clone();
        match self.image.loaded {
            Some(true) if self.random.chance(30) => {
                let outcome = self.try_run(&["image", "inspect", &reference], None, None);
                if outcome.said.code != 0 && !outcome.disturbed {
                    self.fail("a loaded image is lost", &outcome);
                }
            }
            Some(true) => {
                let outcome = self.try_run(&["rmi", &reference], None, None);
                self.image.loaded = match outcome.said.code {
                    0 => Some(false),
                    _ => None,
                };
                if outcome.said.code != 0 && !outcome.disturbed {
                    self.fail("a loaded image cannot be removed", &outcome);
                }
            }
            _ => {
                let outcome = self.try_run(&["load", "-q", "-i", &archive], None, None);
                self.image.loaded = match outcome.said.code {
                    0 => Some(true),
                    _ => None,
                };
                if outcome.said.code != 0 && !outcome.disturbed {
                    self.fail("an image cannot be loaded", &outcome);
                }
            }
        }
    }

    /// Writes a line into the file of the volume, which `-v` makes the first time.
    pub fn use_volume(&mut self) {
        let mount = format!("{}:/data", self.volume.name);
        let script = "echo line >> /data/file; wc -l < /data/file";
        let name = format!("{}-writer-{}", self.name, self.random.next());
        let args = [
            "run",
            "--rm",
            "--name",
            &name,
            "-v",
            &mount,
            "--network",
            "none",
            "busybox",
            "sh",
            "-c",
            script,
        ];
        let outcome = self.try_run(&args, None, None);
        let excused = outcome.disturbed || self.arena.anybody_wounded(outcome.began);
        let (least, most) = self.volume.lines;
        match outcome.said.out.trim_end().parse::<u64>() {
            Ok(lines) if outcome.said.code == 0 => {
                if lines <= least || lines > most + 1 {
                    self.fail(
                        &format!("must have {} to {} lines", least + 1, most + 1),
                        &outcome,
                    );
                }
                self.volume.there = Some(true);
                // What was cut short earlier may still be about to write.
                self.volume.lines = (lines, lines.max(most + 1));
            }
            _ => {
                self.volume.lines = (least, most + 1);
                if self.volume.there != Some(true) {
                    self.volume.there = None;
                }
                if !excused {
                    self.fail("a volume cannot be written", &outcome);
                }
            }
        }
        if excused {
            self.fleeting.push(name);
        }
    }

    /// Removes image and volume, when nothing happens any more and no container is left.
    pub fn clear_things(&mut self) {
        let reference = self.image.reference.clone();
        let present = self.arena.ask(&["image", "inspect", "-f", "{{.Id}}", &reference]);
        if self.image.loaded == Some((present.code == 0) ^ true) {
            self.arena.fail(format!(
                "{reference} must be loaded: {:?}: {present:?}",
                self.image.loaded
            ));
        }
        if present.code == 0 {
            let said = self.arena.ask(&["rmi", &reference]);
            if said.code != 0 {
                self.arena
                    .fail(format!("{reference} cannot be removed: {said:?}"));
            }
        }
        let volume = self.volume.name.clone();
        let present = self.arena.ask(&["volume", "inspect", &volume]);
        if self.volume.there == Some(true) && present.code != 0 {
            self.arena
                .fail(format!("the volume {volume} is lost: {present:?}"));
        }
        if present.code == 0 {
            let said = self.arena.ask(&["volume", "rm", &volume]);
            if said.code != 0 {
                self.arena.fail(format!("{volume} cannot be removed: {said:?}"));
            }
        }
        self.image.loaded = Some(false);
        self.volume = Volume::new(&self.name);
    }
}
