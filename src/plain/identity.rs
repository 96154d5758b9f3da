//! What a type is to another binary: its size, its alignment, its name, and its layout where that is known.
//!
//! `type_name`'s whole text differs between binaries and compilers (it names crates and modules), so paths are cut down to
//! their last segment. The layout is a NumPy dtype
//! ([data type objects](https://numpy.org/doc/stable/reference/arrays.dtypes.html)): known for numbers, arrays of them, and structs
//! that were declared with `plain!`; where both sides know it, it decides, and else the name does.

use std::any::{TypeId, type_name};
use std::collections::HashMap;
use std::fmt;
use std::sync::OnceLock;

/// The declarations of `plain!` in this program, gathered by the linker.
#[linkme::distributed_slice]
pub static DECLARATIONS: [Declaration];

/// A field's name, and how to ask for its dtype.
type Field = (&'static str, fn() -> Option<String>);

/// One struct declared with `plain!`.
#[derive(Debug)]
pub struct Declaration {
    type_id: fn() -> TypeId,
    fields: &'static [Field],
}

impl Declaration {
    /// Of struct `T` with these fields, in order.
    #[must_use]
    pub const fn new<T: 'static>(fields: &'static [Field]) -> Declaration {
        Declaration { type_id: TypeId::of::<T>, fields }
    }

    fn dtype(&self) -> Option<String> {
        let fields: Option<Vec<String>> = self
            .fields
            .iter()
            .map(|(name, dtype)| {
                let dtype = dtype()?;
                // A nested struct is a list already; everything else is quoted.
                Some(if dtype.starts_with('[') {
                    format!("('{name}', {dtype})")
                } else {
                    format!("('{name}', '{dtype}')")
                })
            })
            .collect();
        Some(format!("[{}]", fields?.join(", ")))
    }
}

/// The NumPy dtype of a type, where it is known.
#[must_use]
pub fn dtype_of<T: 'static>() -> Option<String> {
    static DECLARED: OnceLock<HashMap<TypeId, &'static Declaration>> = OnceLock::new();
    let declared = DECLARED.get_or_init(|| {
        DECLARATIONS.iter().map(|declaration| ((declaration.type_id)(), declaration)).collect()
    });
    match declared.get(&TypeId::of::<T>()) {
        Some(declaration) => declaration.dtype(),
        None => dtype_of_name(type_name::<T>()),
    }
}

/// Of a number, `bool`, `char`, or an array of them in any number of dimensions: these names are the same everywhere.
fn dtype_of_name(name: &str) -> Option<String> {
    let mut lengths = Vec::new();
    let mut rest = name;
    while let Some(inner) = rest.strip_prefix('[').and_then(|inner| inner.strip_suffix(']')) {
        let (element, length) = inner.rsplit_once("; ")?;
        lengths.push(length.parse::<usize>().ok()?);
        rest = element;
    }
    let order = if cfg!(target_endian = "little") { '<' } else { '>' };
    let scalar = match rest {
        "bool" => "|b1".to_string(),
        "u8" => "|u1".to_string(),
        "i8" => "|i1".to_string(),
        "char" => format!("{order}U1"),
        "usize" | "u64" => format!("{order}u8"),
        "isize" | "i64" => format!("{order}i8"),
        "u16" => format!("{order}u2"),
        "i16" => format!("{order}i2"),
        "u32" => format!("{order}u4"),
        "i32" => format!("{order}i4"),
        "f32" => format!("{order}f4"),
        "f64" => format!("{order}f8"),
        _ => return None,
    };
    Some(match lengths.as_slice() {
        [] => scalar,
        [length] => format!("({length},){scalar}"),
        lengths => {
            let lengths: Vec<String> = lengths.iter().map(ToString::to_string).collect();
            format!("({}){scalar}", lengths.join(", "))
        }
    })
}

/// A type, as it stands in a segment's directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Identity {
    pub(crate) size: u64,
    pub(crate) alignment: u32,
    /// The name, its paths cut down to their last segments.
    pub(crate) name: String,
    /// The NumPy dtype, empty where it is not known.
    pub(crate) dtype: String,
}

