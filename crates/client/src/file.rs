//! Bytes of a file that is there: reads, writes in place, truncation.
//!
//! # Theory
//! A file of up to 4 KiB stands in its attributes and is changed there, bound to the version that was
//! looked at. When it grows beyond, its bytes go to a device of their own. Then the device is asked
//! for each byte, and its length is the file's size; the size in the attributes is a copy. Before its
//! first change each writer counts itself in the attributes: while there is one, the size is asked of
//! the device. `flush` brings the copy up to date and takes the writer off. The copy has the number of
//! the write that it is of, so that of two writers the one who tells later does not win, but the one
//! whose write was later (N-2).
//! # Failure
//! Changes may be sent again after a lost answer and are done once; where the owner cannot tell any more
//! whether one was done, it says so (`Unsure`).
//! A file that is replaced while it is read gives `Conflict`, not the end of the file.
//! A device that a record names and no portion knows was not written to yet, or a power cut of all servers
//! took it as a whole, before any sync: while the record is open it has no bytes, else they are `Lost`, and
//! the next write makes it anew.

use std::cell::{Cell, RefCell};
use std::collections::VecDeque;
use std::rc::Rc;

use braid_env::Payload;
use braid_terms::{AckMode, DeviceId, GroupLayout, INLINE_MAX_DEFAULT, PolicyQuestion};
use braid_wire::lcc::{
    AttributeChanges, DeviceLength, DeviceNews, DirectoryOp, FileData, FileOp, LccReply, SetTime,
};
use bytes::Bytes;
use futures_util::future::{LocalBoxFuture, try_join_all};
use tokio::task::JoinSet;

use crate::namespace::Inner;
use crate::node::unexpected;
use crate::put::{WriteAt, request_bytes, write_op};
use crate::{Error, Node};

/// A file, whatever its path becomes; all calls may run at once.
pub struct File {
    inner: Rc<Inner>,
    /// As it was last looked at.
    node: RefCell<Node>,
    busy: RefCell<Busy>,
    /// The path under which it was opened, for policies.
    path: Option<String>,
    /// When a writer is answered, once it was looked up.
    ack: Cell<Option<AckMode>>,
    /// Losses of its groups that it was told of.
    losses: Cell<u64>,
}

/// What was done to the data device since the last flush.
#[derive(Default)]
struct Busy {
    device: DeviceId,
    /// How often its attributes count us as a writer.
    marks: i32,
    /// Changes under way.
    changes: u32,
    /// A change ended with an error or was given up: it may come late, so we stay counted.
    is_unsure: bool,
    /// Its newest length that we heard of.
    length: Option<DeviceLength>,
}

/// A change of a data device is under way.
struct Change<'a> {
    busy: &'a RefCell<Busy>,
    device: DeviceId,
    is_done: bool,
}

impl Change<'_> {
    /// It was answered.
    fn end(mut self, length: DeviceLength) {
        self.is_done = true;
        let mut busy = self.busy.borrow_mut();
        if busy.device == self.device {
            busy.length = busy.length.max(Some(length));
        }
    }
}

impl Drop for Change<'_> {
    fn drop(&mut self) {
        let mut busy = self.busy.borrow_mut();
        if busy.device == self.device {
            busy.changes -= 1;
            busy.is_unsure |= !self.is_done;
        }
    }
}

/// Reads a file from some place to its end, with requests ahead.
pub struct FileReader {
    file: Rc<File>,
    /// Next byte to be asked for.
    next: u64,
    end: u64,
    piece: u64,
    /// Pieces in order, asked for already.
    ahead: VecDeque<LocalBoxFuture<'static, Result<Bytes, Error>>>,
}

impl File {
    pub(crate) fn new(inner: Rc<Inner>, node: Node) -> Self {
        let (node, busy) = (RefCell::new(node), RefCell::default());
        let (path, ack, losses) = Default::default();
        let new = Self { inner, node, busy, path, ack, losses };
        new.losses.set(new.losses());
        new
    }

