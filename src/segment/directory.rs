//! The names of the objects in a segment: a list of entries, the newest first.
//!
//! Invariant: an object and its entry are whole before the one store that publishes them (`Live::newest`), and never change
//! afterwards. So the end of the newest entry is the end of what is in use, and a creator killed on the way leaves litter behind
//! it, which the next creator wipes. Reading takes no lock.

use bytemuck::Zeroable;

use super::layout::{EntryHead, Kind, Shape};
use crate::error::{Error, ErrorKind, Result};
use crate::plain::identity::{Identity, fnv1a};

/// An entry, copied out and checked against the segment's bounds.
#[derive(Clone, Debug)]
pub(crate) struct Entry {
    pub(crate) name: String,
    pub(crate) kind: Kind,
    pub(crate) identity: Identity,
    pub(crate) count: u64,
    pub(crate) object_offset: usize,
    pub(crate) object_size: usize,
    older: usize,
    /// Where the entry itself lies.
    pub(crate) offset: usize,
    /// The first byte behind the entry.
    pub(crate) end: usize,
}

/// Reads bytes of a segment: `read(offset, target)`, in bounds.
pub(crate) trait Bytes {
    fn size(&self) -> usize;
    /// Before it nothing of the directory lies.
    fn objects_offset(&self) -> usize;
    /// Copies out `target.len()` bytes at `offset`; the caller has checked the bounds.
    fn read(&self, offset: usize, target: &mut [u8]);
}

/// The head of the entry at `offset`. It names an older one before itself, so the list ends.
fn read_head(bytes: &impl Bytes, offset: usize) -> Result<EntryHead> {
    let mut head = EntryHead::zeroed();
    if within(bytes, offset, size_of::<EntryHead>()).is_none() {
        return Err(corrupted());
    }
    bytes.read(offset, bytemuck::bytes_of_mut(&mut head));
    if head.older >= offset as u64 { Err(corrupted()) } else { Ok(head) }
}

/// The end of `size` bytes from `offset` on, if they lie inside.
fn within(bytes: &impl Bytes, offset: usize, size: usize) -> Option<usize> {
    offset.checked_add(size).filter(|&end| end <= bytes.size())
}

impl Entry {
    fn read(bytes: &impl Bytes, offset: usize) -> Result<Entry> {
        let head = read_head(bytes, offset)?;
        let texts = offset + size_of::<EntryHead>();

        let lens = [head.name_len, head.type_name_len, head.dtype_len].map(usize::from);
        let end = within(bytes, texts, lens.iter().sum()).ok_or_else(corrupted)?;
        let mut position = texts;
        let [name, type_name, dtype] = lens.map(|len| {
            let mut text = vec![0; len];
            bytes.read(position, &mut text);
            position += len;
            String::from_utf8(text).map_err(|_| corrupted())
        });
        let number = |number: u64| usize::try_from(number).map_err(|_| corrupted());
        let entry = Entry {
            name: name?,
            kind: Kind::from_number(head.kind).ok_or_else(corrupted)?,
            identity: Identity {
                size: head.element_size,
                alignment: head.element_alignment,
                name: type_name?,
                dtype: dtype?,
            },
            count: head.count,
            object_offset: number(head.object_offset)?,
            object_size: number(head.object_size)?,
            older: number(head.older)?,
            offset,
            end,
        };
        // An entry lies behind its object, and the older ones before both: so the list ends, and nothing overlaps.
        let object_end = entry.object_offset.checked_add(entry.object_size).ok_or_else(corrupted)?;
        if object_end > offset
            || entry.older >= entry.object_offset.max(1)
            || entry.object_offset % 64 != 0
            || entry.object_offset < bytes.objects_offset()
        {
            return Err(corrupted());
        }
        Ok(entry)
    }

