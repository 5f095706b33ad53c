//! The machine's side: sockets, files, clocks.
