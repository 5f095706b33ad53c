//! Recalls: what owners take back is forgotten here and in the kernel before that is answered.
//!
//! # Theory
//! ```text
//! recall of a name     the kernel asks for it again            names thread, may wait for a directory
//! a look at a file of which bytes wait: they are sent; and the owner is told anew before more wait
//! last name goes       whether the file is open is told: then it stays until the last close here
//! recall of a record   its attributes are asked for again      at once
//!                      its pages and read-ahead bytes go       pages thread, may wait for a page
//! lease over           all of that for what is open; the kernel believes nothing any more by itself
//! ```
//! # Who waits for whom
//! The kernel takes a name back only when nobody changes its directory, and a page when nobody reads or
//! writes it; and who does that may wait for an owner, who waits for us. So a recall does not wait for
//! the kernel while somebody here changes the directory, or reads or writes the file: it drops them when
//! that ends. (Who removes a directory, or moves it, changes that directory, too: the kernel locks it.)
//! A recall of names is answered at the latest when the kernel does not believe them any more
//! by itself, and in a directory that others change it is told to ask for each name.
//! # Invariants
//! R1 When a recall is answered, nothing of what it names is believed here or in the kernel, but for what
//!    it drops when a change, read or write here ends that waits just now.
//! R2 After a lease was over, nothing is answered from what it covered.
//! # Source
//! N-1, O-4; DESIGN-REASONS 11.

use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use braid_client::{Notice, Recalled};
use braid_env::Moment;
use braid_terms::DeviceId;
use braid_wire::lcc::FileKind;
use tokio::sync::oneshot;
use tokio::time::{sleep, timeout};

use crate::clock::lease_now;
use crate::inode::{Inode, Names, right_ms};
use crate::kernel::drop_attributes;
use crate::session::to_ino;
use crate::store::{Right, Store};
use crate::vfs::{Shared, Stale, Vfs};
use crate::write::Depth;

/// What the kernel is to have dropped before a recall is answered.
struct Dropping {
    pages: Option<oneshot::Receiver<()>>,
    /// Files whose pages go.
    files: Vec<Arc<Inode>>,
    /// Told when the kernel has dropped them; none where only time helps.
    names: Option<Option<oneshot::Receiver<()>>>,
    directory: Option<Arc<Inode>>,
    /// By then it believes none of the names any more.
    names_until: Moment,
}

impl Shared {
    /// How long the kernel may believe a name in a directory, in milliseconds.
    pub fn name_ms(&self, directory: &Inode, right: &Right) -> u64 {
        let now = lease_now();
        if now.0 < directory.shared_until.load(Ordering::Relaxed) {
            return 0;
        }
        let name_ms = right_ms(right, self.tuning.ttl_ms);
        let until = now + Duration::from_millis(name_ms);
        directory.names_until.fetch_max(until.0, Ordering::Relaxed);
        name_ms
    }

    /// The kernel is to drop its pages of these.
    fn begin_drop_pages(&self, files: &[Arc<Inode>]) -> Option<oneshot::Receiver<()>> {
        if files.is_empty() {
            return None;
        }
        files.iter().for_each(|file| self.drop_pages(file.id));
        let (told, is_told) = oneshot::channel();
        // No receiver: the mount is ending.
        let _ = self.stale_pages.send(Stale::Told(told));
        Some(is_told)
    }
}

impl<S: Store> Vfs<S> {
    /// Serves notices of the store until it has no more.
    pub async fn attend_notices(self: Rc<Self>) {
        while let Some(notice) = self.store.notice().await {
            self.take_notice(notice);
        }
    }

    /// Nothing of what is over is used by what comes after this.
    pub fn before_answer(self: &Rc<Self>) {
        self.store.drop_lost();
        while let Some(notice) = self.store.notice_now() {
            self.take_notice(notice);
        }
    }

    fn take_notice(self: &Rc<Self>, notice: Notice) {
        match notice {
            Notice::Lost(groups) => {
                for group in groups {
                    let files = self.forget_records(self.shared.inodes.of_home(group));
                    // The owner may not know any more that bytes wait here.
                    for file in files.iter().filter(|file| file.state().is_dirty()) {
                        let (vfs, file) = (self.clone(), file.clone());
                        tokio::task::spawn_local(async move {
                            // Who has it open hears of a failure.
                            let _ = vfs.flush(&file, Depth::Held).await;
                        });
                    }
                    let open: Vec<_> = files.into_iter().filter(|f| f.is_open_file()).collect();
                    // Not waited for: the next answer may be what the kernel waits for.
                    drop(self.shared.begin_drop_pages(&open));
                }
            }
            Notice::Recalled(recalled) if !recalled.recall.unsent.is_empty() => {
                self.send_unsent(recalled);
            }
            Notice::Recalled(recalled) if !recalled.recall.open.is_empty() => {
                for file in recalled.recall.open.iter().filter_map(|id| self.shared.inodes.get(*id))
                {
                    if file.is_open_file() {
                        file.state().is_held = true;
                        recalled.is_open.set(true);
                    }
                }
            }
            Notice::Recalled(recalled) => {
                let dropping = self.forget(&recalled);
                tokio::task::spawn_local(async move {
                    dropping.wait().await;
                    drop(recalled);
                });
            }
        }
    }

