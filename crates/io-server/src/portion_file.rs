//! Open portion files and their pages of checksums, bounded in number.
//! # Theory
//! All that is cached is also in the file (pages are written the moment they change, by a
//! checkpoint), so that anything may leave the memory at any time. What was written and is not yet
//! on the medium is listed in [`Unsynced`], for the next sync.
//! # Invariants
//! F1 A page goes to the slot that is not the newest valid one.
//! F2 Every file written to is in `unsynced` until a sync that began later has ended.
//! # Failure
//! A page with a slot that is neither valid nor empty makes its blocks unreadable, because the newest
//! checksums may have been in it; other groups of blocks are not concerned. While the journal is
//! repeated it is the change that was cut short, and is made again. A file with two empty headers was begun and never finished, and counts as none.
//! # Source
//! S-1, S-4, F-5.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

use braid_env::{File, Folder, OpenMode};
use braid_terms::{BLOCK_SIZE, PortionName};
use braid_wire::io::BlockRange;
use bytes::Bytes;
use futures_util::future::LocalBoxFuture;

use crate::checksum::crc32c;
use crate::disk::DiskIdentity;
use crate::portion_page::{
    Checksums, GROUP_BLOCKS, Header, PageKey, Slot, block_offset, decode, encode, slots_offset,
};

/// Most files that are open at once.
const OPEN_MAX: usize = 256;
/// Most pages in memory; one is about 2 KiB.
const PAGES_MAX: usize = 512;
/// More unsynced files than this are synced with the whole file system.
const UNSYNCED_MAX: usize = 32;

/// State of a portion file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Presence {
    /// There is none.
    None,
    /// There is one without a header: begun, never finished.
    Begun,
    /// There is one with a valid header.
    Present,
    /// There is one and no header is valid.
    Unreadable,
}

/// Why blocks cannot be read or written.
#[derive(Debug)]
pub enum PortionError {
    /// The checksums of a block group are lost.
    PageLost {
        /// The block group.
        group: u64,
    },
    /// The file was made once and is not there any more.
    FileLost,
    /// The file cannot be read or written.
    Io(io::Error),
}

impl From<io::Error> for PortionError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

impl std::fmt::Display for PortionError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::PageLost { group } => write!(f, "checksums of block group {group} are lost"),
            Self::FileLost => write!(f, "the portion file is lost"),
            Self::Io(error) => error.fmt(f),
        }
    }
}

/// Written and not yet known to be on the medium.
#[derive(Default)]
pub struct Unsynced {
    /// Files, while they are few.
    pub files: BTreeMap<PortionName, File>,
    /// Folders below `portions` in which names changed.
    pub folders: BTreeSet<u8>,
    /// They were too many: the whole file system.
    pub everything: bool,
}

impl Unsynced {
    fn file(&mut self, name: PortionName, file: &File) {
        if self.everything || self.files.contains_key(&name) {
            return;
        }
        self.files.insert(name, file.clone());
        self.check_count();
    }

    /// Names changed in the folder of a portion.
    pub fn folder(&mut self, name: PortionName) {
        if !self.everything {
            self.folders.insert(name.folder());
            self.check_count();
        }
    }

    fn check_count(&mut self) {
        if self.files.len() + self.folders.len() > UNSYNCED_MAX {
            *self = Self { everything: true, ..Self::default() };
        }
    }
}

/// The portion files of a disk.
pub struct PortionFiles {
    folder: Folder,
    identity: DiskIdentity,
    portions: BTreeMap<PortionName, Portion>,
    pages: usize,
    uses: u64,
    /// See [`Unsynced`].
    pub unsynced: Unsynced,
    /// Torn pages are to be expected: the journal is being repeated.
    pub repeating: bool,
}

struct Portion {
    presence: Presence,
    file: Option<File>,
    header: Option<Header>,
    pages: BTreeMap<u64, Page>,
    used: u64,
    // Bytes written since write-back was last started, and where they begin.
    written: (u64, u64),
}

struct Page {
    checksums: Box<Checksums>,
    generation: u64,
    newest: u64,
    state: PageState,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum PageState {
    Good,
    Lost,
}

impl PortionFiles {
    /// Files below `folder`.
    #[must_use]
    pub fn new(folder: Folder, identity: DiskIdentity) -> Self {
        Self {
            folder,
            identity,
            portions: BTreeMap::new(),
            pages: 0,
            uses: 0,
            unsynced: Unsynced::default(),
            repeating: false,
        }
    }

