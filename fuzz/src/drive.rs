//! Runs targets on mutated seeds for a while: no coverage guides it, but it needs nothing but a stable compiler.
//!
//!     cargo run --release --bin drive -- SECONDS [TARGET...]
//!     cargo run --release --bin drive -- 10000000x [TARGET...]
//!
//! Each target has that many seconds, or with an `x` that many executions.
//!
//! What fails is written to `artifacts/TARGET/` before the process ends.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use vessel_fuzz::{TARGETS, Target};

/// xorshift64*: reproducible, and good enough to choose mutations.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        self.0.wrapping_mul(0x2545_f491_4f6c_dd1d)
    }

    fn below(&mut self, n: usize) -> usize {
        (self.next() % n.max(1) as u64) as usize
    }
}

/// Values at the edges, as texts and as bytes.
const TOKENS: &[&str] = &[
    "0",
    "-1",
    "1",
    "65535",
    "65536",
    "4294967295",
    "4294967296",
    "9223372036854775807",
    "18446744073709551615",
    "1e309",
    "null",
    "true",
    "[]",
    "{}",
    "\"\"",
    "\"",
    "\\",
    "\\u0000",
    "..",
    "../",
    "/",
    ".",
    ":",
    "@",
    ",",
    "\n",
    "\0",
    "\u{feff}",
    "é",
    "{{",
    "}}",
    "{{.}}",
    "{{range .}}",
    "{{end}}",
    ".wh.",
    ".wh..wh..opq",
    "sha256:",
    "00000000000",
    "77777777777",
    "\u{80}",
]; // fmt: skip

fn mutate(random: &mut Random, seeds: &[Vec<u8>]) -> Vec<u8> {
    let mut data = seeds[random.below(seeds.len())].clone();
    for _ in 0..=random.below(6) {
        let at = random.below(data.len() + 1);
        let end = (at + 1 + random.below(40)).min(data.len());
        match random.below(9) {
            0 if !data.is_empty() => {
                let at = at.min(data.len() - 1);
                data[at] = random.next() as u8;
            }
            1 if !data.is_empty() => {
                let at = at.min(data.len() - 1);
                data[at] ^= 1 << random.below(8);
            }
            2 => drop(data.drain(at..end)),
            3 => {
                let piece = data[at..end].to_vec();
                let to = random.below(data.len() + 1);
                data.splice(to..to, piece);
            }
            4 => data.truncate(at),
            5 => {
                let other = &seeds[random.below(seeds.len())];
                let from = random.below(other.len() + 1);
                let length = random.below(600).min(other.len() - from);
                data.splice(at..at, other[from..from + length].iter().copied());
            }
            6 => {
                let piece = data[at..end].to_vec();
                for _ in 0..random.below(50) {
                    data.splice(at..at, piece.iter().copied());
                }
            }
            _ => {
                let token = TOKENS[random.below(TOKENS.len())].as_bytes();
                let end = if random.below(2) == 0 {
                    at
                } else {
                    (at + token.len()).min(data.len())
                };
                data.splice(at..end, token.iter().copied());
            }
        }
        data.truncate(1 << 20);
    }
    data
}

fn seeds(target: &str) -> std::io::Result<Vec<Vec<u8>>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(target);
    let mut paths: Vec<PathBuf> = std::fs::read_dir(directory)?
        .map(|entry| entry.map(|entry| entry.path()))
        .collect::<Result<_, _>>()?;
    paths.sort();
    paths.iter().map(std::fs::read).collect()
}

fn keep(target: &str, data: &[u8]) -> std::io::Result<PathBuf> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR"))
        .join("artifacts")
        .join(target);
    std::fs::create_dir_all(&directory)?;
    let path = directory.join(format!("crash-{}", std::process::id()));
    std::fs::write(&path, data)?;
    Ok(path)
}

/// When a target has had enough.
#[derive(Clone, Copy)]
enum Limit {
    Time(Duration),
    Runs(u64),
}

fn run((name, function): Target, limit: Limit) -> Result<(), Box<dyn std::error::Error>> {
    let seeds = seeds(name)?;
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH)?;
    let mut random = Random(clock.as_nanos() as u64 | 1);
    // A panic may be on another thread than this one.
    let current = Arc::new(Mutex::new(Vec::new()));
    let failing = Arc::clone(&current);
    let report = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        report(panic);
        let data = failing.lock().unwrap_or_else(PoisonError::into_inner);
        match keep(name, &data) {
            Ok(path) => eprintln!("{name}: failed on {}", path.display()),
            Err(error) => eprintln!("{name}: failed on {data:?}, which cannot be written: {error}"),
        }
        std::process::exit(1);
    }));
    let (start, mut runs, mut slowest) = (Instant::now(), 0u64, Duration::ZERO);
    let mut given = seeds.iter().cloned();
    while match limit {
        Limit::Time(limit) => start.elapsed() < limit,
        Limit::Runs(limit) => runs < limit,
    } {
        let data = given.next().unwrap_or_else(|| mutate(&mut random, &seeds));
        current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone_from(&data);
        let before = Instant::now();
        function(&data);
        let took = before.elapsed();
        if took > slowest {
            slowest = took;
            if took > Duration::from_secs(2) {
                println!("{name}: {took:?} for {}", keep(name, &data)?.display());
            }
        }
        runs += 1;
    }
    drop(std::panic::take_hook());
    println!("{name}: {runs} runs, the slowest took {slowest:?}");
    std::io::stdout().flush()?;
    Ok(())
}

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let limit = arguments.next().unwrap_or_else(|| "60".to_owned());
    let limit = match limit.strip_suffix('x') {
        Some(runs) => Limit::Runs(runs.parse()?),
        None => Limit::Time(Duration::from_secs(limit.parse()?)),
    };
    let wanted: Vec<String> = arguments.collect();
    if let Some(unknown) = wanted
        .iter()
        .find(|name| !TARGETS.iter().any(|(known, _)| known == name))
    {
        let known: Vec<&str> = TARGETS.iter().map(|(name, _)| *name).collect();
        return Err(format!("there is no target {unknown}; there are {}", known.join(", ")).into());
    }
    for &target in TARGETS {
        if wanted.is_empty() || wanted.iter().any(|name| name == target.0) {
            run(target, limit)?;
        }
    }
    Ok(())
}
