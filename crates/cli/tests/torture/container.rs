//! What is known of a container, and whether what the daemon says of it can be true.

use std::time::Instant;

/// What runs in it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Program {
    /// Sleeps, deaf to SIGTERM as every first process without a handler.
    Sleeps,
    /// Serves its files on port 8080.
    Serves,
    /// Ends with 3 at SIGTERM.
    Obeys,
    /// Ends by itself, soon.
    Ends { code: i32, millis: u64 },
    /// Fails at once and is restarted twice.
    Fails,
}

impl Program {
    pub fn command(self) -> Vec<String> {
        let shell = |script: &str| ["sh", "-c", script].map(str::to_owned).to_vec();
        match self {
            Self::Sleeps => vec!["sleep".into(), "100000".into()],
            Self::Serves => ["httpd", "-f", "-p", "8080", "-h", "/"]
                .map(str::to_owned)
                .to_vec(),
            Self::Obeys => shell("trap 'exit 3' TERM; echo ready; while :; do sleep 0.1; done"),
            Self::Ends { code, millis } => shell(&format!(
                "echo begin; sleep {}.{:03}; echo end; exit {code}",
                millis / 1000,
                millis % 1000
            )),
            Self::Fails => shell("echo run; exit 1"),
        }
    }

    /// Whether it runs until somebody ends it.
    pub fn stays(self) -> bool {
        matches!(self, Self::Sleeps | Self::Serves | Self::Obeys)
    }
}

/// Where it must be in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    Created,
    /// Process 0: not yet known.
    Running {
        pid: i32,
    },
    Paused {
        pid: i32,
    },
    /// With one of these codes.
    Ended(Vec<i32>),
    /// An operation on it was cut short.
    Unknown,
}

#[derive(Debug, Clone)]
pub struct Container {
    /// The name, or what it may be.
    pub names: Vec<String>,
    pub id: Option<String>,
    pub program: Program,
    /// Whether it is restarted until somebody stops it.
    pub restarts: bool,
    /// Whether it must exist. Otherwise its creation or removal was cut short.
    pub sure: bool,
    pub state: State,
    /// Wounds since then explain its end.
    pub since: Instant,
    pub pids: Option<u64>,
    /// How often it was started.
    pub runs: u32,
}

/// What `inspect` says.
#[derive(Debug, Clone)]
pub struct Seen {
    pub id: String,
    pub name: String,
    pub status: String,
    pub pid: i32,
    pub code: i32,
    pub restarts: u32,
    pub pids: String,
}

impl Seen {
    pub const TEMPLATE: &str = "{{.Id}} {{.Name}} {{.State.Status}} {{.State.Pid}} {{.State.ExitCode}} {{.RestartCount}} {{.HostConfig.PidsLimit}}";

    pub fn parse(line: &str) -> Option<Self> {
        let mut words = line.split_whitespace();
        Some(Self {
            id: words.next()?.to_owned(),
            name: words.next()?.trim_start_matches('/').to_owned(),
            status: words.next()?.to_owned(),
            pid: words.next()?.parse().ok()?,
            code: words.next()?.parse().ok()?,
            restarts: words.next()?.parse().ok()?,
            pids: words.next()?.to_owned(),
        })
    }
}

impl Container {
    pub fn address(&self) -> &str {
        self.id.as_deref().unwrap_or(&self.names[0])
    }

    /// Compares with what is seen, and takes that over. `wounded`: its shim or its first process was killed; `settled`:
    /// nothing happens any more.
    pub fn judge(&mut self, seen: &Seen, wounded: bool, settled: bool) -> Result<(), String> {
        let wrong = |what: &str| Err(format!("{what}: {seen:?}, must be {self:?} (wounded: {wounded})"));
        if self.id.as_ref().is_some_and(|id| *id != seen.id) {
            return wrong("another ID");
        }
        if !self.names.contains(&seen.name) {
            return wrong("another name");
        }
        if self.pids.is_some_and(|pids| seen.pids != pids.to_string()) {
            return wrong("an update was lost");
        }
        let status = seen.status.as_str();
        let again = self.restarts || self.program == Program::Fails;
        match status {
            "created" | "running" | "paused" | "exited" => {}
            "restarting" if again && !settled => return Ok(()),
            "removing" if !self.sure && !settled => return Ok(()),
            _ => return wrong("no such state is possible"),
        }
        let ended_by = |codes: &[i32]| status == "exited" && codes.contains(&seen.code);
        let goes_on = |pid: i32| pid == 0 || pid == seen.pid;
        let fits = match &self.state {
            State::Unknown => true,
            State::Created => status == "created",
            // 128: it was stopped while its policy restarted it, and that was killed before the program began.
            State::Ended(codes) => ended_by(codes) || wounded && self.restarts && ended_by(&[128]),
            State::Paused { pid } => {
                status == "paused" && goes_on(*pid) || wounded && (self.restarts || ended_by(&[137]))
            }
            State::Running { pid } => match self.program {
                _ if status == "running" && goes_on(*pid) && (!settled || self.program.stays()) => true,
                // 128: the last run was ended before it began.
                Program::Fails => !settled || ended_by(&[1]) || wounded && ended_by(&[137, 128]),
                Program::Ends { code, .. } => ended_by(&[code]) || wounded && ended_by(&[137]),
                _ if self.restarts => wounded && (status == "running" || !settled),
                _ => wounded && ended_by(&[137]),
            },
        };
        if !fits {
            return wrong("another state");
        }
        if settled && self.program == Program::Fails && matches!(self.state, State::Running { .. }) {
            // A count is written before its run: a daemon that dies between costs a run, never adds one.
            if seen.restarts > 2 {
                return wrong("too many restarts");
            }
        }
        let between_runs = again && !settled && status == "exited";
        self.state = match status {
            // What was cut short may still be under way.
            _ if self.state == State::Unknown && !settled => State::Unknown,
            _ if between_runs || self.program == Program::Fails && !settled => {
                return self.take(seen, settled);
            }
            "created" => State::Created,
            "running" => State::Running { pid: seen.pid },
            "paused" => State::Paused { pid: seen.pid },
            _ => State::Ended(vec![seen.code]),
        };
        self.take(seen, settled)
    }

    fn take(&mut self, seen: &Seen, settled: bool) -> Result<(), String> {
        self.id = Some(seen.id.clone());
        if settled {
            self.names = vec![seen.name.clone()];
            self.sure = true;
        }
        Ok(())
    }
}
