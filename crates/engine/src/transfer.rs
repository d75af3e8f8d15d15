//! What waits for a client: archives that are received or sent.
//!
//! A client may take its time, or stop for as long as it likes (`export | less`). So each transfer has a thread of its
//! own: those of [`blocking`](crate::blocking) are few, and every operation needs one now and then.

use tokio::sync::{Semaphore, oneshot};

use crate::{Error, Result};

/// Transfers under way at most. Each has a thread and a few hundred KiB of buffers.
const MAX_TRANSFERS: usize = 128;
/// As for the threads of the runtime: archives are handled in pieces.
const STACK: usize = 1024 * 1024;

static ROOM: Semaphore = Semaphore::const_new(MAX_TRANSFERS);

/// Begins `work` on a thread made for it.
///
/// # Errors
/// Too many transfers are under way; the system gives no thread.
pub fn spawn(work: impl FnOnce() + Send + 'static) -> Result<()> {
    let permit = ROOM.try_acquire().map_err(|_| {
        Error::conflict(format!(
            "{MAX_TRANSFERS} archives are being received or sent already: try again when one is done, or end some of them"
        ))
    })?;
    std::thread::Builder::new()
        .name("vessel-transfer".into())
        .stack_size(STACK)
        .spawn(move || {
            let _permit = permit;
            work();
        })
        .map(drop)
        .map_err(|error| Error::system(format!("start a thread for an archive: {error}")))
}

/// Runs `work` on a thread made for it and waits for what comes of it.
///
/// # Errors
/// Those of [`spawn`] and of `work`; a panic inside is reported as an error of the system.
pub(crate) async fn run<T: Send + 'static>(work: impl FnOnce() -> Result<T> + Send + 'static) -> Result<T> {
    let (sender, result) = oneshot::channel();
    spawn(move || {
        // Nobody waits any more: the result is of no use then.
        let _ = sender.send(work());
    })?;
    result
        .await
        .unwrap_or_else(|_| Err(Error::system("an operation of the engine ended abnormally")))
}
