//! The bin, as far as it needs no processes: what other tests do with the `vessel` executable is in `crates/cli/tests`.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vessel_api::{ContainerCreateRequest, VolumeCreateRequest};
use vessel_engine::images::{ImportOptions, Progress};
use vessel_engine::operation::{self, Operation};
use vessel_engine::{BinConfig, Engine, EngineConfig, Filters, RemoveOptions};

const DAY: BinConfig = BinConfig {
    size: None,
    age: Duration::from_secs(24 * 3600),
};

/// Runs a future with an engine on a root, in a network and a mount namespace that end afterwards. `prepare` comes before the
/// engine. None, with the reason printed, where that cannot be had.
fn with_engine<T: Send>(
    directory: &Path,
    bin: Option<BinConfig>,
    prepare: impl FnOnce() + Send,
    work: impl AsyncFnOnce(Arc<Engine>) -> T + Send,
) -> Option<T> {
    if !rustix::process::geteuid().is_root() {
        report("skipped: needs root");
        return None;
    }
    let work = || {
        use rustix::thread::UnshareFlags;
        // SAFETY: only this thread, which ends below, changes its namespaces; the runtime's threads are made after that and
        // inherit them.
        unsafe { rustix::thread::unshare_unsafe(UnshareFlags::NEWNET | UnshareFlags::NEWNS) }.unwrap();
        let private =
            rustix::mount::MountPropagationFlags::PRIVATE | rustix::mount::MountPropagationFlags::REC;
        rustix::mount::mount_change("/", private).unwrap();
        prepare();
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(2)
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let begin = Instant::now();
            let engine = loop {
                match Engine::open(config(directory, bin)).await {
                    Ok(engine) => break engine,
                    // What another test's engine is about to execute has all descriptors until then, the lock's among them.
                    Err(error) if begin.elapsed() > Duration::from_secs(5) => panic!("{error}"),
                    Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
                }
            };
            let result = work(Arc::clone(&engine)).await;
            engine.shutdown().await;
            result
        })
    };
    Some(std::thread::scope(|scope| scope.spawn(work).join().unwrap()))
}

#[allow(clippy::print_stderr, reason = "a test that is skipped says why")]
fn report(why: &str) {
    eprintln!("{why}");
}

fn config(directory: &Path, bin: Option<BinConfig>) -> EngineConfig {
    EngineConfig {
        root: directory.join("root"),
        run: directory.join("run"),
        bridge: "vesseltest1".into(),
        bridge_address: None,
        bridge_v6: None,
        ports_behind_input: false,
        cgroup_parent: "/vessel-engine-bin-test".into(),
        userns_remap: None,
        dns: Vec::new(),
        init: false,
        plugin_dirs: Vec::new(),
        cdi_spec_dirs: Vec::new(),
        registries: Default::default(),
        trust: Default::default(),
        bin,
    }
}

async fn make_volume(engine: &Engine, name: &str) {
    let request = VolumeCreateRequest {
        name: name.into(),
        ..VolumeCreateRequest::default()
    };
    engine.volume_create(request).await.unwrap();
}

async fn make_container(engine: &Arc<Engine>, name: &str) -> String {
    let mut request = ContainerCreateRequest::default();
    request.config.image = "hello".into();
    let made = engine.container_create(Some(name), None, request).await;
    made.unwrap().id
}

/// Does something as a command of its own of a user.
async fn command<F: Future>(work: F) -> F::Output {
    operation::scope(Operation::new(String::new()), work).await
}

async fn names(engine: &Arc<Engine>) -> Vec<String> {
    let items = engine.bin_list().await.unwrap().items;
    items.into_iter().map(|item| item.name).collect()
}

