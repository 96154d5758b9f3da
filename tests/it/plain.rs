//! What may lie in shared memory, and what the compiler says of the rest.

use multiproc::{List, Segment, Text, Value, plain};

use super::unique;

plain! {
    pub struct Inner { pub low: i16, pub high: i16 }
    /// Nested, and with arrays.
    pub struct Outer { pub name: Text<8>, pub inner: Inner, pub grid: [[f32; 2]; 3], pub count: u64 }
}

#[test]
fn a_declared_layout_is_in_the_directory_for_others_to_read() -> multiproc::Result<()> {
    let name = unique("dtype");
    let segment = Segment::create(&name, 4096)?;
    segment.array::<[f64; 3]>("rows", 2)?;
    segment.value("flag", true)?;
    segment.value("outer", <Outer as bytemuck::Zeroable>::zeroed())?;
    segment.value("list", List::<u8, 4>::default())?;
    let dtypes: Vec<(String, Option<String>)> =
        segment.objects()?.into_iter().map(|object| (object.type_name, object.dtype)).collect();
    assert_eq!(dtypes[0], ("[f64; 3]".to_owned(), Some("(3,)<f8".to_owned())));
    assert_eq!(dtypes[1], ("bool".to_owned(), Some("|b1".to_owned())));
    assert_eq!(dtypes[2].0, "Outer");
    assert_eq!(dtypes[3], ("List<u8, 4>".to_owned(), None));
    Ok(())
}

#[test]
fn text_and_lists_in_values() -> multiproc::Result<()> {
    let name = Value::new(Text::<16>::new("größe").unwrap())?;
    assert_eq!(name.get().to_str(), Ok("größe"));
    name.set(Text::truncated("far too long for sixteen bytes"));
    assert_eq!(name.get(), "far too long for");
    let recent = Value::new(List::<f64, 3>::default())?;
    recent.update(|mut list| {
        list.push(1.5).unwrap();
        list
    });
    assert_eq!(recent.get().as_slice(), [1.5]);
    Ok(())
}

#[test]
fn what_cannot_be_shared_does_not_compile() {
    // The compiler's words change with the compiler: those of the one that they were recorded with are compared. (That it fails
    // with any is said by the `compile_fail` examples of `Value`, `Array` and `plain!`.)
    let rustc = std::process::Command::new("rustc").arg("--version").output().unwrap();
    if !rustc.stdout.starts_with(b"rustc 1.95.") {
        return;
    }
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/ui/*.rs");
}
