//! An engine on a private root, run directory and bridge: everything of a container's life but its processes, which
//! need the `vessel` executable and are tested with it (`crates/cli/tests`).

use std::path::Path;
use std::sync::Arc;

use vessel_api::{ContainerConfig, ContainerCreateRequest, HostConfig, VolumeCreateRequest};
use vessel_engine::images::{ImportOptions, Progress};
use vessel_engine::{Engine, EngineConfig, ErrorKind, EventsOptions, Filters, ListOptions, RemoveOptions};

/// A network of its own for the whole test process, so that bridges and rules end with it.
struct World {
    directory: tempfile::TempDir,
}

impl World {
    /// None, with the reason printed, where the test cannot run.
    fn new() -> Option<Self> {
        if !rustix::process::geteuid().is_root() {
            report("skipped: needs root");
            return None;
        }
        Some(Self {
            directory: tempfile::tempdir().unwrap(),
        })
    }

    /// Runs a future with an engine, in a network namespace that ends afterwards.
    fn run<T: Send>(&self, work: impl AsyncFnOnce(Arc<Engine>) -> T + Send) -> T {
        std::thread::scope(|scope| {
            let thread = scope.spawn(|| {
                // SAFETY: only this thread, which ends below, changes its network namespace; the runtime's threads are
                // made after that and inherit it.
                unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) }.unwrap();
                let runtime = tokio::runtime::Builder::new_multi_thread()
                    .worker_threads(2)
                    .enable_all()
                    .build()
                    .unwrap();
                runtime.block_on(async {
                    let engine = Engine::open(config(self.directory.path())).await.unwrap();
                    let result = work(Arc::clone(&engine)).await;
                    engine.shutdown().await;
                    result
                })
            });
            thread.join().unwrap()
        })
    }
}

#[allow(clippy::print_stderr, reason = "a test that is skipped says why")]
fn report(why: &str) {
    eprintln!("{why}");
}

fn config(directory: &Path) -> EngineConfig {
    EngineConfig {
        root: directory.join("root"),
        run: directory.join("run"),
        bridge: "vesseltest0".into(),
        bridge_address: None,
        bridge_v6: None,
        ports_behind_input: false,
        cgroup_parent: "/vessel-engine-test".into(),
        userns_remap: None,
        dns: Vec::new(),
        init: false,
        registries: Default::default(),
        trust: Default::default(),
        cdi_spec_dirs: Vec::new(),
        plugin_dirs: Vec::new(),
        bin: None,
    }
}

fn request(change: impl FnOnce(&mut ContainerConfig, &mut HostConfig)) -> ContainerCreateRequest {
    let mut request = ContainerCreateRequest::default();
    request.config.image = "hello".into();
    change(&mut request.config, &mut request.host_config);
    request
}