    /// State of a portion file, and its header where there is one.
    pub fn look(&mut self, name: PortionName) -> io::Result<(Presence, Option<Header>)> {
        let portion = self.portion(name)?;
        Ok((portion.presence, portion.header.clone()))
    }

    /// State of a portion file.
    pub fn presence(&mut self, name: PortionName) -> io::Result<Presence> {
        Ok(self.portion(name)?.presence)
    }

    /// The file, where there is one.
    pub fn file(&mut self, name: PortionName) -> io::Result<Option<File>> {
        Ok(self.portion(name)?.file.clone())
    }

    /// The file, made where there is none.
    pub fn make_file(&mut self, name: PortionName) -> io::Result<File> {
        if let Some(file) = self.portion(name)?.file.clone() {
            return Ok(file);
        }
        let file = self.folder.open(&name.path(), OpenMode::Create)?;
        self.unsynced.folder(name);
        let portion = self.portion(name)?;
        portion.file = Some(file.clone());
        portion.presence = Presence::Begun;
        Ok(file)
    }

    /// Removes the file, if there is one.
    pub fn remove(&mut self, name: PortionName) -> io::Result<()> {
        self.forget(name);
        self.unsynced.files.remove(&name);
        match self.folder.remove(&name.path()) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => {
                self.unsynced.folder(name);
                result
            }
        }
    }

    /// Drops what is cached of a file, because a change of it failed half way.
    pub fn forget(&mut self, name: PortionName) {
        if let Some(portion) = self.portions.remove(&name) {
            self.pages -= portion.pages.len();
        }
    }

    /// Checksums of a block group as of the applied state.
    ///
    /// Errors: `PageLost`, `Io`.
    pub fn checksums(&mut self, name: PortionName, group: u64) -> Result<&Checksums, PortionError> {
        let page = self.page(name, group)?;
        match page.state {
            PageState::Good => Ok(&page.checksums),
            PageState::Lost => Err(PortionError::PageLost { group }),
        }
    }

    /// The same, to be changed; `write_page` must follow.
    ///
    /// Errors: `PageLost`, `Io`.
    pub fn checksums_mut(
        &mut self,
        name: PortionName,
        group: u64,
    ) -> Result<&mut Checksums, PortionError> {
        self.checksums(name, group)?;
        Ok(&mut self.page(name, group)?.checksums)
    }

    /// Writes the page of block group `group` (not 0) to its older slot.
    pub fn write_page(&mut self, name: PortionName, group: u64) -> Result<(), PortionError> {
        assert!(group > 0, "block group 0 has a header");
        self.write_slot(name, group, None)
    }

    /// Writes the header, with the checksums of block group 0, to its older slot.
    pub fn write_header(&mut self, name: PortionName, header: Header) -> Result<(), PortionError> {
        self.write_slot(name, 0, Some(&header))?;
        let portion = self.portion(name)?;
        portion.header = Some(header);
        portion.presence = Presence::Present;
        Ok(())
    }

    fn write_slot(
        &mut self,
        name: PortionName,
        group: u64,
        header: Option<&Header>,
    ) -> Result<(), PortionError> {
        let key = PageKey { identity: self.identity, name, group };
        let file = self.make_file(name)?;
        let page = self.page(name, group)?;
        let bytes = encode(key, page.generation + 1, header, &page.checksums);
        if page.generation == 0 {
            // Both, so that from the first checkpoint on no slot is ever rightly invalid: rot of
            // one is then not taken for a change that was cut short.
            file.write_at(&[&bytes, &bytes], slots_offset(group))?;
        } else {
            page.newest = 1 - page.newest;
            let at = slots_offset(group) + page.newest * BLOCK_SIZE as u64;
            file.write_at(&[&bytes], at)?;
        }
        page.generation += 1;
        page.state = PageState::Good;
        self.unsynced.file(name, &file);
        Ok(())
    }

