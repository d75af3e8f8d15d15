//! Work on services in parallel, each after those it depends on, or before.

use std::collections::{BTreeMap, BTreeSet};
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

#[derive(Default)]
struct State {
    done: BTreeSet<String>,
    failed: bool,
    error: Option<Error>,
}

/// Does something for each service. After a failure nothing more begins; the first error is returned.
///
/// # Errors
/// What `act` returned first.
pub fn run(edges: &Edges, direction: Direction, act: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    let before = match direction {
        Direction::DependenciesFirst => edges.clone(),
        Direction::DependentsFirst => reversed(edges),
    };
    let state = Mutex::new(State::default());
    let changed = Condvar::new();
    let lock = || state.lock().unwrap_or_else(PoisonError::into_inner);
    std::thread::scope(|scope| {
        for (name, needs) in &before {
            let (act, changed, lock) = (&act, &changed, &lock);
            let before = &before;
            scope.spawn(move || {
                // What is not worked on is not waited for.
                let ready = |state: &State| {
                    needs
                        .iter()
                        .filter(|need| before.contains_key(*need))
                        .all(|need| state.done.contains(need))
                };
                {
                    let mut state = lock();
                    while !state.failed && !ready(&state) {
                        state = changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                    }
                    if state.failed {
                        return;
                    }
                }
                let result = act(name);
                let mut state = lock();
                match result {
                    Ok(()) => {
                        state.done.insert(name.clone());
                    }
                    Err(error) => {
                        state.failed = true;
                        state.error.get_or_insert(error);
                    }
                }
                changed.notify_all();
            });
        }
    });
    let state = state.into_inner().unwrap_or_else(PoisonError::into_inner);
    match state.error {
        Some(error) => Err(error),
        None => Ok(()),
    }
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
    if let [item] = items {
        return act(item);
    }
    let mut result = Ok(());
    for some in items.chunks(32) {
        std::thread::scope(|scope| {
            let threads: Vec<_> = some.iter().map(|item| scope.spawn(|| act(item))).collect();
            for thread in threads {
                let one = thread
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic));
                if result.is_ok() {
                    result = one;
                }
            }
        });
    }
    result
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
}