#[test]
fn a_container_lives_across_engines() {
    let Some(world) = World::new() else { return };
    let id = world.run(async |engine| {
        let mut events = engine.events().subscribe(EventsOptions::default());
        let made = engine
            .container_create(
                Some("first"),
                None,
                request(|config, host| {
                    config.env = vec!["A=1".into()];
                    host.binds = vec!["data:/data".into()];
                    host.resources.memory = 64 << 20;
                }),
            )
            .await
            .unwrap();
        let taken = engine
            .container_create(Some("first"), None, request(|_, _| {}))
            .await
            .unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Conflict);
        let missing = engine
            .container_create(None, None, request(|config, _| config.image = "none".into()))
            .await;
        assert_eq!(missing.unwrap_err().message(), "No such image: none:latest");
        engine.container_rename("first", "second").await.unwrap();
        let used = engine.volume_remove("data", false).await.unwrap_err();
        assert!(used.message().contains("volume is in use"), "{used}");
        let mut actions = Vec::new();
        while let Ok(event) = events.try_recv() {
            actions.push(format!("{} {}", event.kind, event.action));
        }
        assert_eq!(actions, ["volume create", "container create", "container rename"]);
        made.id
    });
    // Another engine on the same root finds it as it was.
    world.run(async |engine| {
        let inspect = engine.container_inspect(&id[..8], true).await.unwrap();
        assert_eq!(
            (inspect.id.as_str(), inspect.name.as_str()),
            (id.as_str(), "/second")
        );
        assert_eq!(inspect.path, "/hello");
        assert!(inspect.config.env.contains(&"A=1".to_owned()));
        assert!(
            inspect.config.env.iter().any(|pair| pair.starts_with("PATH=")),
            "the image's environment is missing"
        );
        assert_eq!(inspect.host_config.resources.memory_swap, 128 << 20);
        assert_eq!(inspect.state.status, "created");
        let all = ListOptions {
            all: true,
            ..ListOptions::default()
        };
        assert_eq!(engine.container_list(all.clone()).await.unwrap().len(), 1);
        assert!(
            engine
                .container_list(ListOptions::default())
                .await
                .unwrap()
                .is_empty()
        );
        engine
            .container_remove("second", RemoveOptions::default())
            .await
            .unwrap();
        assert!(engine.container_list(all).await.unwrap().is_empty());
        engine.volume_remove("data", false).await.unwrap();
    });
    let left: Vec<_> = std::fs::read_dir(world.directory.path().join("root/containers"))
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

/// What was written of a container is written again only as long as it is true.
#[test]
fn the_list_as_text_is_the_list() {
    let Some(world) = World::new() else { return };
    world.run(async |engine| {
        let all = || ListOptions {
            all: true,
            ..ListOptions::default()
        };
        let listed = async || -> Vec<serde_json::Value> {
            let list = engine.container_list(all()).await.unwrap();
            // Once more, of what was kept the first time.
            let mut texts = Vec::new();
            for _ in 0..2 {
                texts.push(engine.container_list_json(all()).await.unwrap());
            }
            assert_eq!(texts[0], texts[1]);
            assert_eq!(texts[0], serde_json::to_vec(&list).unwrap());
            serde_json::from_slice(&texts[0]).unwrap()
        };
        assert!(listed().await.is_empty());
        for name in ["one", "two"] {
            let asked = request(|config, host| {
                // Nothing that stands in it is taken for its place of the state.
                config.labels.insert("Status".into(), "\"Status\":\"\"".into());
                config.labels.insert("é\n".into(), String::new());
                config.image = "hello:latest".into();
                host.network_mode = "later".into();
            });
            engine.container_create(Some(name), None, asked).await.unwrap();
        }
        let before = listed().await;
        assert_eq!(before[0]["Status"], "Created");
        assert_eq!(before[0]["Labels"]["Status"], "\"Status\":\"\"");
        assert_eq!(
            (&before[0]["Names"][0], &before[1]["Names"][0]),
            (&"/two".into(), &"/one".into())
        );
        let network =
            |of: &serde_json::Value| of["NetworkSettings"]["Networks"]["later"]["NetworkID"].clone();
        assert_eq!(network(&before[0]), "");

        engine.container_rename("two", "three").await.unwrap();
        assert_eq!(listed().await[0]["Names"][0], "/three");
        let asked = vessel_api::NetworkCreateRequest {
            name: "later".into(),
            ..Default::default()
        };
        let made = engine.network_create(asked).await.unwrap();
        assert_eq!(network(&listed().await[0]), made.id.as_str());
        engine.network_remove("later").await.unwrap();
        assert_eq!(network(&listed().await[1]), "");
        // The name means another image now.
        let other = ImportOptions {
            repository: "hello".into(),
            ..ImportOptions::default()
        };
        let empty = vec![0; 1024];
        engine
            .image_import(std::io::Cursor::new(empty), other, Progress::silent())
            .await
            .unwrap();
        let image = listed().await[0].clone();
        assert_eq!(image["Image"], image["ImageID"]);

        let some = |key: &str, value: &str| {
            let mut filters = Filters::default();
            filters.add(key, value);
            ListOptions { filters, ..all() }
        };
        let count = async |options: ListOptions| {
            let text = engine.container_list_json(options).await.unwrap();
            serde_json::from_slice::<Vec<serde_json::Value>>(&text)
                .unwrap()
                .len()
        };
        assert_eq!(count(some("name", "one")).await, 1);
        assert_eq!(count(some("status", "running")).await, 0);
        assert_eq!(count(ListOptions::default()).await, 0);
        let newest = ListOptions {
            limit: Some(1),
            ..ListOptions::default()
        };
        assert_eq!(count(newest).await, 1);
        for name in ["one", "three"] {
            engine
                .container_remove(name, RemoveOptions::default())
                .await
                .unwrap();
        }
        assert!(listed().await.is_empty());
    });
}

