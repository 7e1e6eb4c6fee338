//! One question about the current revision at a time, however many want to know.

use std::future::Future;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

use crate::{Error, Result};

/// Whoever asks before a request is sent shares it. Whoever asks while one is under way must wait for the next: the
/// answer that is on its way may be older than the question.
#[derive(Default)]
pub(super) struct SingleFlight {
    waiting: Arc<Mutex<Waiting>>,
}

#[derive(Default)]
struct Waiting {
    callers: Vec<oneshot::Sender<Result<u64>>>,
    under_way: bool,
}

impl SingleFlight {
    pub async fn get<F>(&self, ask: impl Fn() -> F + Send + 'static) -> Result<u64>
    where
        F: Future<Output = Result<u64>> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let idle = {
            let mut waiting = self.waiting.lock();
            waiting.callers.push(reply);
            !std::mem::replace(&mut waiting.under_way, true)
        };
        if idle {
            // In a task of its own, so that a caller who gives up takes nobody else with it.
            tokio::spawn(serve(self.waiting.clone(), ask));
        }
        answer.await.unwrap_or(Err(Error::Closed))
    }
}

async fn serve<F: Future<Output = Result<u64>>>(waiting: Arc<Mutex<Waiting>>, ask: impl Fn() -> F) {
    loop {
        let callers = {
            let mut waiting = waiting.lock();
            if waiting.callers.is_empty() {
                waiting.under_way = false;
                return;
            }
            std::mem::take(&mut waiting.callers)
        };
        let answer = ask().await;
        for caller in callers {
            // Whoever does not wait any longer does not want to know.
            let _ = caller.send(answer.clone());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicU64, Ordering};
    use tokio::sync::Semaphore;

    #[tokio::test]
    async fn callers_share_a_request_that_is_not_sent_yet() {
        let (asked, gate) = (Arc::new(AtomicU64::new(0)), Arc::new(Semaphore::new(0)));
        let flight = Arc::new(SingleFlight::default());
        let call = || {
            let (flight, asked, gate) = (flight.clone(), asked.clone(), gate.clone());
            tokio::spawn(async move {
                let ask = move || {
                    let (asked, gate) = (asked.clone(), gate.clone());
                    async move {
                        let number = asked.fetch_add(1, Ordering::SeqCst) + 1;
                        gate.acquire().await.map_err(|_| Error::Closed)?.forget();
                        Ok(number)
                    }
                };
                flight.get(ask).await
            })
        };
        let first = call();
        while asked.load(Ordering::SeqCst) == 0 {
            tokio::task::yield_now().await;
        }
        let others: Vec<_> = (0..50).map(|_| call()).collect();
        while flight.waiting.lock().callers.len() < 50 {
            tokio::task::yield_now().await;
        }
        gate.add_permits(2);
        assert_eq!(first.await.unwrap().unwrap(), 1);
        for other in others {
            assert_eq!(
                other.await.unwrap().unwrap(),
                2,
                "they all came after the first request was sent"
            );
        }
        assert_eq!(asked.load(Ordering::SeqCst), 2);
    }
}
