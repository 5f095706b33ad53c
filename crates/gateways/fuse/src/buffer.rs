//! Bytes that were written to the mount and are not yet at the owner.
//!
//! # Theory
//! Written bytes gather in *runs* of adjacent bytes, so that many small writes become one large
//! one. No run crosses a multiple of `span`, which is a whole number of stripes: a run that reaches
//! it is as good as it gets, and leaves.
//! ```text
//! device     0         span       2 span
//!            |----------|----------|
//! runs       [ complete ][ open ..>     [ open ..>
//! ```
//! A run that was sent is a *flight* until it is answered; readers see
//! device < flights < runs, the newest last.
//! # Invariants
//! B1 Runs do not overlap each other.
//! B2 `bytes` is the sum of the runs' lengths.

use std::collections::BTreeMap;

use bytes::{Bytes, BytesMut};

/// Runs of one file; as many pages are 64 MiB.
const RUNS_MAX: usize = 16 << 10;

/// Bytes not yet sent, by their place in the file.
#[derive(Default)]
pub struct DirtyRuns {
    runs: BTreeMap<u64, Run>,
    bytes: u64,
}

/// Adjacent bytes.
pub struct Run {
    len: u64,
    pieces: Vec<BytesMut>,
    /// Number of the first write in it.
    pub sequence: u64,
    /// When that was, in milliseconds.
    pub since_ms: u64,
}

/// A run that was sent and is not yet answered.
pub struct Flight {
    /// First byte.
    pub start: u64,
    /// Bytes.
    pub len: u64,
    /// The bytes.
    pub pieces: Vec<Bytes>,
    /// Number of the first write in it.
    pub sequence: u64,
}

/// What becomes of a run.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Pick {
    /// It stays.
    Not,
    /// It is taken.
    It,
    /// It is taken, and nothing behind it.
    ItAsLast,
}

/// Where and when a write happens.
#[derive(Clone, Copy)]
pub struct WriteAt {
    /// First byte.
    pub at: u64,
    /// No run crosses a multiple of this.
    pub span: u64,
    /// Its number.
    pub sequence: u64,
    /// The time in milliseconds.
    pub now_ms: u64,
}

impl DirtyRuns {
    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    /// Bytes that wait.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Whether there are as many runs as memory is meant for: each takes a page however short it is.
    pub fn is_crowded(&self) -> bool {
        self.runs.len() >= RUNS_MAX
    }

    /// Time of the oldest write that waits.
    pub fn since_ms(&self) -> Option<u64> {
        self.runs.values().map(|run| run.since_ms).min()
    }

    /// Whether a write of number `sequence` or lower waits.
    pub fn has_until(&self, sequence: u64) -> bool {
        self.runs.values().any(|run| run.sequence <= sequence)
    }

    /// Takes written bytes in, over what waits there already. Says whether a run is complete by it.
    pub fn write(&mut self, to: WriteAt, mut data: &[u8]) -> bool {
        let mut at = to.at;
        let complete = at / to.span < (at + data.len() as u64) / to.span;
        while !data.is_empty() {
            let room = to.span - at % to.span;
            let (part, rest) =
                data.split_at(data.len().min(usize::try_from(room).unwrap_or(usize::MAX)));
            self.write_within(WriteAt { at, ..to }, part);
            at += part.len() as u64;
            data = rest;
        }
        complete
    }

    fn write_within(&mut self, to: WriteAt, data: &[u8]) {
        let (at, end) = (to.at, to.at + data.len() as u64);
        let touching = self
            .runs
            .range(..=at)
            .next_back()
            .filter(|(start, run)| *start + run.len >= at && *start / to.span == at / to.span)
            .map(|(start, _)| *start);
        let Some(start) = touching else {
            self.punch(at, end);
            let mut run =
                Run { len: 0, pieces: Vec::new(), sequence: to.sequence, since_ms: to.now_ms };
            run.append(data);
            self.bytes += run.len;
            self.runs.insert(at, run);
            return;
        };
        let run_end = start + self.runs[&start].len;
        if end > run_end {
            self.punch(run_end, end);
        }
        let run = self.runs.get_mut(&start).expect("found above");
        let inside = usize::try_from(run_end.min(end) - at).expect("within one write");
        run.overwrite(at - start, &data[..inside]);
        run.append(&data[inside..]);
        self.bytes += end.saturating_sub(run_end);
        self.join_next(start, to.span);
    }

    /// Joins the run at `start` with one that begins where it ends.
    fn join_next(&mut self, start: u64, span: u64) {
        let end = start + self.runs[&start].len;
        if end.is_multiple_of(span) {
            return;
        }
        let Some(next) = self.runs.remove(&end) else { return };
        let run = self.runs.get_mut(&start).expect("the caller has it");
        run.len += next.len;
        run.pieces.extend(next.pieces);
        run.sequence = run.sequence.min(next.sequence);
        run.since_ms = run.since_ms.min(next.since_ms);
    }

