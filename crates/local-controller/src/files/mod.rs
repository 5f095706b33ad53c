//! File controllers.
mod bytes_le;
mod log;
