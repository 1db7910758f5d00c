//! `talk`: one UDP socket that is kept, and may go from one process to another.

use std::io::{self, BufRead as _, IoSlice, IoSliceMut};
use std::net::UdpSocket;
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use anyhow::{Context as _, bail};
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};

use super::socket::connected_udp;
use super::{During as _, Success, finish};
use crate::cli::TalkOptions;
use crate::net;

/// Gets the socket, then sends a datagram for each line and prints how that went.
pub(crate) fn run(options: &TalkOptions) -> anyhow::Result<()> {
    let socket = match (&options.take, options.target) {
        (Some(path), _) => take(&UnixStream::connect(path).with_context(|| path.display().to_string())?)?,
        (None, Some(target)) => {
            connected_udp(target, 0).map_err(|failure| anyhow::anyhow!(failure.detail))?
        }
        (None, None) => bail!("neither a target nor a socket to take"),
    };
    let listener = options.give.as_ref().map(UnixListener::bind).transpose()?;
    net::announce_ready()?;
    if let Some(listener) = listener {
        give(&listener.accept()?.0, &socket)?;
    }
    for line in io::stdin().lock().lines() {
        let (line, start) = (line?, Instant::now());
        let sent = socket.send(line.as_bytes()).during("send");
        let sent = sent.map(|count| Success { detail: format!("sent {count} bytes"), ..Success::default() });
        net::print_line(&finish(start, sent))?;
    }
    Ok(())
}

fn give(to: &UnixStream, socket: &UdpSocket) -> io::Result<()> {
    let descriptors = [socket.as_raw_fd()];
    let rights = [ControlMessage::ScmRights(&descriptors)];
    sendmsg::<()>(to.as_raw_fd(), &[IoSlice::new(b"x")], &rights, MsgFlags::empty(), None)?;
    Ok(())
}

fn take(from: &UnixStream) -> anyhow::Result<UdpSocket> {
    let (mut byte, mut space) = ([0], nix::cmsg_space!([RawFd; 1]));
    let mut parts = [IoSliceMut::new(&mut byte)];
    let message = recvmsg::<()>(from.as_raw_fd(), &mut parts, Some(&mut space), MsgFlags::MSG_CMSG_CLOEXEC)?;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(descriptors) = control
            && let [descriptor] = descriptors.as_slice()
        {
            // SAFETY: the kernel has just made the descriptor for us, and nobody else knows it.
            return Ok(unsafe { OwnedFd::from_raw_fd(*descriptor) }.into());
        }
    }
    bail!("no socket was handed over")
}
