//! A child is killed in the middle of a transfer, holding the lock. The parent is told, puts the accounts in order, and goes on.
//! Watch the second line: nobody waits for the dead.

use multiproc::{Mutex, Process, current_process};

/// Two accounts whose sum is always 100.
type Accounts = Mutex<[i64; 2]>;

fn transfer(accounts: Accounts) {
    let mut accounts = accounts.lock().unwrap();
    accounts[0] -= 30;
    // Half-way: the money is in neither account. No destructor runs, nothing is unlocked.
    current_process().kill().unwrap();
    accounts[1] += 30;
}

pub(crate) fn main() -> multiproc::Result<()> {
    let accounts: Accounts = Mutex::new([60, 40])?;
    let died = Process::spawn(transfer, (accounts.clone(),))?.join().expect_err("it kills itself");
    println!("child: {died}");

    let mut accounts = match accounts.lock() {
        Ok(_) => panic!("the owner died, and nobody was told"),
        Err(died) => {
            println!("parent: {died}");
            let mut accounts = died.into_guard();
            println!("parent: found {:?}", *accounts);
            accounts[0] = 100 - accounts[1];
            accounts.recover();
            accounts
        }
    };
    accounts[0] -= 10;
    accounts[1] += 10;
    println!("parent: goes on with {:?}", *accounts);
    assert_eq!(*accounts, [50, 50]);
    Ok(())
}