    /// Writes blocks to their places; `pieces` are whole blocks one behind the other.
    pub fn write_blocks(
        &mut self,
        name: PortionName,
        range: BlockRange,
        bytes: &[u8],
    ) -> io::Result<()> {
        assert_eq!(bytes.len() as u64, range.count * BLOCK_SIZE as u64, "whole blocks");
        let file = self.make_file(name)?;
        self.unsynced.file(name, &file);
        for run in runs(range) {
            let from = usize::try_from(run.first - range.first).expect("in memory") * BLOCK_SIZE;
            let length = usize::try_from(run.count).expect("in memory") * BLOCK_SIZE;
            file.write_at(&[&bytes[from..from + length]], block_offset(run.first))?;
        }
        let portion = self.portion(name)?;
        let (begin, written) = portion.written;
        let at = block_offset(range.first);
        let begin = if written == 0 { at } else { begin.min(at) };
        portion.written = (begin, written + bytes.len() as u64);
        if portion.written.1 >= WRITEBACK_SIZE {
            let end = block_offset(range.first + range.count - 1) + BLOCK_SIZE as u64;
            file.start_writeback(begin, end.saturating_sub(begin));
            portion.written = (0, 0);
        }
        Ok(())
    }

    /// As `write_blocks`, past the page cache: the writes are under way.
    pub fn begin_blocks(
        &mut self,
        name: PortionName,
        range: BlockRange,
        bytes: &Bytes,
    ) -> io::Result<Vec<(BlockRange, LocalBoxFuture<'static, io::Result<()>>)>> {
        assert_eq!(bytes.len() as u64, range.count * BLOCK_SIZE as u64, "whole blocks");
        let file = self.make_file(name)?;
        self.unsynced.file(name, &file);
        let write = |run: BlockRange| {
            let from = usize::try_from(run.first - range.first).expect("in memory") * BLOCK_SIZE;
            let length = usize::try_from(run.count).expect("in memory") * BLOCK_SIZE;
            let piece = bytes.slice(from..from + length);
            (run, file.write_uncached(vec![piece], block_offset(run.first)))
        };
        // A full disk is told before anything stands in the journal.
        for run in runs(range) {
            file.reserve(block_offset(run.first), run.count * BLOCK_SIZE as u64)?;
        }
        Ok(runs(range).map(write).collect())
    }

    /// The parts of a range, each within one block group, where the file has anything. A cut of a
    /// sparse file names a range of any length: what is not there is not walked.
    pub fn held_runs(
        &mut self,
        name: PortionName,
        range: BlockRange,
    ) -> io::Result<Vec<BlockRange>> {
        let Some(file) = self.file(name)? else { return Ok(Vec::new()) };
        let end = range.first + range.count;
        let (mut at, mut held) = (range.first, Vec::new());
        while at < end {
            let Some(data) = file.data_from(slots_offset(at / GROUP_BLOCKS))? else { break };
            let group = data / slots_offset(1);
            at = at.max(group * GROUP_BLOCKS);
            let stop = ((at / GROUP_BLOCKS + 1) * GROUP_BLOCKS).min(end);
            if at < stop {
                held.push(BlockRange { first: at, count: stop - at, ..range });
            }
            at = stop.max(at);
        }
        Ok(held)
    }

    /// Gives the space of blocks back, where the file has them.
    pub fn punch_blocks(&mut self, name: PortionName, range: BlockRange) -> io::Result<()> {
        let Some(file) = self.file(name)? else { return Ok(()) };
        let length = file.length()?;
        self.unsynced.file(name, &file);
        for run in runs(range) {
            let at = block_offset(run.first);
            if at >= length {
                break;
            }
            file.punch(at, (run.count * BLOCK_SIZE as u64).min(length - at))?;
        }
        Ok(())
    }

    /// The journal was repeated: from now on an invalid slot is damage.
    pub fn end_repeating(&mut self) {
        self.repeating = false;
        self.portions.clear();
        self.pages = 0;
    }

    /// Keeps the number of open files and pages in bounds; called between requests.
    pub fn trim(&mut self) {
        if self.portions.len() > OPEN_MAX {
            let mut uses: Vec<u64> = self.portions.values().map(|portion| portion.used).collect();
            uses.sort_unstable();
            let oldest_kept = uses[uses.len() - OPEN_MAX * 3 / 4];
            self.portions.retain(|_, portion| portion.used >= oldest_kept);
            self.pages = self.portions.values().map(|portion| portion.pages.len()).sum();
        }
        if self.pages > PAGES_MAX {
            self.portions.values_mut().for_each(|portion| portion.pages.clear());
            self.pages = 0;
        }
    }

