//! `keyctl(2)`: a session keyring for each container.
//!
//! Keys are not namespaced. Without a keyring of its own a container's processes inherit the session keyring of
//! whoever started the engine, and with it access to keys that are none of their business.

use super::check;
use rustix::io::Result;
use std::ffi::CStr;

const KEYCTL_GET_KEYRING_ID: libc::c_long = 0;
const KEY_SPEC_SESSION_KEYRING: libc::c_long = -3;
const KEYCTL_SETPERM: libc::c_long = 5;
const KEYCTL_DESCRIBE: libc::c_long = 6;
const KEYCTL_JOIN_SESSION_KEYRING: libc::c_long = 1;

/// `KEY_USR_SEARCH`: lets the same user find the keyring, and so lets `exec` join it later.
const KEY_USR_SEARCH: u32 = 0x0008_0000;

/// The serial number of a key or keyring.
pub type KeySerial = i32;

/// Joins the session keyring of this name, making it if this user has none (`KEYCTL_JOIN_SESSION_KEYRING`).
///
/// By convention the name is `_ses.<container id>`. Errors worth knowing: `ENOSYS` when the kernel has no keys,
/// `EDQUOT` when the user has too many; `EACCES` when the keyring exists but is not searchable.
pub fn join_session_keyring(name: &CStr) -> Result<KeySerial> {
    // SAFETY: `name` is a NUL-terminated string that outlives the call.
    let joined =
        check(unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) })?;
    // The kernel answers 0, not the serial number, when it already was this thread's session keyring.
    let serial = match joined {
        // SAFETY: integers only; asks for the session keyring without making one.
        0 => check(unsafe {
            libc::syscall(
                libc::SYS_keyctl,
                KEYCTL_GET_KEYRING_ID,
                KEY_SPEC_SESSION_KEYRING,
                0,
            )
        })?,
        serial => serial,
    };
    Ok(serial as KeySerial)
}

/// Leaves the session keyring for a new one without a name, which nobody else can join.
///
/// A named keyring is joined, not made, when the user has one of that name already: everyone who knows the name shares
/// it. Errors as of [`join_session_keyring`].
pub fn new_session_keyring() -> Result<()> {
    // SAFETY: a null name asks for a new keyring; no memory is touched.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_JOIN_SESSION_KEYRING,
            std::ptr::null::<libc::c_char>(),
        )
    })
    .map(drop)
}

/// Adds the user's search permission to a keyring, so that a later [`join_session_keyring`] of the same name finds it
/// instead of making a second one.
pub fn make_searchable(keyring: KeySerial) -> Result<()> {
    let mut buf = [0u8; 256];
    // SAFETY: the kernel writes at most `buf.len()` bytes to `buf`.
    let len = check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_DESCRIBE,
            libc::c_long::from(keyring),
            buf.as_mut_ptr(),
            buf.len(),
        )
    })?;
    let permissions = permissions(&buf[..len.min(buf.len())]).ok_or(rustix::io::Errno::INVAL)?;
    // SAFETY: integers only.
    check(unsafe {
        libc::syscall(
            libc::SYS_keyctl,
            KEYCTL_SETPERM,
            libc::c_long::from(keyring),
            libc::c_ulong::from(permissions | KEY_USR_SEARCH),
        )
    })
    .map(drop)
}

/// The fourth field of `type;uid;gid;perm;description`, in hexadecimal.
fn permissions(described: &[u8]) -> Option<u32> {
    let field = described.split(|&b| b == b';').nth(3)?;
    u32::from_str_radix(std::str::from_utf8(field).ok()?, 16).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::ffi::CString;

    #[test]
    fn joins_make_and_find() {
        // The session keyring belongs to the thread's credentials, so a thread of its own keeps it from the others.
        std::thread::spawn(|| {
            let name = CString::new(format!("_ses.vessel-test-{}", std::process::id())).unwrap();
            let first = join_session_keyring(&name).unwrap();
            make_searchable(first).unwrap();
            let other = join_session_keyring(c"_ses.vessel-test-other").unwrap();
            assert_ne!(first, other);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn joining_twice_finds_the_same() {
        std::thread::spawn(|| {
            let name = CString::new(format!("_ses.vessel-test-same-{}", std::process::id())).unwrap();
            let first = join_session_keyring(&name).unwrap();
            make_searchable(first).unwrap();
            assert_eq!(join_session_keyring(&name).unwrap(), first);
            let elsewhere = std::thread::spawn(move || {
                join_session_keyring(c"_ses.vessel-test-elsewhere").unwrap();
                join_session_keyring(&name).unwrap()
            });
            assert_eq!(elsewhere.join().unwrap(), first);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn describes() {
        assert_eq!(permissions(b"keyring;0;0;3f1f0000;_ses.x\0"), Some(0x3f1f_0000));
        assert_eq!(permissions(b"keyring;0;0"), None);
        assert_eq!(permissions(b"keyring;0;0;zz;a"), None);
        assert_eq!(permissions(b""), None);
    }
}
