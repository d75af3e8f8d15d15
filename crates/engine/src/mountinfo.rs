//! What is mounted where, as the kernel tells a process (`/proc/PID/mountinfo`, proc_pid_mountinfo(5)).

use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

/// The mount points of proc_pid_mountinfo(5).
pub(crate) fn mount_points(text: &[u8]) -> Vec<PathBuf> {
    let lines = text.split(|byte| *byte == b'\n');
    let fifth = |line: &[u8]| -> Option<PathBuf> {
        let field = line.split(|byte| *byte == b' ').nth(4)?;
        Some(PathBuf::from(std::ffi::OsStr::from_bytes(&unescaped(field))))
    };
    lines.filter_map(fifth).collect()
}

/// Space, tab, newline and backslash are written as three octal digits.
fn unescaped(field: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(field.len());
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.first_chunk::<3>().filter(|_| byte == b'\\');
        let value = digits
            .and_then(|digits| std::str::from_utf8(digits).ok())
            .and_then(|digits| u8::from_str_radix(digits, 8).ok());
        match value {
            Some(value) => {
                out.push(value);
                rest = &after[3..];
            }
            None => {
                out.push(byte);
                rest = after;
            }
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn mount_points_are_read_as_the_kernel_writes_them() {
        let text = b"1 0 0:1 / /a\\040b rw - tmpfs t rw\n2 0 0:1 / /c\\011\\134 rw - tmpfs t rw\nodd\n";
        assert_eq!(
            mount_points(text),
            [PathBuf::from("/a b"), PathBuf::from("/c\t\\")]
        );
        assert_eq!(unescaped(b"\\9\\04"), b"\\9\\04");
    }
}