    /// The kernel got bytes of an open file. Where nobody would recall them they are dropped as soon as
    /// somebody would: no reader goes on with what another mount has changed. Source: N-1.
    pub fn cover(self: &Rc<Self>, inode: &Arc<Inode>) {
        let keeps = self.shared.tuning.ttl_ms > 0 && inode.kind == FileKind::File;
        if !keeps || self.is_covered(inode) || inode.is_covering.swap(true, Ordering::Relaxed) {
            return;
        }
        let (vfs, inode) = (self.clone(), inode.clone());
        tokio::task::spawn_local(async move {
            let mut pause = COVER_AGAIN;
            while inode.is_open_file() && !vfs.is_covered(&inode) {
                sleep(pause).await;
                pause = (2 * pause).min(COVER_SELDOM);
                if let Err(error) = vfs.refetch(&inode).await {
                    tracing::debug!(id = %inode.id, ?error, "not recalled yet");
                }
            }
            inode.is_covering.store(false, Ordering::Relaxed);
            vfs.shared.drop_pages(inode.id);
        });
    }

    fn is_covered(&self, inode: &Inode) -> bool {
        let is_ours = {
            let state = inode.state();
            state.names != Names::Some || state.unborn.is_some()
        };
        is_ours || self.store.right(inode.home.group()).is_some()
    }

    /// Somebody looks at files of which bytes wait here.
    fn send_unsent(self: &Rc<Self>, recalled: Recalled) {
        let of = |id: &DeviceId| self.shared.inodes.get(*id);
        let files: Vec<_> = recalled.recall.unsent.iter().filter_map(of).collect();
        // What is written from now on is told anew.
        for file in &files {
            file.sends.fetch_add(1, Ordering::Relaxed);
            file.state().writes = None;
        }
        let vfs = self.clone();
        tokio::task::spawn_local(async move {
            let sent = files.iter().map(|file| vfs.flush(file, Depth::Held));
            // Who has it open hears of a failure.
            futures_util::future::join_all(sent).await;
            drop(recalled);
        });
    }

    fn forget(&self, recalled: &Recalled) -> Dropping {
        let recall = &recalled.recall;
        let inodes = match recall.all {
            true => self.shared.inodes.of_home(recall.group),
            false => recall.ids.iter().filter_map(|id| self.shared.inodes.get(*id)).collect(),
        };
        let files = self.forget_records(inodes);
        let pages = self.shared.begin_drop_pages(&files);
        let mut dropping =
            Dropping { pages, files, names: None, directory: None, names_until: Moment::default() };
        let takes_names = recall.all || !recall.names.is_empty();
        if let Some(directory) = self.shared.inodes.get(recall.group) {
            directory.recalls.fetch_add(1, Ordering::Relaxed);
            let now = lease_now();
            dropping.names_until = Moment(directory.names_until.load(Ordering::Relaxed));
            if takes_names {
                let until = now + SHARED_FOR;
                directory.shared_until.fetch_max(until.0, Ordering::Relaxed);
            }
            if takes_names && now < dropping.names_until {
                dropping.names = Some(match recall.all {
                    // Which names the kernel has is not known here: its belief must end.
                    true => None,
                    false => Some(self.begin_drop_names(recall.group, &recall.names)),
                });
            }
        }
        dropping.directory = self.shared.inodes.get(recall.group);
        dropping
    }

    fn begin_drop_names(
        &self,
        directory: DeviceId,
        names: &[bytes::Bytes],
    ) -> oneshot::Receiver<()> {
        let (told, is_told) = oneshot::channel();
        for name in names {
            // No receiver: the mount is ending.
            let _ = self.shared.stale_names.send(Stale::Name(directory, name.clone()));
        }
        let _ = self.shared.stale_names.send(Stale::Told(told));
        is_told
    }

    /// Forgets what is known of inodes, and has the kernel ask for their attributes again. Gives those
    /// that are files.
    fn forget_records(&self, inodes: Vec<Arc<Inode>>) -> Vec<Arc<Inode>> {
        let notices = self.notices.borrow();
        for inode in &inodes {
            inode.state().forget_copies();
            let Some(fd) = &*notices else { continue };
            for id in self.shared.inodes.aliases_of(inode.id).into_iter().chain([inode.id]) {
                drop_attributes(fd, to_ino(&self.shared, id));
            }
        }
        inodes.into_iter().filter(|inode| inode.kind == FileKind::File).collect()
    }
}

impl Dropping {
    async fn wait(self) {
        if let Some(mut told) = self.pages {
            let is_busy = |file: &Arc<Inode>| file.busy.load(Ordering::Relaxed) > 0;
            while !self.files.iter().any(is_busy) {
                if timeout(LOOK_AGAIN, &mut told).await.is_ok() {
                    break;
                }
            }
        }
        let Some(told) = self.names else { return };
        let is_busy =
            || self.directory.as_ref().is_some_and(|d| 0 < d.busy.load(Ordering::Relaxed));
        let believed = || self.names_until - lease_now();
        let Some(mut told) = told else {
            if !is_busy() {
                sleep(believed() + Duration::from_millis(1)).await;
            }
            return;
        };
        while !is_busy() && !believed().is_zero() {
            let left = LOOK_AGAIN.min(believed() + Duration::from_millis(1));
            // An error: the mount is ending.
            if timeout(left, &mut told).await.is_ok() {
                return;
            }
        }
    }
}

/// So long after a recall of names the kernel is told to ask for each name of the directory.
const SHARED_FOR: Duration = Duration::from_secs(5);
/// An owner that does not recall what it says now is asked again after so long, then less often.
const COVER_AGAIN: Duration = Duration::from_millis(20);
const COVER_SELDOM: Duration = Duration::from_secs(1);
const LOOK_AGAIN: Duration = Duration::from_millis(5);
