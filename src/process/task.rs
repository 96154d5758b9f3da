//! What may be run in a process: functions and closures that capture nothing, with their arguments as a tuple.

/// A function that can be run in another process with the arguments `Args`, a tuple of up to eight.
///
/// Every function item and every closure that captures nothing is one, if its parameters are those of the tuple: `f(a, b)`
/// takes `(a, b)`, one parameter takes `(a,)`, none takes `()`. It cannot be implemented otherwise.
#[diagnostic::on_unimplemented(
    message = "`{Self}` cannot be run in a process with the arguments `{Args}`",
    label = "not a function of these arguments that can be sent to a process",
    note = "pass a function, or a closure that captures nothing, and its arguments as a tuple: `(f, (a, b))`, `(f, (a,))`, `(f, ())`",
    note = "parameters must be owned (`String`, not `&str`), and whatever a closure needs must be passed as an argument"
)]
pub trait Task<Args>: Copy + Send + 'static + sealed::Sealed<Args> {
    /// What the function returns.
    type Output;

    #[doc(hidden)]
    fn run(self, args: Args) -> Self::Output;
}

mod sealed {
    /// Keeps [`Task`](super::Task) to functions: a process makes its own copy of one out of nothing, which a type of a user
    /// may not survive.
    pub trait Sealed<Args> {}
}

macro_rules! tasks {
    ($(($($argument:ident)*))*) => {$(
        impl<F, Output, $($argument),*> sealed::Sealed<($($argument,)*)> for F
        where
            F: FnOnce($($argument),*) -> Output + Copy + Send + 'static,
        {
        }

        impl<F, Output, $($argument),*> Task<($($argument,)*)> for F
        where
            F: FnOnce($($argument),*) -> Output + Copy + Send + 'static,
        {
            type Output = Output;

            fn run(self, args: ($($argument,)*)) -> Output {
                #[expect(non_snake_case, reason = "the parameters are named after their types")]
                let ($($argument,)*) = args;
                self($($argument),*)
            }
        }
    )*};
}

tasks! {
    (A)
    (A B)
    (A B C)
    (A B C D)
    (A B C D E)
    (A B C D E G)
    (A B C D E G H)
    (A B C D E G H I)
}

impl<F, Output> sealed::Sealed<()> for F where F: FnOnce() -> Output + Copy + Send + 'static {}

impl<F, Output> Task<()> for F
where
    F: FnOnce() -> Output + Copy + Send + 'static,
{
    type Output = Output;

    fn run(self, (): ()) -> Output {
        self()
    }
}

/// Fails to build, with advice, for anything but a function item or a closure that captures nothing.
pub(crate) const fn assert_captures_nothing<F>() {
    const {
        assert!(
            size_of::<F>() == 0,
            "a process runs a function or a closure that captures nothing (a `fn` pointer is not one): pass what it needs as an argument"
        );
    }
}
