//! From Kubernetes objects to map entries: [object] → [index] → [mod@compile] → [plan].
//!
//! Invariants: nothing here reads a clock, the environment or a file; equal objects give an equal [`plan::State`]
//! in whatever order they came; every function is total, and what cannot be read denies for what it selects.
//!
//! Tested by `tests/`, which judge packets with [`egress_common::decide()`] over the compiled state.
#![forbid(unsafe_code)]

mod by_addr;
pub mod census;
pub mod compile;
mod digest;
pub mod explain;
pub mod index;
pub mod lint;
pub mod object;
mod pack;
pub mod plan;
#[cfg(feature = "reference")]
pub mod reference;
#[cfg(feature = "schema")]
pub mod schema;
pub mod standing;

pub use by_addr::ByAddr;
pub use compile::{Compiled, Compiler, compile};
pub use index::{Dirty, Event, Index};
pub use lint::lint;
pub use object::{Kind, Object, ObjectError, ObjectRef};
pub use plan::{Keys, Plan, State, Step, diff, diff_at};
