//! Mounts a cluster without the program `braid`, to measure and debug the mount alone:
//! `cargo run --release -p braid-fuse --example mount_cluster -- CLIENT_TOML DIR [-o OPTIONS]`.

use braid_fuse::{MountOptions, mount};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut arguments = std::env::args().skip(1);
    let cluster_file = arguments.next().ok_or("which cluster file?")?.into();
    let directory = arguments.next().ok_or("which directory?")?.into();
    let options = arguments.filter(|argument| argument != "-o").collect();
    mount(&MountOptions { cluster_file, directory, options, io_sockets: Default::default() })?;
    Ok(())
}
