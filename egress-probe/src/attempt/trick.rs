//! `self-accept` and `repair`: TCP connections to somebody who does not know of them.

use std::io::Write as _;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::AsRawFd as _;
use std::process::Command;

use socket2::{Domain, Protocol, Socket, Type};

use super::{Budget, During as _, Failure, Success};
use crate::cli::SelfAcceptOptions;

fn stream_socket(address: SocketAddr) -> Result<Socket, Failure> {
    let socket =
        Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP)).during("open socket")?;
    socket.set_reuse_address(true).during("SO_REUSEADDR")?;
    Ok(socket)
}

/// Connects to its own listening socket from `from`, which must be a local address for so long, runs the command that
/// takes the address away, and sends by the accepted half, whose peer is then somebody else.
pub(crate) fn self_accept(options: &SelfAcceptOptions) -> Result<Success, Failure> {
    let budget = Budget::new(options.timeout_ms);
    let listener = TcpListener::bind(options.listen).during("listen")?;
    let client = stream_socket(options.from)?;
    client.bind(&options.from.into()).during("bind")?;
    client.connect_timeout(&options.listen.into(), budget.left("connect")?).during("connect")?;
    let (mut server, peer) = listener.accept().during("accept")?;
    if let Some(command) = &options.then {
        let status = Command::new("sh").args(["-c", command]).status().during("run the command")?;
        if !status.success() {
            return Err(Failure::other(format!("{command}: {status}")));
        }
    }
    server.write_all(options.payload.as_bytes()).during("send")?;
    // Closing would end the connection before what was sent had a chance to go.
    std::thread::sleep(std::time::Duration::from_millis(200));
    Ok(Success { detail: format!("sent to {peer}"), ..Success::default() })
}

/// Makes a connected socket by `TCP_REPAIR`, without a handshake, and sends by it.
pub(crate) fn repair(target: SocketAddr, from: SocketAddr, payload: &str) -> Result<Success, Failure> {
    let socket = stream_socket(target)?;
    let set = |option: libc::c_int, value: libc::c_int, step: &str| {
        // SAFETY: the option's value is a `c_int` that outlives the call, and its size is given.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::IPPROTO_TCP,
                option,
                (&raw const value).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        if result < 0 { Err(std::io::Error::last_os_error()) } else { Ok(()) }.during(step)
    };
    set(libc::TCP_REPAIR, 1, "TCP_REPAIR")?;
    socket.bind(&from.into()).during("bind")?;
    socket.connect(&target.into()).during("connect")?;
    set(libc::TCP_REPAIR, 0, "end of TCP_REPAIR")?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(payload.as_bytes()).during("send")?;
    std::thread::sleep(std::time::Duration::from_millis(100));
    Ok(Success { detail: format!("sent from {from} to {target}"), ..Success::default() })
}
