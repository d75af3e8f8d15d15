//! Builds under way, by the reference their client chose: what they told so far, and what their gateway asked for.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{Notify, mpsc, watch};
use tonic::Status;
use vessel_build::progress::Event;
use vessel_build::request::{BuildRequest, BuildResult};
use vessel_build::session::Session;
use vessel_build::{Builder, Error, ErrorKind};

use super::sessions::Connected;
use crate::body::BodyReader;

/// A client asks how a build gets on before it begins, or when it is over already.
const PATIENCE: Duration = Duration::from_secs(10);
/// Events that wait for a client that asks how the build gets on; a client that asks and does not listen slows it.
const LISTENED: usize = 1024;
/// Events that wait for a client that never asked. Output beyond them is lost.
const UNHEARD: usize = 8192;
/// Bytes of output that wait for a client, whether it listens or not.
const WAITING: usize = 4 << 20;
/// Bytes in one message: clients take no more than 16 MiB.
const MESSAGE: usize = 1 << 20;
/// Builds at most.
const MAX_JOBS: usize = 1024;

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What a build tells, on its way to the client.
#[derive(Debug, Default)]
struct Told {
    events: VecDeque<Event>,
    /// Bytes of output and of warnings among them.
    bytes: usize,
    listeners: usize,
    ended: bool,
}

impl Told {
    fn push(&mut self, event: Event) {
        self.bytes += size(&event);
        self.events.push_back(event);
    }

    /// As many as one message holds.
    fn take(&mut self) -> Vec<Event> {
        let mut bytes = 0;
        let fits = |event: &&Event| {
            let before = bytes;
            bytes += size(event);
            before == 0 || bytes <= MESSAGE
        };
        let count = self.events.iter().take_while(fits).count();
        let taken: Vec<Event> = self.events.drain(..count).collect();
        self.bytes -= taken.iter().map(size).sum::<usize>();
        taken
    }
}

/// What an event holds of a process' output, or says in a warning.
fn size(event: &Event) -> usize {
    match event {
        Event::Log(log) => log.data.len(),
        Event::Warning(warning) => warning.short.len() + warning.text.as_deref().map_or(0, <[u8]>::len),
        _ => 0,
    }
}

/// One build.
#[derive(Debug)]
pub struct Job {
    told: Mutex<Told>,
    /// Something was told, or it ended.
    more: Notify,
    /// Something was taken.
    room: Notify,
    /// The session of the client, for what its gateway builds before the build itself.
    client: watch::Sender<Option<Client>>,
    /// What the gateway asked for, by the references given for it.
    asked: Mutex<HashMap<String, Asked>>,
    /// What the gateway came to.
    returned: watch::Sender<Option<Result<Option<String>, Status>>>,
    /// Somebody wants it to end.
    cancelled: watch::Sender<bool>,
}

/// A build that the gateway asked for, and that is made when its result is needed.
#[derive(Debug, Clone)]
pub struct Asked {
    /// The front end.
    pub frontend: String,
    /// Its attributes.
    pub attributes: HashMap<String, String>,
}

/// Whose the gateway's builds are: the client's connection, and what it gives.
#[derive(Clone)]
pub struct Client {
    /// The connection; none for a client without.
    pub connected: Option<Arc<Connected>>,
    /// What it gives.
    pub session: Arc<dyn Session>,
}

impl std::fmt::Debug for Client {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Client")
            .field("connected", &self.connected.is_some())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Resolves when the client is gone.
    pub async fn gone(&self) {
        match &self.connected {
            Some(connected) => connected.closed().await,
            None => std::future::pending().await,
        }
    }
}

impl Job {
    fn new() -> Self {
        Self {
            told: Mutex::default(),
            more: Notify::new(),
            room: Notify::new(),
            client: watch::channel(None).0,
            asked: Mutex::default(),
            returned: watch::channel(None).0,
            cancelled: watch::channel(false).0,
        }
    }

