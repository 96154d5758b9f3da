//! The children of this process that have not been collected, whether or not anybody still holds them.

use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::process::child::Child;
use crate::sys::clock::Deadline;
use crate::sys::spawn;

/// How long daemons have, all together, between SIGTERM and SIGKILL when this process exits.
const DAEMON_GRACE: Duration = Duration::from_secs(1);

struct Table {
    /// The process whose children these are: a fork has none.
    owner: u32,
    /// How many were counted so far.
    count: u64,
    children: Vec<Arc<Child>>,
    is_exit_watched: bool,
}

static TABLE: Mutex<Table> =
    Mutex::new(Table { owner: 0, count: 0, children: Vec::new(), is_exit_watched: false });

fn table() -> MutexGuard<'static, Table> {
    let mut table = TABLE.lock().unwrap_or_else(PoisonError::into_inner);
    let own = std::process::id();
    if table.owner != own {
        // This process is a fork. What it copied is its parent's to give back, so it is not dropped here.
        std::mem::forget(std::mem::take(&mut table.children));
        // A fork copies the list of exit handlers too.
        *table = Table { owner: own, count: 0, children: Vec::new(), is_exit_watched: table.is_exit_watched };
    }
    table
}

/// The number of the next child, from 1.
pub(crate) fn next_number() -> u64 {
    let mut table = table();
    table.count += 1;
    table.count
}

/// Has the children ended, or waited for, when this process exits.
pub(crate) fn watch_exit() -> Result<()> {
    let mut table = table();
    if !table.is_exit_watched {
        spawn::at_exit(finish).map_err(|source| Error::os("no exit handler can be registered", source))?;
        table.is_exit_watched = true;
    }
    Ok(())
}

pub(crate) fn add(child: Arc<Child>) {
    table().children.push(child);
}

/// Collects those that have ended, and forgets them: who holds one still finds in it what it left.
pub(crate) fn collect_ended() {
    let children = table().children.clone();
    if children.is_empty() {
        return;
    }
    let pidfds: Vec<_> = children.iter().map(|child| child.as_fd()).collect();
    // Should the one call for all fail, each is asked by itself.
    let ready = spawn::readable_now(&pidfds).unwrap_or_else(|_| vec![true; children.len()]);
    for (child, _) in children.iter().zip(ready).filter(|(_, is_ready)| *is_ready) {
        if child.end().is_some() {
            forget(child);
        }
    }
}

/// Takes an ended child off the list.
pub(crate) fn forget(child: &Child) {
    let mut table = table();
    let at = table.children.iter().position(|other| std::ptr::eq(&raw const **other, child));
    let forgotten = at.map(|at| table.children.swap_remove(at));
    // What it left may be dropped with it, which is nothing to do under the lock.
    drop(table);
    drop(forgotten);
}

/// Those that run now, the oldest first.
pub(crate) fn active() -> Vec<Arc<Child>> {
    collect_ended();
    let mut children = table().children.clone();
    children.sort_by_key(|child| child.number);
    children
}

/// At exit: daemons are told to end and, after a grace, made to; all others are waited for.
extern "C" fn finish() {
    let (daemons, others): (Vec<_>, Vec<_>) = active().into_iter().partition(|child| child.is_daemon);
    for daemon in &daemons {
        // It fails only for a child that runs under another user by now; that one is waited for like the others.
        let _ = daemon.signal(libc::SIGTERM);
    }
    let deadline = Deadline::after(DAEMON_GRACE);
    for daemon in &daemons {
        if daemon.wait(deadline).is_err() {
            // As above.
            let _ = daemon.signal(libc::SIGKILL);
        }
    }
    for child in daemons.iter().chain(&others) {
        // How it ended interests nobody any more.
        let _ = child.wait(Deadline::Never);
    }
}
