//! The kernel side of the agent, and the only module that names aya: what the kernel allows, which programs to attach,
//! attaching them, and reading their ring buffer.

pub mod btf;
pub mod canary;
pub mod features;
pub mod loader;
pub mod mappings;
pub mod object;
pub mod plan;
pub mod ring;
pub mod uprobes;

pub use features::{Features, detect};
pub use loader::{Attached, Attachment, Settings, attach};
pub use mappings::{Mapped, Mappings};
pub use plan::{Plan, Refused, SocketBackend, Wanted, plan};
pub use ring::Ring;
pub use uprobes::{Library, Uprobes};
