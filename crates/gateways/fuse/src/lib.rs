//! FUSE gateway.
