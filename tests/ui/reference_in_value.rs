fn main() {
    let _ = multiproc::Value::new(&1);
}
