//! What is in the bin, by command.

use std::sync::Arc;

use vessel_api::{BinItem, BinList};

use super::{BinRecord, Thing};
use crate::{Engine, Result, blocking, time};

/// Commands that one client gives in so short a time are one: `docker rm a b` is two requests.
const PAUSE: i64 = 1_000_000_000;

/// What one command removed, the newest first.
#[derive(Debug, Clone, Default)]
pub(super) struct Command {
    /// The operation it began with.
    pub id: String,
    /// Keys and entries.
    pub entries: Vec<(String, Arc<BinRecord>)>,
}

impl Command {
    /// Whether some words mean it, or something it removed.
    pub fn is(&self, words: &str) -> bool {
        let begins =
            |id: &str| words.len() >= 4 && id.strip_prefix("sha256:").unwrap_or(id).starts_with(words);
        self.entries.iter().any(|(_, entry)| {
            begins(&entry.operation) || begins(entry.thing.id()) || entry.thing.name() == words
        })
    }
}

/// Entries by the command that removed them, the newest command first.
pub(super) fn commands(entries: impl IntoIterator<Item = (String, Arc<BinRecord>)>) -> Vec<Command> {
    let mut entries: Vec<_> = entries.into_iter().collect();
    entries.sort_by_key(|(_, entry)| std::cmp::Reverse(entry.time));
    let mut commands: Vec<Command> = Vec::new();
    for (key, entry) in entries {
        let same = commands.last().is_some_and(|command| {
            command
                .entries
                .iter()
                .any(|(_, there)| there.operation == entry.operation)
                || command.entries.last().is_some_and(|(_, last)| {
                    !entry.client.is_empty() && last.client == entry.client && last.time - entry.time <= PAUSE
                })
        });
        if !same {
            commands.push(Command::default());
        }
        if let Some(command) = commands.last_mut() {
            command.id.clone_from(&entry.operation);
            command.entries.push((key, entry));
        }
    }
    commands
}

impl Engine {
    /// What is in the bin, the newest first.
    ///
    /// # Errors
    /// When the file system or the content store cannot be read.
    pub async fn bin_list(self: &Arc<Self>) -> Result<BinList> {
        let engine = Arc::clone(self);
        blocking(move || {
            let age = engine.bin.age();
            let mut items = Vec::new();
            // The same for all images: the store is not read for it again.
            let already = engine.unused_already()?;
            for command in commands(engine.bin.arrived()) {
                for (key, entry) in &command.entries {
                    items.push(BinItem {
                        command: command.id.clone(),
                        kind: entry.thing.kind().to_owned(),
                        name: entry.thing.name(),
                        id: entry.thing.id().to_owned(),
                        removed: time::rfc3339(entry.time),
                        expires: time::rfc3339(entry.time.saturating_add(age)),
                        size: match &entry.thing {
                            Thing::Image { .. } => {
                                engine.unused_beside(&[key.clone()].into(), &already)?.freed
                            }
                            _ => engine.entry_size(key, entry)?,
                        },
                    });
                }
            }
            let files: u64 = items
                .iter()
                .filter(|item| item.kind != "image")
                .map(|item| item.size)
                .sum();
            Ok(BinList {
                enabled: engine.bin.keeps,
                size: files + engine.layers_of_bin()?,
                limit: engine.bin_limits().map_or(0, |limits| limits.size),
                items,
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn entry(time: i64, operation: &str, client: &str, name: &str) -> (String, Arc<BinRecord>) {
        let record = BinRecord {
            operation: operation.into(),
            client: client.into(),
            time,
            size: None,
            thing: Thing::Volume {
                name: name.into(),
                record: Box::default(),
            },
        };
        (format!("x-{name}"), Arc::new(record))
    }

    #[test]
    fn what_one_client_removes_at_a_stretch_is_one_command() {
        let second = 1_000_000_000;
        let found = commands([
            entry(second, "op1aaa", "p1", "a"),
            // The same process, at once.
            entry(second + 5, "op2aaa", "p1", "b"),
            // Another one.
            entry(second + 6, "op3aaa", "p2", "c"),
            // Nobody knows whose these are.
            entry(second + 7, "op4aaa", "", "d"),
            entry(second + 8, "op5aaa", "", "e"),
            // One request that took long.
            entry(second * 10, "op6aaa", "p3", "f"),
            entry(second * 20, "op6aaa", "p3", "g"),
            // The same process, later.
            entry(second * 30, "op7aaa", "p3", "h"),
        ]);
        let named: Vec<(&str, Vec<String>)> = found
            .iter()
            .map(|command| {
                let names = command.entries.iter().map(|(_, entry)| entry.thing.name());
                (command.id.as_str(), names.collect())
            })
            .collect();
        let strings = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        assert_eq!(
            named,
            [
                ("op7aaa", strings(&["h"])),
                ("op6aaa", strings(&["g", "f"])),
                ("op5aaa", strings(&["e"])),
                ("op4aaa", strings(&["d"])),
                ("op3aaa", strings(&["c"])),
                ("op1aaa", strings(&["b", "a"])),
            ]
        );
        assert!(found[5].is("op2a") && found[5].is("a") && !found[5].is("op") && !found[5].is("c"));
    }
}