    pub(crate) fn known_as(self, path: String) -> Self {
        Self { path: Some(path), ..self }
    }

    /// When a writer of it is answered, by policy. Source: DESIGN 4.
    pub async fn ack(&self) -> AckMode {
        match self.ack.get() {
            Some(ack) => ack,
            None => {
                let ack = self.inner.files.ack(self.path.clone()).await;
                self.ack.set(Some(ack));
                ack
            }
        }
    }

    /// The file as it was last looked at.
    #[must_use]
    pub fn node(&self) -> Node {
        self.node.borrow().clone()
    }

    /// Its attributes as they are now, with the true size.
    pub async fn refresh(&self) -> Result<Node, Error> {
        let node = self.look().await?;
        self.inner.with_true_size(node).await
    }

    /// Its size in bytes.
    pub async fn size(&self) -> Result<u64, Error> {
        Ok(self.refresh().await?.attributes.size)
    }

    /// Bytes from `at`, fewer at the end of the file.
    pub async fn read(&self, at: u64, length: usize) -> Result<Bytes, Error> {
        for _ in 0..ATTEMPTS_MAX {
            let Some(layout) = self.device() else {
                let node = self.look().await?;
                match node.attributes.data {
                    FileData::None => return Ok(Bytes::new()),
                    FileData::Inline(bytes) => {
                        let from = usize::try_from(at).unwrap_or(usize::MAX).min(bytes.len());
                        return Ok(bytes.slice(from..bytes.len().min(from.saturating_add(length))));
                    }
                    // It has grown since we looked.
                    FileData::Device(_) => continue,
                }
            };
            let asked = self.inner.read_device(&layout, at, length).await;
            let is_short = asked.as_ref().is_ok_and(|bytes| bytes.len() < length);
            if !is_short && !matches!(asked, Err(Error::NotFound { .. })) {
                return asked;
            }
            // Is this the end of the file, or of its device?
            self.look().await?;
            if self.device().as_ref() == Some(&layout) {
                return if asked.is_ok() { asked } else { self.read_nowhere() };
            }
        }
        Err(self.changes_too_fast())
    }

    /// Writes bytes at a place; what lies between the end of the file and it reads as zeros.
    pub async fn write(&self, at: u64, bytes: Bytes) -> Result<(), Error> {
        self.write_somewhere(Some(at), bytes).await.map(|_| ())
    }

    /// Writes bytes at the end, wherever that is then; where they went.
    pub async fn append(&self, bytes: Bytes) -> Result<u64, Error> {
        self.write_somewhere(None, bytes).await
    }

    async fn write_somewhere(&self, at: Option<u64>, bytes: Bytes) -> Result<u64, Error> {
        if at.unwrap_or(0).checked_add(bytes.len() as u64).is_none_or(|end| i64::MAX as u64 <= end)
        {
            return Err(Error::TooBig { path: self.shown() });
        }
        if bytes.is_empty() {
            return Ok(at.unwrap_or(0));
        }
        for _ in 0..ATTEMPTS_MAX {
            if let Some(layout) = self.device() {
                match self.write_device(&layout, at, bytes.clone()).await? {
                    Some(at) => return Ok(at),
                    None => continue,
                }
            }
            let node = self.look().await?;
            let old = match &node.attributes.data {
                FileData::None => Bytes::new(),
                FileData::Inline(old) => old.clone(),
                FileData::Device(_) => continue,
            };
            let from = at.unwrap_or(old.len() as u64);
            let end = from + bytes.len() as u64;
            let fits = end.max(old.len() as u64) <= INLINE_MAX_DEFAULT as u64;
            let done = if fits {
                let from = usize::try_from(from).expect("below INLINE_MAX_DEFAULT");
                let mut new = old.to_vec();
                new.resize(new.len().max(from + bytes.len()), 0);
                new[from..from + bytes.len()].copy_from_slice(&bytes);
                let size = new.len() as u64;
                self.change_data(&node, FileData::Inline(new.into()), size).await
            } else {
                let size = end.max(old.len() as u64);
                self.move_to_device(&node, &[(0, old), (from, bytes.clone())], size).await
            };
            match done {
                Err(Error::Conflict { .. }) => {}
                done => return done.map(|()| from),
            }
        }
        Err(self.changes_too_fast())
    }

