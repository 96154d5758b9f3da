//! How often does each byte, and each length of word, occur in the files named on the command line (this crate's sources if none)? One
//! process a CPU counts into one shared array. At the end the counts are compared with those of a single process.

use std::io::{IsTerminal, Write};
use std::path::{Path, PathBuf};

use multiproc::{Array, Ordering::Relaxed, Process, Value, cpu_count};

/// 256 bytes, then words of 0 to 63 bytes; longer ones count as 63.
const BINS: usize = 256 + 64;

fn count(
    files: Vec<PathBuf>,
    next: Value<usize>,
    done: Value<u64>,
    counts: Array<u64>,
) -> multiproc::Result<()> {
    while let Some(file) = files.get(next.fetch_add(1, Relaxed)) {
        let text = std::fs::read(file).unwrap_or_default();
        let found = histogram(&text);
        counts.lock()?.iter_mut().zip(found).for_each(|(count, found)| *count += found);
        done.fetch_add(text.len() as u64, Relaxed);
    }
    Ok(())
}

fn histogram(text: &[u8]) -> Vec<u64> {
    let mut counts = vec![0; BINS];
    text.iter().for_each(|&byte| counts[usize::from(byte)] += 1);
    let words = text.split(|byte| !byte.is_ascii_alphanumeric()).filter(|word| !word.is_empty());
    words.for_each(|word| counts[256 + word.len().min(63)] += 1);
    counts
}

pub(crate) fn run(files: Vec<PathBuf>) -> multiproc::Result<()> {
    let (next, done, counts) = (Value::new(0)?, Value::new(0)?, Array::new(BINS)?);
    let arguments = || (files.clone(), next.clone(), done.clone(), counts.clone());
    let workers: Vec<_> =
        (0..cpu_count().max(2)).map(|_| Process::spawn(count, arguments())).collect::<Result<_, _>>()?;
    while std::io::stderr().is_terminal() && workers.iter().any(Process::is_alive) {
        eprint!("\r{} of {} files, {} bytes ", next.get().min(files.len()), files.len(), done.get());
        let _ = std::io::stderr().flush();
        std::thread::sleep(std::time::Duration::from_millis(20));
    }
    for worker in workers {
        worker.join()??;
    }
    let alone = files.iter().map(|file| histogram(&std::fs::read(file).unwrap_or_default()));
    let alone = alone.fold(vec![0; BINS], |sum, found| sum.iter().zip(found).map(|(a, b)| a + b).collect());
    assert_eq!(counts.to_vec()?, alone, "the processes counted otherwise than one alone");
    let words: u64 = alone[256..].iter().sum();
    println!("{} files, {} bytes, {words} words: the same as one process counts", files.len(), done.get());
    Ok(())
}

fn files_below(folder: &Path) -> Vec<PathBuf> {
    let entries = std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path());
    entries.flat_map(|path| if path.is_dir() { files_below(&path) } else { vec![path] }).collect()
}

pub(crate) fn main() -> multiproc::Result<()> {
    let named: Vec<PathBuf> = std::env::args_os().skip(1).map(PathBuf::from).collect();
    let sources = || files_below(&Path::new(env!("CARGO_MANIFEST_DIR")).join("src"));
    run(if named.is_empty() { sources() } else { named })
}