#[test]
fn what_nobody_owns_is_removed_and_anonymous_volumes_go_with_their_container() {
    let Some(world) = World::new() else { return };
    let stray = world
        .directory
        .path()
        .join("root/containers")
        .join("0".repeat(64));
    std::fs::create_dir_all(stray.join("upper/etc")).unwrap();
    world.run(async |engine| {
        assert!(!stray.exists(), "a directory without a container stays");
        let volumes = async || {
            engine
                .volume_list(&Filters::default())
                .await
                .unwrap()
                .volumes
                .len()
        };
        engine
            .volume_create(VolumeCreateRequest {
                name: "kept".into(),
                ..Default::default()
            })
            .await
            .unwrap();
        let made = engine
            .container_create(
                None,
                None,
                request(|config, _| {
                    config.volumes.insert("/cache".into(), vessel_api::Empty {});
                }),
            )
            .await
            .unwrap();
        assert_eq!(volumes().await, 2);
        let options = RemoveOptions {
            volumes: true,
            ..RemoveOptions::default()
        };
        let other = request(|_, host| host.volumes_from = vec![made.id.clone()]);
        let other = engine.container_create(None, None, other).await.unwrap();
        engine
            .container_remove(&other.id, RemoveOptions::default())
            .await
            .unwrap();
        assert_eq!(volumes().await, 2);
        engine.container_remove(&made.id, options).await.unwrap();
        assert_eq!(volumes().await, 1);
        let refused = engine
            .container_create(None, None, request(|_, host| host.resources.memory = 1))
            .await
            .unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Invalid);
        let bad_mount = engine
            .container_create(
                None,
                None,
                request(|_, host| host.binds = vec!["relative/path:/x".into()]),
            )
            .await
            .unwrap_err();
        assert_eq!(bad_mount.kind(), ErrorKind::Invalid);
        assert!(
            engine.containers().is_empty(),
            "a creation that was refused left a container"
        );
    });
}

#[test]
fn a_second_engine_on_the_root_is_refused() {
    let Some(world) = World::new() else { return };
    world.run(async |_engine| {
        let error = Engine::open(config(world.directory.path())).await.unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Conflict);
        assert!(error.message().contains("in use by another"), "{error}");
    });
}