    /// Cuts the file or extends it with zeros.
    pub async fn truncate(&self, size: u64) -> Result<(), Error> {
        if i64::MAX as u64 <= size {
            return Err(Error::TooBig { path: self.shown() });
        }
        for _ in 0..ATTEMPTS_MAX {
            if let Some(layout) = self.device() {
                let Some(change) = self.begin_change(&layout).await? else { continue };
                self.truncate_device(&layout, size, change).await?;
                return self.flush().await;
            }
            let node = self.look().await?;
            let old = match &node.attributes.data {
                FileData::None => Bytes::new(),
                FileData::Inline(old) => old.clone(),
                FileData::Device(_) => continue,
            };
            let done = if size == 0 {
                self.change_data(&node, FileData::None, 0).await
            } else if size <= INLINE_MAX_DEFAULT as u64 {
                let mut new = old.to_vec();
                new.resize(usize::try_from(size).expect("below INLINE_MAX_DEFAULT"), 0);
                self.change_data(&node, FileData::Inline(new.into()), size).await
            } else {
                self.move_to_device(&node, &[(0, old)], size).await
            };
            match done {
                Err(Error::Conflict { .. }) => {}
                done => return done,
            }
        }
        Err(self.changes_too_fast())
    }

    /// Gives a range back: it reads as zeros, the size stays.
    pub async fn punch(&self, at: u64, length: u64) -> Result<(), Error> {
        let size = self.size().await?;
        let length = length.min(size.saturating_sub(at));
        if length == 0 {
            return Ok(());
        }
        match self.device() {
            Some(layout) => {
                let Some(change) = self.begin_change(&layout).await? else {
                    return Err(self.changes_too_fast());
                };
                self.change_device(&layout, FileOp::Punch { at, length }, change).await
            }
            None => {
                let zeros = usize::try_from(length.min(INLINE_MAX_DEFAULT as u64)).unwrap_or(0);
                self.write(at, vec![0; zeros].into()).await
            }
        }
    }

    /// The next place with data, or without (`hole`), at or behind `at`; the size for none.
    pub async fn seek(&self, at: u64, hole: bool) -> Result<u64, Error> {
        let size = self.size().await?;
        match self.device() {
            Some(layout) => {
                let op = FileOp::Seek { at, hole };
                match self.inner.ask_file(&layout, op, Payload::empty()).await {
                    Ok((LccReply::Place(place), _)) => Ok(place.min(size)),
                    Ok((reply, _)) => Err(unexpected(&reply)),
                    Err(Error::NotFound { .. }) if self.still_names(&layout).await? => {
                        Ok(if hole { at.min(size) } else { size })
                    }
                    Err(error) => Err(error),
                }
            }
            None if hole => Ok(size),
            None => Ok(at.min(size)),
        }
    }

    /// Brings size and time in the attributes up to date after writes. Source: N-2.
    pub async fn flush(&self) -> Result<(), Error> {
        let news = {
            let mut busy = self.busy.borrow_mut();
            let Some(length) = busy.length.take() else { return Ok(()) };
            // What begins from here on counts us anew.
            let may_leave = busy.changes == 0 && !busy.is_unsure;
            let writers = if may_leave { -std::mem::take(&mut busy.marks) } else { 0 };
            DeviceNews { device: busy.device, length: Some(length), writers }
        };
        let changes = AttributeChanges {
            device: Some(news),
            mtime: Some(SetTime::Now),
            ..AttributeChanges::default()
        };
        let told = self.set(changes).await;
        told.inspect_err(|_| {
            let mut busy = self.busy.borrow_mut();
            if busy.device == news.device {
                busy.marks -= news.writers;
                busy.length = busy.length.max(news.length);
            }
        })
    }

