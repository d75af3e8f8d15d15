//! From a child with its streams to the program: limits, user, capabilities, filter, execve(2).

use alloc::format;
use alloc::vec::Vec;
use core::convert::Infallible;
use core::ptr;

use crate::fault::{Context, Fault, Result, show};
use crate::os::{self, Errno, Fd};
use crate::protocol::{Failure, Process};

const DEFAULT_PATH: &[u8] = b"/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

const PR_SET_KEEPCAPS: usize = 8;
const PR_CAPBSET_DROP: usize = 24;
const PR_SET_NO_NEW_PRIVS: usize = 38;
const PR_CAP_AMBIENT: usize = 47;
const PR_CAP_AMBIENT_RAISE: usize = 2;
const PR_CAP_AMBIENT_CLEAR_ALL: usize = 4;

/// Executes the process's program; returns only to say why not. Its streams are 0, 1 and 2 already.
pub fn execute(process: &Process) -> Result<Infallible> {
    for limit in &process.rlimits {
        os::set_limit(limit.resource, limit.soft, limit.hard)
            .context(|| format!("set resource limit {}", limit.resource))?;
    }
    os::new_keyring();
    let filter = Filter::read(&process.seccomp)?;
    // As root, while that is what it takes; or else as the user, whose directory it may be.
    let entered = os::change_directory(&process.cwd).is_ok();
    if let Some(capabilities) = &process.capabilities {
        for number in 0..64 {
            if capabilities.bounding & (1 << number) != 0 {
                continue;
            }
            match os::process_control(PR_CAPBSET_DROP, number, 0) {
                Ok(_) => {}
                // The last capability of this kernel was before.
                Err(Errno::INVAL) => break,
                result => result.map(drop).context(|| format!("drop capability {number}"))?,
            }
        }
    }
    // Without no_new_privs it takes a capability, and with it the filter may be the last that is done.
    if let Some(filter) = &filter
        && !process.no_new_privileges
    {
        filter.install()?;
    }
    os::process_control(PR_SET_KEEPCAPS, usize::from(process.capabilities.is_some()), 0)
        .context(|| "keep capabilities".into())?;
    os::set_groups(&process.groups).context(|| "set the groups".into())?;
    os::set_group(process.gid).context(|| format!("become group {}", process.gid))?;
    os::set_user(process.uid).context(|| format!("become user {}", process.uid))?;
    if let Some(capabilities) = &process.capabilities {
        os::set_capabilities(
            capabilities.effective,
            capabilities.permitted,
            capabilities.inheritable,
        )
        .context(|| "set the capabilities".into())?;
        os::process_control(PR_CAP_AMBIENT, PR_CAP_AMBIENT_CLEAR_ALL, 0)
            .context(|| "clear the ambient capabilities".into())?;
        for number in (0..64).filter(|number| capabilities.ambient & (1 << number) != 0) {
            os::process_control(PR_CAP_AMBIENT, PR_CAP_AMBIENT_RAISE, number)
                .context(|| format!("make capability {number} ambient"))?;
        }
    }
    if !entered {
        os::change_directory(&process.cwd)
            .context(|| format!("enter the working directory {}", show(&process.cwd)))?;
    }
    os::umask(process.umask.unwrap_or(0o22));
    if process.no_new_privileges {
        os::process_control(PR_SET_NO_NEW_PRIVS, 1, 0).context(|| "set no_new_privs".into())?;
        if let Some(filter) = &filter {
            filter.install()?;
        }
    }
    Err(search_and_execute(process))
}