    /// Tells an event, waiting for a client that listens and is slow.
    async fn tell(&self, event: Event) {
        loop {
            let room = self.room.notified();
            {
                let mut told = lock(&self.told);
                let output = size(&event);
                let fits = output == 0 || told.bytes == 0 || told.bytes + output <= WAITING;
                if told.listeners == 0 && (told.events.len() >= UNHEARD || !fits) {
                    if matches!(event, Event::Log(_) | Event::Status(_)) {
                        return;
                    }
                    told.push(event);
                    return;
                }
                if told.listeners == 0 || (told.events.len() < LISTENED && fits) {
                    told.push(event);
                    drop(told);
                    self.more.notify_waiters();
                    return;
                }
            }
            room.await;
        }
    }

    /// Passes what the builder tells on, until it has told everything.
    pub async fn follow(&self, mut events: mpsc::Receiver<Event>) {
        while let Some(event) = events.recv().await {
            self.tell(event).await;
        }
    }

    /// Nothing more will be told.
    fn end(&self) {
        lock(&self.told).ended = true;
        self.more.notify_waiters();
        self.room.notify_waiters();
        // A gateway that waits for nothing any more.
        self.returned.send_if_modified(|returned| {
            let open = returned.is_none();
            if open {
                *returned = Some(Err(Status::cancelled("the build ended")));
            }
            open
        });
    }

    /// What was told and not taken yet; none at the end.
    async fn next(&self) -> Option<Vec<Event>> {
        loop {
            let more = self.more.notified();
            tokio::pin!(more);
            more.as_mut().enable();
            {
                let mut told = lock(&self.told);
                if !told.events.is_empty() {
                    let events = told.take();
                    drop(told);
                    self.room.notify_waiters();
                    return Some(events);
                }
                if told.ended {
                    return None;
                }
            }
            more.await;
        }
    }

    /// What the client's gateway may build with.
    pub fn open_gateway(&self, client: Client) {
        self.client.send_replace(Some(client));
    }

