//! Writing a new file: it has its name only when it is whole.
//!
//! # Theory
//! ```text
//! up to 4 KiB      Create with the bytes inline                      one round trip
//! more             BeginUploads at the directory's owner   \ at the same time
//!                  writes at the device's owner, several   /
//!                  Create: name, attributes, size          then
//! ```
//! A name comes after its bytes are decided, so a put is always acknowledged by the cluster.
//! # Failure
//! A writer that is dropped or fails gives its device up; if it cannot even say so, the directory's
//! owner does after a day (F-9). A reader never sees a part of the file.

use std::collections::VecDeque;
use std::rc::Rc;

use braid_env::Payload;
use braid_terms::{AckMode, GroupLayout, INLINE_MAX_DEFAULT, PolicyQuestion};
use braid_wire::lcc::{
    DeviceLength, DirectoryOp, FileData, FileKind, FileOp, IfExists, LccReply, LccRequest,
    NewAttributes,
};
use bytes::Bytes;
use tokio::task::JoinSet;

use crate::namespace::Inner;
use crate::node::{new_attributes, unexpected};
use crate::path::text;
use crate::reach::How;
use crate::{Change, Directory, EntryAttributes, Error, Node};

/// How a file is written.
#[derive(Clone, Default, Debug)]
pub struct PutOptions {
    /// Its attributes.
    pub attributes: EntryAttributes,
    /// What has the name, and is no directory, is replaced; else it is `Exists`.
    pub replace: bool,
    /// Finished only when all of it is on the disks. Source: W-9.
    pub stable: bool,
    /// Expected size in bytes, for the policy.
    pub size: Option<u64>,
    /// Path, for the policy; known by itself where a path was given.
    pub path: Option<String>,
}

/// Writes a new file from its start to its end.
pub struct PutWriter {
    directory: Directory,
    name: Bytes,
    options: PutOptions,
    /// Not sent yet.
    waiting: VecDeque<Bytes>,
    waiting_bytes: usize,
    size: u64,
    upload: Option<Upload>,
    /// Why it can never be whole.
    failed: Option<Error>,
}

/// The device that the bytes go to.
struct Upload {
    inner: Rc<Inner>,
    /// The directory's group, where the upload is recorded.
    home: GroupLayout,
    layout: GroupLayout,
    /// Bytes of one request: whole stripes.
    request_bytes: usize,
    next: u64,
    /// Requests under way; dropping them ends them.
    running: JoinSet<Result<(), Error>>,
    committed: bool,
}

impl PutWriter {
    pub(crate) fn new(directory: Directory, name: Bytes, options: PutOptions) -> Self {
        Self {
            directory,
            name,
            options,
            waiting: VecDeque::new(),
            waiting_bytes: 0,
            size: 0,
            upload: None,
            failed: None,
        }
    }

