//! `--squash`: of the layers that the last stage adds, one is made. As with Docker's classic builder, the history keeps
//! its steps, which have no layers any more, and ends with one that says what was put together. Steps and the cache know
//! nothing of it.

use std::os::fd::AsFd;
use std::sync::Arc;

use vessel_image::{Digest, History};

use super::Solve;
use super::dispatch::Line;
use super::state::{State, seconds};
use super::step::{Cached, Workspace, key};
use super::vertex::Pending;
use crate::error::Result;
use crate::tree::squash::{forget_hidden, put_over};
use crate::{blocking, time, tree};

impl Solve {
    /// The same result with one layer in the place of those over its base.
    pub(crate) async fn squash(self: &Arc<Self>, state: &State) -> Result<State> {
        let from = &state.from;
        let id = Digest::sha256(&state.config.to_raw()?);
        let mut squashed = state.clone();
        if state.chain.len() > from.layers + 1 {
            squashed.chain.truncate(from.layers);
            squashed.config.rootfs.diff_ids.truncate(from.layers);
            self.put_together(&mut squashed, &state.chain[from.layers..])
                .await?;
        }
        let steps = squashed.config.history.iter_mut().skip(from.steps);
        steps.for_each(|step| step.empty_layer = Some(true));
        let created = time::rfc3339(self.epoch.map_or_else(time::now, seconds));
        squashed.config.history.push(History {
            created: Some(created.clone()),
            created_by: None,
            author: None,
            comment: Some(match &from.id {
                Some(base) => format!("merge {id} to {base}"),
                None => format!("create new from {id}"),
            }),
            empty_layer: (state.chain.len() == from.layers).then_some(true),
        });
        squashed.config.created = Some(created);
        Ok(squashed)
    }

    async fn put_together(
        self: &Arc<Self>,
        state: &mut State,
        layers: &[vessel_image::ChainId],
    ) -> Result<()> {
        let description = format!("squash {} layers", layers.len());
        let vertex = Pending::new(&description);
        self.tell(vertex.started()).await;
        let mut line = Line {
            label: String::new(),
            number: 0,
            total: 0,
            previous: None,
            no_cache: false,
            platform: None,
        };
        let texts: Vec<String> = layers.iter().map(ToString::to_string).collect();
        let cached = Cached {
            key: key("squash", &(state.top(), &texts, self.epoch))?,
            aliases: Vec::new(),
            description,
            link: false,
            ignore: false,
        };
        let (solve, worker) = (Arc::clone(self), Arc::clone(self.plan.builder.worker()));
        let (base, layers) = (state.chain.clone(), layers.to_vec());
        let make = |workspace: Workspace| async move {
            let permit = solve.plan.builder.permit().await?;
            blocking(move || {
                let into = Arc::new(tree::open_root(&workspace.upper)?);
                let cancelled = &solve.plan.cancelled;
                for layer in &layers {
                    let layer = tree::open_root(&worker.store().layer_path(layer))?;
                    put_over(layer.as_fd(), &into, cancelled)?;
                }
                let base = match base.is_empty() {
                    true => None,
                    false => Some(worker.mount(&base, None)?),
                };
                forget_hidden(into.as_fd(), base.as_ref().map(AsFd::as_fd), cancelled)?;
                drop(into);
                Ok((workspace, permit))
            })
            .await
        };
        self.layer(state, &mut line, vertex, cached, make).await.map(drop)
    }
}