    /// The gateway's client. Its calls may be here before the build has found the client's session: they wait.
    pub async fn client(&self) -> Option<Client> {
        let (mut opened, mut returned) = (self.client.subscribe(), self.returned.subscribe());
        let wait = async {
            tokio::select! {
                biased;
                opened = opened.wait_for(Option::is_some) => opened.ok()?.clone(),
                _ = returned.wait_for(Option::is_some) => None,
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok().flatten()
    }

    /// Keeps what the gateway asks for.
    pub fn ask(&self, asked: Asked) -> Result<String, Status> {
        let mut all = lock(&self.asked);
        if all.len() >= MAX_JOBS {
            return Err(Status::resource_exhausted(
                "the gateway asked for too many results",
            ));
        }
        let reference = format!("ref-{}", all.len());
        all.insert(reference.clone(), asked);
        Ok(reference)
    }

    /// What the gateway asked for under a reference.
    pub fn asked(&self, reference: &str) -> Option<Asked> {
        lock(&self.asked).get(reference).cloned()
    }

    /// The gateway is done, with the reference of its result or without.
    pub fn give_back(&self, result: Result<Option<String>, Status>) {
        self.returned.send_replace(Some(result));
    }

    /// Waits for the gateway to be done.
    pub async fn given_back(&self) -> Result<Option<String>, Status> {
        let mut returned = self.returned.subscribe();
        match returned.wait_for(Option::is_some).await {
            Ok(result) => result
                .clone()
                .unwrap_or_else(|| Err(Status::cancelled("the build ended"))),
            Err(_) => Err(Status::cancelled("the build ended")),
        }
    }

    /// Builds, and ends when the client's session does.
    pub async fn build(
        &self,
        builder: &Arc<Builder>,
        request: BuildRequest,
        client: Client,
    ) -> Result<BuildResult, Error> {
        let (progress, events) = vessel_build::progress::channel();
        let session = Arc::clone(&client.session);
        let mut cancelled = self.cancelled.subscribe();
        let build = async {
            tokio::select! {
                // On the heap: a build's state is large, and deep below what serves the connection.
                result = Box::pin(builder.build(request, session, progress)) => result,
                () = client.gone() => Err(Error::new(ErrorKind::Cancelled, "the client is gone")),
                _ = cancelled.wait_for(|cancelled| *cancelled) => {
                    Err(Error::new(ErrorKind::Cancelled, "the build was cancelled"))
                }
            }
        };
        let (result, ()) = tokio::join!(build, self.follow(events));
        result
    }
}

/// Takes what a build tells, as one of those who listen.
#[derive(Debug)]
pub struct Listener(Arc<Job>);

impl Listener {
    /// What was told since the last call; none at the end.
    pub async fn next(&self) -> Option<Vec<Event>> {
        self.0.next().await
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        lock(&self.0.told).listeners -= 1;
        self.0.room.notify_waiters();
    }
}

/// All builds.
#[derive(Debug, Default)]
pub struct Jobs {
    by_reference: Mutex<HashMap<String, Arc<Job>>>,
    came: Notify,
    /// Contexts that came with a request of their own, for builds that are about to begin.
    bodies: Mutex<HashMap<String, BodyReader>>,
}

impl Jobs {
    /// Begins a build.
    pub fn begin(self: &Arc<Self>, reference: &str) -> Result<Running, Status> {
        let job = Arc::new(Job::new());
        {
            let mut jobs = lock(&self.by_reference);
            if jobs.contains_key(reference) {
                return Err(Status::already_exists(format!(
                    "build {reference} already exists"
                )));
            }
            if jobs.len() >= MAX_JOBS {
                return Err(Status::resource_exhausted(format!(
                    "there are {MAX_JOBS} builds already: try again when some have ended"
                )));
            }
            jobs.insert(reference.to_owned(), Arc::clone(&job));
        }
        self.came.notify_waiters();
        Ok(Running {
            job,
            jobs: Arc::clone(self),
            reference: reference.to_owned(),
        })
    }

    /// The build of a reference, which may be about to begin.
    pub async fn get(&self, reference: &str) -> Option<Arc<Job>> {
        let wait = async {
            loop {
                let came = self.came.notified();
                tokio::pin!(came);
                came.as_mut().enable();
                if let Some(job) = lock(&self.by_reference).get(reference) {
                    return Arc::clone(job);
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok()
    }

    /// Keeps a context that came with a request of its own, for the build that asks for it.
    pub async fn give_body(&self, reference: &str, body: BodyReader) -> Result<(), Status> {
        {
            let mut bodies = lock(&self.bodies);
            if bodies.len() >= MAX_JOBS || bodies.contains_key(reference) {
                return Err(Status::already_exists(format!(
                    "build {reference} has a context already"
                )));
            }
            bodies.insert(reference.to_owned(), body);
        }
        self.came.notify_waiters();
        // Nobody may come for it.
        let gone = async {
            while lock(&self.bodies).contains_key(reference) {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        if tokio::time::timeout(PATIENCE, gone).await.is_err() {
            lock(&self.bodies).remove(reference);
            return Err(Status::not_found(format!(
                "no build {reference} asks for a context"
            )));
        }
        Ok(())
    }

    /// The context of a build that came with a request of its own, or is about to come.
    pub async fn take_body(&self, reference: &str) -> Option<BodyReader> {
        let wait = async {
            loop {
                let came = self.came.notified();
                tokio::pin!(came);
                came.as_mut().enable();
                if let Some(body) = lock(&self.bodies).remove(reference) {
                    return body;
                }
                came.await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.ok()
    }

    /// Ends a build, if there is such a one.
    pub fn cancel(&self, reference: &str) {
        if let Some(job) = lock(&self.by_reference).get(reference) {
            job.cancelled.send_replace(true);
        }
    }

    /// Listens to a build.
    pub async fn listen(&self, reference: &str) -> Option<Listener> {
        let job = self.get(reference).await?;
        lock(&job.told).listeners += 1;
        Some(Listener(job))
    }
}

/// A build that runs. Dropped, it has ended; who asks how it got on has some time left to do so.
#[derive(Debug)]
pub struct Running {
    /// The build.
    pub job: Arc<Job>,
    jobs: Arc<Jobs>,
    reference: String,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.job.end();
        let (jobs, reference) = (Arc::clone(&self.jobs), std::mem::take(&mut self.reference));
        let forget = async move {
            tokio::time::sleep(PATIENCE).await;
            lock(&jobs.by_reference).remove(&reference);
        };
        match tokio::runtime::Handle::try_current() {
            Ok(runtime) => drop(runtime.spawn(forget)),
            // The daemon ends.
            Err(_) => drop(forget),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use vessel_build::progress::Log;

    fn log(text: &str) -> Event {
        Event::Log(Log {
            vertex: vessel_image::Digest::sha256(b"x"),
            stream: 1,
            time: std::time::SystemTime::UNIX_EPOCH,
            data: text.as_bytes().to_vec(),
        })
    }

    #[tokio::test]
    async fn who_listens_late_misses_nothing() {
        let jobs = Arc::new(Jobs::default());
        let running = jobs.begin("a").unwrap();
        assert!(jobs.begin("a").is_err());
        running.job.tell(log("1")).await;
        running.job.tell(log("2")).await;
        drop(running);
        let listener = jobs.listen("a").await.unwrap();
        assert_eq!(listener.next().await.unwrap(), [log("1"), log("2")]);
        assert_eq!(listener.next().await, None);
    }

    #[tokio::test]
    async fn a_slow_listener_slows_the_build_and_a_gone_one_does_not() {
        let jobs = Arc::new(Jobs::default());
        let running = jobs.begin("a").unwrap();
        let listener = jobs.listen("a").await.unwrap();
        for _ in 0..LISTENED {
            running.job.tell(log("x")).await;
        }
        let full = running.job.tell(log("y"));
        tokio::pin!(full);
        let blocked = tokio::time::timeout(Duration::from_millis(50), full.as_mut()).await;
        assert!(blocked.is_err());
        drop(listener);
        tokio::time::timeout(Duration::from_secs(5), full).await.unwrap();
    }

    #[tokio::test]
    async fn output_nobody_asked_for_is_bounded() {
        let jobs = Arc::new(Jobs::default());
        let running = jobs.begin("a").unwrap();
        for _ in 0..UNHEARD + 100 {
            running.job.tell(log("x")).await;
        }
        assert_eq!(lock(&running.job.told).events.len(), UNHEARD);
        // By bytes, too: what a process writes comes in large pieces, and is taken in several messages.
        let running = jobs.begin("b").unwrap();
        let piece = "x".repeat(32 << 10);
        for _ in 0..1024 {
            running.job.tell(log(&piece)).await;
        }
        let waiting = {
            let events = &lock(&running.job.told).events;
            assert!(events.iter().map(size).sum::<usize>() <= WAITING && events.len() > 100);
            events.len()
        };
        drop(running);
        let listener = jobs.listen("b").await.unwrap();
        let mut taken = 0;
        while let Some(events) = listener.next().await {
            assert!(events.iter().map(size).sum::<usize>() <= MESSAGE);
            taken += events.len();
        }
        assert_eq!(taken, waiting);
    }

    #[tokio::test]
    async fn a_context_finds_its_build() {
        let jobs = Arc::new(Jobs::default());
        let (_, receiver) = mpsc::channel(1);
        let (given, taken) = tokio::join!(jobs.give_body("a", BodyReader::of(receiver)), jobs.take_body("a"));
        assert!(given.is_ok() && taken.is_some());
    }

    #[tokio::test]
    async fn a_gateway_is_waited_for_until_the_build_ends() {
        let jobs = Arc::new(Jobs::default());
        let running = jobs.begin("a").unwrap();
        let job = Arc::clone(&running.job);
        job.give_back(Ok(Some("ref-0".into())));
        assert_eq!(job.given_back().await.unwrap().as_deref(), Some("ref-0"));
        let other = jobs.begin("b").unwrap();
        let job = Arc::clone(&other.job);
        drop(other);
        assert!(job.given_back().await.is_err());
    }

    #[tokio::test]
    async fn a_call_of_a_gateway_waits_until_it_is_open() {
        let jobs = Arc::new(Jobs::default());
        let running = jobs.begin("a").unwrap();
        let client = Client {
            connected: None,
            session: Arc::new(vessel_build::session::NoSession),
        };
        let opens = async {
            tokio::task::yield_now().await;
            running.job.open_gateway(client);
        };
        let (found, ()) = tokio::join!(running.job.client(), opens);
        assert!(found.is_some());
        // A build that ended without one keeps nobody waiting.
        let other = jobs.begin("b").unwrap();
        let job = Arc::clone(&other.job);
        drop(other);
        let found = tokio::time::timeout(Duration::from_secs(5), job.client())
            .await
            .unwrap();
        assert!(found.is_none());
    }
}
