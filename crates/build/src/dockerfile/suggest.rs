//! "Did you mean": the nearest of what exists, at most two edits away.

/// The nearest known word; of two as near, the one that begins alike. None if a word is known: then it was not the word
/// that was wrong.
pub(crate) fn closest<'a>(
    word: &str,
    known: impl IntoIterator<Item = &'a str>,
    case_sensitive: bool,
) -> Option<String> {
    let fold = |word: &str| {
        if case_sensitive {
            word.to_owned()
        } else {
            word.to_lowercase()
        }
    };
    let wanted = fold(word);
    let mut best: Option<((usize, std::cmp::Reverse<usize>), String)> = None;
    for candidate in known {
        let folded = fold(candidate);
        if folded == wanted {
            return None;
        }
        let distance = distance(&wanted, &folded, 3);
        let alike = folded
            .chars()
            .zip(wanted.chars())
            .take_while(|(one, other)| one == other)
            .count();
        let rank = (distance, std::cmp::Reverse(alike));
        if distance < 3 && best.as_ref().is_none_or(|(known, _)| rank < *known) {
            best = Some((rank, folded));
        }
    }
    let (_, found) = best?;
    Some(if case_sensitive || word == word.to_lowercase() {
        found
    } else if word == word.to_uppercase() {
        found.to_uppercase()
    } else {
        found
    })
}

/// A message with the suggestion, as BuildKit words it.
pub(crate) fn with(message: String, suggestion: Option<String>) -> String {
    match suggestion {
        Some(word) => format!("{message} (did you mean {word}?)"),
        None => message,
    }
}

/// Levenshtein's distance, or `limit` if it is not below.
fn distance(one: &str, other: &str, limit: usize) -> usize {
    let (one, other): (Vec<char>, Vec<char>) = (one.chars().collect(), other.chars().collect());
    if one.len().abs_diff(other.len()) >= limit {
        return limit;
    }
    let mut row: Vec<usize> = (0..=other.len()).collect();
    for (i, a) in one.iter().enumerate() {
        let mut corner = row[0];
        row[0] = i + 1;
        for (j, b) in other.iter().enumerate() {
            let replaced = corner + usize::from(a != b);
            corner = row[j + 1];
            row[j + 1] = replaced.min(corner + 1).min(row[j] + 1);
        }
    }
    row[other.len()].min(limit)
}
