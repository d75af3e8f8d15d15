//! What builders get wrong: cancelled transfers, what ignore files leave out, locks, records.

use std::path::PathBuf;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use tokio::io::AsyncWrite;
use vessel_build::Result;
use vessel_build::request::{NamedContext, NoCache, Source};
use vessel_build::session::{
    Credentials, ExportTree, NoSession, Secret, Session, Stream, SyncRequest, Synced,
};

use crate::mounts::Client;
use crate::world::{World, build};

/// A client whose first transfer goes on for a while after it was given up.
struct Late {
    client: Client,
    destinations: Mutex<Vec<PathBuf>>,
}

#[async_trait]
impl Session for Late {
    async fn sync(&self, request: SyncRequest) -> Result<Synced> {
        let first = {
            let mut destinations = self.destinations.lock().unwrap();
            destinations.push(request.destination.clone());
            destinations.len() == 1
        };
        if !first {
            return self.client.sync(request).await;
        }
        std::thread::spawn(move || {
            for _ in 0..100 {
                let _gone_with_the_case = std::fs::write(request.destination.join("file"), "late");
                std::thread::sleep(Duration::from_millis(10));
            }
            drop(request.keep);
        });
        std::future::pending().await
    }

    async fn secret(&self, id: &str) -> Result<Option<Secret>> {
        NoSession.secret(id).await
    }

    async fn has_agent(&self, id: &str) -> Result<bool> {
        NoSession.has_agent(id).await
    }

    async fn agent(&self, id: &str) -> Result<Box<dyn Stream>> {
        NoSession.agent(id).await
    }

    async fn credentials(&self, host: &str) -> Result<Option<Credentials>> {
        NoSession.credentials(host).await
    }

    async fn export_directory(&self, exporter: &str, tree: ExportTree) -> Result<()> {
        NoSession.export_directory(exporter, tree).await
    }

    async fn export_stream(&self, exporter: &str) -> Result<Box<dyn AsyncWrite + Send + Unpin>> {
        NoSession.export_stream(exporter).await
    }
}

pub fn transfers_that_go_on_keep_their_context() {
    let world = World::new();
    world.write("file", "mine");
    world.run(async |engine| {
        let client = Client {
            directory: world.context(),
        };
        let late = Arc::new(Late {
            client,
            destinations: Mutex::default(),
        });
        // The first to be asked for are the ignore files.
        let request = || {
            let mut request = world.request("FROM base\nCOPY file /\nRUN cat /file\n");
            request.context = Source::Session("context".into());
            request
        };
        let task = tokio::spawn({
            let (engine, request, late) = (Arc::clone(&engine), request(), Arc::clone(&late));
            async move { build(&engine, request, late).await }
        });
        while late.destinations.lock().unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        task.abort();
        let _cancelled = task.await;
        let built = build(&engine, request(), late.clone()).await;
        built.id();
        assert_eq!(built.output(), "mine");
        let destinations = late.destinations.lock().unwrap().clone();
        assert_ne!(destinations[0], destinations[1]);
    });
}

pub fn binds_show_what_ignore_files_leave() {
    let world = World::new();
    world.write("src/kept", "kept");
    world.write("src/secret", "secret");
    world.write("secret", "secret");
    std::os::unix::fs::symlink("src", world.context().join("link")).unwrap();
    world.write(".dockerignore", "secret\nsrc/secret\n");
    world.run(async |engine| {
        for mount in ["target=/m", "target=/m,source=src", "target=/m,source=link", "target=/m,source=/link/../link"] {
            // What is seen is the same for some: each is a step of its own all the same.
            let dockerfile = format!("FROM base\nENV MOUNT={mount}\nRUN --mount={mount} find /m -name kept && test -z \"$(find /m -name secret)\"\n");
            let built = world.build(&engine, &dockerfile).await;
            built.id();
            assert!(built.output().contains("kept"), "{mount}: {}", built.output());
            assert_eq!(world.build(&engine, &dockerfile).await.cached(), (1, 0), "{mount}");
        }
        let copied = world.build(&engine, "FROM base\nCOPY link /m/\nRUN test -e /m/kept && ! test -e /m/secret\n").await;
        copied.id();
        let cache = "FROM base\nRUN --mount=type=cache,target=/c,from=context,source=src test -e /c/kept && ! test -e /c/secret\n";
        let mut request = world.request(cache);
        request.contexts.insert("context".into(), NamedContext::Files(Source::Directory(world.context())));
        build(&engine, request, Arc::new(NoSession)).await.id();
        let refused = world.build(&engine, "FROM base\nRUN --mount=target=/m,source=secret cat /m\n").await;
        assert!(refused.error().contains("secret: not found"), "{}", refused.error());
        // What is seen is what counts.
        let dockerfile = "FROM base\nRUN --mount=target=/m find /m -name secret\n";
        let first = world.build(&engine, dockerfile).await;
        first.id();
        assert_eq!(first.output(), "");
        world.write(".dockerignore", "src/secret\n");
        let second = world.build(&engine, dockerfile).await;
        second.id();
        assert_eq!((second.cached(), second.output()), ((0, 1), "/m/secret\n".to_owned()));
        // A directory of which only something is taken back in.
        world.write(".dockerignore", "*\n!src/kept\n");
        let dockerfile = "FROM base\nRUN --mount=target=/m,source=src cat /m/* && echo\n";
        let built = world.build(&engine, dockerfile).await;
        built.id();
        assert_eq!(built.output(), "kept\n");
    });
}

