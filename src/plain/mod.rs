//! What may lie in shared memory: bounds over bytemuck's traits, the identity of a type across binaries, and the two
//! fixed-capacity types that stand in for `String` and `Vec`.

pub(crate) mod identity;
pub(crate) mod list;
pub(crate) mod number;
pub(crate) mod text;

use bytemuck::{CheckedBitPattern, NoUninit, Pod};

pub use number::{Integer, Number};

/// A type whose value is its bytes: it can be copied into shared memory, and checked on its way out.
///
/// It is implemented for every type that is bytemuck's `NoUninit + CheckedBitPattern`: integers, floats, `bool`, `char`,
/// arrays of them, field-less enums and structs without padding, by deriving or with [`plain!`](crate::plain!). There is nothing to
/// implement by hand. A `String` is not plain (its text lies elsewhere, in one process's memory); [`Text<N>`](crate::Text) is.
///
/// # Examples
///
/// ```
/// use bytemuck::{CheckedBitPattern, NoUninit};
/// use multiproc::Value;
///
/// #[derive(Clone, Copy, Debug, PartialEq, NoUninit, CheckedBitPattern)]
/// #[repr(u8)]
/// enum Light { Red, Green }
///
/// # fn main() -> multiproc::Result<()> {
/// let light = Value::new(Light::Red)?;
/// light.set(Light::Green);
/// assert_eq!(light.get(), Light::Green);
/// # Ok(())
/// # }
/// ```
///
/// ```compile_fail,E0277
/// # fn main() -> multiproc::Result<()> {
/// let name = multiproc::Value::new(String::from("bob"))?; // `String` cannot lie in shared memory: use Text<N>
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot lie in shared memory",
    label = "not plain bytes: it has padding, a pointer, a reference or a destructor",
    note = "for text use `multiproc::Text<N>`, for a list `multiproc::List<T, N>`, which hold up to N bytes or items in place",
    note = "for a struct or enum of your own derive bytemuck's traits (`#[repr(C)]`, no padding) or declare it with `multiproc::plain!`"
)]
pub trait Plain: Copy + Send + Sync + 'static + sealed::Plain {}

// Else the compiler speaks of bytemuck's traits, and not of what to use instead.
#[diagnostic::do_not_recommend]
impl<T: NoUninit + CheckedBitPattern + Send + Sync> Plain for T {}

/// A plain type of which every bit pattern is a value, so that `&T` and `&mut [T]` may be handed out over shared memory.
///
/// It is implemented for every type that is bytemuck's `Pod`: integers, floats, arrays of them, structs of them without
/// padding. `bool`, `char` and enums are not among them: a [`Value`](crate::Value) can hold these.
///
/// # Examples
///
/// ```compile_fail,E0277
/// # fn main() -> multiproc::Result<()> {
/// let flags = multiproc::Array::<bool>::new(4)?; // a peer may leave a 2 there: use `Array<u8>`
/// # Ok(())
/// # }
/// ```
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be an element of shared memory",
    label = "not a type of which every bit pattern is a value",
    note = "for text use `multiproc::Text<N>`, for a list `multiproc::List<T, N>`, for `bool` use `u8`; a `Value` can hold `bool`, `char` and enums",
    note = "for a struct of your own derive bytemuck's `Pod` and `Zeroable` (`#[repr(C)]`, no padding) or declare it with `multiproc::plain!`"
)]
pub trait Element: Pod + Send + Sync + sealed::Element {}

#[diagnostic::do_not_recommend]
impl<T: Pod + Send + Sync> Element for T {}

mod sealed {
    use bytemuck::{CheckedBitPattern, NoUninit, Pod};

    pub trait Plain: NoUninit + CheckedBitPattern {}
    impl<T: NoUninit + CheckedBitPattern> Plain for T {}

    pub trait Element {}
    impl<T: Pod> Element for T {}
}

/// Declares structs that may lie in shared memory, with their fields: other binaries compare the whole layout, and NumPy can read it.
///
/// Each struct becomes `#[repr(C)]`, `Clone`, `Copy` and bytemuck's `Pod` and `Zeroable`; its fields must be
/// [`Element`]s without padding between them. A struct that only derives bytemuck's traits can be shared as well; of it, other
/// binaries compare the size, the alignment and the name.
///
/// # Examples
///
/// ```
/// use multiproc::{Array, plain};
///
/// plain! {
///     /// One trade.
///     #[derive(Debug, PartialEq)]
///     pub struct Tick {
///         pub price: f64,
///         pub size: u32,
///         pub side: u32,
///     }
/// }
///
/// # fn main() -> multiproc::Result<()> {
/// let book = Array::<Tick>::new(16)?;
/// book.set(7, Tick { price: 101.25, size: 300, side: 0 })?;
/// assert_eq!(book.get(7)?.size, 300);
/// # Ok(())
/// # }
/// ```
///
/// Padding does not compile; say `unused: u32` where it would be:
///
/// ```compile_fail,E0512
/// multiproc::plain! {
///     pub struct Padded { pub price: f64, pub size: u32 }
/// }
/// ```
#[macro_export]
macro_rules! plain {
    ($($(#[$attribute:meta])* $visibility:vis struct $name:ident {
        $($(#[$field_attribute:meta])* $field_visibility:vis $field:ident : $type:ty),+ $(,)?
    })+) => {$(
        $(#[$attribute])*
        #[derive(Clone, Copy, $crate::__private::bytemuck::Pod, $crate::__private::bytemuck::Zeroable)]
        #[bytemuck(crate = "multiproc::__private::bytemuck")]
        #[repr(C)]
        $visibility struct $name {
            $($(#[$field_attribute])* $field_visibility $field: $type),+
        }

        const _: () = {
            #[$crate::__private::linkme::distributed_slice($crate::__private::DECLARATIONS)]
            #[linkme(crate = $crate::__private::linkme)]
            static DECLARATION: $crate::__private::Declaration =
                $crate::__private::Declaration::new::<$name>(&[
                    $((stringify!($field), $crate::__private::dtype_of::<$type>)),+
                ]);
        };
    )+};
}
