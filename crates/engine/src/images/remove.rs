//! Names and the end of images: tag, untag, remove, prune.
//!
//! The order of checks and the messages are Docker's. An image that containers use can lose names but not its last
//! one unless forced; one that a running container uses cannot be removed at all. Layers stay as long as an image or
//! a container needs them.

use std::collections::BTreeSet;
use std::sync::Arc;

use vessel_api::{ImageDeleteItem, ImagesPruneReport, Map};
use vessel_image::{ImageConfig, Reference};

use super::{CHANGES, created};
use crate::container::record::Status;
use crate::removed::Thing;
use crate::{Container, Engine, Error, ErrorKind, Filters, Result, blocking};

impl Engine {
    /// Gives an image a further name.
    ///
    /// # Errors
    /// No such image; a name or tag that is not valid.
    pub async fn image_tag(&self, source: &str, repository: &str, tag: &str) -> Result<()> {
        let _change = CHANGES.lock().await;
        let found = self.find_image(source)?;
        let mut target = Reference::parse(repository)?;
        if target.digest().is_some() {
            return Err(Error::invalid("refusing to create a tag with a digest reference"));
        }
        if !tag.is_empty() {
            target = target.with_tag(tag)?;
        }
        // The new name stands for all platforms when the one before does.
        let index = match found.name.as_deref() {
            Some(name) => match name.rsplit_once('@') {
                Some((_, digest)) => Some(digest.to_owned()),
                None => self.images().index_of_tag(name),
            },
            None => None,
        };
        let target = target.with_default_tag();
        self.name_image(&target, &found.id).await?;
        if let Some(index) = index {
            self.images().tag_index(&target.familiar(), &index).await?;
        }
        Ok(())
    }

    /// Gives an image a name and tells so. Returns the ID of another image that had it.
    pub(crate) async fn name_image(&self, name: &Reference, id: &str) -> Result<Option<String>> {
        let name = name.familiar();
        let before = self.images().tag(&name, id).await?;
        self.image_event("tag", id, &name);
        Ok(before.filter(|before| before != id))
    }

    pub(super) fn image_event(&self, action: &str, id: &str, name: &str) {
        let attributes = Map::from([("name".to_owned(), name.to_owned())]);
        self.events().publish("image", action, id, attributes);
    }

    /// Takes a name from an image and, with the last one, the image away.
    ///
    /// # Errors
    /// No such image; in use, or known by several names, in ways that force does not or was not asked to override.
    pub async fn image_remove(
        self: &Arc<Self>,
        words: &str,
        force: bool,
        _prune_parents: bool,
    ) -> Result<Vec<ImageDeleteItem>> {
        let _change = CHANGES.lock().await;
        let found = self.find_image(words)?;
        let key = match self.bin.keeps {
            true => {
                let before = self.image_thing(&found.id)?;
                self.bin.keep(None, || before)?
            }
            false => None,
        };
        let mut items = Vec::new();
        let removed = self
            .remove_found(words, found.id.clone(), found.name, force, &mut items)
            .await;
        match &key {
            // Nothing of it went.
            Some(key) if items.is_empty() => self.bin.forget(key),
            Some(key) => self.bin.kept(key),
            None => {}
        }
        removed?;
        if !self.images().contains(&found.id) {
            self.collect_into(&mut items, key.into_iter().collect()).await?;
        }
        Ok(items)
    }

    /// An image as the bin keeps it.
    fn image_thing(&self, id: &str) -> Result<Thing> {
        let names = self.images().tags_of(id);
        let index = |name: &String| Some((name.clone(), self.images().index_of_tag(name)?));
        Ok(Thing::Image {
            id: id.to_owned(),
            record: Box::new(self.image_record(id)?),
            indexes: names.iter().filter_map(index).collect(),
            names,
        })
    }

    async fn remove_found(
        &self,
        words: &str,
        id: String,
        name: Option<String>,
        force: bool,
        items: &mut Vec<ImageDeleteItem>,
    ) -> Result<()> {
        let users = self.users_of(&id);
        let mut names = self.images().tags_of(&id);
        let by_name = name.is_some();
        if let Some(name) = name {
            if !force
                && names.len() == 1
                && let Some(user) = users.first()
            {
                return Err(Error::conflict(format!(
                    "conflict: unable to remove repository reference {words:?} (must force) - container {} is using its referenced image {}",
                    short(user.id()),
                    short(&id)
                )));
            }
            // A name by digest goes with the last tag of its repository.
            if names.contains(&name) {
                self.take_name(&id, &name, items).await?;
                names.retain(|other| *other != name);
            } else {
                self.take_digests(&id, |digest| digest == name, items).await?;
            }
            if !names.is_empty() {
                return Ok(());
            }
            if check_users(&id, &users, force).is_err() {
                // It has lost its name only; its containers keep it.
                return Ok(());
            }
        } else if names.len() > 1 && !force {
            return Err(conflict(
                &id,
                "must be forced",
                "image is referenced in multiple repositories",
            ));
        }
        check_users(&id, &users, force)?;
        for name in names {
            self.take_name(&id, &name, items).await?;
        }
        self.take_digests(&id, |_| true, items).await?;
        match self.forget_image(&id, force, items).await {
            // As above: a container has come to use it meanwhile.
            Err(error) if by_name && error.kind() == ErrorKind::Conflict => Ok(()),
            other => other,
        }
    }

    async fn take_name(&self, id: &str, name: &str, items: &mut Vec<ImageDeleteItem>) -> Result<()> {
        self.images().untag(name).await?;
        self.image_event("untag", id, id);
        items.push(ImageDeleteItem {
            untagged: name.to_owned(),
            ..ImageDeleteItem::default()
        });
        Ok(())
    }