    fn portion(&mut self, name: PortionName) -> io::Result<&mut Portion> {
        self.uses += 1;
        if !self.portions.contains_key(&name) {
            let portion = self.load(name)?;
            self.pages += portion.pages.len();
            self.portions.insert(name, portion);
        }
        let portion = self.portions.get_mut(&name).expect("just inserted");
        portion.used = self.uses;
        Ok(portion)
    }

    fn load(&self, name: PortionName) -> io::Result<Portion> {
        let mut portion = Portion {
            presence: Presence::None,
            file: None,
            header: None,
            pages: BTreeMap::new(),
            used: 0,
            written: (0, 0),
        };
        let file = match self.folder.open(&name.path(), OpenMode::Write) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(portion),
            Err(error) => return Err(error),
        };
        let (page, header) = self.load_page(&file, name, 0)?;
        portion.presence = match (&header, page.state) {
            (_, PageState::Lost) => Presence::Unreadable,
            (Some(_), PageState::Good) => Presence::Present,
            (None, PageState::Good) => Presence::Begun,
        };
        portion.file = Some(file);
        portion.header = header.filter(|_| portion.presence == Presence::Present);
        portion.pages.insert(0, page);
        Ok(portion)
    }

    fn page(&mut self, name: PortionName, group: u64) -> Result<&mut Page, PortionError> {
        if !self.portion(name)?.pages.contains_key(&group) {
            let file = self.portion(name)?.file.clone();
            let page = match file {
                Some(file) => self.load_page(&file, name, group)?.0,
                None => Page::empty(PageState::Good),
            };
            self.portion(name)?.pages.insert(group, page);
            self.pages += 1;
        }
        Ok(self.portion(name)?.pages.get_mut(&group).expect("just inserted"))
    }

    fn load_page(
        &self,
        file: &File,
        name: PortionName,
        group: u64,
    ) -> io::Result<(Page, Option<Header>)> {
        let key = PageKey { identity: self.identity, name, group };
        let mut both = vec![0; 2 * BLOCK_SIZE];
        let at = slots_offset(group);
        let mut done = 0;
        while done < both.len() {
            match file.read_at(&mut both[done..], at + done as u64)? {
                0 => break,
                count => done += count,
            }
        }
        let (slot_a, slot_b) = both.split_at(BLOCK_SIZE);
        let is_zero = |slot: &[u8]| slot.iter().all(|byte| *byte == 0);
        let (a, b) = (decode(key, slot_a), decode(key, slot_b));
        // Only a change that was cut short leaves an invalid slot, and the journal repeats it.
        let a_bad = a.is_none() && !is_zero(slot_a);
        let b_bad = b.is_none() && !is_zero(slot_b);
        let state = match a_bad || b_bad {
            true if self.repeating => PageState::Good,
            true => PageState::Lost,
            false => PageState::Good,
        };
        let newest = match (a, b) {
            (Some(a), Some(b)) if b.generation <= a.generation => Some((0, a)),
            (_, Some(b)) => Some((1, b)),
            (Some(a), None) => Some((0, a)),
            (None, None) => None,
        };
        match newest {
            Some((newest, Slot { generation, header, checksums })) => {
                Ok((Page { checksums, generation, newest, state }, header))
            }
            None => Ok((Page::empty(state), None)),
        }
    }
}

impl Page {
    fn empty(state: PageState) -> Self {
        Self { checksums: Box::default(), generation: 0, newest: 1, state }
    }
}

/// Verifies `bytes` against a checksum.
#[must_use]
pub fn is_good(bytes: &[u8], crc: u32) -> bool {
    crc32c(bytes) == crc
}

/// A range cut where block groups end: each run lies in one piece in the file.
pub fn runs(range: BlockRange) -> impl Iterator<Item = BlockRange> {
    let end = range.first + range.count;
    let mut at = range.first;
    std::iter::from_fn(move || {
        let stop = ((at / GROUP_BLOCKS + 1) * GROUP_BLOCKS).min(end);
        let run = BlockRange { first: at, count: stop - at, ..range };
        at = stop;
        (run.count > 0).then_some(run)
    })
}

/// Bytes after which write-back of a file is started.
const WRITEBACK_SIZE: u64 = 32 << 20;
