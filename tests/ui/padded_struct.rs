multiproc::plain! {
    struct Padded { price: f64, size: u32 }
}

fn main() {
    let _ = multiproc::Value::new(Padded { price: 1.0, size: 1 });
}
