//! Being told that a device of the node, or an address on one, came or changed.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// `RTMGRP_LINK`, `RTMGRP_IPV4_IFADDR` and `RTMGRP_IPV6_IFADDR` (`include/uapi/linux/rtnetlink.h`).
const GROUPS: u32 = 0x1 | 0x10 | 0x100;

/// Tells of devices and addresses. What a notice says is not read: the devices are looked at anew.
pub struct Monitor {
    socket: AsyncFd<Listening>,
}

struct Listening(Socket);

impl AsRawFd for Listening {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Monitor {
    /// Listens from now on, in the network namespace that this thread is in.
    ///
    /// # Errors
    /// The kernel refuses the socket.
    pub fn new() -> io::Result<Self> {
        let mut socket = Socket::new(NETLINK_ROUTE)?;
        socket.bind(&SocketAddr::new(0, GROUPS))?;
        socket.set_non_blocking(true)?;
        // SAFETY: the socket owns its descriptor, which stays open and the same as long as it lives.
        let socket = unsafe { AsyncFd::register_with_interest(Listening(socket), Interest::READABLE) };
        Ok(Self { socket: socket.map_err(|error| error.into_parts().1)? })
    }

    /// Waits for a notice, and takes all that are there.
    ///
    /// # Errors
    /// Waiting fails.
    pub async fn changed(&mut self) -> io::Result<()> {
        let mut guard = self.socket.readable_mut().await?;
        let socket = &guard.get_inner_mut().0;
        loop {
            match socket.recv_from_full() {
                // Notices that found no room are as good as notices.
                Ok(_) => {}
                Err(error) if error.raw_os_error() == Some(nix::libc::ENOBUFS) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        guard.clear_ready();
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;
    use std::time::Duration;

    use super::Monitor;

    fn ip(words: &[&str]) {
        assert!(Command::new("ip").args(words).status().unwrap().success(), "{words:?}");
    }

    #[tokio::test]
    async fn devices_and_addresses_are_told_of() {
        // The namespace is this test's thread's, and goes with it.
        nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET).unwrap();
        let mut monitor = Monitor::new().unwrap();
        for words in [
            &["link", "add", "other", "type", "bridge"][..],
            &["addr", "add", "192.0.2.1/32", "dev", "other"],
            &["addr", "add", "2001:db8::1/128", "dev", "other"],
            &["addr", "del", "192.0.2.1/32", "dev", "other"],
        ] {
            ip(words);
            tokio::time::timeout(Duration::from_secs(5), monitor.changed()).await.unwrap().unwrap();
            let more = tokio::time::timeout(Duration::from_millis(100), monitor.changed()).await;
            assert!(more.is_err(), "all is taken: {words:?}");
        }
    }
}
