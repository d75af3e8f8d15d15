//! Columns aligned as Go's `text/tabwriter` aligns them, with the settings Docker uses: cells end with a
//! tab; a column is a run of lines that have that cell; it is as wide as its widest cell and three more,
//! and at least ten.

const MIN_WIDTH: usize = 10;
const PADDING: usize = 3;

/// Aligns the cells of `text`.
pub fn align(text: &str) -> String {
    align_with(text, MIN_WIDTH)
}

/// Aligns the cells of `text` in columns of at least `min_width`.
pub fn align_with(text: &str, min_width: usize) -> String {
    let lines: Vec<Vec<&str>> = text
        .split_terminator('\n')
        .map(|line| line.split('\t').collect())
        .collect();
    let mut out = String::with_capacity(text.len() * 2);
    format(&lines, min_width, &mut Vec::new(), &mut out);
    out
}

/// Writes `lines`, whose first `widths.len()` columns have these widths.
fn format(lines: &[Vec<&str>], min_width: usize, widths: &mut Vec<usize>, out: &mut String) {
    let column = widths.len();
    let mut done = 0;
    let mut at = 0;
    while at < lines.len() {
        // The last cell of a line is not in a column: no tab ends it.
        if lines[at].len() <= column + 1 {
            at += 1;
            continue;
        }
        write(&lines[done..at], widths, out);
        let start = at;
        let mut width = min_width;
        while at < lines.len() && lines[at].len() > column + 1 {
            width = width.max(lines[at][column].chars().count() + PADDING);
            at += 1;
        }
        widths.push(width);
        format(&lines[start..at], min_width, widths, out);
        widths.pop();
        done = at;
    }
    write(&lines[done..], widths, out);
}

fn write(lines: &[Vec<&str>], widths: &[usize], out: &mut String) {
    for line in lines {
        for (index, cell) in line.iter().enumerate() {
            out.push_str(cell);
            if let Some(width) = widths.get(index)
                && index + 1 < line.len()
            {
                let used = cell.chars().count();
                out.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
            }
        }
        out.push('\n');
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        assert_eq!(
            align("A\tB\tC\nlonger than\tx\ty\n"),
            "A             B         C\nlonger than   x         y\n"
        );
    }

    #[test]
    fn a_column_is_a_run_of_lines() {
        assert_eq!(align_with("aaaa\tb\nx\nc\td\n", 0), "aaaa   b\nx\nc   d\n");
    }

    #[test]
    fn width_is_in_characters() {
        assert_eq!(align_with("äöü\tb\naaa\tb\n", 0), "äöü   b\naaa   b\n");
    }

    proptest! {
        #[test]
        fn nothing_is_lost(text in "[ab\\t\\n]{0,60}") {
            let letters = |t: &str| t.chars().filter(|c| c.is_alphabetic()).collect::<String>();
            prop_assert_eq!(letters(&align(&text)), letters(&text));
        }
    }
}