    /// Drops what waits in `from..to`.
    pub fn punch(&mut self, from: u64, to: u64) {
        if from >= to {
            return;
        }
        let mut touched: Vec<u64> = self.runs.range(from..to).map(|(start, _)| *start).collect();
        if let Some((start, run)) = self.runs.range(..from).next_back()
            && start + run.len > from
        {
            touched.push(*start);
        }
        for start in touched {
            let mut run = self.runs.remove(&start).expect("found above");
            let end = start + run.len;
            self.bytes -= run.len;
            if end > to {
                let tail = run.split_off(to - start);
                self.bytes += tail.len;
                self.runs.insert(to, tail);
            }
            if start < from {
                run.split_off(from - start);
                self.bytes += run.len;
                self.runs.insert(start, run);
            }
        }
    }

    /// Takes out all runs.
    pub fn take_all(&mut self) -> Vec<Flight> {
        let starts: Vec<u64> = self.runs.keys().copied().collect();
        starts.into_iter().map(|start| self.take_at(start)).collect()
    }

    /// Takes out the runs that `pick(start, end)` says, in their order.
    pub fn take(&mut self, mut pick: impl FnMut(u64, u64) -> Pick) -> Vec<Flight> {
        let mut starts = Vec::new();
        for (start, run) in &self.runs {
            match pick(*start, *start + run.len) {
                Pick::Not => {}
                Pick::It => starts.push(*start),
                Pick::ItAsLast => {
                    starts.push(*start);
                    break;
                }
            }
        }
        starts.into_iter().map(|start| self.take_at(start)).collect()
    }

    fn take_at(&mut self, start: u64) -> Flight {
        let run = self.runs.remove(&start).expect("the caller found it");
        self.bytes -= run.len;
        Flight {
            start,
            len: run.len,
            sequence: run.sequence,
            pieces: run.pieces.into_iter().map(BytesMut::freeze).collect(),
        }
    }

    /// Copies what waits within `out`, which begins at `at`.
    pub fn overlay(&self, at: u64, out: &mut [u8]) {
        let end = at + out.len() as u64;
        let before = self.runs.range(..at).next_back().map(|(start, _)| *start).unwrap_or(at);
        for (start, run) in self.runs.range(before..end) {
            overlay_pieces(*start, run.pieces.iter().map(|piece| &piece[..]), at, out);
        }
    }

    /// Takes from `holes`, which are in order, what waits here.
    pub fn cover(&self, holes: &mut Vec<(u64, u64)>) {
        let (Some(from), Some(to)) = (holes.first(), holes.last()) else { return };
        let (from, to) = (from.0, to.1);
        let before = self.runs.range(..from).next_back().map(|(start, _)| *start).unwrap_or(from);
        for (start, run) in self.runs.range(before..to) {
            cover(holes, *start, start + run.len);
        }
    }

    /// Whether anything in `from..to` waits.
    pub fn overlaps(&self, from: u64, to: u64) -> bool {
        self.runs.range(from..to).next().is_some()
            || self
                .runs
                .range(..from)
                .next_back()
                .is_some_and(|(start, run)| start + run.len > from)
    }
}

impl Run {
    fn append(&mut self, mut data: &[u8]) {
        self.len += data.len() as u64;
        if let Some(last) = self.pieces.last_mut() {
            let room = last.capacity() - last.len();
            let (part, rest) = data.split_at(room.min(data.len()));
            last.extend_from_slice(part);
            data = rest;
        }
        if !data.is_empty() {
            // Pieces grow with the run: few of them, and little room wasted on short runs.
            let room = usize::try_from(self.len).unwrap_or(usize::MAX).clamp(4 << 10, 1 << 20);
            let mut piece = BytesMut::with_capacity(room.max(data.len()));
            piece.extend_from_slice(data);
            self.pieces.push(piece);
        }
    }

    fn overwrite(&mut self, offset: u64, mut data: &[u8]) {
        let mut skip = usize::try_from(offset).expect("runs are short");
        for piece in &mut self.pieces {
            if data.is_empty() {
                return;
            }
            if skip >= piece.len() {
                skip -= piece.len();
                continue;
            }
            let (part, rest) = data.split_at(data.len().min(piece.len() - skip));
            piece[skip..skip + part.len()].copy_from_slice(part);
            data = rest;
            skip = 0;
        }
        assert!(data.is_empty(), "the caller keeps within the run");
    }