impl Identity {
    pub(crate) fn of<T: 'static>() -> Identity {
        Identity {
            size: size_of::<T>() as u64,
            alignment: align_of::<T>() as u32,
            name: without_paths(type_name::<T>()),
            dtype: dtype_of::<T>().unwrap_or_default(),
        }
    }

    /// Whether two programs that have these types may share memory.
    pub(crate) fn matches(&self, other: &Identity) -> bool {
        let same_layout = if self.dtype.is_empty() || other.dtype.is_empty() {
            self.name == other.name
        } else {
            self.dtype == other.dtype
        };
        self.size == other.size && self.alignment == other.alignment && same_layout
    }

    /// 32 bits that differ for most types that do not match; for objects that only programs of one image share.
    pub(crate) fn hash(&self) -> u32 {
        let text = if self.dtype.is_empty() { &self.name } else { &self.dtype };
        fnv1a(text.bytes().chain(self.size.to_le_bytes()).chain(self.alignment.to_le_bytes()))
    }

    /// This type and the other, told apart: by name and size where these differ, else by layout.
    pub(crate) fn told_from(&self, other: &Identity) -> String {
        if self.name != other.name || self.size != other.size || self.dtype == other.dtype {
            self.to_string()
        } else if self.alignment == other.alignment {
            format!("{self} with the layout {}", self.dtype)
        } else {
            format!("{self} aligned to {}", self.alignment)
        }
    }
}

impl fmt::Display for Identity {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plural = if self.size == 1 { "" } else { "s" };
        write!(f, "{} of {} byte{plural}", self.name, self.size)
    }
}

/// The 32-bit [FNV-1a](http://www.isthe.com/chongo/tech/comp/fnv/) hash.
pub(crate) fn fnv1a(bytes: impl Iterator<Item = u8>) -> u32 {
    bytes.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// `[my::Tick; 4]` to `[Tick; 4]`.
fn without_paths(name: &str) -> String {
    let mut short = String::with_capacity(name.len());
    let mut segment_start = 0;
    let mut rest = name;
    while let Some(character) = rest.chars().next() {
        if let Some(behind) = rest.strip_prefix("::") {
            short.truncate(segment_start);
            rest = behind;
            continue;
        }
        short.push(character);
        if !character.is_alphanumeric() && character != '_' {
            segment_start = short.len();
        }
        rest = &rest[character.len_utf8()..];
    }
    short
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lose_their_paths() {
        for (name, short) in [
            ("f64", "f64"),
            ("my::inner::Tick", "Tick"),
            ("[my::Tick; 4]", "[Tick; 4]"),
            ("a::List<b::c::Tick, 8>", "List<Tick, 8>"),
            ("(a::B, c::D)", "(B, D)"),
        ] {
            assert_eq!(without_paths(name), short);
        }
    }

    #[test]
    fn numbers_and_arrays_of_them_have_a_dtype() {
        assert_eq!(dtype_of::<f64>().as_deref(), Some("<f8"));
        assert_eq!(dtype_of::<u8>().as_deref(), Some("|u1"));
        assert_eq!(dtype_of::<[i32; 3]>().as_deref(), Some("(3,)<i4"));
        assert_eq!(dtype_of::<[[f32; 2]; 5]>().as_deref(), Some("(5, 2)<f4"));
        assert_eq!(dtype_of::<u128>(), None);
        assert_eq!(dtype_of::<String>(), None);
    }

    #[test]
    fn the_layout_decides_where_both_know_it_and_else_the_name() {
        let known =
            |dtype: &str| Identity { size: 16, alignment: 8, name: "Tick".into(), dtype: dtype.into() };
        assert!(known("[('a', '<f8')]").matches(&known("")));
        assert!(known("[('a', '<f8')]").matches(&known("[('a', '<f8')]")));
        assert!(!known("[('a', '<f8')]").matches(&known("[('b', '<f8')]")));
        assert!(!Identity::of::<f64>().matches(&Identity::of::<u64>()));
        assert!(Identity::of::<usize>().matches(&Identity::of::<u64>()));
    }
}
