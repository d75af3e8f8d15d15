//! An engine of its own for each case.

use std::path::Path;
use std::sync::{Arc, Mutex};

use vessel_build::progress::{Event, channel};
use vessel_build::request::{BuildRequest, BuildResult, DockerfileSource, Output, Source};
use vessel_build::session::{NoSession, Session};
use vessel_engine::images::{ImportOptions, Progress};
use vessel_engine::{Engine, EngineConfig};

#[allow(
    clippy::print_stderr,
    reason = "a test that has no harness says itself what it did"
)]
pub fn report(why: &str) {
    eprintln!("{why}");
}

/// Where a case's engine lives.
pub struct World {
    pub directory: tempfile::TempDir,
}

/// What a build gave and told.
pub struct Built {
    pub result: vessel_build::Result<BuildResult>,
    pub events: Vec<Event>,
}

impl Built {
    pub fn id(&self) -> String {
        match &self.result {
            Ok(result) => result.images[0].id.to_string(),
            Err(error) => panic!("{error}; output:\n{}", self.output()),
        }
    }

    pub fn config(&self) -> vessel_image::ImageConfig {
        vessel_image::ImageConfig::parse(&self.result.as_ref().unwrap().images[0].config).unwrap()
    }

    pub fn error(&self) -> String {
        match &self.result {
            Err(error) => error.to_string(),
            Ok(_) => panic!("the build should have failed"),
        }
    }

    /// All output of all steps.
    pub fn output(&self) -> String {
        let mut all = Vec::new();
        for event in &self.events {
            if let Event::Log(log) = event {
                all.extend_from_slice(&log.data);
            }
        }
        String::from_utf8_lossy(&all).into_owned()
    }

    /// How many steps that make layers were cached, and how many were made.
    pub fn cached(&self) -> (usize, usize) {
        let done = self.events.iter().filter_map(|event| match event {
            Event::Vertex(vertex) if vertex.step.is_some() && vertex.completed.is_some() => Some(vertex),
            _ => None,
        });
        let (cached, made): (Vec<_>, Vec<_>) = done
            .filter(|vertex| !vertex.name.contains("FROM"))
            .partition(|vertex| vertex.cached);
        (cached.len(), made.len())
    }
}

impl World {
    pub fn new() -> Self {
        Self {
            directory: tempfile::tempdir().unwrap(),
        }
    }

    pub fn path(&self) -> &Path {
        self.directory.path()
    }

    /// Writes a file of the context.
    pub fn write(&self, name: &str, content: impl AsRef<[u8]>) {
        let path = self.context().join(name);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, content).unwrap();
    }

    pub fn context(&self) -> std::path::PathBuf {
        self.path().join("context")
    }

    /// Runs a case with an engine in a network namespace that ends afterwards. It has the image `base`: busybox.
    pub fn run<T: Send>(&self, work: impl AsyncFnOnce(Arc<Engine>) -> T + Send) -> T {
        std::fs::create_dir_all(self.context()).unwrap();
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
                    let engine = Engine::open(config(self.path())).await.unwrap();
                    import_base(&engine).await;
                    let result = work(Arc::clone(&engine)).await;
                    engine.shutdown().await;
                    remove_cgroups();
                    result
                })
            });
            thread.join().unwrap()
        })
    }

    /// A request for a Dockerfile over the context, stored as `result`.
    pub fn request(&self, dockerfile: &str) -> BuildRequest {
        BuildRequest {
            dockerfile: DockerfileSource::Inline(dockerfile.as_bytes().to_vec()),
            context: Source::Directory(self.context()),
            outputs: vec![Output::Image {
                names: vec!["result".to_owned()],
                store: true,
                push: false,
                style: Default::default(),
            }],
            ..BuildRequest::default()
        }
    }

    pub async fn build(&self, engine: &Arc<Engine>, dockerfile: &str) -> Built {
        build(engine, self.request(dockerfile), Arc::new(NoSession)).await
    }
}

pub async fn build(engine: &Arc<Engine>, request: BuildRequest, session: Arc<dyn Session>) -> Built {
    let (progress, mut receiver) = channel();
    let events = Arc::new(Mutex::new(Vec::new()));
    let kept = Arc::clone(&events);
    let reader = tokio::spawn(async move {
        while let Some(event) = receiver.recv().await {
            kept.lock().unwrap().push(event);
        }
    });
    let result = engine.builder().unwrap().build(request, session, progress).await;
    reader.await.unwrap();
    let events = std::mem::take(&mut *events.lock().unwrap());
    Built { result, events }
}

fn config(directory: &Path) -> EngineConfig {
    EngineConfig {
        root: directory.join("root"),
        run: directory.join("run"),
        bridge: "vesselbuild0".into(),
        bridge_address: None,
        bridge_v6: None,
        ports_behind_input: false,
        cgroup_parent: format!("/{}", cgroup_name()),
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

async fn import_base(engine: &Arc<Engine>) {
    if engine
        .images()
        .tags()
        .iter()
        .any(|(name, _)| name == "base:latest")
    {
        return;
    }
    let busybox = std::fs::read("/bin/busybox").expect("these tests need a static busybox at /bin/busybox");
    let mut tar = tar::Builder::new(Vec::new());
    let mut file = |name: &str, content: &[u8], mode: u32| {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(mode);
        header.set_mtime(1_000_000_000);
        tar.append_data(&mut header, name, content).unwrap();
    };
    file("bin/busybox", &busybox, 0o755);
    file(
        "etc/passwd",
        b"root:x:0:0::/:/bin/sh\nweb:x:33:44::/:/bin/sh\n",
        0o644,
    );
    file("etc/group", b"root:x:0:\nweb:x:44:\n", 0o644);
    for name in [
        "sh", "cat", "echo", "ls", "stat", "mkdir", "rm", "touch", "sleep", "id", "env", "test", "true",
        "false", "ip", "find", "chmod", "mount", "md5sum", "cp", "mv", "date", "hostname",
    ] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        tar.append_link(&mut header, format!("bin/{name}"), "busybox")
            .unwrap();
    }
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_size(0);
    header.set_mode(0o1777);
    header.set_mtime(1_000_000_000);
    tar.append_data(&mut header, "tmp/", &[][..]).unwrap();
    let archive = tar.into_inner().unwrap();
    let options = ImportOptions {
        repository: "base".into(),
        ..ImportOptions::default()
    };
    engine
        .image_import(std::io::Cursor::new(archive), options, Progress::silent())
        .await
        .unwrap();
}

fn cgroup_name() -> String {
    format!("vessel-build-test-{}", std::process::id())
}

/// The engine leaves the parent it was given; by now it must be empty.
fn remove_cgroups() {
    let top = Path::new("/sys/fs/cgroup");
    let hierarchies = std::fs::read_dir(top)
        .unwrap()
        .flatten()
        .map(|entry| entry.path());
    for hierarchy in hierarchies.chain([top.to_owned()]) {
        let group = hierarchy.join(cgroup_name());
        if group.is_dir() {
            std::fs::remove_dir(&group).unwrap_or_else(|error| panic!("{}: {error}", group.display()));
        }
    }
}