/// A daemon that is killed while it loads, and a load that fails late, leave layers that no image has: they go, and what
/// a load that is under way has stored stays.
#[test]
fn layers_of_no_image_are_collected() {
    let Some(world) = World::new() else { return };
    let root = world.directory.path().join("root");
    let stored = || {
        let count = |directory: &str| std::fs::read_dir(root.join(directory)).unwrap().count();
        (count("layers"), count("blobs/sha256"))
    };
    let leave = |content: &vessel_image::Store| {
        let archive = vessel_init::hello_archive();
        vessel_image::load(content, archive.as_slice(), &Default::default(), &mut |_| {}).unwrap()
    };
    // As after a kill: nothing is recorded.
    std::fs::create_dir(&root).unwrap();
    drop(leave(&vessel_image::Store::open(&root).unwrap()));
    assert_eq!(stored(), (1, 1));
    world.run(async |_engine| {
        assert_eq!(stored(), (1, 1), "the start waited for it");
        let gone = async {
            while stored() != (0, 0) {
                tokio::time::sleep(std::time::Duration::from_millis(50)).await;
            }
        };
        tokio::time::timeout(std::time::Duration::from_secs(20), gone)
            .await
            .expect("the leftovers of a killed daemon stay");
    });
    world.run(async |engine| {
        let fail = async || {
            let refused = engine
                .image_load(&b"junk"[..], true, None, Progress::silent())
                .await;
            assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
        };
        let under_way = leave(engine.images().content());
        fail().await;
        assert_eq!(stored(), (1, 1), "a load under way lost its layers");
        drop(under_way);
        fail().await;
        assert_eq!(stored(), (0, 0));
        drop(leave(engine.images().content()));
        let refused = engine
            .image_import(&b"junk"[..], ImportOptions::default(), Progress::silent())
            .await;
        assert_eq!(refused.unwrap_err().kind(), ErrorKind::Invalid);
        assert_eq!(stored(), (0, 0));
        drop(leave(engine.images().content()));
        let report = engine.image_prune(&Filters::default()).await.unwrap();
        assert_eq!((stored(), report.images_deleted.len()), ((0, 0), 1));
    });
}

/// Containers are made from an image while it is removed, again and again: either there is no container, or it has its
/// image and all its layers.
#[test]
fn an_image_is_not_removed_while_a_container_is_made_from_it() {
    let Some(world) = World::new() else { return };
    let layers = world.directory.path().join("root");
    world.run(async |engine| {
        let (mut made, mut removed) = (0, 0);
        for round in 0..200_u64 {
            // The image is loaded by the first look-up that misses it.
            let id = engine.image("hello").await.unwrap().id.clone();
            let creator = Arc::clone(&engine);
            let create = tokio::spawn(async move {
                // Now the one is first, now the other. Less than tokio's clock can tell.
                std::thread::sleep(std::time::Duration::from_micros(round % 2 * 100));
                creator
                    .container_create(
                        None,
                        None,
                        request(|config, _| {
                            config.image = id;
                            // The wider the window, the better.
                            config.volumes.insert("/made".into(), vessel_api::Empty {});
                        }),
                    )
                    .await
            });
            let remover = Arc::clone(&engine);
            let remove = tokio::spawn(async move {
                std::thread::sleep(std::time::Duration::from_micros((round + 1) % 2 * round * 5));
                remover.image_remove("hello", false, true).await
            });
            let (create, remove) = (create.await.unwrap(), remove.await.unwrap());
            removed += u32::from(remove.is_ok_and(|items| items.iter().any(|item| !item.deleted.is_empty())));
            let Ok(container) = create else { continue };
            made += 1;
            let inspect = engine.container_inspect(&container.id, false).await.unwrap();
            engine.image_inspect(&inspect.image).await.unwrap();
            for layer in inspect.graph_driver.data["LowerDir"].split(':') {
                assert!(
                    std::path::Path::new(layer).exists(),
                    "{layer} is gone, below {}",
                    layers.display()
                );
            }
            let options = RemoveOptions {
                volumes: true,
                ..RemoveOptions::default()
            };
            engine.container_remove(&container.id, options).await.unwrap();
        }
        assert!(
            made > 0 && removed > 0,
            "{made} made, {removed} removed: nothing was tried"
        );
    });
}

#[test]
fn nobody_else_gets_to_what_containers_made() {
    use std::os::unix::fs::PermissionsExt;
    let Some(world) = World::new() else { return };
    world.run(async |engine| {
        let request = VolumeCreateRequest {
            name: "data".into(),
            ..VolumeCreateRequest::default()
        };
        engine.volume_create(request).await.unwrap();
    });
    for directory in [
        "root",
        "root/containers",
        "root/volumes",
        "root/volumes/data",
        "run/shims",
    ] {
        let mode = std::fs::metadata(world.directory.path().join(directory))
            .unwrap()
            .permissions()
            .mode();
        assert_eq!(mode & 0o077, 0, "{directory}: {mode:o}");
    }
}

