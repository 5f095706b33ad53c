//! Mounts for tests; a machine without FUSE, or a user who may not mount, skips them.

use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use braid_fuse::memory::MemoryStore;
use braid_fuse::{Flags, MountError, Mounted};

/// A mount of a store in memory in a temporary folder.
pub struct TestMount {
    mounted: Option<Mounted<MemoryStore>>,
    folder: tempfile::TempDir,
}

#[allow(dead_code, reason = "not every test file uses all of it")]
impl TestMount {
    /// Mounts; `None`, and a printed reason, where that cannot be done here.
    pub fn start(store: &MemoryStore, options: &str) -> Option<Self> {
        let folder = tempfile::tempdir().expect("a temporary folder can be made");
        let flags = Flags::parse([options]).expect("options of a test are known");
        let store = store.clone();
        match Mounted::start(|_| async { Ok(store) }, "test", folder.path(), &flags) {
            Ok(mounted) => Some(Self { mounted: Some(mounted), folder }),
            Err(
                error @ (MountError::NoFuse { .. } | MountError::FuseClosed | MountError::NoHelper),
            ) => {
                println!("skipped: {error}");
                None
            }
            Err(MountError::Refused { error, .. })
                if error.kind() == std::io::ErrorKind::PermissionDenied =>
            {
                println!("skipped: {error}");
                None
            }
            Err(error) => panic!("{error}"),
        }
    }

    /// A path in the mount.
    pub fn path(&self, name: impl AsRef<Path>) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Unmounts and mounts again: nothing is known but what the store has.
    pub fn again(mut self, store: &MemoryStore) -> Self {
        self.end();
        Self::start(store, "").expect("it could be mounted before")
    }

    fn end(&mut self) {
        if let Some(mut mounted) = self.mounted.take() {
            mounted.unmount();
            mounted.wait(|| false).expect("the session ends well");
        }
    }
}

impl Drop for TestMount {
    fn drop(&mut self) {
        self.end();
    }
}

/// Names in a directory, sorted.
#[allow(dead_code, reason = "not every test file lists")]
pub fn names(directory: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(directory).expect("it can be listed");
    let mut names: Vec<String> = entries
        .map(|entry| entry.expect("each entry can be read").file_name())
        .map(|name| String::from_utf8_lossy(name.as_bytes()).into_owned())
        .collect();
    names.sort();
    names
}
