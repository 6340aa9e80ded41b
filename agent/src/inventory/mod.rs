//! What APIs there are, as seen from their traffic. Pure: calls in, names out; it never reads a description or a file.

pub mod route;
