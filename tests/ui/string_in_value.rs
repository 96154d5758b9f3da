fn main() {
    let _ = multiproc::Value::new(String::from("bob"));
}