    /// Counts us as a writer, if that is not so yet. None if the file has another device by now.
    async fn begin_change(&self, layout: &GroupLayout) -> Result<Option<Change<'_>>, Error> {
        let device = layout.group();
        if self.busy.borrow().device != device {
            *self.busy.borrow_mut() = Busy { device, ..Busy::default() };
        }
        self.busy.borrow_mut().changes += 1;
        let mut change = Change { busy: &self.busy, device, is_done: false };
        if self.busy.borrow().marks == 0 {
            let news = DeviceNews { device, length: None, writers: 1 };
            self.set(AttributeChanges { device: Some(news), ..AttributeChanges::default() })
                .await?;
            if self.device().map(|layout| layout.group()) != Some(device) {
                change.is_done = true;
                return Ok(None);
            }
            let mut busy = self.busy.borrow_mut();
            busy.marks += i32::from(busy.device == device);
        }
        Ok(Some(change))
    }

    async fn change_device(
        &self,
        layout: &GroupLayout,
        op: FileOp,
        change: Change<'_>,
    ) -> Result<(), Error> {
        match self.inner.ask_file(layout, op, Payload::empty()).await? {
            (LccReply::Length(length), _) => change.end(length),
            (reply, _) => return Err(unexpected(&reply)),
        }
        Ok(())
    }

    async fn truncate_device(
        &self,
        layout: &GroupLayout,
        size: u64,
        change: Change<'_>,
    ) -> Result<(), Error> {
        let op = FileOp::Truncate { length: size, home: self.home_device() };
        let cut = async || match self.inner.ask_file(layout, op.clone(), Payload::empty()).await? {
            (LccReply::Length(length), _) => Ok(length),
            (reply, _) => Err(unexpected(&reply)),
        };
        let length = match cut().await {
            Err(Error::NotFound { .. }) if self.still_names(layout).await? => {
                // It is made by its last zero.
                let ack = AckMode::Cluster;
                let to = WriteAt { at: size.max(1) - 1, fresh: true, alone: false, ack };
                let home = self.node.borrow().home.clone();
                let zero = Bytes::from_static(&[0]);
                let length = self.inner.write_device(&home, layout, to, zero).await?;
                if size == 0 { cut().await? } else { length }
            }
            length => length?,
        };
        change.end(length);
        Ok(())
    }

    /// Whether the file still has that device.
    async fn still_names(&self, layout: &GroupLayout) -> Result<bool, Error> {
        self.look().await?;
        Ok(self.device().as_ref() == Some(layout))
    }

    /// What is read of a device that no portion knows.
    fn read_nowhere(&self) -> Result<Bytes, Error> {
        let attributes = &self.node.borrow().attributes;
        if attributes.writers > 0 || attributes.size == 0 {
            return Ok(Bytes::new());
        }
        let reason = "a power cut of all servers took its bytes, which were never synced";
        Err(Error::Lost { path: self.shown(), reason: reason.into() })
    }

    /// Waits until all its bytes and attributes are on the disks.
    ///
    /// Errors: `HeldLost`, once, where what was answered before was lost. Source: W-9.
    pub async fn sync(&self) -> Result<(), Error> {
        let synced = self.sync_all().await;
        if !matches!(synced, Ok(()) | Err(Error::HeldLost { .. })) {
            return synced;
        }
        // Another handle may have been told first.
        let losses = self.losses();
        let is_told = losses <= self.losses.replace(losses);
        if is_told { synced } else { Err(Error::HeldLost { path: self.shown() }) }
    }

    /// How often changes of its groups were found lost.
    fn losses(&self) -> u64 {
        let node = self.node.borrow();
        let of = |layout: &GroupLayout| self.inner.reach.losses(layout.group());
        of(&node.home) + node.attributes.device().map_or(0, of)
    }

    async fn sync_all(&self) -> Result<(), Error> {
        self.flush().await?;
        let device = match self.device() {
            Some(layout) => match self.inner.sync_device(&layout).await.map(|_| ()) {
                // It has nothing that could be synced.
                Err(Error::NotFound { .. }) if self.still_names(&layout).await? => Ok(()),
                synced => synced,
            },
            None => Ok(()),
        };
        match device {
            Ok(()) => {}
            // Unless it is gone because somebody removed the file.
            Err(Error::HeldLost { .. }) => self.look().await.map(|_| ())?,
            failed => return failed,
        }
        // Also where bytes are lost, so that a loss of both is told at once.
        let home = self.node.borrow().home.clone();
        self.inner.ask_directory(&home, DirectoryOp::SYNC).await?;
        device
    }

    /// A reader from the start to the end as it is now.
    pub async fn reader(self) -> Result<FileReader, Error> {
        self.reader_from(0).await
    }

    /// A reader from `at` to the end as it is now.
    pub async fn reader_from(self, at: u64) -> Result<FileReader, Error> {
        let end = self.size().await?;
        let bytes_max = self.inner.options.request_bytes;
        let piece = self.device().map_or(bytes_max, |layout| request_bytes(&layout, bytes_max));
        let file = Rc::new(self);
        Ok(FileReader { file, next: at.min(end), end, piece: piece as u64, ahead: VecDeque::new() })
    }

    fn device(&self) -> Option<GroupLayout> {
        self.node.borrow().attributes.device().cloned()
    }

    fn home_device(&self) -> braid_terms::DeviceId {
        self.node.borrow().home.devices.last().copied().unwrap_or_default()
    }

    fn shown(&self) -> String {
        format!("file {}", self.node.borrow().id())
    }

    fn changes_too_fast(&self) -> Error {
        Error::Conflict { path: self.shown() }
    }

    async fn look(&self) -> Result<Node, Error> {
        let (home, id) = {
            let node = self.node.borrow();
            (node.home.clone(), node.id())
        };
        let node = self.inner.attributes(&home, id).await?;
        self.take_node(node.clone());
        Ok(node)
    }

    fn take_node(&self, node: Node) {
        *self.node.borrow_mut() = node;
    }

    async fn set(&self, changes: AttributeChanges) -> Result<(), Error> {
        let (home, id) = {
            let node = self.node.borrow();
            (node.home.clone(), node.id())
        };
        let attributes = self.inner.set_attributes(&home, id, changes, false).await?;
        self.take_node(Node { home, attributes });
        Ok(())
    }

    /// New bytes in the attributes, if the file is still as we saw it.
    async fn change_data(&self, node: &Node, data: FileData, size: u64) -> Result<(), Error> {
        let changes = AttributeChanges {
            data: Some((data, size)),
            only_version: Some(node.attributes.version),
            ..AttributeChanges::default()
        };
        self.set(changes).await
    }

    /// The bytes do not fit the attributes any more.
    async fn move_to_device(
        &self,
        node: &Node,
        pieces: &[(u64, Bytes)],
        size: u64,
    ) -> Result<(), Error> {
        let (path, size_expected) = (self.path.clone(), Some(size));
        let question = PolicyQuestion { path, size: size_expected, ..PolicyQuestion::default() };
        let layout = self.inner.files.take(&question).await?;
        let home = &node.home;
        // Its name is given to it only when it is whole.
        let begin = |at| WriteAt { at, fresh: true, alone: true, ack: AckMode::Cluster };
        let moved = async {
            self.inner.clone().begin_upload(home.clone(), layout.clone()).await?;
            let mut end = 0;
            for (at, bytes) in pieces.iter().filter(|(_, bytes)| !bytes.is_empty()) {
                self.inner.write_device(home, &layout, begin(*at), bytes.clone()).await?;
                end = end.max(at + bytes.len() as u64);
            }
            if end < size {
                // A last zero makes the length, and the device where it never was.
                let zero = Bytes::from_static(&[0]);
                self.inner.write_device(home, &layout, begin(size - 1), zero).await?;
            }
            if matches!(&node.attributes.data, FileData::Inline(old) if !old.is_empty()) {
                // What the attributes hold now may be on the disks. It must not depend on bytes that
                // are not, if the attributes get there first.
                self.inner.sync_device(&layout).await?;
            }
            self.change_data(node, FileData::Device(layout.clone()), size).await
        };
        let moved = moved.await;
        if moved.is_err() {
            self.inner.abandon(home, layout.group());
        }
        moved
    }

    /// Where the bytes went; None if the file has another device by now.
    async fn write_device(
        &self,
        layout: &GroupLayout,
        at: Option<u64>,
        bytes: Bytes,
    ) -> Result<Option<u64>, Error> {
        let ack = self.ack().await;
        let Some(change) = self.begin_change(layout).await? else { return Ok(None) };
        let home = self.node.borrow().home.clone();
        let write = async |fresh| match at {
            Some(at) => {
                let to = WriteAt { at, fresh, alone: false, ack };
                let length = self.inner.write_device(&home, layout, to, bytes.clone()).await?;
                Ok((at, length))
            }
            None => self.inner.append_device(&home, layout, (fresh, ack), bytes.clone()).await,
        };
        let (at, length) = match write(false).await {
            // It is made by this write.
            Err(Error::NotFound { .. }) if self.still_names(layout).await? => write(true).await?,
            written => written?,
        };
        change.end(length);
        Ok(Some(at))
    }
}

