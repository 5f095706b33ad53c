//! File controllers.
mod bytes_le;
mod log;
mod record;
mod rules;
mod state;
