//! Channels under tokio.

use crate::{Channel, Listener, Result};
use std::future::poll_fn;
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::pin::Pin;
use std::task::{Context, Poll, Waker, ready};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf};

/// A channel that is read and written by tasks: [`AsyncRead`] and [`AsyncWrite`].
///
/// [`tokio::io::split`] parts it for two tasks. All operations are cancel-safe: a future that is dropped has moved either
/// nothing, or what it would have said.
///
/// [`shutdown`](tokio::io::AsyncWriteExt::shutdown) is over when the peer has taken all that was sent. The wire has no
/// word for one direction alone, so the channel itself is closed when it is dropped.
///
/// A [`Hub`](crate::Hub)'s channel can be used outside of a runtime, too: the hub wakes its tasks.
#[derive(Debug)]
pub struct AsyncChannel {
    /// None: a hub takes the events.
    event: Option<AsyncFd<OwnedFd>>,
    channel: Channel,
    /// Wakes both tasks: there is one event for both directions.
    waker: Waker,
}

impl AsyncChannel {
    /// The channel, for tasks. To be called within a runtime that has I/O enabled, unless it is a hub's.
    ///
    /// # Errors
    /// When the runtime cannot watch the descriptor.
    pub fn new(channel: Channel) -> io::Result<Self> {
        let event = channel.event_fd().map(watch).transpose()?;
        Ok(Self { event, waker: channel.event_waker(), channel })
    }

    /// Waits until the listener's client has come.
    ///
    /// # Errors
    /// As [`Listener::state`], and when the runtime cannot watch the descriptor.
    pub async fn accept(listener: Listener) -> io::Result<Self> {
        let mut this = Self::new(listener.into_channel())?;
        poll_fn(|context| this.poll(context, Channel::poll_accept)).await?;
        Ok(this)
    }

    /// The channel itself, for threads again.
    #[must_use]
    pub fn into_channel(self) -> Channel {
        self.channel
    }

    /// Tries an operation, whenever there was an event, until it need not wait.
    fn poll<T>(
        &mut self,
        context: &mut Context<'_>,
        mut operation: impl FnMut(&mut Channel, &mut Context<'_>) -> Poll<Result<T>>,
    ) -> Poll<io::Result<T>> {
        loop {
            if let Poll::Ready(result) = operation(&mut self.channel, context) {
                return Poll::Ready(result.map_err(io::Error::from));
            }
            let Some(event) = &self.event else { return Poll::Pending };
            ready!(event.poll_read_ready(&mut Context::from_waker(&self.waker)))?.clear_ready();
        }
    }
}

/// A descriptor of the runtime's own for the same events, so that neither it nor the channel can close the other's.
#[allow(deprecated, reason = "its successor is unsafe, for descriptors that are not owned: this one is")]
fn watch(fd: BorrowedFd<'_>) -> io::Result<AsyncFd<OwnedFd>> {
    AsyncFd::with_interest(fd.try_clone_to_owned()?, Interest::READABLE)
}

impl AsyncRead for AsyncChannel {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        let n = ready!(
            self.get_mut()
                .poll(context, |channel, context| channel.poll_recv(context, buffer.initialize_unfilled()))
        )?;
        buffer.advance(n);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for AsyncChannel {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll(context, |channel, context| channel.poll_send(context, bytes))
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll(context, |channel, context| channel.poll_send_vectored(context, buffers))
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(self.get_mut().channel.flush().map_err(io::Error::from))
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.get_mut().poll(context, Channel::poll_until_read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{Host, pattern, sizes};
    use std::time::Duration;
    use tokio::io::{AsyncReadExt, AsyncWriteExt, split};
    use tokio::time::timeout;

    const SHORT: Duration = Duration::from_millis(20);
    const LONG: Duration = Duration::from_secs(20);

    async fn pair(host: &Host) -> (AsyncChannel, AsyncChannel) {
        let listener = host.listen(&sizes(0, 0));
        let client = host.connect();
        (AsyncChannel::accept(listener).await.unwrap(), AsyncChannel::new(client).unwrap())
    }

    async fn both_ways(end: AsyncChannel, step: usize) {
        let expected = pattern(0, 300_000);
        let (mut reader, mut writer) = split(end);
        let bytes = expected.clone();
        let writing = tokio::spawn(async move {
            for part in bytes.chunks(step) {
                writer.write_all(part).await.unwrap();
            }
            writer.shutdown().await.unwrap();
        });
        let mut got = vec![0; expected.len()];
        reader.read_exact(&mut got).await.unwrap();
        assert!(got == expected);
        writing.await.unwrap();
    }

    #[tokio::test]
    async fn two_tasks_at_each_end_send_and_receive_at_once() {
        let host = Host::new();
        let (server, client) = pair(&host).await;
        let all = async {
            let ends = [tokio::spawn(both_ways(server, 700)), tokio::spawn(both_ways(client, 3001))];
            for end in ends {
                end.await.unwrap();
            }
        };
        timeout(LONG, all).await.expect("no wake-up is lost");
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn and_on_two_threads() {
        let host = Host::new();
        let (server, client) = pair(&host).await;
        let all = async {
            let ends = [tokio::spawn(both_ways(server, 1025)), tokio::spawn(both_ways(client, 64))];
            for end in ends {
                end.await.unwrap();
            }
        };
        timeout(LONG, all).await.expect("no wake-up is lost");
    }

    #[tokio::test]
    async fn a_future_that_is_dropped_has_moved_nothing() {
        let host = Host::new();
        let (mut server, mut client) = pair(&host).await;
        let mut byte = [0];
        for round in 0..20_u8 {
            assert!(timeout(SHORT / 20, server.read(&mut byte)).await.is_err(), "nothing has come");
            client.write_all(&[round]).await.unwrap();
            assert_eq!(timeout(LONG, server.read(&mut byte)).await.unwrap().unwrap(), 1);
            assert_eq!(byte, [round]);
        }
        client.write_all(&[7; 1024]).await.unwrap();
        assert!(timeout(SHORT, client.write(&[8])).await.is_err(), "the ring is full");
        let mut all = vec![0; 1024];
        server.read_exact(&mut all).await.unwrap();
        assert_eq!(all, [7; 1024]);
        timeout(LONG, client.shutdown()).await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn the_end_wakes_who_reads_and_who_writes() {
        let host = Host::new();
        let (mut server, client) = pair(&host).await;
        let reading = tokio::spawn(async move {
            let mut got = Vec::new();
            server.read_to_end(&mut got).await.unwrap();
            got
        });
        let mut client = client;
        client.write_all(b"last words").await.unwrap();
        drop(client);
        assert_eq!(timeout(LONG, reading).await.unwrap().unwrap(), b"last words");

        let (server, mut client) = pair(&Host::new()).await;
        let writing = tokio::spawn(async move { client.write_all(&[0; 5000]).await });
        tokio::time::sleep(SHORT).await;
        drop(server);
        let error = timeout(LONG, writing).await.unwrap().unwrap().unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::BrokenPipe);
    }

    #[tokio::test]
    async fn a_channel_comes_back_from_its_tasks() {
        let host = Host::new();
        let (server, mut client) = pair(&host).await;
        client.write_all(b"for a thread").await.unwrap();
        let mut server = server.into_channel();
        let mut bytes = [0; 12];
        server.recv_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"for a thread");
    }
}
