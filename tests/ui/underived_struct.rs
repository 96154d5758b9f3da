#[derive(Clone, Copy)]
struct Tick { price: f64 }

fn main() {
    let _ = multiproc::Array::<Tick>::new(3);
    let _ = multiproc::Mutex::new(Tick { price: 1.0 });
}
