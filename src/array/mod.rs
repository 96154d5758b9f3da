//! Arrays in shared memory: elements in place, in two forms.

mod guard;
pub(crate) mod locked;
pub(crate) mod raw;

pub use guard::ArrayGuard;

use std::ops::Range;

use crate::error::{Error, ErrorKind, Result};
use crate::plain::Element;
use crate::segment::layout::{Kind, Shape};

/// The shape of an array of `len` elements, or why there can be none.
fn shape_of<T: Element>(kind: Kind, name: &str, len: usize) -> Result<Shape> {
    Shape::array::<T>(kind, Some(len)).ok_or_else(|| {
        let detail = format!("{len} elements of {} bytes are more than can be counted", size_of::<T>());
        Error::new(ErrorKind::NoRoom, detail).attempting("create", kind.name(), name)
    })
}

/// What any array of this type must be to be opened.
fn any_length<T: Element>(kind: Kind) -> Shape {
    Shape::array::<T>(kind, None).expect("no elements can be counted")
}

/// The first index of `count` elements from `start` on, all of which must exist: as a slice panics, with the same words.
#[inline]
#[track_caller]
fn check_range(start: usize, count: usize, len: usize) -> Range<usize> {
    match start.checked_add(count) {
        Some(end) if end <= len => start..end,
        _ => out_of_range(start, count, len),
    }
}

#[cold]
#[track_caller]
fn out_of_range(start: usize, count: usize, len: usize) -> ! {
    panic!("range of {count} elements from index {start} out of range for array of length {len}");
}

#[inline]
#[track_caller]
fn check_index(index: usize, len: usize) {
    if index >= len {
        index_out_of_bounds(index, len);
    }
}

#[cold]
#[track_caller]
fn index_out_of_bounds(index: usize, len: usize) -> ! {
    panic!("index out of bounds: the len is {len} but the index is {index}");
}
