//! Lines of a CSV file that have a value in a column, found without parsing the others.
//!
//! Contract: the file has a row a line, as the writers of this crate make it, and no comma or quote in the columns up to the one
//! that is looked at. The header passes. What passes is parsed, so its mistakes are found; what does not is not looked at.
//! A file of a long run is mostly rows of its windows, of which a report wants none.
use std::io::{BufRead, BufReader, Read, Seek};

/// Bytes that are read at a time.
const BLOCK: usize = 256 << 10;

/// Passes on the lines that are wanted.
pub(crate) struct Only<F> {
    file: F,
    wanted: Option<Wanted>,
    /// What was read and is not yet looked at, from `start` on.
    block: Vec<u8>,
    start: usize,
    /// Lines to pass on, from `served` on.
    lines: Vec<u8>,
    served: usize,
    passed: u64,
    seen: u64,
    /// For each gap before a passed line: the number of that line among the passed, and in the file, counted from 1.
    gaps: Vec<(u64, u64)>,
}

/// A column, counted from 0, and the value that it must have.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Wanted {
    pub(crate) column: usize,
    pub(crate) value: &'static str,
}

impl Wanted {
    /// Finds the column in the header of a file, which is at its start before and after. None where it has no such column: all
    /// lines are wanted then, so that the reader says what is missing.
    pub(crate) fn by_header(
        file: &mut (impl Read + Seek),
        column: &str,
        value: &'static str,
    ) -> std::io::Result<Option<Self>> {
        let mut header = Vec::new();
        BufReader::new(&mut *file)
            .take(BLOCK as u64)
            .read_until(b'\n', &mut header)?;
        file.rewind()?;
        let columns = header.trim_ascii_end().split(|byte| *byte == b',');
        let column = columns
            .into_iter()
            .position(|name| name == column.as_bytes());
        Ok(column.map(|column| Self { column, value }))
    }

    fn is_in(self, line: &[u8]) -> bool {
        let line = line.strip_suffix(b"\n").unwrap_or(line);
        line.split(|byte| *byte == b',').nth(self.column) == Some(self.value.as_bytes())
    }
}

impl<F: Read> Only<F> {
    /// The lines of `file` that are wanted, or all.
    pub(crate) fn new(file: F, wanted: Option<Wanted>) -> Self {
        Self {
            file,
            wanted,
            block: Vec::new(),
            start: 0,
            lines: Vec::new(),
            served: 0,
            passed: 0,
            seen: 0,
            gaps: Vec::new(),
        }
    }

    /// The number in the file of a passed line.
    pub(crate) fn line(&self, passed: u64) -> u64 {
        let gap = self.gaps.partition_point(|(at, _)| *at <= passed);
        match gap.checked_sub(1).map(|gap| self.gaps[gap]) {
            Some((at, line)) => line + (passed - at),
            None => passed,
        }
    }

    /// Goes to the next line that has the value anywhere, or to `end`: most lines have it nowhere, and are only counted.
    fn skip(&mut self, value: &str, end: usize) {
        let block = &self.block[self.start..end];
        let found = memchr::memmem::find(block, value.as_bytes());
        let skipped = match found {
            Some(at) => memchr::memrchr(b'\n', &block[..at]).map_or(0, |at| at + 1),
            None => block.len(),
        };
        self.seen += memchr::memchr_iter(b'\n', &block[..skipped]).count() as u64;
        // A last line without an end is one too.
        let torn = skipped == block.len() && block.last().is_some_and(|byte| *byte != b'\n');
        self.seen += u64::from(torn);
        self.start += skipped;
    }

    /// Looks at another block. False at the end of the file.
    fn advance(&mut self) -> std::io::Result<bool> {
        self.lines.clear();
        self.served = 0;
        self.block.drain(..self.start);
        self.start = 0;
        let held = self.block.len();
        self.block.resize(held + BLOCK, 0);
        let read = self.file.read(&mut self.block[held..])?;
        self.block.truncate(held + read);
        let end = match memchr::memrchr(b'\n', &self.block) {
            Some(at) => at + 1,
            // The rest of a file without a last line end.
            None if read == 0 => self.block.len(),
            None => 0,
        };
        while self.start < end {
            if let Some(wanted) = self.wanted.filter(|_| self.seen > 0) {
                self.skip(wanted.value, end);
            }
            let line = &self.block[self.start..end];
            let line = &line[..memchr::memchr(b'\n', line).map_or(line.len(), |at| at + 1)];
            if line.is_empty() {
                break;
            }
            self.seen += 1;
            let header = self.seen == 1;
            if header || self.wanted.is_none_or(|wanted| wanted.is_in(line)) {
                self.passed += 1;
                if self.line(self.passed) != self.seen {
                    self.gaps.push((self.passed, self.seen));
                }
                self.lines.extend_from_slice(line);
            }
            self.start += line.len();
        }
        Ok(read > 0)
    }
}

impl<F: Read> Read for Only<F> {
    fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
        while self.served == self.lines.len() {
            if !self.advance()? && self.lines.is_empty() {
                return Ok(0);
            }
        }
        let len = to.len().min(self.lines.len() - self.served);
        to[..len].copy_from_slice(&self.lines[self.served..][..len]);
        self.served += len;
        Ok(len)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Gives one byte, then two, then three, ...
    struct Slowly<'a>(&'a [u8], usize);

    impl Read for Slowly<'_> {
        fn read(&mut self, to: &mut [u8]) -> std::io::Result<usize> {
            self.1 += 1;
            let len = self.1.min(self.0.len()).min(to.len());
            to[..len].copy_from_slice(&self.0[..len]);
            self.0 = &self.0[len..];
            Ok(len)
        }
    }

    const FILE: &str = "a,b,c\n1,x,2\n1,y,3\n1,y,4\n,y,\ny,x,y\n1,yy,1\n1,y\n1";

    fn passed(value: Option<&'static str>) -> (String, Only<Slowly<'static>>) {
        let mut file = std::io::Cursor::new(FILE);
        let wanted = value.map(|value| Wanted::by_header(&mut file, "b", value).unwrap().unwrap());
        let mut only = Only::new(Slowly(FILE.as_bytes(), 0), wanted);
        let mut text = String::new();
        only.read_to_string(&mut text).unwrap();
        (text, only)
    }

    #[test]
    fn lines_with_the_value_pass_and_keep_their_numbers() {
        let (text, only) = passed(Some("y"));
        assert_eq!(text, "a,b,c\n1,y,3\n1,y,4\n,y,\n1,y\n");
        let lines: Vec<u64> = (1..=5).map(|line| only.line(line)).collect();
        assert_eq!(lines, [1, 3, 4, 5, 8]);
    }

    #[test]
    fn all_pass_where_nothing_is_asked() {
        let (text, only) = passed(None);
        assert_eq!(text, FILE);
        assert_eq!(only.line(7), 7);
    }
}