    /// Keeps the first `keep` bytes; gives the rest.
    fn split_off(&mut self, keep: u64) -> Self {
        let mut left = usize::try_from(keep).expect("runs are short");
        let mut tail = Vec::new();
        let mut head = Vec::new();
        for mut piece in self.pieces.drain(..) {
            if left == 0 {
                tail.push(piece);
            } else if left >= piece.len() {
                left -= piece.len();
                head.push(piece);
            } else {
                let rest = piece.split_off(left);
                left = 0;
                head.push(piece);
                tail.push(rest);
            }
        }
        let tail_len = self.len - keep;
        self.pieces = head;
        self.len = keep;
        Self { len: tail_len, pieces: tail, sequence: self.sequence, since_ms: self.since_ms }
    }
}

impl Flight {
    /// First byte behind it.
    pub fn end(&self) -> u64 {
        self.start + self.len
    }

    /// Copies its bytes within `out`, which begins at `at`.
    pub fn overlay(&self, at: u64, out: &mut [u8]) {
        overlay_pieces(self.start, self.pieces.iter().map(|piece| &piece[..]), at, out);
    }
}

/// Takes `from..to` out of `holes`.
pub fn cover(holes: &mut Vec<(u64, u64)>, from: u64, to: u64) {
    if !holes.iter().any(|(start, end)| *start < to && *end > from) {
        return;
    }
    let mut left = Vec::with_capacity(holes.len() + 1);
    for (start, end) in holes.drain(..) {
        if start < from.min(end) {
            left.push((start, from.min(end)));
        }
        if to.max(start) < end {
            left.push((to.max(start), end));
        }
    }
    *holes = left;
}

/// Copies `bytes`, which begin at `start`, within `out`, which begins at `at`.
pub fn overlay_bytes(start: u64, bytes: &[u8], at: u64, out: &mut [u8]) {
    let (end, out_end) = (start + bytes.len() as u64, at + out.len() as u64);
    let (from, to) = (start.max(at), end.min(out_end));
    if from < to {
        let source = &bytes[(from - start) as usize..(to - start) as usize];
        out[(from - at) as usize..(to - at) as usize].copy_from_slice(source);
    }
}

fn overlay_pieces<'a>(start: u64, pieces: impl Iterator<Item = &'a [u8]>, at: u64, out: &mut [u8]) {
    let mut place = start;
    for piece in pieces {
        overlay_bytes(place, piece, at, out);
        place += piece.len() as u64;
    }
}

#[cfg(test)]
mod tests {
    use rand::{RngExt, SeedableRng, rngs::StdRng};

    use super::*;

    const SPAN: u64 = 64;

    fn at(at: u64, sequence: u64) -> WriteAt {
        WriteAt { at, span: SPAN, sequence, now_ms: sequence }
    }

    #[test]
    fn adjacent_writes_are_one_run_up_to_the_span() {
        let mut dirty = DirtyRuns::default();
        assert!(!dirty.write(at(10, 1), &[1; 30]));
        assert!(dirty.write(at(40, 2), &[2; 40]));
        let is_complete = |_, end: u64| match end.is_multiple_of(SPAN) {
            true => Pick::It,
            false => Pick::Not,
        };
        let flights = dirty.take(is_complete);
        let [flight] = &flights[..] else { panic!("one is complete") };
        assert_eq!((flight.start, flight.len, flight.sequence), (10, 54, 1));
        assert_eq!(dirty.bytes(), 16);
    }

    #[test]
    fn random_writes_punches_and_reads_agree_with_an_array() {
        for seed in 0..200 {
            let mut random = StdRng::seed_from_u64(seed);
            let mut dirty = DirtyRuns::default();
            let mut model: Vec<Option<u8>> = vec![None; 400];
            for sequence in 0..120 {
                let from = random.random_range(0..390_usize);
                let to = (from + random.random_range(1..100)).min(400);
                if random.random_range(0..5) == 0 {
                    dirty.punch(from as u64, to as u64);
                    model[from..to].fill(None);
                } else {
                    let byte = random.random_range(1..=255);
                    dirty.write(at(from as u64, sequence), &vec![byte; to - from]);
                    model[from..to].fill(Some(byte));
                }
                let mut out = vec![0; 400];
                dirty.overlay(0, &mut out);
                let expect: Vec<u8> = model.iter().map(|byte| byte.unwrap_or(0)).collect();
                assert_eq!(out, expect, "seed {seed}");
                assert_eq!(dirty.bytes(), model.iter().flatten().count() as u64, "seed {seed}");
                let mut holes = vec![(0, 400)];
                dirty.cover(&mut holes);
                let missing: u64 = holes.iter().map(|(from, to)| to - from).sum();
                assert_eq!(missing + dirty.bytes(), 400, "seed {seed}");
                let part = (from + to) / 2;
                let mut out = vec![0; 400 - part];
                dirty.overlay(part as u64, &mut out);
                assert_eq!(out, expect[part..], "seed {seed}");
            }
        }
    }
}
