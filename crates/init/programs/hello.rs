//! The program of the embedded image `hello`: says what just happened and what to try next.

#![no_std]
#![no_main]

mod sys;

use sys::{Args, getpid, syscall, write, write_number};

/// `struct new_utsname`: six fields of 65 bytes, each ended by NUL.
#[repr(C)]
struct Names {
    sysname: [u8; 65],
    nodename: [u8; 65],
    rest: [u8; 4 * 65],
}

#[unsafe(no_mangle)]
fn main(_: Args) -> i32 {
    let mut names = Names {
        sysname: [0; 65],
        nodename: [0; 65],
        rest: [0; 4 * 65],
    };
    // SAFETY: uname fills a structure of exactly this layout.
    unsafe { syscall(63, &raw mut names as usize, 0, 0, 0, 0) };
    let end = names.nodename.iter().position(|b| *b == 0).unwrap_or(0);

    write(
        1,
        b"Hello from Vessel. This container works.\n\nWhat just happened:\n",
    );
    write(
        1,
        b"  - The image \"hello\" came from the vessel program itself; no network was used.\n",
    );
    write(
        1,
        b"  - Its one layer became the root of this process, under a writable layer of its own.\n",
    );
    write(1, b"  - This program runs here as process ");
    write_number(1, getpid() as u32);
    write(1, b" on host \"");
    write(1, &names.nodename[..end]);
    write(
        1,
        b"\",\n    in its own namespaces and cgroup, with a seccomp filter.\n",
    );
    write(1, b"\nWhat to try next:\n");
    write(
        1,
        b"  images/busybox.sh | vessel load      make an image with a shell from the host's busybox\n",
    );
    write(1, b"  vessel run -it --rm busybox          look around in it\n");
    write(1, b"  vessel run --help                    all the options\n");
    0
}
