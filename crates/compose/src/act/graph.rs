//! Work on services in parallel, each after those it depends on, or before.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};

use crate::error::{Error, Result};

/// Which way dependencies are walked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    /// What others depend on comes first.
    DependenciesFirst,
    /// What others depend on comes last.
    DependentsFirst,
}

/// Dependencies by service.
pub type Edges = BTreeMap<String, BTreeSet<String>>;

/// The most that is worked on at once.
const MAX_THREADS: usize = 32;

struct State<'a> {
    /// What can begin.
    ready: VecDeque<&'a str>,
    /// How many others each still waits for.
    waits: BTreeMap<&'a str, usize>,
    /// How many have not ended.
    left: usize,
    failed: bool,
    error: Option<Error>,
}

/// Does something for each service. After a failure nothing more begins; the first error is returned.
///
/// Services that wait for each other, which labels of containers made at different times can say, are refused where
/// the order matters, and go in any order where everything ends.
///
/// # Errors
/// What `act` returned first; there is no order.
pub fn run(edges: &Edges, direction: Direction, act: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let mut before = match direction {
        Direction::DependenciesFirst => edges.clone(),
        Direction::DependentsFirst => reversed(edges),
    };
    // What is not worked on is not waited for.
    let names: BTreeSet<String> = before.keys().cloned().collect();
    for needs in before.values_mut() {
        needs.retain(|need| names.contains(need));
    }
    let endless = unordered(&before);
    if !endless.is_empty() && direction == Direction::DependenciesFirst {
        return Err(Error::project(format!(
            "services depend on each other, so none can be first: {}",
            endless.iter().cloned().collect::<Vec<_>>().join(", ")
        )));
    }
    for name in &endless {
        if let Some(needs) = before.get_mut(name) {
            needs.retain(|need| !endless.contains(need));
        }
    }
    let behind = reversed(&before);
    let waits: BTreeMap<&str, usize> = before
        .iter()
        .map(|(name, needs)| (name.as_str(), needs.len()))
        .collect();
    let state = Mutex::new(State {
        ready: free(&waits),
        left: waits.len(),
        waits,
        failed: false,
        error: None,
    });
    let changed = Condvar::new();
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    in_threads(before.len(), || {
        let mut state = lock();
        while !state.failed && state.left > 0 {
            let Some(name) = state.ready.pop_front() else {
                state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            drop(state);
            let result = act(name);
            state = lock();
            state.left -= 1;
            match result {
                Ok(()) => {
                    for next in behind.get(name).into_iter().flatten() {
                        if let Some(waits) = state.waits.get_mut(next.as_str()) {
                            *waits -= 1;
                            if *waits == 0 {
                                state.ready.push_back(next);
                            }
                        }
                    }
                }
                Err(error) => {
                    state.failed = true;
                    state.error.get_or_insert(error);
                }
            }
            changed.notify_all();
        }
    });
    let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.error {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

/// What waits for nothing.
fn free<'a>(waits: &BTreeMap<&'a str, usize>) -> VecDeque<&'a str> {
    let free = waits.iter().filter(|(_, waits)| **waits == 0);
    free.map(|(name, _)| *name).collect()
}

/// Those of which none can be first, and what waits for them.
fn unordered(before: &Edges) -> BTreeSet<String> {
    let behind = reversed(before);
    let mut waits: BTreeMap<&str, usize> = before
        .iter()
        .map(|(name, needs)| (name.as_str(), needs.len()))
        .collect();
    let mut ready = free(&waits);
    while let Some(name) = ready.pop_front() {
        waits.remove(name);
        for next in behind.get(name).into_iter().flatten() {
            if let Some(waits) = waits.get_mut(next.as_str()) {
                *waits -= 1;
                if *waits == 0 {
                    ready.push_back(next);
                }
            }
        }
    }
    waits.into_keys().map(str::to_owned).collect()
}

/// Works in as many threads as there is work for, of which this is one; fewer do when there are no more to be had.
fn in_threads(count: usize, work: impl Fn() + Sync) {
    std::thread::scope(|scope| {
        for _ in 1..count.min(MAX_THREADS) {
            if std::thread::Builder::new().spawn_scoped(scope, &work).is_err() {
                break;
            }
        }
        work();
    });
}

fn reversed(edges: &Edges) -> Edges {
    let mut out: Edges = edges.keys().map(|name| (name.clone(), BTreeSet::new())).collect();
    for (name, needs) in edges {
        for need in needs {
            if let Some(set) = out.get_mut(need) {
                set.insert(name.clone());
            }
        }
    }
    out
}

/// Does something for each of many, at once; all are tried, the first error is returned.
pub(crate) fn each<T: Sync>(items: &[T], act: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failure = Mutex::new(None);
    in_threads(items.len(), || {
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            if let Err(error) = act(item) {
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                failure.get_or_insert(error);
            }
        }
    });
    match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
        Some(error) => Err(error),
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn edges(list: &[(&str, &[&str])]) -> Edges {
        list.iter()
            .map(|(name, needs)| {
                (
                    (*name).to_owned(),
                    needs.iter().map(|need| (*need).to_owned()).collect(),
                )
            })
            .collect()
    }

    #[test]
    fn the_order_is_kept() {
        let edges = edges(&[
            ("a", &["b", "c"]),
            ("b", &["d"]),
            ("c", &["d", "elsewhere"]),
            ("d", &[]),
        ]);
        for (direction, first, last) in [
            (Direction::DependenciesFirst, "d", "a"),
            (Direction::DependentsFirst, "a", "d"),
        ] {
            let order = Mutex::new(Vec::new());
            run(&edges, direction, |name| {
                order.lock().unwrap().push(name.to_owned());
                Ok(())
            })
            .unwrap();
            let order = order.into_inner().unwrap();
            assert_eq!(
                (order.len(), order[0].as_str(), order[3].as_str()),
                (4, first, last)
            );
        }
    }

    #[test]
    fn a_failure_stops_what_depends_on_it() {
        let edges = edges(&[("a", &["b"]), ("b", &[])]);
        let error = run(&edges, Direction::DependenciesFirst, |name| {
            assert_eq!(name, "b");
            Err(Error::project("no"))
        });
        assert_eq!(error.unwrap_err().to_string(), "no");
    }

    #[test]
    fn cycles_are_refused_or_broken() {
        let edges = edges(&[
            ("a", &["b"]),
            ("b", &["a"]),
            ("c", &["a"]),
            ("d", &["d"]),
            ("e", &[]),
        ]);
        let acted = |direction| {
            let seen = Mutex::new(BTreeSet::new());
            let result = run(&edges, direction, |name| {
                seen.lock().unwrap().insert(name.to_owned());
                Ok(())
            });
            (
                result.map_err(|error| error.to_string()),
                seen.into_inner().unwrap().len(),
            )
        };
        assert_eq!(acted(Direction::DependentsFirst), (Ok(()), 5));
        let (result, count) = acted(Direction::DependenciesFirst);
        assert!(result.unwrap_err().ends_with("a, b, c, d"));
        assert_eq!(count, 0);
    }

    #[test]
    fn many_take_few_threads() {
        let names: Vec<String> = (0..2000).map(|number| number.to_string()).collect();
        let edges: Edges = names.iter().map(|name| (name.clone(), BTreeSet::new())).collect();
        let (now, most) = (AtomicUsize::new(0), AtomicUsize::new(0));
        let act = || {
            most.fetch_max(now.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
            now.fetch_sub(1, Ordering::SeqCst);
            Ok(())
        };
        run(&edges, Direction::DependenciesFirst, |_| act()).unwrap();
        each(&names, |_| act()).unwrap();
        assert!(most.into_inner() <= MAX_THREADS);
    }
}
