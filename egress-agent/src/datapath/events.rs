//! Reading the ring buffer: one task that waits for the kernel and hands on what it wrote.
//!
//! Invariant: a record that cannot be read is counted, never guessed. Tested by `tests/cli.rs`.

use std::io;
use std::os::fd::{AsRawFd, RawFd};

use aya::maps::{MapData, RingBuf};
use egress_common::wire::FlowEvent;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// The reading end of the ring buffer.
pub struct Events {
    ring: AsyncFd<Ring>,
}

struct Ring(RingBuf<MapData>);

impl AsRawFd for Ring {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_raw_fd()
    }
}

impl Events {
    /// Registers the ring buffer with the current runtime.
    ///
    /// # Errors
    /// The ring buffer cannot be polled.
    pub fn new(ring: RingBuf<MapData>) -> io::Result<Self> {
        // SAFETY: the ring buffer owns its map's descriptor, which stays open and the same as long as it lives.
        let ring = unsafe { AsyncFd::register_with_interest(Ring(ring), Interest::READABLE) };
        Ok(Self { ring: ring.map_err(|error| error.into_parts().1)? })
    }

    /// Waits for records and gives up to `limit` of them to `each`.
    ///
    /// # Errors
    /// Waiting fails.
    pub async fn read(&mut self, limit: usize, mut each: impl FnMut(FlowEvent)) -> io::Result<()> {
        let mut guard = self.ring.readable_mut().await?;
        let ring = &mut guard.get_inner_mut().0;
        for _ in 0..limit {
            let Some(record) = ring.next() else {
                guard.clear_ready();
                break;
            };
            match parse(&record) {
                Some(event) => each(event),
                None => tracing::warn!(bytes = record.len(), "a record in the ring buffer is not an event"),
            }
        }
        Ok(())
    }
}

fn parse(record: &[u8]) -> Option<FlowEvent> {
    if record.len() != size_of::<FlowEvent>() {
        return None;
    }
    // SAFETY: `FlowEvent` is plain data without padding (`aya::Pod`), and the record has its size; it may be unaligned.
    Some(unsafe { record.as_ptr().cast::<FlowEvent>().read_unaligned() })
}
