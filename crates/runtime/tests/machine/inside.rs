//! What runs in the machine.

use std::io::{Read, Write};

pub fn main(words: &[String]) -> ! {
    let words: Vec<&str> = words.iter().map(String::as_str).collect();
    match words.as_slice() {
        ["say", text @ ..] => println!("{}", text.join(" ")),
        ["complain", text @ ..] => eprintln!("{}", text.join(" ")),
        ["exit", code] => std::process::exit(code.parse().unwrap()),
        ["cat"] => {
            let (mut input, mut output) = (std::io::stdin(), std::io::stdout());
            let mut buffer = [0; 4096];
            loop {
                match input.read(&mut buffer) {
                    Ok(0) | Err(_) => break,
                    Ok(count) => {
                        output.write_all(&buffer[..count]).unwrap();
                        output.flush().unwrap();
                    }
                }
            }
        }
        ["read", path] => match std::fs::read_to_string(path) {
            Ok(text) => print!("{text}"),
            Err(error) => println!("{error}"),
        },
        ["write", path, text] => match std::fs::write(path, text) {
            Ok(()) => println!("written"),
            Err(error) => println!("{error}"),
        },
        ["much", count] => {
            let line = vec![b'x'; 1023];
            let mut output = std::io::stdout().lock();
            for _ in 0..count.parse().unwrap() {
                output.write_all(&line).unwrap();
                output.write_all(b"\n").unwrap();
            }
        }
        ["size"] => {
            let size = rustix::termios::tcgetwinsize(std::io::stdout());
            println!("{:?}", size.map(|size| (size.ws_row, size.ws_col)).ok());
            // Until it is another.
            loop {
                std::thread::sleep(std::time::Duration::from_millis(20));
                let now = rustix::termios::tcgetwinsize(std::io::stdout()).unwrap();
                if now.ws_row == 50 {
                    println!("{} {}", now.ws_row, now.ws_col);
                    break;
                }
            }
        }
        ["sleep"] => std::thread::sleep(std::time::Duration::from_secs(600)),
        other => panic!("{other:?}"),
    }
    std::process::exit(0)
}
