//! The names of segments and of the objects in them.

use crate::error::{Error, ErrorKind, Result};

/// The longest name of a segment, in bytes: what the file system takes.
const SEGMENT_NAME_MOST: usize = 255;

/// The longest name of an object in a segment, in bytes.
const OBJECT_NAME_MOST: usize = 255;

/// Checks a segment's name: what could be a file directly below the shared-memory directory, and none that is hidden.
pub(crate) fn check_segment(name: &str) -> Result<()> {
    check(name, SEGMENT_NAME_MOST)?;
    if name.contains('/') {
        return refuse("a name has no `/`: segments have no folders (and no leading `/`)");
    }
    if name.starts_with('.') {
        return refuse("a name does not begin with a dot");
    }
    Ok(())
}

/// Checks the name of an object inside a segment: any text that can be told apart.
pub(crate) fn check_object(name: &str) -> Result<()> {
    check(name, OBJECT_NAME_MOST)
}

fn check(name: &str, most: usize) -> Result<()> {
    if name.is_empty() {
        return refuse("the name is empty");
    }
    if name.contains('\0') {
        return refuse("a name has no NUL in it");
    }
    if name.len() > most {
        return Err(Error::new(
            ErrorKind::InvalidName,
            format!("the name has {} bytes, at most {most} are allowed", name.len()),
        ));
    }
    Ok(())
}

fn refuse(why: &'static str) -> Result<()> {
    Err(Error::new(ErrorKind::InvalidName, why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn refuses_with_a_reason() {
        let long = "x".repeat(256);
        for (name, reason) in [
            ("", "empty"),
            ("a/b", "`/`"),
            ("/a", "`/`"),
            ("a\0b", "NUL"),
            (".hidden", "dot"),
            ("..", "dot"),
            (long.as_str(), "256 bytes"),
        ] {
            let error = check_segment(name).unwrap_err();
            assert_eq!(error.kind(), ErrorKind::InvalidName);
            assert!(error.to_string().contains(reason), "{name:?}: {error}");
        }
        for name in ["a", "prices.eur", "größe", &"x".repeat(255)] {
            check_segment(name).unwrap();
        }
        check_object("a/b").unwrap();
    }
}