#[test]
fn an_engine_without_a_bin_leaves_what_another_kept_until_its_time_is_over() {
    const AGE: Duration = Duration::from_secs(24);
    let directory = tempfile::tempdir().unwrap();
    let short = BinConfig { age: AGE, ..DAY };
    let begin = Instant::now();
    let made = with_engine(
        directory.path(),
        Some(short),
        || (),
        async |engine| {
            for name in ["one", "two"] {
                make_volume(&engine, name).await;
                command(engine.volume_remove(name, false)).await.unwrap();
            }
            // Two commands.
            assert_eq!(names(&engine).await.len(), 2);
        },
    );
    if made.is_none() {
        return;
    }
    with_engine(
        directory.path(),
        None,
        || (),
        async |engine| {
            // The bin is looked at every two seconds.
            tokio::time::sleep(Duration::from_secs(3)).await;
            assert!(begin.elapsed() < AGE, "this machine is too slow");
            let list = engine.bin_list().await.unwrap();
            assert_eq!((list.enabled, list.items.len()), (false, 2));
            assert!(list.limit > 0);
            engine.undo("one").await.unwrap();
            assert!(directory.path().join("root/volumes/one/_data").exists());
            // Nothing more is kept.
            make_volume(&engine, "three").await;
            command(engine.volume_remove("three", false)).await.unwrap();
            command(engine.volume_remove("one", false)).await.unwrap();
            assert_eq!(names(&engine).await, ["two"]);
            while begin.elapsed() < AGE - Duration::from_secs(4) {
                assert_eq!(names(&engine).await, ["two"]);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
            while !names(&engine).await.is_empty() {
                assert!(begin.elapsed() < AGE * 4, "its time is over");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        },
    );
}

#[test]
fn what_cannot_be_kept_is_removed() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let other_file_systems = || {
        for place in ["volumes", "containers"] {
            let place = root.join(place);
            std::fs::create_dir_all(&place).unwrap();
            rustix::mount::mount("tmpfs", &place, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        }
    };
    with_engine(directory.path(), Some(DAY), other_file_systems, async |engine| {
        make_volume(&engine, "data").await;
        command(engine.volume_remove("data", false)).await.unwrap();
        let id = make_container(&engine, "web").await;
        command(engine.container_remove("web", RemoveOptions::default()))
            .await
            .unwrap();
        assert_eq!(names(&engine).await, [""; 0]);
        assert!(!root.join("volumes/data").exists() && !root.join("containers").join(id).exists());
        assert!(engine.volume_inspect("data").await.is_err() && engine.container("web").is_err());
    });
    // Somebody removed the files.
    with_engine(
        directory.path(),
        Some(DAY),
        || (),
        async |engine| {
            make_volume(&engine, "data").await;
            std::fs::remove_dir_all(root.join("volumes/data")).unwrap();
            command(engine.volume_remove("data", false)).await.unwrap();
            let id = make_container(&engine, "web").await;
            std::fs::remove_dir_all(root.join("containers").join(id)).unwrap();
            command(engine.container_remove("web", RemoveOptions::default()))
                .await
                .unwrap();
            assert_eq!(names(&engine).await, [""; 0]);
            assert!(engine.volume_inspect("data").await.is_err() && engine.container("web").is_err());
        },
    );
}

#[test]
fn prune_makes_room() {
    let directory = tempfile::tempdir().unwrap();
    let root = directory.path().join("root");
    let entries = |of: &str| std::fs::read_dir(root.join(of)).unwrap().count();
    with_engine(
        directory.path(),
        Some(DAY),
        || (),
        async |engine| {
            make_container(&engine, "old").await;
            command(engine.container_remove("old", RemoveOptions::default()))
                .await
                .unwrap();
            assert_eq!(names(&engine).await, ["old"]);
            make_container(&engine, "web").await;
            make_volume(&engine, "data").await;
            let filters = Filters::default();
            command(engine.container_prune(&filters)).await.unwrap();
            let all = Filters::parse(r#"{"all": ["true"]}"#).unwrap();
            command(engine.volume_prune(&all)).await.unwrap();
            assert!(entries("layers") > 0);
            let all = Filters::parse(r#"{"dangling": ["false"]}"#).unwrap();
            let pruned = command(engine.image_prune(&all)).await.unwrap();
            assert!(pruned.space_reclaimed > 0, "{pruned:?}");
            assert_eq!(names(&engine).await, [""; 0]);
            assert_eq!((entries("removed"), entries("layers")), (0, 0));
        },
    );
}

/// Layers are collected, again and again, while an image is removed and brought back.
#[test]
fn a_collection_leaves_what_the_bin_needs() {
    let directory = tempfile::tempdir().unwrap();
    with_engine(
        directory.path(),
        Some(DAY),
        || (),
        async |engine| {
            // The more there is in the bin, the longer it takes to look at it.
            for number in 0..200 {
                let name = format!("image{number}");
                let options = ImportOptions {
                    repository: name.clone(),
                    ..ImportOptions::default()
                };
                let import = engine.image_import(&[0; 1024][..], options, Progress::silent());
                import.await.unwrap();
                command(engine.image_remove(&name, false, true)).await.unwrap();
            }
            engine.image("hello").await.unwrap();
            let done = Arc::new(AtomicBool::new(false));
            let (collector, over) = (Arc::clone(&engine), Arc::clone(&done));
            let collecting = tokio::spawn(async move {
                let mut rounds = 0;
                while !over.load(Ordering::Relaxed) {
                    // What a load has left that failed is collected.
                    let import =
                        collector.image_import(&b"junk"[..], ImportOptions::default(), Progress::silent());
                    import.await.unwrap_err();
                    rounds += 1;
                }
                rounds
            });
            for _ in 0..300 {
                command(engine.image_remove("hello", false, true)).await.unwrap();
                let report = engine.undo("hello:latest").await;
                assert!(report.as_ref().is_ok_and(|r| r.failed.is_empty()), "{report:?}");
            }
            done.store(true, Ordering::Relaxed);
            assert!(collecting.await.unwrap() > 50);
        },
    );
}
