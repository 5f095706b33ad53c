//! The simulator's side: virtual network and disks.
