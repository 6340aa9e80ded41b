//! The kernel side of the agent, and the only module that names aya: what the kernel allows, which programs to attach,
//! attaching them, and reading their ring buffer.

pub mod btf;
pub mod features;
pub mod loader;
pub mod object;
pub mod plan;
pub mod ring;

pub use features::{Features, detect};
pub use loader::{Attached, Attachment, Settings, attach};
pub use plan::{Plan, Refused, SocketBackend, Wanted, plan};
pub use ring::Ring;
