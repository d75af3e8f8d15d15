//! `RUN --mount`: what processes see, and what is left of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use async_trait::async_trait;
use tokio::io::{AsyncReadExt, AsyncWrite, AsyncWriteExt};
use vessel_build::Result;
use vessel_build::session::{
    Credentials, ExportTree, NoSession, Secret, Session, Stream, SyncRequest, Synced,
};

use crate::world::{World, build};

const SECRET: &str = "kn1ght-of-the-sh1re";

/// A client with a secret, an agent and a directory.
pub struct Client {
    pub directory: PathBuf,
}

#[async_trait]
impl Session for Client {
    async fn sync(&self, request: SyncRequest) -> Result<Synced> {
        // Enough for a test: all files, replaced when they differ.
        let mut synced = Synced::default();
        copy(&self.directory, &request.destination, &mut synced);
        Ok(synced)
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>> {
        match id {
            "key" => Ok(Some(Secret::new(SECRET.as_bytes().to_vec())?)),
            _ => Ok(None),
        }
    }

    async fn has_agent(&self, id: &str) -> Result<bool> {
        Ok(id == "default")
    }

    async fn agent(&self, _id: &str) -> Result<Box<dyn Stream>> {
        let (mut ours, theirs) = tokio::io::duplex(64);
        tokio::spawn(async move {
            let mut asked = [0; 4];
            if ours.read_exact(&mut asked).await.is_ok() {
                let _ = ours.write_all(b"pong").await;
            }
        });
        Ok(Box::new(theirs))
    }

    async fn credentials(&self, _host: &str) -> Result<Option<Credentials>> {
        Ok(None)
    }

    async fn export_directory(&self, exporter: &str, tree: ExportTree) -> Result<()> {
        NoSession.export_directory(exporter, tree).await
    }

    async fn export_stream(&self, exporter: &str) -> Result<Box<dyn AsyncWrite + Send + Unpin>> {
        let file = tokio::fs::File::create(self.directory.with_file_name(exporter))
            .await
            .unwrap();
        Ok(Box::new(file))
    }
}

fn copy(from: &Path, to: &Path, synced: &mut Synced) {
    for entry in std::fs::read_dir(from).unwrap().flatten() {
        let (source, target) = (entry.path(), to.join(entry.file_name()));
        synced.entries += 1;
        if source.is_dir() {
            std::fs::create_dir_all(&target).unwrap();
            copy(&source, &target, synced);
        } else if std::fs::read(&source).ok() != std::fs::read(&target).ok() {
            synced.bytes += std::fs::copy(&source, &target).unwrap();
        }
    }
}

fn contains(directory: &Path, text: &str) -> Option<PathBuf> {
    for entry in std::fs::read_dir(directory).into_iter().flatten().flatten() {
        let path = entry.path();
        let kind = entry.file_type().unwrap();
        if kind.is_dir() {
            if let Some(found) = contains(&path, text) {
                return Some(found);
            }
        } else if kind.is_file()
            && std::fs::read(&path)
                .is_ok_and(|bytes| bytes.windows(text.len()).any(|part| part == text.as_bytes()))
        {
            return Some(path);
        }
    }
    None
}

pub fn secrets_leave_nothing() {
    let world = World::new();
    world.run(async |engine| {
        let client = Arc::new(Client { directory: world.context() });
        // What it is compared with is split, so that the Dockerfile does not have it.
        let dockerfile = "FROM base\nRUN --mount=type=secret,id=key,mode=0440,uid=33 test \"$(cat /run/secrets/key)\" = kn1ght'-of-the-'sh1re && stat -c '%a %u' /run/secrets/key\nRUN --mount=type=secret,id=key,env=KEY test -n \"$KEY\" && test ! -e /run/secrets\nRUN --mount=type=secret,id=missing test ! -e /run/secrets/missing\n";
        let built = build(&engine, world.request(dockerfile), client.clone()).await;
        let config = built.config();
        assert_eq!(built.output(), "440 33\n");
        for chain in config.chain().iter().skip(1) {
            let layer = engine.images().content().layer_path(chain);
            let left: Vec<_> = std::fs::read_dir(layer).unwrap().flatten().map(|entry| entry.file_name()).collect();
            assert!(left.is_empty(), "mount points were left in a layer: {left:?}");
        }
        let required = world.request("FROM base\nRUN --mount=type=secret,id=missing,required true\n");
        let refused = build(&engine, required, client).await;
        assert!(refused.error().contains("secret missing: not found"), "{}", refused.error());
    });
    assert_eq!(contains(&world.path().join("root"), SECRET), None);
}

pub fn caches_are_kept_and_pruned() {
    let world = World::new();
    world.run(async |engine| {
        let first = world.build(&engine, "FROM base\nRUN --mount=type=cache,target=/cache echo kept > /cache/file\n").await;
        let config = first.config();
        let layer = engine.images().content().layer_path(config.chain().last().unwrap());
        assert_eq!(std::fs::read_dir(layer).unwrap().count(), 0);
        let second = world.build(&engine, "FROM base\nRUN --mount=type=cache,id=/cache,target=/elsewhere,sharing=locked cat /elsewhere/file\n").await;
        second.id();
        assert_eq!(second.output(), "kept\n");
        let builder = engine.builder().unwrap();
        let records = builder.cache_records().await.unwrap();
        let mount = records.iter().find(|record| record.kind == "exec.cachemount").unwrap();
        assert!(mount.size > 0 && !mount.in_use && mount.usage_count == 2, "{mount:?}");
        assert_eq!(records.iter().filter(|record| record.kind == "regular").count(), 2);
        let options = vessel_build::PruneOptions { all: true, ..Default::default() };
        let pruned = builder.prune(options).await.unwrap();
        assert_eq!(pruned.ids.len(), records.len());
        assert!(builder.cache_records().await.unwrap().is_empty());
        // `result` has the second step's layer, which is the first's, too: it stays until the image goes.
        assert!(engine.images().content().layers().unwrap().len() >= 2);
        let again = world.build(&engine, "FROM base\nRUN --mount=type=cache,target=/cache test ! -e /cache/file\n").await;
        again.id();
    });
}

/// With `rw`, what is written is seen by the process and by nobody else, and gone afterwards.
pub fn binds_write_for_themselves() {
    let world = World::new();
    world.write("file", "kept");
    world.write("left-out", "kept");
    world.write(".dockerignore", "left-out");
    world.run(async |engine| {
        for from in ["from=base,", "from=empty,", "from=files,", ""] {
            let write = "echo new > /m/forged && mkdir /m/d && rm -rf /m/file && echo other > /m/extra";
            let write = if from == "from=base," { write.replace("> /m/extra", "> /m/bin/busybox") } else { write.to_owned() };
            let dockerfile = format!(
                "FROM scratch AS empty\nFROM base AS files\nRUN echo kept > /file\nFROM base\n\
                 RUN --mount=type=bind,{from}target=/m,rw test ! -e /m/left-out && {write} && cat /m/forged\n\
                 RUN --mount=type=bind,{from}target=/m,rw test ! -e /m/forged && test ! -e /m/d && ls -d /m/f* || true\n\
                 RUN --mount=type=bind,{from}target=/m ! touch /m/forged\n"
            );
            let client = Arc::new(Client { directory: world.context() });
            let built = build(&engine, world.request(&dockerfile), client).await;
            built.id();
            assert!(built.output().contains("new\n"), "{from}: {}", built.output());
            let kept = built.output().contains("/m/file\n");
            assert_eq!(kept, matches!(from, "from=files," | ""), "{from}: {}", built.output());
            for chain in built.config().chain().iter().skip(1) {
                let layer = engine.images().content().layer_path(chain);
                assert_eq!(std::fs::read_dir(layer).unwrap().count(), 0);
            }
        }
        // One file of the context.
        let dockerfile = "FROM base\nRUN --mount=source=file,target=/mnt/file,rw echo x >> /mnt/file && cat /mnt/file\nRUN --mount=source=file,target=/mnt/file cat /mnt/file\n";
        let client = Arc::new(Client { directory: world.context() });
        let built = build(&engine, world.request(dockerfile), client).await;
        built.id();
        assert_eq!(built.output(), "keptx\nkept");
    });
    assert_eq!(std::fs::read(world.context().join("file")).unwrap(), b"kept");
    assert!(!world.context().join("forged").exists());
    // Nothing that was written is left below the root.
    let temporary = world.path().join("root/build/tmp");
    assert_eq!(std::fs::read_dir(temporary).into_iter().flatten().count(), 0);
}

/// A build without cache begins cache mounts anew, once, and lets others finish with what they have.
pub fn no_cache_begins_mounts_anew() {
    let world = World::new();
    world.run(async |engine| {
        let first = "FROM base\nRUN --mount=type=cache,target=/cache echo old > /cache/file\n";
        world.build(&engine, first).await.id();
        let dockerfile = "FROM base\nRUN --mount=type=cache,target=/cache ls /cache && echo new > /cache/other\nRUN --mount=type=cache,target=/cache cat /cache/other\n";
        let mut request = world.request(dockerfile);
        request.no_cache = vessel_build::request::NoCache::All;
        let built = build(&engine, request, Arc::new(NoSession)).await;
        built.id();
        assert_eq!(built.output(), "new\n");
        let again = world.build(&engine, "FROM base\nRUN --mount=type=cache,target=/cache ls /cache\n").await;
        assert_eq!(again.output(), "other\n");

        // One that is at work keeps what it has; the other does not wait for it.
        let wait = "FROM base\nRUN --mount=type=cache,target=/cache echo mine > /cache/mine && while ! test -e /cache/go && test $((n=n+1)) -lt 60; do echo waits; sleep 0.1; done; ls /cache\n";
        let (slow, fast) = tokio::join!(world.build(&engine, wait), async {
            tokio::time::sleep(std::time::Duration::from_secs(2)).await;
            let mut request = world.request("FROM base\nRUN --mount=type=cache,target=/cache ls /cache && echo x > /cache/go\n");
            request.no_cache = vessel_build::request::NoCache::All;
            let start = std::time::Instant::now();
            let built = build(&engine, request, Arc::new(NoSession)).await;
            (built, start.elapsed())
        });
        slow.id();
        assert!(slow.output().ends_with("mine\nother\n"), "{}", slow.output());
        fast.0.id();
        assert_eq!(fast.0.output(), "");
        assert!(fast.1 < std::time::Duration::from_secs(3), "{:?}", fast.1);
        let records = engine.builder().unwrap().cache_records().await.unwrap();
        assert_eq!(records.iter().filter(|record| record.kind == "exec.cachemount").count(), 1);
    });
    let left = std::fs::read_dir(world.path().join("root/build/mounts"))
        .unwrap()
        .flatten();
    let hidden: Vec<_> = left
        .filter(|entry| entry.file_name().to_string_lossy().starts_with('.'))
        .collect();
    assert!(hidden.is_empty(), "{hidden:?}");
}

pub fn binds_and_agents() {
    let world = World::new();
    world.write("src/code", "code\n");
    world.run(async |engine| {
        let client = Arc::new(Client { directory: world.context() });
        let dockerfile = "FROM base AS tools\nRUN echo tool > /tool\nFROM base\nRUN --mount=target=/src cat /src/src/code && ! touch /src/x\nRUN --mount=from=tools,source=/tool,target=/mnt/tool cat /mnt/tool\nRUN --mount=type=tmpfs,target=/scratch echo x > /scratch/x\nRUN --mount=type=ssh test -S $SSH_AUTH_SOCK\nRUN <<EOF\necho from a\necho heredoc\nEOF\n";
        let built = build(&engine, world.request(dockerfile), client.clone()).await;
        built.id();
        assert_eq!(built.output().lines().filter(|line| !line.contains("touch")).collect::<Vec<_>>(), ["code", "tool", "from a", "heredoc"]);
        let again = build(&engine, world.request(dockerfile), client.clone()).await;
        assert_eq!(again.cached(), (6, 0));
        world.write("src/code", "other\n");
        let changed = build(&engine, world.request(dockerfile), client).await;
        // That step runs again and gives the same layer, so what follows it is cached.
        assert_eq!(changed.cached(), (5, 1));
        assert!(changed.output().contains("other"));
    });
}