/// What a context that is only mounted has is remembered, so that the next build need not read it.
pub fn mounted_contexts_are_remembered() {
    let world = World::new();
    world.write("file", "kept");
    world.run(async |engine| {
        for _ in 0..2 {
            let mut request = world.request("FROM base\nRUN --mount=target=/m cat /m/file\n");
            request.context = Source::Session("context".into());
            let client = Arc::new(Client {
                directory: world.context(),
            });
            build(&engine, request, client).await.id();
            // A file that was written just now may be written again without its time telling.
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        let contexts = std::fs::read_dir(world.path().join("root/build/contexts")).unwrap();
        let remembered = contexts
            .flatten()
            .filter(|entry| entry.path().join("digests").exists());
        assert_eq!(remembered.count(), 1);
    });
}

pub fn one_lock_twice_in_a_step() {
    let world = World::new();
    world.run(async |engine| {
        let dockerfile = "FROM base\nRUN --mount=type=cache,id=one,target=/a,sharing=locked --mount=type=cache,id=one,target=/b,sharing=locked echo x > /a/file && cat /b/file\n";
        let built = tokio::time::timeout(Duration::from_secs(60), world.build(&engine, dockerfile)).await;
        let built = built.expect("the step waits for itself");
        built.id();
        assert_eq!(built.output(), "x\n");
        // A private one waits for nobody, and the others must not wait for it.
        for other in ["shared", "locked"] {
            let dockerfile = format!("FROM base\nRUN --mount=type=cache,id=one,target=/a,sharing=private --mount=type=cache,id=one,target=/b,sharing={other} test -f /b/file && ! test -f /a/file\n");
            let built = tokio::time::timeout(Duration::from_secs(60), world.build(&engine, &dockerfile)).await;
            built.expect("the step waits for itself").id();
        }
    });
}

/// Triggers of a base image may name stages, but none that waits for them.
pub fn triggers_of_images_wait_for_no_later_stage() {
    let world = World::new();
    world.run(async |engine| {
        for from in ["0", "builder"] {
            let image = format!("FROM base\nONBUILD COPY --from={from} /a /b\n");
            world.build(&engine, &image).await.id();
            let itself = world.build(&engine, "FROM result AS builder\nRUN true\n");
            let refused = tokio::time::timeout(Duration::from_secs(60), itself).await;
            let refused = refused.expect("the stage waits for itself");
            assert!(
                refused.error().contains("has to be defined before"),
                "{}",
                refused.error()
            );
            let earlier =
                format!("FROM base AS builder\nRUN echo a > /a\nFROM result\nRUN cat /b # {from}\n");
            let built = world.build(&engine, &earlier).await;
            built.id();
            assert_eq!(built.output(), "a\n");
        }
    });
}

/// What a copy with `--parents` takes is what its key is made of.
pub fn parents_count_and_what_is_excluded_does_not() {
    use std::os::unix::fs::PermissionsExt;
    let world = World::new();
    world.write("docs/README.md", "1");
    world.write("docs/out.txt", "1");
    world.write("a/b/file", "1");
    world.run(async |engine| {
        let dockerfile = "FROM base\nCOPY --parents --exclude=*.md --exclude=docs/out.txt docs /d/\nRUN cat /d/docs/* && echo\n";
        assert_eq!(world.build(&engine, dockerfile).await.output(), "1\n");
        world.write("docs/README.md", "2");
        assert_eq!(world.build(&engine, dockerfile).await.output(), "2\n");
        world.write("docs/out.txt", "2");
        assert_eq!(world.build(&engine, dockerfile).await.cached(), (2, 0));
        for (name, mode) in [("a", 0o700), ("a/b", 0o711)] {
            let dockerfile = "FROM base\nCOPY --parents a/b/file /d/\nRUN stat -c %a /d/a /d/a/b\n";
            world.build(&engine, dockerfile).await.id();
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(world.context().join(name), permissions).unwrap();
            let changed = world.build(&engine, dockerfile).await;
            assert_eq!(changed.cached(), (0, 2), "{name}");
            assert!(changed.output().contains(&format!("{mode:o}\n")), "{}", changed.output());
        }
    });
}

pub fn stages_that_begin_alike_share_their_steps() {
    let world = World::new();
    world.run(async |engine| {
        let stage = |name: &str| {
            format!("FROM base AS {name}\nRUN echo made > /file && echo ran\nRUN echo {name} > /name\n")
        };
        let dockerfile = stage("one")
            + &stage("two")
            + "FROM base\nCOPY --from=one /name /one\nCOPY --from=two /name /two\n";
        for _ in 0..2 {
            let mut request = world.request(&dockerfile);
            request.no_cache = NoCache::All;
            let built = build(&engine, request, Arc::new(NoSession)).await;
            built.id();
            assert_eq!(built.output(), "ran\n");
            assert_eq!(built.cached(), (1, 5));
        }
    });
}

pub fn records_count_a_layer_once() {
    let world = World::new();
    world.write("a/file", "12345");
    world.run(async |engine| {
        let dockerfile = "FROM base AS one\nRUN echo one > /one\nFROM scratch\nCOPY --from=one /one /\n";
        world.build(&engine, dockerfile).await.id();
        let builder = engine.builder().unwrap();
        let records = builder.cache_records().await.unwrap();
        assert_eq!(records.iter().filter(|record| record.kind == "regular").count(), 2, "{records:?}");
        assert_eq!(world.build(&engine, dockerfile).await.cached(), (2, 0));
        let options = vessel_build::PruneOptions { descriptions: vec!["COPY".into()], all: true, ..Default::default() };
        assert_eq!(builder.prune(options).await.unwrap().ids.len(), 1);
        assert_eq!(world.build(&engine, dockerfile).await.cached(), (1, 1));
        // A context that came as an archive is its caller's and leaves nothing here.
        let contexts = world.path().join("root/build/contexts");
        world.build(&engine, "FROM scratch\nCOPY . /\n").await.id();
        assert_eq!(std::fs::read_dir(contexts).unwrap().count(), 0);
        // A cache that cannot be filled leaves nothing, and what it begins with counts for the step.
        let wrong = world.build(&engine, "FROM base\nRUN --mount=type=cache,target=/c,from=base,source=/missing true\n").await;
        assert!(wrong.result.is_err());
        let mounts = world.path().join("root/build/mounts");
        assert_eq!(std::fs::read_dir(&mounts).unwrap().count(), 0);
        let filled = |text: &str| format!("FROM base AS one\nRUN echo {text} > /one\nFROM base\nRUN --mount=type=cache,target=/c,from=one true\n");
        world.build(&engine, &filled("x")).await.id();
        assert_eq!(world.build(&engine, &filled("x")).await.cached(), (2, 0));
        assert_eq!(world.build(&engine, &filled("y")).await.cached(), (0, 2));
    });
}

pub fn copies_of_everything_and_of_names() {
    let world = World::new();
    world.write("a/file", "1");
    world.write("top", "2");
    world.run(async |engine| {
        let dockerfile = "FROM base\nCOPY --parents . /all/\nCOPY --parents a/./ /some/\nRUN cat /all/a/file /all/top /some/file && ! test -e /some/a\n";
        let built = world.build(&engine, dockerfile).await;
        built.id();
        assert_eq!(built.output(), "121");
        // A name means what the stage's accounts say.
        let owned = |uid: u32| format!("FROM base\nRUN echo web:x:{uid}:44::/:/bin/sh > /etc/passwd\nCOPY --link --chown=web top /linked\nRUN stat -c %u /linked\n");
        assert_eq!(world.build(&engine, &owned(50)).await.output(), "50\n");
        assert_eq!(world.build(&engine, &owned(51)).await.output(), "51\n");
    });
}