/// execvp(3), with the process's own `PATH`.
fn search_and_execute(process: &Process) -> Fault {
    let name = process.args.first().map(Vec::as_slice).unwrap_or_default();
    let not_found = || {
        Fault::new(
            Failure::NotFound,
            format!(
                "no such program in this container: {:?}; check the command and PATH, or the interpreter it names",
                show(name)
            ),
        )
    };
    let (Ok(arguments), Ok(environment)) = (strings(&process.args), strings(&process.env)) else {
        return Fault::invalid("the program's arguments or environment have a NUL byte");
    };
    let (arguments, environment) = (pointers(&arguments), pointers(&environment));
    if name.contains(&b'/') {
        return match os::execute(name, &arguments, &environment) {
            Errno::NOENT | Errno::NOTDIR => not_found(),
            errno => cannot(name, errno),
        };
    }
    let path = process
        .env
        .iter()
        .rev()
        .find_map(|entry| entry.strip_prefix(b"PATH="));
    let mut result = not_found();
    if name.is_empty() {
        return result;
    }
    for directory in path.unwrap_or(DEFAULT_PATH).split(|byte| *byte == b':') {
        let directory = if directory.is_empty() { b"." } else { directory };
        let candidate = [directory, b"/", name].concat();
        match os::execute(&candidate, &arguments, &environment) {
            Errno::NOENT | Errno::NOTDIR => {}
            // Another directory may still have one that can be executed.
            Errno::ACCES => result = cannot(&candidate, Errno::ACCES),
            errno => return cannot(&candidate, errno),
        }
    }
    result
}

fn cannot(path: &[u8], errno: Errno) -> Fault {
    let why = match errno {
        Errno::ACCES => "permission denied; is the file executable for this user?",
        Errno(8) => "exec format error: it is not a program for this machine; a script needs a #! line",
        errno => errno.text(),
    };
    Fault::new(
        Failure::Permission,
        format!("cannot execute {:?}: {why}", show(path)),
    )
}

fn strings(texts: &[Vec<u8>]) -> os::Result<Vec<Vec<u8>>> {
    texts.iter().map(|text| os::terminated(text)).collect()
}

fn pointers(texts: &[Vec<u8>]) -> Vec<*const u8> {
    texts
        .iter()
        .map(|text| text.as_ptr())
        .chain([ptr::null()])
        .collect()
}

/// A compiled seccomp program in the runtime's form: "VSF1", flags, whether SPEC_ALLOW is preferred, how many instructions,
/// the instructions.
struct Filter<'a> {
    flags: u32,
    prefer: bool,
    code: &'a [u8],
}

const SPEC_ALLOW: u32 = 4;
const NEW_LISTENER: u32 = 8;

impl<'a> Filter<'a> {
    fn read(bytes: &'a [u8]) -> Result<Option<Self>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let parts = bytes.split_at_checked(16).and_then(|(header, code)| {
            let word = |at: usize| Some(u32::from_le_bytes(*header.get(at..)?.first_chunk()?));
            let right = header.starts_with(b"VSF1") && word(12)? as usize * 8 == code.len();
            right.then_some(Self {
                flags: word(4)?,
                prefer: word(8)? != 0,
                code,
            })
        });
        let filter = parts.ok_or_else(|| Fault::invalid("the seccomp filter cannot be read"))?;
        if filter.flags & NEW_LISTENER != 0 {
            return Err(Fault::new(
                Failure::Unsupported,
                "a seccomp filter that notifies an agent does not work in a virtual machine",
            ));
        }
        Ok(Some(filter))
    }

    fn install(&self) -> Result<()> {
        let result = match self.prefer {
            true => match os::set_filter(self.flags | SPEC_ALLOW, self.code) {
                Err(Errno::INVAL) => os::set_filter(self.flags, self.code),
                result => result,
            },
            false => os::set_filter(self.flags, self.code),
        };
        result.context(|| "install the seccomp filter".into())
    }
}

/// Makes descriptors the standard streams; one that is absent is the null device.
pub fn streams(given: &[Option<Fd>; 3], owner: u32) -> Result<()> {
    let what = || "set the standard streams".into();
    for (number, fd) in (0..).zip(given) {
        match fd {
            Some(fd) => {
                // The program may open /dev/stdout: it has to own what lies behind it.
                if owner != 0 {
                    let _ = os::change_owner(fd.raw(), owner, u32::MAX);
                }
                os::duplicate_to(fd, number).context(what)?;
            }
            None => {
                let null = os::open(b"/dev/null", os::O_RDWR).context(|| "open /dev/null".into())?;
                os::duplicate_to(&null, number).context(what)?;
            }
        }
    }
    Ok(())
}
