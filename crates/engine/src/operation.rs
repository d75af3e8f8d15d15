//! Which command of a user some work belongs to: known to all that is done for it without being handed through.

use std::future::Future;

tokio::task_local! {
    static CURRENT: Operation;
}

/// A command of a user.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Operation {
    /// Names it: twelve hexadecimal digits.
    pub id: String,
    /// Whoever gave it: what one client does without a pause belongs together. Empty: that is not known.
    pub client: String,
}

impl Operation {
    /// A new one.
    pub fn new(client: String) -> Self {
        let mut id = crate::ids::id();
        id.truncate(12);
        Self { id, client }
    }
}

/// 64 random hexadecimal digits that nobody can guess.
///
/// # Errors
/// The kernel's generator cannot be read.
pub fn secret() -> std::io::Result<String> {
    crate::ids::secret()
}

/// Does some work for a command.
pub async fn scope<F: Future>(operation: Operation, work: F) -> F::Output {
    CURRENT.scope(operation, work).await
}

/// The command that the current work belongs to.
pub fn current() -> Option<Operation> {
    CURRENT.try_with(Clone::clone).ok()
}