#[test]
fn words_mean_the_same_image_to_every_operation() {
    let Some(world) = World::new() else { return };
    world.run(async |engine| {
        let id = engine.image("hello").await.unwrap().id.clone();
        for words in ["hello", "hello:latest", &id, &id[7..], &id[7..15]] {
            assert_eq!(engine.image(words).await.unwrap().id, id, "{words}");
            assert_eq!(engine.image_inspect(words).await.unwrap().id, id, "{words}");
        }
        // An image's ID is not the digest of its manifest.
        for words in [&*format!("hello@{id}"), "hello:other", "HELLO", "feedfeed"] {
            let one = engine.image(words).await.unwrap_err();
            let other = engine.image_inspect(words).await.unwrap_err();
            assert_eq!((one.kind(), one.message()), (other.kind(), other.message()));
        }
    });
}

/// Who waited for a removal to be over must not bring back what was removed.
#[test]
fn what_is_removed_stays_removed() {
    let Some(world) = World::new() else { return };
    world.run(async |engine| {
        for round in 0..4 {
            let name = format!("c{round}");
            let made = engine
                .container_create(Some(&name), None, request(|_, _| {}))
                .await
                .unwrap();
            let (remove, id) = (RemoveOptions::default(), made.id.as_str());
            let refused = match round {
                0 => {
                    let (removed, other) = tokio::join!(
                        engine.container_remove(id, remove),
                        engine.container_rename(id, "other")
                    );
                    removed.unwrap();
                    other.unwrap_err()
                }
                1 => {
                    let update = engine.container_update(id, Default::default());
                    let (removed, other) = tokio::join!(engine.container_remove(id, remove), update);
                    removed.unwrap();
                    other.unwrap_err()
                }
                2 => {
                    let restart = engine.container_restart(id, Default::default());
                    let (removed, other) = tokio::join!(engine.container_remove(id, remove), restart);
                    removed.unwrap();
                    other.unwrap_err()
                }
                _ => {
                    let start = engine.container_start(id);
                    let (removed, other) = tokio::join!(engine.container_remove(id, remove), start);
                    removed.unwrap();
                    other.unwrap_err()
                }
            };
            assert_eq!(refused.kind(), ErrorKind::NotFound, "{round}: {refused}");
        }
        assert!(engine.containers().is_empty());
    });
    world.run(async |engine| assert!(engine.containers().is_empty(), "a ghost"));
}

#[test]
fn an_interrupted_removal_is_finished_as_it_was_asked_for() {
    let Some(world) = World::new() else { return };
    let volumes = async |engine: &Engine| {
        engine
            .volume_list(&Filters::default())
            .await
            .unwrap()
            .volumes
            .len()
    };
    world.run(async |engine| {
        for volumes in [true, false] {
            let made = engine.container_create(
                None,
                None,
                request(|config, _| {
                    config.volumes.insert("/data".into(), vessel_api::Empty {});
                }),
            );
            let made = made.await.unwrap();
            let options = RemoveOptions {
                volumes,
                ..RemoveOptions::default()
            };
            // It is polled once, which is enough to begin.
            let mut remove = std::pin::pin!(engine.container_remove(&made.id, options));
            let begun =
                std::future::poll_fn(|context| std::task::Poll::Ready(remove.as_mut().poll(context))).await;
            assert!(begun.is_pending(), "not interrupted");
        }
        assert_eq!(volumes(&engine).await, 2);
        assert_eq!(engine.containers().len(), 2);
    });
    world.run(async |engine| {
        assert!(engine.containers().is_empty());
        assert_eq!(
            volumes(&engine).await,
            1,
            "what is kept without -v, and only that"
        );
    });
}

