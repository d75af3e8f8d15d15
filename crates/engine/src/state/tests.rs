use std::collections::BTreeMap;

use proptest::prelude::*;

use super::*;

type Model = BTreeMap<String, u32>;

fn contents(store: &Store) -> Model {
    store.table::<u32>("t").all().unwrap().into_iter().collect()
}

/// Applies operations and returns the file's length and the map after each.
fn apply(directory: &Path, operations: &[(u8, Option<u32>)]) -> Vec<(u64, Model)> {
    let (store, _) = Store::open(directory).unwrap();
    let table = store.table::<u32>("t");
    let path = directory.join("state.journal");
    let mut model = Model::new();
    let mut history = vec![(std::fs::metadata(&path).unwrap().len(), model.clone())];
    for (key, value) in operations {
        let key = format!("key{key}");
        match value {
            Some(value) => {
                table.put_now(&key, value).unwrap();
                model.insert(key, *value);
            }
            None => {
                table.delete_now(&key).unwrap();
                model.remove(&key);
            }
        }
        history.push((std::fs::metadata(&path).unwrap().len(), model.clone()));
    }
    history
}

fn operations() -> impl Strategy<Value = Vec<(u8, Option<u32>)>> {
    prop::collection::vec((0..6_u8, prop::option::weighted(0.7, any::<u32>())), 0..40)
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// A journal cut anywhere replays to the operations that are whole, and to nothing else.
    #[test]
    fn any_prefix_replays_to_a_prefix(operations in operations(), cut in 0.0..=1.0_f64) {
        let directory = tempfile::tempdir().unwrap();
        let history = apply(directory.path(), &operations);
        let path = directory.path().join("state.journal");
        let length = std::fs::metadata(&path).unwrap().len();
        let cut = (length as f64 * cut) as u64;
        std::fs::OpenOptions::new().write(true).open(&path).unwrap().set_len(cut).unwrap();

        let (store, recovery) = Store::open(directory.path()).unwrap();
        let expected = history.iter().rev().find(|(end, _)| *end <= cut).map(|(_, model)| model.clone());
        prop_assert_eq!(contents(&store), expected.unwrap_or_default());
        prop_assert_eq!(recovery.damaged, 0);
        // And it goes on from there.
        store.table::<u32>("t").put_now("after", &1).unwrap();
        drop(store);
        let (store, recovery) = Store::open(directory.path()).unwrap();
        prop_assert_eq!(contents(&store).get("after").copied(), Some(1));
        prop_assert_eq!(recovery, Recovery::default());
    }

    /// A damaged byte costs the record it is in, and is reported.
    #[test]
    fn damage_costs_one_record(operations in operations(), place in 0.0..1.0_f64) {
        let directory = tempfile::tempdir().unwrap();
        let mut all: Vec<(u8, Option<u32>)> = operations;
        all.push((7, Some(7)));
        apply(directory.path(), &all);
        let path = directory.path().join("state.journal");
        let mut data = std::fs::read(&path).unwrap();
        // Anywhere between the signature and the last record.
        let last = data.len() - record::size("t", "key7", 1) as usize;
        prop_assume!(last > 16);
        let at = 16 + ((last - 16) as f64 * place) as usize;
        data[at] ^= 0x40;
        std::fs::write(&path, &data).unwrap();

        let (store, recovery) = Store::open(directory.path()).unwrap();
        prop_assert!(recovery.damaged > 0 && recovery.torn == 0);
        prop_assert_eq!(std::fs::read(recovery.set_aside.unwrap()).unwrap(), data);
        prop_assert_eq!(contents(&store).get("key7").copied(), Some(7));
        drop(store);
        prop_assert_eq!(Store::open(directory.path()).unwrap().1, Recovery::default());
    }
}

#[test]
fn a_second_engine_is_refused_by_name() {
    let directory = tempfile::tempdir().unwrap();
    let held = Store::open(directory.path()).unwrap();
    let error = Store::open(directory.path()).unwrap_err();
    assert!(
        error
            .message()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    drop(held);
    Store::open(directory.path()).unwrap();
}

#[test]
fn a_foreign_file_is_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.journal");
    std::fs::write(&path, b"something else entirely").unwrap();
    assert!(
        Store::open(directory.path())
            .unwrap_err()
            .message()
            .contains("not a state journal")
    );
    assert_eq!(std::fs::read(&path).unwrap(), b"something else entirely");
}

#[tokio::test]
async fn garbage_is_compacted_away_while_changes_go_on() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("state.journal");
    let (store, _) = Store::open(directory.path()).unwrap();
    let table = store.table::<String>("t");
    let large = "x".repeat(4096);
    let mut written = 0;
    for round in 0..2000 {
        let key = format!("{}", round % 8);
        written += record::size("t", &key, large.len() + 2 + 5);
        table.put_now(&key, &format!("{round:05}{large}")).unwrap();
    }
    store.sync().await.unwrap();
    drop((store, table));
    assert!(
        std::fs::metadata(&path).unwrap().len() < written / 2,
        "it was not compacted"
    );
    let (store, recovery) = Store::open(directory.path()).unwrap();
    assert_eq!(recovery, Recovery::default());
    let all = store.table::<String>("t").all().unwrap();
    assert_eq!(all.len(), 8);
    for (key, value) in all {
        assert_eq!(
            value[..5].parse::<usize>().unwrap(),
            1992 + key.parse::<usize>().unwrap()
        );
    }
}

#[tokio::test]
async fn concurrent_durable_changes_share_syncs() {
    let directory = tempfile::tempdir().unwrap();
    let (store, _) = Store::open(directory.path()).unwrap();
    let tasks: Vec<_> = (0..50_u32)
        .map(|number| {
            let table = store.table::<u32>("t");
            tokio::spawn(async move { table.put(&number.to_string(), &number, Durability::Disk).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    assert_eq!(contents(&store).len(), 50);
}
