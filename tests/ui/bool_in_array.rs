fn main() {
    let _ = multiproc::Array::<bool>::new(3);
}
