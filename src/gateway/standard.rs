//! Standard input and output of a process that must not wait for them.
//!
//! They belong to the client as well, so none of their flags is changed: what is asked for is whether a pipe has something
//! or has room before it is touched, and a socket (which is what Node.js gives its children) is told not to wait. Anything
//! else, such as a terminal or a file, is for threads that may wait.

use std::{
    io,
    os::fd::{AsFd, AsRawFd, BorrowedFd},
    pin::Pin,
    task::{Context, Poll, ready},
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    fs::{FileType, fstat},
    net::{RecvFlags, SendFlags, recv, send},
};
use tokio::io::{AsyncRead, AsyncWrite, Interest, ReadBuf, unix::AsyncFd};

/// As many bytes as fit into a pipe without waiting (pipe(7): `poll` reports room for `PIPE_BUF` bytes).
const PIPE_BUF: usize = 4_096;

pub fn input() -> Box<dyn AsyncRead + Send + Unpin> {
    match Stream::new(io::stdin(), Interest::READABLE) {
        Some(stream) => Box::new(stream),
        None => Box::new(tokio::io::stdin()),
    }
}

pub fn output() -> Box<dyn AsyncWrite + Send + Unpin> {
    match Stream::new(io::stdout(), Interest::WRITABLE) {
        Some(stream) => Box::new(stream),
        None => Box::new(tokio::io::stdout()),
    }
}

/// A pipe or a socket.
struct Stream<F: AsFd + AsRawFd> {
    fd: AsyncFd<F>,
    is_socket: bool,
}

impl<F: AsFd + AsRawFd> Stream<F> {
    fn new(fd: F, interest: Interest) -> Option<Self> {
        let is_socket = match FileType::from_raw_mode(fstat(&fd).ok()?.st_mode) {
            FileType::Socket => true,
            FileType::Fifo => false,
            _ => return None,
        };
        // SAFETY: a standard stream has one descriptor, which it never closes.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) };
        Some(Stream { fd: fd.ok()?, is_socket })
    }

    fn receive(&self, fd: BorrowedFd, buffer: &mut ReadBuf) -> io::Result<()> {
        let space = buffer.initialize_unfilled();
        let read = if self.is_socket {
            recv(fd, space, RecvFlags::DONTWAIT)?.0
        } else {
            until_ready(fd, PollFlags::IN)?;
            rustix::io::read(fd, space)?
        };
        buffer.advance(read);
        Ok(())
    }

    fn send(&self, fd: BorrowedFd, bytes: &[u8]) -> io::Result<usize> {
        if self.is_socket {
            return Ok(send(fd, bytes, SendFlags::DONTWAIT | SendFlags::NOSIGNAL)?);
        }
        until_ready(fd, PollFlags::OUT)?;
        Ok(rustix::io::write(fd, &bytes[..bytes.len().min(PIPE_BUF)])?)
    }
}

/// `WouldBlock` unless the descriptor is ready now, if only to tell of its end.
fn until_ready(fd: BorrowedFd, flags: PollFlags) -> io::Result<()> {
    let mut polled = [PollFd::from_borrowed_fd(fd, flags)];
    match poll(&mut polled, Some(&Timespec::default()))? {
        0 => Err(io::ErrorKind::WouldBlock.into()),
        _ => Ok(()),
    }
}

impl<F: AsFd + AsRawFd + Unpin> AsyncRead for Stream<F> {
    fn poll_read(self: Pin<&mut Self>, context: &mut Context, buffer: &mut ReadBuf) -> Poll<io::Result<()>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| self.receive(fd.get_ref().as_fd(), buffer)) {
                return Poll::Ready(result);
            }
        }
    }
}

impl<F: AsFd + AsRawFd + Unpin> AsyncWrite for Stream<F> {
    fn poll_write(self: Pin<&mut Self>, context: &mut Context, bytes: &[u8]) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(context))?;
            if let Ok(result) = guard.try_io(|fd| self.send(fd.get_ref().as_fd(), bytes)) {
                return Poll::Ready(result);
            }
        }
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(())) // nothing is held back
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }
}

#[cfg(test)]
mod tests {
    use std::{
        fs::File,
        io::{Read, Write},
        os::{fd::OwnedFd, unix::net::UnixStream},
    };

    use tokio::io::{AsyncReadExt, AsyncWriteExt};

    use super::*;

    const BYTES: usize = 1 << 20;

    fn pipe() -> (OwnedFd, OwnedFd) {
        rustix::pipe::pipe().unwrap()
    }

    fn socket() -> (OwnedFd, OwnedFd) {
        let (read, write) = UnixStream::pair().unwrap();
        (read.into(), write.into())
    }

    fn runtime() -> tokio::runtime::Runtime {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
    }

    #[test]
    fn full_pipe_suspends_only_its_writer() {
        for (read, write) in [pipe(), socket()] {
            runtime().block_on(async {
                let mut stream = Stream::new(write, Interest::WRITABLE).unwrap();
                let sent: Vec<u8> = (0..BYTES).map(|n| (n / 7) as u8).collect();
                let full = tokio::time::timeout(std::time::Duration::from_millis(50), stream.write_all(&sent)).await;
                assert!(full.is_err(), "nobody reads, and the runtime's timer was served");
                let reader = std::thread::spawn(move || {
                    let mut received = Vec::new();
                    File::from(read).read_to_end(&mut received).unwrap();
                    received
                });
                stream.write_all(&sent).await.unwrap();
                drop(stream);
                let received = reader.join().unwrap();
                assert!(received.ends_with(&sent) && received.len() < 2 * sent.len());
            });
        }
    }

    #[test]
    fn input_is_read_to_the_end_with_flags_unchanged() {
        for (read, write) in [pipe(), socket()] {
            runtime().block_on(async {
                let before = rustix::fs::fcntl_getfl(&read).unwrap();
                let mut stream = Stream::new(read, Interest::READABLE).unwrap();
                assert_eq!(rustix::fs::fcntl_getfl(stream.fd.get_ref()).unwrap(), before);
                let writer = std::thread::spawn(move || File::from(write).write_all(&[7; BYTES]).unwrap());
                let mut received = Vec::new();
                stream.read_to_end(&mut received).await.unwrap();
                writer.join().unwrap();
                assert!(received.len() == BYTES && received.iter().all(|byte| *byte == 7));
            });
        }
    }

    #[test]
    fn regular_file_is_not_a_stream() {
        runtime().block_on(async {
            assert!(Stream::new(tempfile::tempfile().unwrap(), Interest::READABLE).is_none());
        });
    }
}
