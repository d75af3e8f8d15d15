//! What counts as the same.

use std::process::Output;

/// What is not the same twice: IDs, process numbers, times.
fn normal(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    let mut out = String::with_capacity(text.len());
    let mut word = String::new();
    let flush = |word: &mut String, out: &mut String| {
        let hex = word.len() >= 12 && word.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'));
        out.push_str(if hex { "ID" } else { word });
        word.clear();
    };
    for c in text.chars() {
        if c.is_alphanumeric() {
            word.push(c);
        } else {
            flush(&mut word, &mut out);
            out.push(c);
        }
    }
    flush(&mut word, &mut out);
    // "5 seconds ago" was 4 for who asked first.
    let mut pieces = out.split(" second");
    let mut out = pieces.next().unwrap_or_default().to_owned();
    for piece in pieces {
        let end = out.trim_end_matches(|c: char| c.is_ascii_digit()).len();
        out.truncate(end);
        out.push_str("N second");
        out.push_str(piece);
    }
    out
}

pub fn compare(arguments: &[&str], docker: &Output, vessel: &Output, differences: &mut Vec<String>) {
    let (mut theirs, mut ours) = (normal(&docker.stdout), normal(&vessel.stdout));
    if arguments.first() == Some(&"diff") {
        // dockerd lists changes in an order of its own, which is another each time.
        for text in [&mut theirs, &mut ours] {
            let mut lines: Vec<&str> = text.lines().collect();
            lines.sort_unstable();
            *text = lines.join("\n");
        }
    }
    if theirs == ours && docker.status.code() == vessel.status.code() {
        return;
    }
    differences.push(format!(
        "{arguments:?}\n  docker {:?}: {theirs:?}\n    {:?}\n  vessel {:?}: {ours:?}\n    {:?}",
        docker.status.code(),
        String::from_utf8_lossy(&docker.stderr),
        vessel.status.code(),
        String::from_utf8_lossy(&vessel.stderr),
    ));
}
