//! Compose files.

use std::path::Path;

use vessel_compose::{Options, load, yaml};

/// A Compose file is loaded or refused; what is loaded is written, read again, and the same.
pub fn compose(data: &[u8]) {
    let Ok(text) = std::str::from_utf8(data) else {
        return;
    };
    // Files of the machine that could be waited for.
    if ["/dev", "/proc", "/sys"].iter().any(|part| text.contains(part)) {
        return;
    }
    let load = |text: &str| {
        load(&Options {
            files: vec!["-".into()],
            current_directory: Path::new("/nonexistent/app").into(),
            stdin: Some(text.to_owned()),
            ..Options::default()
        })
    };
    let Ok(project) = load(text) else { return };
    let canonical = yaml::emit(&project.canonical()).replace('$', "$$");
    match load(&canonical) {
        Ok(again) => assert_eq!(
            project.canonical().to_json(),
            again.canonical().to_json(),
            "{canonical}"
        ),
        Err(error) => panic!("{error}\n{canonical}"),
    }
}