impl FileReader {
    /// The next bytes; `None` at the end.
    pub async fn next(&mut self) -> Result<Option<Bytes>, Error> {
        self.ask_ahead();
        let Some(piece) = self.ahead.pop_front() else {
            return Ok(None);
        };
        let bytes = piece.await?;
        self.ask_ahead();
        Ok(Some(bytes))
    }

    /// Whether nothing is left.
    #[must_use]
    pub fn is_at_end(&self) -> bool {
        self.ahead.is_empty() && self.next == self.end
    }

    /// Bytes from the first one that is not asked for to the end.
    #[must_use]
    pub fn end(&self) -> u64 {
        self.end
    }

    fn ask_ahead(&mut self) {
        while self.next < self.end && self.ahead.len() < self.file.inner.options.requests_ahead {
            let at = self.next;
            let length = (self.end - at).min(self.piece);
            self.next += length;
            let file = self.file.clone();
            // A task: it goes on while the caller does something else.
            let mut task = JoinSet::new();
            task.spawn_local(async move { file.read_whole(at, length).await });
            self.ahead.push_back(Box::pin(async move {
                let done = task.join_next().await.expect("there is one task");
                done.expect("it is not aborted while it is waited for")
            }));
        }
    }
}

impl File {
    /// These bytes: the file was that long when the reader began. Fewer only where its size said
    /// more than there is.
    async fn read_whole(&self, at: u64, length: u64) -> Result<Bytes, Error> {
        let length = usize::try_from(length).expect("a piece fits the memory");
        let bytes = self.read(at, length).await?;
        if bytes.len() == length || self.correct_size(at + bytes.len() as u64).await? {
            Ok(bytes)
        } else {
            Err(self.changes_too_fast())
        }
    }

