//! A list of bounded length, in place.

#![expect(
    unsafe_code,
    reason = "the length shares its place with an item's alignment, and bytemuck's derive takes no const parameter"
)]

use std::fmt;
use std::ops::{Deref, DerefMut};

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// A list of up to `N` items, which lies in place: what a `Vec` is elsewhere.
///
/// It has a length of 8 bytes (little-endian, in the place of a whole item where items are larger), then the items, and no
/// padding, so it may be an element of an [`Array`](crate::Array). As another program may leave any bits there, a length beyond
/// `N` counts as `N`.
///
/// # Examples
///
/// ```
/// use multiproc::{List, Mutex};
///
/// # fn main() -> multiproc::Result<()> {
/// let recent = Mutex::new(List::<u32, 3>::default())?;
/// let mut recent = recent.lock()?;
/// for n in 0..3 {
///     recent.push(n).unwrap();
/// }
/// assert_eq!(recent.push(3), Err(3)); // full: the item comes back
/// assert_eq!(recent.as_slice(), [0, 1, 2]);
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
#[repr(C)]
pub struct List<T: Copy, const N: usize> {
    len: Len<T>,
    items: [T; N],
}

/// The length, in a place as large as an item if that is more: so the items behind it need no padding, whatever their alignment.
/// An item of 8 bytes or more fills the place; a smaller one is aligned to less than 8 bytes, and the length fills it.
#[derive(Clone, Copy)]
#[repr(C)]
union Len<T: Copy> {
    bytes: [u8; 8],
    _item: T,
}

// SAFETY: zero is a length, and zero items are items.
unsafe impl<T: Pod, const N: usize> Zeroable for List<T, N> {
    fn zeroed() -> List<T, N> {
        const {
            let item = size_of::<T>();
            let filled = if item > 8 { item } else { 8 };
            assert!(size_of::<Len<T>>() == filled, "an item of no size is aligned to at most 8 bytes");
        }
        List { len: Len { bytes: [0; 8] }, items: [T::zeroed(); N] }
    }
}

// SAFETY: no padding (see `Len`; items are multiples of their alignment), no pointers, and every bit pattern is a list, for the length
// is cut to `N` where it is read and `T` is `Pod`.
unsafe impl<T: Pod, const N: usize> Pod for List<T, N> {}

impl<T: Pod, const N: usize> List<T, N> {
    /// The most items it can hold.
    pub const CAPACITY: usize = N;

    /// These items, or `None` if there are more than `N`.
    #[must_use]
    pub fn from_slice(items: &[T]) -> Option<List<T, N>> {
        let mut list = List::default();
        list.items.get_mut(..items.len())?.copy_from_slice(items);
        list.set_len(items.len());
        Some(list)
    }

    /// Puts an item at the end.
    ///
    /// # Errors
    ///
    /// The item, if the list is full.
    pub fn push(&mut self, item: T) -> Result<(), T> {
        let len = self.len();
        match self.items.get_mut(len) {
            Some(free) => *free = item,
            None => return Err(item),
        }
        self.set_len(len + 1);
        Ok(())
    }

    /// Takes the last item off.
    pub fn pop(&mut self) -> Option<T> {
        let last = self.as_slice().last().copied()?;
        self.set_len(self.len() - 1);
        Some(last)
    }

    /// Takes all items off.
    pub fn clear(&mut self) {
        self.set_len(0);
    }

    /// The items.
    #[must_use]
    pub fn as_slice(&self) -> &[T] {
        &self.items[..self.used()]
    }

    /// The items, to be changed in place.
    #[must_use]
    pub fn as_mut_slice(&mut self) -> &mut [T] {
        let used = self.used();
        &mut self.items[..used]
    }

    fn used(&self) -> usize {
        // SAFETY: the place is at least 8 bytes of a `Pod` value or of a length, so these are initialised.
        let len = unsafe { self.len.bytes };
        usize::try_from(u64::from_le_bytes(len)).map_or(N, |len| len.min(N))
    }

    fn set_len(&mut self, len: usize) {
        self.len.bytes = (len as u64).to_le_bytes();
    }
}

impl<T: Pod, const N: usize> Default for List<T, N> {
    fn default() -> List<T, N> {
        Zeroable::zeroed()
    }
}

impl<T: Pod, const N: usize> Deref for List<T, N> {
    type Target = [T];

    fn deref(&self) -> &[T] {
        self.as_slice()
    }
}

impl<T: Pod, const N: usize> DerefMut for List<T, N> {
    fn deref_mut(&mut self) -> &mut [T] {
        self.as_mut_slice()
    }
}

/// Compares the items, not what lies behind the end.
impl<T: Pod + PartialEq, const N: usize> PartialEq for List<T, N> {
    fn eq(&self, other: &List<T, N>) -> bool {
        self.as_slice() == other.as_slice()
    }
}

impl<T: Pod + Eq, const N: usize> Eq for List<T, N> {}

impl<T: Pod + fmt::Debug, const N: usize> fmt::Debug for List<T, N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.as_slice().fmt(f)
    }
}

/// Travels as a list.
impl<T: Pod + Serialize, const N: usize> Serialize for List<T, N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.as_slice().serialize(serializer)
    }
}

impl<'de, T: Pod + Deserialize<'de>, const N: usize> Deserialize<'de> for List<T, N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<List<T, N>, D::Error> {
        let items = Vec::<T>::deserialize(deserializer)?;
        List::from_slice(&items)
            .ok_or_else(|| serde::de::Error::custom(format!("{} items do not fit into {N}", items.len())))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fills_and_empties() {
        let mut list = List::<u16, 2>::default();
        assert_eq!(list.pop(), None);
        assert_eq!((list.push(1), list.push(2), list.push(3)), (Ok(()), Ok(()), Err(3)));
        list[0] = 9;
        assert_eq!(list.as_slice(), [9, 2]);
        assert_eq!((list.pop(), list.len()), (Some(2), 1));
        assert_eq!(List::<u16, 2>::from_slice(&[1, 2, 3]), None);
    }

    #[test]
    fn travels_as_a_list_and_must_fit() {
        let bytes = postcard::to_stdvec(&List::<u16, 3>::from_slice(&[7, 8, 9]).unwrap()).unwrap();
        assert_eq!(postcard::from_bytes::<List<u16, 4>>(&bytes).unwrap().as_slice(), [7, 8, 9]);
        assert!(postcard::from_bytes::<List<u16, 2>>(&bytes).is_err());
    }

    #[test]
    fn any_length_is_cut() {
        let garbage: List<u8, 4> = bytemuck::cast([0xff_u8; 12]);
        assert_eq!(garbage.len(), 4);
        assert_eq!(size_of::<List<u8, 3>>(), 11);
        assert_eq!(size_of::<List<u64, 3>>(), 32);
        assert_eq!(size_of::<List<u128, 3>>(), 64);
    }
}
