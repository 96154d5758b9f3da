//! Text of bounded length, in place.

use std::borrow::Cow;
use std::fmt;
use std::str::Utf8Error;

use bytemuck::{Pod, Zeroable};
use serde::{Deserialize, Deserializer, Serialize, Serializer};

/// Text of up to `N` bytes, which lies in place: what a `String` is elsewhere.
///
/// It has a length of 4 bytes (little-endian) and `N` bytes, no padding and an alignment of 1, so it may be an element of an
/// [`Array`](crate::Array) and a field of a plain struct. As another program may leave any bits there, it is checked when it is
/// read: [`to_str`](Text::to_str) fails on bytes that are not UTF-8, and a length beyond `N` counts as `N`.
///
/// # Examples
///
/// ```
/// use multiproc::{Text, Value};
///
/// # fn main() -> multiproc::Result<()> {
/// let name = Value::new(Text::<32>::new("bob").unwrap())?;
/// assert_eq!(name.get().to_str(), Ok("bob"));
/// assert!(Text::<2>::new("bob").is_none());
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy)]
#[repr(C)]
pub struct Text<const N: usize> {
    len: [u8; 4],
    bytes: [u8; N],
}

/// SAFETY of the two: bytes alone, so there is no padding, zero is the empty text, and every bit pattern is a value.
#[expect(unsafe_code, reason = "bytemuck's derive does not take a const parameter")]
mod plain {
    use super::{Pod, Text, Zeroable};

    // SAFETY: see the module.
    unsafe impl<const N: usize> Zeroable for Text<N> {}
    // SAFETY: see the module.
    unsafe impl<const N: usize> Pod for Text<N> {}
}

impl<const N: usize> Text<N> {
    /// The most bytes it can hold.
    pub const CAPACITY: usize = N;

    /// This text, or `None` if it is longer than `N` bytes.
    #[must_use]
    pub fn new(text: &str) -> Option<Text<N>> {
        let mut new = Text { len: u32::try_from(text.len()).ok()?.to_le_bytes(), bytes: [0; N] };
        new.bytes.get_mut(..text.len())?.copy_from_slice(text.as_bytes());
        Some(new)
    }

    /// As much of this text as fits into `N` bytes, cut between two characters.
    #[must_use]
    pub fn truncated(text: &str) -> Text<N> {
        let end = (0..=N.min(text.len())).rev().find(|&end| text.is_char_boundary(end)).unwrap_or(0);
        Text::new(&text[..end]).unwrap_or_else(Zeroable::zeroed)
    }

    /// The text.
    ///
    /// # Errors
    ///
    /// If the bytes are not UTF-8, which only another program can have left there.
    pub fn to_str(&self) -> Result<&str, Utf8Error> {
        std::str::from_utf8(self.as_bytes())
    }

    /// Its bytes.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.bytes[..self.len()]
    }

    /// How many bytes long it is.
    #[must_use]
    pub fn len(&self) -> usize {
        usize::try_from(u32::from_le_bytes(self.len)).map_or(N, |len| len.min(N))
    }

    /// Whether it is empty.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<const N: usize> Default for Text<N> {
    fn default() -> Text<N> {
        Zeroable::zeroed()
    }
}

/// Compares the bytes, not what lies behind the end.
impl<const N: usize> PartialEq for Text<N> {
    fn eq(&self, other: &Text<N>) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> Eq for Text<N> {}

impl<const N: usize> PartialEq<str> for Text<N> {
    fn eq(&self, other: &str) -> bool {
        self.as_bytes() == other.as_bytes()
    }
}

impl<const N: usize> PartialEq<&str> for Text<N> {
    fn eq(&self, other: &&str) -> bool {
        self == *other
    }
}

impl<const N: usize> std::hash::Hash for Text<N> {
    fn hash<H: std::hash::Hasher>(&self, state: &mut H) {
        self.as_bytes().hash(state);
    }
}

impl<const N: usize> PartialOrd for Text<N> {
    fn partial_cmp(&self, other: &Text<N>) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl<const N: usize> Ord for Text<N> {
    fn cmp(&self, other: &Text<N>) -> std::cmp::Ordering {
        self.as_bytes().cmp(other.as_bytes())
    }
}

/// Bytes that are not UTF-8 are shown as U+FFFD.
impl<const N: usize> fmt::Display for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&String::from_utf8_lossy(self.as_bytes()))
    }
}

impl<const N: usize> fmt::Debug for Text<N> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&String::from_utf8_lossy(self.as_bytes()), f)
    }
}

/// Travels as text.
impl<const N: usize> Serialize for Text<N> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        self.to_str().map_err(serde::ser::Error::custom)?.serialize(serializer)
    }
}

impl<'de, const N: usize> Deserialize<'de> for Text<N> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Text<N>, D::Error> {
        let text = Cow::<'_, str>::deserialize(deserializer)?;
        Text::new(&text).ok_or_else(|| {
            serde::de::Error::custom(format!("a text of {} bytes does not fit into {N}", text.len()))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn capacity_is_in_bytes_and_cuts_fall_between_characters() {
        assert_eq!(Text::<4>::new("häß"), None);
        assert_eq!(Text::<5>::new("häß").unwrap(), "häß");
        assert_eq!(Text::<4>::truncated("häß"), "hä");
        assert_eq!(Text::<0>::truncated("x"), "");
        assert_eq!(size_of::<Text<5>>(), 9);
    }

    #[test]
    fn travels_as_text_and_must_fit() {
        let bytes = postcard::to_stdvec(&Text::<8>::new("größe").unwrap()).unwrap();
        assert_eq!(postcard::from_bytes::<Text<8>>(&bytes).unwrap(), "größe");
        assert!(postcard::from_bytes::<Text<4>>(&bytes).is_err());
    }

    #[test]
    fn any_bits_are_a_text() {
        let garbage: Text<4> = bytemuck::cast([0xff_u8; 8]);
        assert_eq!(garbage.len(), 4);
        assert!(garbage.to_str().is_err());
        assert_eq!(garbage.to_string(), "\u{fffd}\u{fffd}\u{fffd}\u{fffd}");
    }

    #[test]
    fn what_lies_behind_the_end_does_not_count() {
        let short: Text<4> = bytemuck::cast([1, 0, 0, 0, b'a', 1, 2, 3]);
        assert_eq!(short, Text::new("a").unwrap());
        assert_eq!(short.cmp(&Text::new("b").unwrap()), std::cmp::Ordering::Less);
    }
}