    /// Whether this program's idea of the object is what lies there; says what differs.
    pub(crate) fn check(&self, expected: &Shape) -> Result<()> {
        let mismatch = |detail: String| Err(Error::new(ErrorKind::TypeMismatch, detail));
        if self.kind != expected.kind {
            return mismatch(format!(
                "it is {} {}, not {} {}",
                article(self.kind),
                self.kind.name(),
                article(expected.kind),
                expected.kind.name()
            ));
        }
        if !self.identity.matches(&expected.identity) {
            let (what, plural) =
                if self.kind.is_array() { ("elements are", "'s are") } else { ("it holds", "'s is") };
            let (found, ours) =
                (self.identity.told_from(&expected.identity), expected.identity.told_from(&self.identity));
            return mismatch(format!("{what} {found}, this program{plural} {ours}"));
        }
        match expected.count {
            Some(count) if count != self.count => {
                return mismatch(format!("it has {} elements, this program expects {count}", self.count));
            }
            _ => {}
        }
        // The rest no correct peer writes: the bytes must hold what the entry says lies there.
        let needed = self.needed_size(expected).ok_or_else(corrupted)?;
        if self.object_size < needed || self.object_offset % expected.alignment != 0 {
            return Err(corrupted());
        }
        Ok(())
    }

    fn needed_size(&self, expected: &Shape) -> Option<usize> {
        if !self.kind.is_array() {
            return Some(expected.size);
        }
        let elements = self.count.checked_mul(self.identity.size)?;
        usize::try_from(elements).ok()?.checked_add(super::layout::ELEMENTS_OFFSET)
    }
}

fn article(kind: Kind) -> &'static str {
    if kind == Kind::Array { "an" } else { "a" }
}

fn corrupted() -> Error {
    Error::new(ErrorKind::Corrupted, "the segment's directory is damaged")
}

/// The entries from `newest` on, newest first; a damaged one ends the walk with an error.
pub(crate) fn entries<B: Bytes>(bytes: &B, newest: usize) -> impl Iterator<Item = Result<Entry>> + '_ {
    let mut next = newest;
    std::iter::from_fn(move || {
        if next == 0 {
            return None;
        }
        let entry = Entry::read(bytes, next);
        next = entry.as_ref().map_or(0, |entry| entry.older);
        Some(entry)
    })
}

/// The entry at `offset`, which a relative says is one.
pub(crate) fn entry_at(bytes: &impl Bytes, offset: usize) -> Result<Entry> {
    Entry::read(bytes, offset)
}

/// The entry of this name. Costs a look at the head of every newer one.
pub(crate) fn find(bytes: &impl Bytes, newest: usize, name: &str) -> Result<Option<Entry>> {
    let hash = fnv1a(name.bytes());
    let mut next = newest;
    while next != 0 {
        let head = read_head(bytes, next)?;
        if head.name_hash == hash {
            let entry = Entry::read(bytes, next)?;
            if entry.name == name {
                return Ok(Some(entry));
            }
        }
        // Smaller than a `usize` already.
        next = head.older as usize;
    }
    Ok(None)
}

/// Where a new object and its entry will lie.
#[derive(Debug)]
pub(crate) struct Plan {
    pub(crate) object_offset: usize,
    pub(crate) entry_offset: usize,
    pub(crate) end: usize,
    /// The entry's bytes.
    pub(crate) entry: Vec<u8>,
}

/// Plans an object behind `used`, below `size`.
pub(crate) fn plan(name: &str, shape: &Shape, newest: usize, used: usize, size: usize) -> Result<Plan> {
    let no_room = |missing: Option<usize>| {
        let room = size.saturating_sub(used);
        let needed = missing
            .map_or_else(|| "more bytes than there are".to_string(), |end| format!("{} bytes", end - used));
        Error::new(ErrorKind::NoRoom, format!("it needs {needed}, the segment has {room} left"))
    };
    let len = |text: &str| {
        u16::try_from(text.len()).map_err(|_| {
            Error::new(ErrorKind::InvalidInput, "a type's name or layout has more than 65535 bytes")
        })
    };
    let texts = [name, &shape.identity.name, &shape.identity.dtype];
    let layout = || {
        let object_offset = used.checked_next_multiple_of(shape.alignment)?;
        let entry_offset = object_offset.checked_add(shape.size)?;
        let entry_size = size_of::<EntryHead>() + texts.iter().map(|text| text.len()).sum::<usize>();
        let end = entry_offset.checked_add(entry_size)?.checked_next_multiple_of(8)?;
        Some((object_offset, entry_offset, end))
    };
    let (object_offset, entry_offset, end) = layout().ok_or_else(|| no_room(None))?;
    if end > size {
        return Err(no_room(Some(end)));
    }
    let head = EntryHead {
        older: newest as u64,
        object_offset: object_offset as u64,
        object_size: shape.size as u64,
        element_size: shape.identity.size,
        count: shape.count.unwrap_or(1),
        kind: shape.kind as u32,
        element_alignment: shape.identity.alignment,
        name_len: len(name)?,
        type_name_len: len(&shape.identity.name)?,
        dtype_len: len(&shape.identity.dtype)?,
        reserved: 0,
        name_hash: fnv1a(name.bytes()),
        spare: 0,
    };
    let mut entry = bytemuck::bytes_of(&head).to_vec();
    texts.iter().for_each(|text| entry.extend_from_slice(text.as_bytes()));
    Ok(Plan { object_offset, entry_offset, end, entry })
}