#[test]
fn a_volume_that_came_into_use_is_not_pruned() {
    let Some(world) = World::new() else { return };
    let data = world.directory.path().join("root/volumes/busy/_data");
    world.run(async |engine| {
        let volume = VolumeCreateRequest {
            name: "busy".into(),
            ..VolumeCreateRequest::default()
        };
        engine.volume_create(volume).await.unwrap();
        engine.image("hello").await.unwrap();
        // Its size takes a while to find out.
        for number in 0..20_000 {
            std::fs::write(data.join(number.to_string()), "").unwrap();
        }
        let all = Filters::parse(r#"{"all":["true"]}"#).unwrap();
        let create = engine.container_create(
            None,
            None,
            request(|_, host| host.binds = vec!["busy:/data".into()]),
        );
        let prune = engine.volume_prune(&all);
        let (pruned, made) = tokio::join!(prune, async {
            let made = create.await;
            (made, data.join("0").exists())
        });
        pruned.unwrap();
        made.0.unwrap();
        assert!(made.1, "the prune was too fast for this test");
        assert!(data.join("0").exists(), "the volume of a container was pruned");
        assert!(engine.volume_inspect("busy").await.is_ok());
    });
}

#[test]
fn nothing_begins_while_files_are_copied_into_a_container() {
    struct Slow {
        input: std::io::PipeReader,
        begun: Option<tokio::sync::oneshot::Sender<()>>,
    }
    impl std::io::Read for Slow {
        fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
            if let Some(begun) = self.begun.take() {
                let _ = begun.send(());
            }
            self.input.read(buffer)
        }
    }
    let Some(world) = World::new() else { return };
    world.run(async |engine| {
        engine
            .container_create(Some("target"), None, request(|_, _| {}))
            .await
            .unwrap();
        let (input, output) = std::io::pipe().unwrap();
        let (begun, begins) = tokio::sync::oneshot::channel();
        let copier = Arc::clone(&engine);
        let copy = tokio::spawn(async move {
            let input = Slow {
                input,
                begun: Some(begun),
            };
            copier
                .container_extract("target", "/", Default::default(), input)
                .await
        });
        begins.await.unwrap();
        let mut remove = std::pin::pin!(engine.container_remove("target", RemoveOptions::default()));
        let early = tokio::time::timeout(std::time::Duration::from_millis(300), &mut remove).await;
        assert!(early.is_err(), "removed while files are copied into it");
        drop(output);
        let _ = copy.await.unwrap();
        remove.await.unwrap();
    });
}

#[test]
fn a_container_that_could_not_be_removed_is_not_restarted() {
    let Some(world) = World::new() else { return };
    world.run(async |engine| {
        let made = engine
            .container_create(None, None, request(|_, _| {}))
            .await
            .unwrap();
        let busy = world
            .directory
            .path()
            .join("root/containers")
            .join(&made.id)
            .join("upper/busy");
        std::fs::create_dir(&busy).unwrap();
        rustix::mount::mount("none", &busy, "tmpfs", rustix::mount::MountFlags::empty(), None).unwrap();
        let failed = engine.container_remove(&made.id, RemoveOptions::default()).await;
        let status = engine
            .container_inspect(&made.id, false)
            .await
            .unwrap()
            .state
            .status;
        let restart = engine.container_restart(&made.id, Default::default()).await;
        rustix::mount::unmount(&busy, rustix::mount::UnmountFlags::DETACH).unwrap();
        assert!(failed.is_err());
        assert_eq!(status, "dead");
        let restart = restart.unwrap_err();
        assert_eq!(restart.kind(), ErrorKind::Conflict, "{restart}");
        assert!(restart.message().contains("dead"), "{restart}");
        engine
            .container_remove(&made.id, RemoveOptions::default())
            .await
            .unwrap();
    });
}