    /// Adds bytes at the end. Waits while much is under way; an error is final.
    pub async fn write(&mut self, bytes: Bytes) -> Result<(), Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        if bytes.is_empty() {
            return Ok(());
        }
        self.size += bytes.len() as u64;
        self.waiting_bytes += bytes.len();
        self.waiting.push_back(bytes);
        let sent = self.send_full().await;
        sent.inspect_err(|error| self.failed = Some(error.clone()))
    }

    /// Bytes so far.
    #[must_use]
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Gives the file its name.
    pub async fn finish(mut self) -> Result<Node, Error> {
        let shown = self.options.path.clone().unwrap_or_else(|| text(&self.name));
        self.try_finish().await.map_err(|error| error.about(shown))
    }

    async fn try_finish(&mut self) -> Result<Node, Error> {
        if let Some(error) = &self.failed {
            return Err(error.clone());
        }
        let data = match &mut self.upload {
            None if self.size == 0 => FileData::None,
            None => FileData::Inline(take(&mut self.waiting, usize::MAX).into_bytes()),
            Some(upload) => {
                if self.waiting_bytes > 0 {
                    upload.send(take(&mut self.waiting, usize::MAX)).await?;
                }
                upload.join().await?;
                if self.options.stable {
                    upload.inner.sync_device(&upload.layout).await?;
                }
                FileData::Device(upload.layout.clone())
            }
        };
        let size = self.size;
        let attributes = new_attributes(FileKind::File, &self.options.attributes);
        let attributes = NewAttributes { data, size, ..attributes };
        let if_exists = if self.options.replace { IfExists::Replace } else { IfExists::Fail };
        let stable = self.options.stable;
        let made = self.directory.create(&self.name, attributes, if_exists, stable).await;
        // If nobody knows whether it was made, it must not be given up: its directory's owner finds
        // out, since what has a name is no upload any more.
        let maybe_made = made.as_ref().map_or_else(Error::is_unavailable, |_| true);
        if let Some(upload) = &mut self.upload {
            upload.committed = maybe_made;
        }
        made
    }

    async fn send_full(&mut self) -> Result<(), Error> {
        if self.upload.is_none() {
            if self.waiting_bytes <= INLINE_MAX_DEFAULT {
                return Ok(());
            }
            let size = self.options.size;
            let path = self.options.path.clone();
            let question = PolicyQuestion { path, size, ..PolicyQuestion::default() };
            let inner = self.directory.inner.clone();
            let upload = Upload::begin(inner, self.directory.layout().clone(), &question).await?;
            self.upload = Some(upload);
        }
        let upload = self.upload.as_mut().expect("just begun");
        while upload.request_bytes <= self.waiting_bytes {
            self.waiting_bytes -= upload.request_bytes;
            upload.send(take(&mut self.waiting, upload.request_bytes)).await?;
        }
        Ok(())
    }
}

impl Upload {
    async fn begin(
        inner: Rc<Inner>,
        home: GroupLayout,
        question: &PolicyQuestion,
    ) -> Result<Self, Error> {
        let layout = inner.files.take(question).await?;
        let request_bytes = request_bytes(&layout, inner.options.request_bytes);
        let mut running = JoinSet::new();
        let record = inner.clone().begin_upload(home.clone(), layout.clone());
        running.spawn_local(record);
        Ok(Self { inner, home, layout, request_bytes, next: 0, running, committed: false })
    }

    /// Sends the next bytes; waits while too many requests are under way.
    async fn send(&mut self, payload: Payload) -> Result<(), Error> {
        // One of those under way at first is no write but the record.
        while self.inner.options.requests_ahead < self.running.len() {
            self.join_one().await?;
        }
        let at = self.next;
        self.next += payload.len() as u64;
        let (inner, layout) = (self.inner.clone(), self.layout.clone());
        let home = self.home.clone();
        self.running.spawn_local(async move {
            let op =
                write_op(&home, WriteAt { at, fresh: true, alone: true, ack: AckMode::Cluster });
            // Nobody else knows the device: done twice it is the same.
            inner.ask_file_as(&layout, op, None, payload).await.map(|_| ())
        });
        Ok(())
    }

    async fn join(&mut self) -> Result<(), Error> {
        while !self.running.is_empty() {
            self.join_one().await?;
        }
        Ok(())
    }

    async fn join_one(&mut self) -> Result<(), Error> {
        match self.running.join_next().await {
            None => Ok(()),
            Some(done) => done.expect("a write is not aborted while it is waited for"),
        }
    }
}

impl Drop for Upload {
    fn drop(&mut self) {
        if !self.committed {
            self.inner.abandon(&self.home, self.layout.group());
        }
    }
}

impl Inner {
    /// Records a device that has no name yet at its home.
    pub(crate) async fn begin_upload(
        self: Rc<Self>,
        home: GroupLayout,
        layout: GroupLayout,
    ) -> Result<(), Error> {
        let operation = self.reach.operation();
        let op = DirectoryOp::BeginUploads { operation, layouts: vec![layout] };
        self.ask_directory(&home, op).await.map(|_| ())
    }

