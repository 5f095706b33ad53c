//! Mounts a store that lives in this process: what the mount itself does, and costs, without a
//! cluster. `cargo run --release -p braid-fuse --example mount_memory -- DIR [-o OPTIONS]`.

use std::path::PathBuf;

use braid_fuse::memory::MemoryStore;
use braid_fuse::{Flags, Mounted};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let directory = PathBuf::from(arguments.next().ok_or("which directory?")?);
    let options: Vec<String> = arguments.filter(|argument| argument != "-o").collect();
    let flags = Flags::parse(options.iter().map(String::as_str))?;
    let mounted =
        Mounted::start(|_| async { Ok(MemoryStore::default()) }, "memory", &directory, &flags)?;
    mounted.wait(|| false)?;
    Ok(())
}