/// How many bytes a segment needs behind the participants' table to hold this one object.
pub(crate) fn room_for(name: &str, shape: &Shape, objects_offset: usize) -> Result<usize> {
    let plan = plan(name, shape, 0, objects_offset, usize::MAX)?;
    Ok(plan.end - objects_offset)
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Memory(Vec<u8>);

    impl Bytes for Memory {
        fn size(&self) -> usize {
            self.0.len()
        }
        fn objects_offset(&self) -> usize {
            256
        }
        fn read(&self, offset: usize, target: &mut [u8]) {
            target.copy_from_slice(&self.0[offset..offset + target.len()]);
        }
    }

    fn memory_with_two() -> (Memory, usize) {
        let mut memory = Memory(vec![0; 4096]);
        let (mut newest, mut used) = (0, 256);
        for name in ["last", "book"] {
            let shape = Shape::array::<u32>(Kind::Array, Some(5)).unwrap();
            let plan = plan(name, &shape, newest, used, memory.size()).unwrap();
            memory.0[plan.entry_offset..plan.entry_offset + plan.entry.len()].copy_from_slice(&plan.entry);
            (newest, used) = (plan.entry_offset, plan.end);
        }
        (memory, newest)
    }

    #[test]
    fn finds_what_was_planned() {
        let (memory, newest) = memory_with_two();
        for name in ["last", "book"] {
            let entry = find(&memory, newest, name).unwrap().unwrap();
            entry.check(&Shape::array::<u32>(Kind::Array, None).unwrap()).unwrap();
            assert_eq!(entry.count, 5);
        }
        assert!(find(&memory, newest, "none").unwrap().is_none());
    }

    #[test]
    fn says_what_differs() {
        let (memory, newest) = memory_with_two();
        let entry = find(&memory, newest, "book").unwrap().unwrap();
        for (shape, text) in [
            (
                Shape::array::<f64>(Kind::Array, None).unwrap(),
                "elements are u32 of 4 bytes, this program's are f64 of 8 bytes",
            ),
            (Shape::array::<u32>(Kind::Array, Some(6)).unwrap(), "it has 5 elements, this program expects 6"),
            (Shape::array::<u32>(Kind::RawArray, None).unwrap(), "it is an array, not a raw array"),
            (Shape::value::<u32>(Kind::Value), "it is an array, not a value"),
        ] {
            let error = entry.check(&shape).unwrap_err();
            assert_eq!((error.kind(), error.to_string().as_str()), (ErrorKind::TypeMismatch, text));
        }
    }

    #[test]
    fn no_bytes_make_it_panic_or_run_for_ever() {
        let (memory, newest) = memory_with_two();
        for position in 256..600 {
            for value in [0, 1, 0x7f, 0xff] {
                let mut damaged = Memory(memory.0.clone());
                damaged.0[position] = value;
                let walked = entries(&damaged, newest).take(100).count();
                assert!(walked < 100);
                if let Ok(Some(entry)) = find(&damaged, newest, "book") {
                    // What passes the checks must lie inside.
                    if entry.check(&Shape::array::<u32>(Kind::Array, None).unwrap()).is_ok() {
                        assert!(entry.object_offset + 128 + entry.count as usize * 4 <= damaged.size());
                    }
                }
            }
        }
        assert!(entries(&memory, 4095).next().unwrap().is_err());
        assert!(entries(&memory, usize::MAX).next().unwrap().is_err());
    }
}
