//! Finding the program and the home directory, in the container's root.

use std::ffi::{CString, OsStr};
use std::io::Read;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{Access, AtFlags, FileType};
use rustix::io::Errno;

use crate::error::Context;
use crate::spec::Process;
use crate::{Error, ErrorKind, Result};

/// The search path of execvp(3) when the environment has none.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The file `name` means, as execvp(3) searches, from the current directory and root.
///
/// # Errors
/// `CommandNotFound` and `CommandNotExecutable`, in Docker's words.
pub fn find_program(name: &str, env: &[String]) -> Result<CString> {
    let c_string = |text: &[u8]| {
        CString::new(text).map_err(|_| Error::invalid("the program's name contains a NUL character"))
    };
    if name.contains('/') {
        return match executable(Path::new(name)) {
            Ok(()) => c_string(name.as_bytes()),
            Err(errno) => Err(cannot_execute(name, errno)),
        };
    }
    let path = env
        .iter()
        .rev()
        .find_map(|pair| pair.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    let mut denied = None;
    for dir in path.split(':') {
        let dir = if dir.is_empty() { "." } else { dir };
        let candidate = Path::new(dir).join(name);
        match executable(&candidate) {
            Ok(()) => return c_string(candidate.as_os_str().as_bytes()),
            Err(Errno::ACCESS) => denied = Some(Errno::ACCESS),
            Err(_) => {}
        }
    }
    match denied {
        Some(errno) => Err(cannot_execute(name, errno)),
        None => Err(Error::new(
            ErrorKind::CommandNotFound,
            format!("exec: {name:?}: executable file not found in $PATH"),
        )),
    }
}

/// [`find_program`] for a process, from its working directory; and whether that could be entered.
///
/// # Errors
/// Also when the working directory cannot be entered, for another reason than rights.
pub fn find_program_from(process: &Process) -> Result<(CString, bool)> {
    // As root, who need not have the right where owners are the user's (a network file system): the user tries again.
    let entered = match rustix::process::chdir(&process.cwd) {
        Ok(()) => true,
        Err(Errno::ACCESS | Errno::PERM) => false,
        Err(errno) => {
            return Err(errno).context(|| format!("enter the working directory {}", process.cwd.display()));
        }
    };
    Ok((find_program(&process.args[0], &process.env)?, entered))
}

fn executable(path: &Path) -> std::result::Result<(), Errno> {
    let stat = rustix::fs::stat(path)?;
    if FileType::from_raw_mode(stat.st_mode).is_dir() {
        return Err(Errno::ISDIR);
    }
    rustix::fs::accessat(rustix::fs::CWD, path, Access::EXEC_OK, AtFlags::EACCESS)
}

/// What a failed execve(2) means to the user.
pub fn cannot_execute(name: &str, errno: Errno) -> Error {
    let (kind, why) = match errno {
        Errno::NOENT => (ErrorKind::CommandNotFound, "no such file or directory"),
        Errno::NOTDIR => (ErrorKind::CommandNotFound, "not a directory"),
        Errno::LOOP => (ErrorKind::CommandNotFound, "too many symbolic links"),
        Errno::ACCESS | Errno::PERM => (ErrorKind::CommandNotExecutable, "permission denied"),
        Errno::ISDIR => (ErrorKind::CommandNotExecutable, "is a directory"),
        Errno::NOEXEC => (
            ErrorKind::CommandNotExecutable,
            "exec format error (built for another architecture, or a script without #! line)",
        ),
        Errno::TOOBIG => (
            ErrorKind::CommandNotExecutable,
            "arguments and environment are too large",
        ),
        errno => {
            return Error::with_source(
                ErrorKind::CommandNotExecutable,
                format!("exec: {name:?}"),
                std::io::Error::from(errno),
            );
        }
    };
    Error::new(kind, format!("exec: {name:?}: {why}"))
}

/// The most of `/etc/passwd` that is read.
const MAX_PASSWD: u64 = 4 << 20;

/// The home directory of `uid` according to the container's `/etc/passwd`; `/` when it does not say.
pub fn home(uid: u32) -> String {
    let fallback = || "/".to_owned();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::CLOEXEC | rustix::fs::OFlags::NONBLOCK;
    // Nor through the kernel's links to what processes have open, which could be another's.
    let direct = rustix::fs::ResolveFlags::NO_MAGICLINKS;
    let none = rustix::fs::Mode::empty();
    let Ok(file) = rustix::fs::openat2(rustix::fs::CWD, "/etc/passwd", flags, none, direct) else {
        return fallback();
    };
    let regular = rustix::fs::fstat(&file).is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode).is_file());
    if !regular {
        return fallback();
    }
    let mut text = Vec::new();
    if std::fs::File::from(file)
        .take(MAX_PASSWD)
        .read_to_end(&mut text)
        .is_err()
    {
        return fallback();
    }
    let wanted = uid.to_string();
    text.split(|byte| *byte == b'\n')
        .map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>())
        .find(|fields| fields.len() >= 6 && fields[2] == wanted.as_bytes() && !fields[5].is_empty())
        .map_or_else(fallback, |fields| {
            OsStr::from_bytes(fields[5]).to_string_lossy().into_owned()
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_dockers() {
        let error = find_program("no-such-program", &["PATH=/bin".into()]).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::CommandNotFound);
        assert_eq!(
            error.report().message,
            "exec: \"no-such-program\": executable file not found in $PATH"
        );
        assert_eq!(
            find_program("/etc", &[]).unwrap_err().kind(),
            ErrorKind::CommandNotExecutable
        );
        assert_eq!(
            find_program("/nowhere/x", &[]).unwrap_err().kind(),
            ErrorKind::CommandNotFound
        );
        assert_eq!(
            find_program("sh", &["PATH=/bin".into()])
                .unwrap()
                .to_str()
                .unwrap(),
            "/bin/sh"
        );
    }

    #[test]
    fn home_is_looked_up() {
        assert_eq!(home(0), "/root");
        assert_eq!(home(4_000_000), "/");
    }
}
