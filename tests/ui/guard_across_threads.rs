fn main() {
    let mutex = multiproc::Mutex::new(1).unwrap();
    let guard = mutex.lock().unwrap();
    std::thread::scope(|threads| {
        threads.spawn(move || drop(guard));
    });
}