    /// The device ends at `end`; whether the size in the attributes said more although nobody is
    /// changing the file, and is right now. A power cut of all servers may have taken bytes that
    /// were never synced, or a client have stopped half way through a cut.
    async fn correct_size(&self, end: u64) -> Result<bool, Error> {
        let node = self.look().await?;
        let (FileData::Device(layout), 0) = (&node.attributes.data, node.attributes.writers) else {
            return Ok(false);
        };
        let length = self.inner.device_length(layout).await?;
        if end < length.bytes || node.attributes.size <= length.bytes {
            return Ok(false);
        }
        let device = layout.group();
        let news = DeviceNews { device, length: Some(length), writers: 0 };
        self.set(AttributeChanges { device: Some(news), ..AttributeChanges::default() }).await?;
        Ok(self.node.borrow().attributes.size == length.bytes)
    }
}

impl Inner {
    /// The size in the attributes may be behind the device's. Source: N-2.
    pub(crate) async fn with_true_size(&self, mut node: Node) -> Result<Node, Error> {
        if let FileData::Device(layout) = &node.attributes.data
            && node.attributes.writers > 0
        {
            node.attributes.size = match self.device_length(layout).await {
                Ok(length) => length.bytes,
                Err(Error::NotFound { .. }) => return self.without_device(node).await,
                Err(error) => return Err(error),
            };
        }
        Ok(node)
    }

