//! Loads an image archive into a store and says how long it took:
//! `cargo run --release --example load -- ARCHIVE STORE [--sync] [--save OUT]`.
#![allow(clippy::print_stdout, reason = "an example reports to its user")]

use std::fs::File;
use std::time::Instant;

use vessel_image::{Format, LoadOptions, SaveImage, Store, load, save};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let mut args = std::env::args().skip(1);
    let (Some(archive), Some(root)) = (args.next(), args.next()) else {
        return Err("usage: load ARCHIVE STORE [--sync] [--save OUT]".into());
    };
    let rest: Vec<String> = args.collect();
    let store = Store::open(root)?;
    let options = LoadOptions {
        sync: rest.iter().any(|arg| arg == "--sync"),
        ..LoadOptions::default()
    };
    let start = Instant::now();
    let images = load(&store, File::open(archive)?, &options, &mut |_| {})?;
    println!("loaded in {:.3} s", start.elapsed().as_secs_f64());
    for image in &images {
        println!("{} {:?} {} bytes", image.id, image.references, image.size());
    }
    if let Some(at) = rest.iter().position(|arg| arg == "--save") {
        let out = rest.get(at + 1).ok_or("--save takes a file")?;
        let save_images: Vec<_> = images
            .iter()
            .map(|image| SaveImage {
                id: image.id.clone(),
                references: image.references.clone(),
            })
            .collect();
        let start = Instant::now();
        save(&store, &save_images, Format::Docker, File::create(out)?)?;
        println!("saved in {:.3} s", start.elapsed().as_secs_f64());
    }
    Ok(())
}