    pub(crate) async fn ask_file(
        &self,
        layout: &GroupLayout,
        op: FileOp,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), Error> {
        let change = self.reach.change(layout.group(), &op);
        self.ask_file_as(layout, op, change.as_ref(), payload).await
    }

    /// Asked with the same change again it is done once.
    pub(crate) async fn ask_file_as(
        &self,
        layout: &GroupLayout,
        op: FileOp,
        change: Option<&Change>,
        payload: Payload,
    ) -> Result<(LccReply, Bytes), Error> {
        let request = LccRequest::File { layout: layout.clone(), op, change: None };
        let how = How { is_ahead: false, change };
        self.reach.ask_noting(&request, payload, how, &mut None).await
    }

    pub(crate) async fn sync_device(&self, layout: &GroupLayout) -> Result<DeviceLength, Error> {
        match self.ask_file(layout, FileOp::SYNC, Payload::empty()).await? {
            (LccReply::Length(length), _) => Ok(length),
            (reply, _) => Err(unexpected(&reply)),
        }
    }
}

/// Where a write goes.
pub(crate) struct WriteAt {
    pub at: u64,
    pub fresh: bool,
    /// Nobody else knows the device: done twice it is the same.
    pub alone: bool,
    pub ack: AckMode,
}

pub(crate) fn write_op(home: &GroupLayout, WriteAt { at, fresh, ack, .. }: WriteAt) -> FileOp {
    // The meta-data device of the directory is the home. Source: F-9.
    let home = home.devices.last().copied().unwrap_or_default();
    FileOp::Write { at, home, fresh, stable: false, append: false, ack }
}

/// Whole stripes that fit a request: nothing is read to be written, no stripe has two requests.
pub(crate) fn request_bytes(layout: &GroupLayout, bytes_max: usize) -> usize {
    let stripe = layout.strip_size as usize * layout.scheme.data();
    (bytes_max / stripe * stripe).max(stripe.min(bytes_max))
}

/// The next `size` bytes, or all; no byte is copied.
fn take(waiting: &mut VecDeque<Bytes>, size: usize) -> Payload {
    let mut payload = Payload::empty();
    let mut left = size;
    while left > 0
        && let Some(mut piece) = waiting.pop_front()
    {
        if left < piece.len() {
            waiting.push_front(piece.split_off(left));
        }
        left -= piece.len().min(left);
        payload.push(piece);
    }
    payload
}

#[cfg(test)]
mod tests {
    use braid_terms::{DeviceId, DiskId, LayoutGeneration, RaidScheme};

    use super::*;

    #[test]
    fn bytes_are_taken_in_order_and_never_copied() {
        let mut waiting: VecDeque<_> =
            [&b"abc"[..], b"defg", b"h"].map(Bytes::from_static).into_iter().collect();
        let first = take(&mut waiting, 5);
        assert_eq!(first.pieces, [&b"abc"[..], b"de"]);
        assert_eq!(take(&mut waiting, usize::MAX).into_bytes(), &b"fgh"[..]);
        assert!(waiting.is_empty());
    }

    #[test]
    fn requests_are_whole_stripes() {
        let layout = |data: u8, strip_size| GroupLayout {
            devices: vec![DeviceId(1)],
            scheme: RaidScheme::Rs { data, parity: 2 },
            strip_size,
            generation: LayoutGeneration(1),
            disks: (1..=u32::from(data) + 2).map(DiskId).collect(),
        };
        assert_eq!(request_bytes(&layout(4, 65536), 4 << 20), 4 << 20);
        assert_eq!(request_bytes(&layout(3, 65536), 4 << 20), 21 * 3 * 65536);
        assert_eq!(request_bytes(&layout(4, 4 << 20), 4 << 20), 4 << 20);
    }
}
