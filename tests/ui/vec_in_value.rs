fn main() {
    let _ = multiproc::Value::new(vec![1, 2, 3]);
}
