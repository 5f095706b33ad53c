//! Descriptors that the main controller hands to its children: listening sockets and a heartbeat.
//!
//! The environment variable `BRAID_DESCRIPTORS` names them: `3=heartbeat;4=tcp:127.0.0.1:7403;...`.

use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::path::PathBuf;

use braid_env::Address;
use braid_env::machine::Inherited;

/// The variable's name.
pub const VARIABLE: &str = "BRAID_DESCRIPTORS";

/// First descriptor that is handed over.
pub const FIRST: RawFd = 3;

/// What a child was handed.
pub struct Handed {
    /// To the main controller; its end means that the main controller is gone.
    pub heartbeat: OwnedFd,
    /// Sockets that listen already.
    pub sockets: Inherited,
}

/// The name of an address in the variable.
pub fn name_of(address: &Address) -> String {
    match address {
        Address::Tcp(address) => format!("tcp:{address}"),
        Address::Unix(path) => format!("unix:{}", path.display()),
    }
}

/// Takes over what the parent handed to this process. Once only.
///
/// Errors: what is wrong with the variable.
#[allow(unsafe_code)]
pub fn take() -> Result<Handed, String> {
    let text = std::env::var(VARIABLE).map_err(|_| format!("{VARIABLE} is not set"))?;
    let mut heartbeat = None;
    let mut sockets = Inherited::new();
    for (part, expected) in text.split(';').zip(FIRST..) {
        let (number, name) = part.split_once('=').ok_or("a part has no `=`")?;
        if number.parse() != Ok(expected) {
            return Err(format!("descriptor {number} where {expected} was expected"));
        }
        // SAFETY: the main controller opened this descriptor for us under this number before it
        // started us, nothing in this process knows it yet, and `take` is called once, at the start.
        let descriptor = unsafe { OwnedFd::from_raw_fd(expected) };
        rustix::io::fcntl_setfd(&descriptor, rustix::io::FdFlags::CLOEXEC)
            .map_err(|error| format!("descriptor {expected}: {error}"))?;
        if name == "heartbeat" {
            heartbeat = Some(descriptor);
        } else if let Some(address) = name.strip_prefix("tcp:") {
            let address = address.parse().map_err(|_| format!("no address: {address}"))?;
            sockets.insert(Address::Tcp(address), descriptor);
        } else if let Some(path) = name.strip_prefix("unix:") {
            sockets.insert(Address::Unix(PathBuf::from(path)), descriptor);
        } else {
            return Err(format!("unknown descriptor {name}"));
        }
    }
    let heartbeat = heartbeat.ok_or("no heartbeat was handed over")?;
    Ok(Handed { heartbeat, sockets })
}
