//! What all typed handles have in common: cloning, travelling, and being found in a segment.

/// Implements it for `$handle<T>`, a struct of an `object` and an `element: PhantomData<T>`. `$shape` is what an object must be to be
/// opened as one.
macro_rules! handle {
    ($handle:ident<T: $bound:ident>, $shape:expr) => {
        impl<T: $bound> $handle<T> {
            fn of(object: $crate::segment::object::Object) -> $handle<T> {
                $handle { object, element: std::marker::PhantomData }
            }
        }

        impl<T: $bound> Clone for $handle<T> {
            fn clone(&self) -> $handle<T> {
                $handle::of(self.object.clone())
            }
        }

        /// Only while it is sent to another process; anywhere else it is an error that says so.
        impl<T: $bound> serde::Serialize for $handle<T> {
            fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                $crate::transfer::serialize(&self.object, serializer)
            }
        }

        impl<'de, T: $bound> serde::Deserialize<'de> for $handle<T> {
            fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<$handle<T>, D::Error> {
                $crate::transfer::deserialize(deserializer, &$shape).map($handle::of)
            }
        }

        impl<T: $bound> $crate::segment::Handle for $handle<T> {}

        impl<T: $bound> $crate::segment::sealed::Handle for $handle<T> {
            #[expect(private_interfaces, reason = "sealed: nobody outside can name the trait")]
            fn open_in(
                attachment: &std::sync::Arc<$crate::segment::Attachment>,
                name: &str,
            ) -> $crate::Result<$handle<T>> {
                $crate::segment::object::Object::open_in(attachment, name, &$shape).map($handle::of)
            }
        }
    };
}

pub(crate) use handle;
