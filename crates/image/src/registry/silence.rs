//! How long the other side of a request may do nothing. How long all of it takes is nobody's business: a layer may be
//! large and a line slow.

use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures_util::Stream;
use tokio::time::Instant;

/// What goes on with a body on its way out.
#[derive(Debug, Clone, Copy)]
enum State {
    /// The connection took a piece then, and none since.
    Offered(Instant),
    /// The connection wants more, and there is none yet: nobody's silence.
    Empty,
    /// All of it was taken; the answer is awaited.
    Sent(Instant),
}

/// Follows a body on its way out.
#[derive(Debug, Clone)]
pub(super) struct Pulse(Arc<Mutex<State>>);

impl Pulse {
    pub(super) fn new() -> Self {
        Self(Arc::new(Mutex::new(State::Offered(Instant::now()))))
    }

    fn set(&self, state: State) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }

    /// The same pieces, followed.
    pub(super) fn follow<S>(&self, pieces: S) -> Followed<S> {
        Followed {
            pieces,
            pulse: self.clone(),
        }
    }

    /// Waits for an answer as long as the connection takes what is offered: each piece within `silence`, and the answer
    /// within `answer` of the last one. `None` when it did not.
    pub(super) async fn bound<T>(
        &self,
        silence: Duration,
        answer: Duration,
        work: impl Future<Output = T>,
    ) -> Option<T> {
        tokio::pin!(work);
        loop {
            let state = *self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let until = match state {
                State::Offered(since) => since + silence,
                State::Empty => Instant::now() + silence,
                State::Sent(since) => since + answer,
            };
            if until <= Instant::now() {
                return None;
            }
            tokio::select! {
                result = &mut work => return Some(result),
                () = tokio::time::sleep_until(until) => {}
            }
        }
    }
}

/// See [`Pulse::follow`].
#[derive(Debug)]
pub(super) struct Followed<S> {
    pieces: S,
    pulse: Pulse,
}

impl<S: Stream<Item = std::io::Result<Bytes>> + Unpin> Stream for Followed<S> {
    type Item = std::io::Result<Bytes>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let polled = Pin::new(&mut self.pieces).poll_next(cx);
        self.pulse.set(match &polled {
            Poll::Pending => State::Empty,
            Poll::Ready(Some(_)) => State::Offered(Instant::now()),
            Poll::Ready(None) => State::Sent(Instant::now()),
        });
        polled
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::{StreamExt as _, stream};

    const SILENCE: Duration = Duration::from_millis(60);

    fn pieces(count: usize) -> impl Stream<Item = std::io::Result<Bytes>> + Unpin {
        stream::iter((0..count).map(|_| Ok(Bytes::from_static(b"x"))))
    }

    #[tokio::test]
    async fn slow_is_not_silent() {
        let pulse = Pulse::new();
        let mut body = pulse.follow(pieces(10));
        let taking = async {
            while body.next().await.is_some() {
                tokio::time::sleep(SILENCE / 3).await;
            }
            "sent"
        };
        assert_eq!(pulse.bound(SILENCE, SILENCE, taking).await, Some("sent"));
    }

    #[tokio::test]
    async fn who_stops_taking_is_given_up() {
        let pulse = Pulse::new();
        let mut body = pulse.follow(pieces(10));
        let taking = async {
            body.next().await;
            std::future::pending::<()>().await;
        };
        let begun = Instant::now();
        assert_eq!(pulse.bound(SILENCE, SILENCE * 100, taking).await, None);
        assert!(begun.elapsed() < SILENCE * 50);
    }

    #[tokio::test]
    async fn waiting_for_the_next_piece_is_not_the_others_silence() {
        let pulse = Pulse::new();
        let late = stream::once(Box::pin(async {
            tokio::time::sleep(SILENCE * 4).await;
            Ok(Bytes::new())
        }));
        let mut body = pulse.follow(late);
        let taking = async { while body.next().await.is_some() {} };
        assert_eq!(pulse.bound(SILENCE, SILENCE, taking).await, Some(()));
        let never = std::future::pending::<()>();
        assert_eq!(
            pulse.bound(SILENCE * 100, SILENCE, never).await,
            None,
            "no answer"
        );
    }
}