    async fn take_digests(
        &self,
        id: &str,
        which: impl Fn(&str) -> bool,
        items: &mut Vec<ImageDeleteItem>,
    ) -> Result<()> {
        let mut record = self.image_record(id)?;
        let (taken, kept): (Vec<String>, Vec<String>) =
            record.repo_digests.drain(..).partition(|digest| which(digest));
        if taken.is_empty() {
            return Ok(());
        }
        record.repo_digests = kept;
        self.images().insert(id, record).await?;
        items.extend(taken.into_iter().map(|untagged| ImageDeleteItem {
            untagged,
            ..ImageDeleteItem::default()
        }));
        Ok(())
    }

    fn users_of(&self, id: &str) -> Vec<Arc<Container>> {
        let mut users = self.containers();
        users.retain(|container| container.record().image_id == id);
        users
    }

    /// Forgets an image that has no names any more, unless a container has come to use it since that was checked.
    async fn forget_image(&self, id: &str, force: bool, items: &mut Vec<ImageDeleteItem>) -> Result<()> {
        let unused = || check_users(id, &self.users_of(id), force);
        self.images().remove(id, unused).await?;
        self.image_event("delete", id, id);
        items.push(ImageDeleteItem {
            deleted: id.to_owned(),
            ..ImageDeleteItem::default()
        });
        Ok(())
    }

    /// Collects what nothing needs any more; how much that was. What only entries of the bin still need is told, too: it
    /// goes with them.
    async fn collect_into(
        self: &Arc<Self>,
        items: &mut Vec<ImageDeleteItem>,
        kept: BTreeSet<String>,
    ) -> Result<u64> {
        let mut collected = self.collect_images().await?;
        if !kept.is_empty() {
            let engine = Arc::clone(self);
            let later = blocking(move || engine.unused_without(&kept)).await?;
            collected.layers.extend(later.layers);
            collected.freed += later.freed;
        }
        items.extend(collected.layers.iter().map(|layer| ImageDeleteItem {
            deleted: layer.to_string(),
            ..ImageDeleteItem::default()
        }));
        Ok(collected.freed)
    }

    /// Removes images that no container uses: those without a name or, with `dangling=false`, all.
    ///
    /// # Errors
    /// A filter that is not known; content that cannot be read or removed.
    pub async fn image_prune(self: &Arc<Self>, filters: &Filters) -> Result<ImagesPruneReport> {
        filters.check(&["dangling", "label", "label!", "until"])?;
        let only_dangling = filters.flag("dangling")?.unwrap_or(true);
        let until = filters.until()?;
        let mut report = ImagesPruneReport::default();
        if !only_dangling && until.is_none() && !filters.contains("label") && !filters.contains("label!") {
            // All that no container uses: what was removed before is to make room, too. Before the lock, which `undo` takes
            // after the bin's.
            report.space_reclaimed = self.bin_release_layers().await?.space_reclaimed;
        }
        let _change = CHANGES.lock().await;
        // Other platforms' images of what a name stands for have no name themselves.
        let kept = |id: &str| only_dangling || !self.users_of(id).is_empty();
        let in_use = self.manifests_in_use(kept).await;
        for (id, record) in self.images().all() {
            if record.documents.iter().any(|document| in_use.contains(document)) {
                continue;
            }
            let names = self.images().tags_of(&id);
            if !self.users_of(&id).is_empty()
                || (only_dangling && !(names.is_empty() && record.repo_digests.is_empty()))
            {
                continue;
            }
            let config = ImageConfig::parse(&self.image_document(&id).await?)?;
            let labels = config.config.labels.clone().unwrap_or_default();
            if !filters.labels(&labels) || until.is_some_and(|until| created(&config) >= until) {
                continue;
            }
            for name in names {
                self.take_name(&id, &name, &mut report.images_deleted).await?;
            }
            match self.forget_image(&id, false, &mut report.images_deleted).await {
                // A container is being made from it.
                Err(error) if error.kind() == ErrorKind::Conflict => {}
                other => other?,
            }
        }
        // Not into the bin: it is asked for to have the space.
        let collected = self.collect_into(&mut report.images_deleted, BTreeSet::new());
        report.space_reclaimed += collected.await?;
        let attributes = Map::from([("reclaimed".to_owned(), report.space_reclaimed.to_string())]);
        self.events().publish("image", "prune", "", attributes);
        Ok(report)
    }
}

/// Refuses to remove an image that containers use: always when one runs, without force when one does not.
fn check_users(id: &str, users: &[Arc<Container>], force: bool) -> Result<()> {
    let runs = |container: &Arc<Container>| {
        matches!(
            container.state().status,
            Status::Running | Status::Paused | Status::Restarting
        )
    };
    if let Some(user) = users.iter().find(|container| runs(container)) {
        let why = format!("image is being used by running container {}", short(user.id()));
        return Err(conflict(id, "cannot be forced", &why));
    }
    match users.first() {
        Some(user) if !force => {
            let why = format!("image is being used by stopped container {}", short(user.id()));
            Err(conflict(id, "must be forced", &why))
        }
        _ => Ok(()),
    }
}

fn conflict(id: &str, force: &str, why: &str) -> Error {
    Error::conflict(format!(
        "conflict: unable to delete {} ({force}) - {why}",
        short(id)
    ))
}

/// The first twelve digits of an ID.
pub(crate) fn short(id: &str) -> &str {
    let hex = id.strip_prefix("sha256:").unwrap_or(id);
    hex.get(..12).unwrap_or(hex)
}
