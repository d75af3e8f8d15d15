//! INIT: what the two sides agree on.

use std::sync::atomic::Ordering;

use rustix::io::Errno;

use super::super::Sharing;
use super::super::abi::{self, InitIn, InitOut};
use super::{Answer, Call, Server};

/// The most bytes of one read or write: 256 pages, what the kernel allows without other settings.
const MAX_WRITE: u32 = 1 << 20;

/// What is said in every agreement, so that a server that has agreed on nothing else can be told from one that was not asked.
const STARTED: u64 = abi::BIG_WRITES;

impl Server {
    pub(super) fn init(&self, call: &mut Call<'_>) -> Answer {
        let asked: InitIn = call.arguments()?;
        if asked.major < abi::VERSION {
            return Err(Errno::PROTO);
        }
        if asked.major > abi::VERSION {
            // It asks again, with this version.
            return call.answer(&InitOut {
                major: abi::VERSION,
                minor: abi::MINOR,
                ..Default::default()
            });
        }
        if asked.minor < abi::OLDEST_MINOR {
            return Err(Errno::PROTO);
        }
        let mut offered = u64::from(asked.flags);
        if offered & abi::INIT_EXT != 0 {
            // An older kernel sends less and does not set the flag.
            offered |= u64::from(call.arguments::<u32>()?) << 32;
        }
        let mut wanted = STARTED
            | abi::ASYNC_READ
            | abi::ATOMIC_O_TRUNC
            | abi::DO_READDIRPLUS
            | abi::READDIRPLUS_AUTO
            | abi::ASYNC_DIO
            | abi::PARALLEL_DIROPS
            | abi::MAX_PAGES
            | abi::SUBMOUNTS
            | abi::HANDLE_KILLPRIV_V2
            | abi::SETXATTR_EXT
            | abi::INIT_EXT;
        wanted |= match self.options.sharing {
            Sharing::Exclusive => abi::WRITEBACK_CACHE | abi::CACHE_SYMLINKS,
            Sharing::Shared => abi::AUTO_INVAL_DATA,
        };
        let agreed = offered & wanted;
        // A guest that starts anew without having said goodbye knows nothing of before.
        self.reset();
        self.features.store(agreed | STARTED, Ordering::Relaxed);
        call.answer(&InitOut {
            major: abi::VERSION,
            minor: abi::MINOR,
            max_readahead: asked.max_readahead,
            flags: agreed as u32,
            max_background: 64,
            congestion_threshold: 48,
            max_write: MAX_WRITE,
            time_gran: 1,
            max_pages: if agreed & abi::MAX_PAGES != 0 {
                (MAX_WRITE / 4096) as u16
            } else {
                0
            },
            flags2: (agreed >> 32) as u32,
            ..Default::default()
        })
    }
}