    /// No portion knows the device of an open record: it has no bytes, or the file was removed.
    async fn without_device(&self, node: Node) -> Result<Node, Error> {
        let mut now = self.attributes(&node.home, node.attributes.id).await?;
        // A device goes only after its record.
        if now.attributes.data == node.attributes.data && now.attributes.writers > 0 {
            now.attributes.size = 0;
        }
        Ok(now)
    }

    async fn device_length(&self, layout: &GroupLayout) -> Result<DeviceLength, Error> {
        match self.ask_file(layout, FileOp::Length, Payload::empty()).await? {
            (LccReply::Length(length), _) => Ok(length),
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    async fn read_device(
        &self,
        layout: &GroupLayout,
        at: u64,
        length: usize,
    ) -> Result<Bytes, Error> {
        let bytes_max = request_bytes(layout, self.options.request_bytes);
        let read = |at: u64, length: usize| async move {
            let length = u32::try_from(length).expect("bounded by the request's bytes");
            let op = FileOp::Read { at, length, stable: false };
            match self.ask_file(layout, op, Payload::empty()).await? {
                (LccReply::Read { .. }, bytes) if bytes.len() <= length as usize => Ok(bytes),
                (reply, _) => Err(unexpected(&reply)),
            }
        };
        if length <= bytes_max {
            return read(at, length).await;
        }
        let pieces = (0..length).step_by(bytes_max);
        let pieces = pieces.map(|from| read(at + from as u64, bytes_max.min(length - from)));
        Ok(try_join_all(pieces).await?.concat().into())
    }

    /// Writes at the end, wherever that is then; where that was.
    async fn append_device(
        &self,
        home: &GroupLayout,
        layout: &GroupLayout,
        (fresh, ack): (bool, AckMode),
        bytes: Bytes,
    ) -> Result<(u64, DeviceLength), Error> {
        let home = home.devices.last().copied().unwrap_or_default();
        let op = FileOp::Write { at: 0, home, fresh, stable: false, append: true, ack };
        match self.ask_file(layout, op, bytes.into()).await? {
            (LccReply::Written { at, length }, _) => Ok((at, length)),
            (reply, _) => Err(unexpected(&reply)),
        }
    }

    /// Writes in requests of whole stripes, all at once.
    async fn write_device(
        &self,
        home: &GroupLayout,
        layout: &GroupLayout,
        to: WriteAt,
        bytes: Bytes,
    ) -> Result<DeviceLength, Error> {
        let WriteAt { at, fresh, alone, ack } = to;
        let step = request_bytes(layout, self.options.request_bytes);
        let mut pieces = Vec::new();
        let mut from = 0;
        while from < bytes.len() {
            let place = at + from as u64;
            let to_edge = step - usize::try_from(place % step as u64).expect("below `step`");
            let to = bytes.len().min(from + to_edge);
            let op = write_op(home, WriteAt { at: place, fresh, alone, ack });
            let change = if alone { None } else { self.reach.change(layout.group(), &op) };
            let piece = bytes.slice(from..to).into();
            pieces.push(async move { self.ask_file_as(layout, op, change.as_ref(), piece).await });
            from = to;
        }
        let mut newest = DeviceLength::default();
        for (reply, _) in try_join_all(pieces).await? {
            let LccReply::Written { length, .. } = reply else { return Err(unexpected(&reply)) };
            newest = newest.max(length);
        }
        Ok(newest)
    }
}

/// How often a file may be changed under our hands before we give up.
const ATTEMPTS_MAX: usize = 20;
